"""Setup does what was chosen, remembers it, waits for nobody too long, and prints what it would."""

import re
import threading
import time
from collections.abc import Iterator

import pytest

from pgaudit_ctx.connection import connect
from pgaudit_ctx.errors import SourceNotReady, UsageError
from pgaudit_ctx.source import setup as source_setup
from support.command import run_binary
from support.database import Capture, Database, create_database, drop_database
from support.doctor import ask, command
from support.server import Server
from support.waiting import eventually


@pytest.fixture
def bare(source: Database, empty_database: Database) -> Capture:
    """The clinic's tables and an empty destination."""
    return Capture(source, empty_database)


def set_up(capture: Capture, *arguments: str) -> str:
    done = command(capture, "setup", *arguments)
    assert done.exit_code == 0, done.output
    return done.output


def published(capture: Capture) -> list[str]:
    rows = capture.source.execute(
        "SELECT schemaname || '.' || tablename AS name FROM pg_publication_tables ORDER BY 1"
    )
    return [row.name for row in rows]


def identity(capture: Capture, table: str) -> str:
    ((found,),) = capture.source.execute(
        "SELECT relreplident::text FROM pg_class WHERE oid = %s::regclass", [table]
    )
    return str(found)


def test_tables_are_chosen_by_schema_by_name_or_by_exclusion(bare: Capture) -> None:
    bare.source.execute(
        "CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY);"
        "CREATE TABLE sales.lines (id int PRIMARY KEY)"
    )
    set_up(bare, "--table", "dose", "--schema", "sales", "--exclude", "sales.lines")
    assert published(bare) == ["public.dose", "sales.orders"]
    assert identity(bare, "patient") == "d"


def test_a_choice_is_remembered_until_another_is_made(bare: Capture) -> None:
    set_up(bare, "--exclude", "dose")
    bare.source.execute("CREATE TABLE new (id int PRIMARY KEY)")
    set_up(bare)
    assert published(bare) == ["public.new", "public.patient", "public.sample"]
    assert ask(bare)["tables_published"].evidence == "3 table(s) are captured, 1 left out by choice"
    set_up(bare, "--all-tables")
    assert "public.dose" in published(bare)


def test_a_captured_table_that_is_excluded_stays_until_its_statement_is_run(bare: Capture) -> None:
    set_up(bare)
    said = set_up(bare, "--exclude", "dose")
    (statement,) = re.findall(r"to end that: (ALTER PUBLICATION .*)", said)
    assert "public.dose" in published(bare)
    bare.source.execute(statement)
    set_up(bare)
    assert "public.dose" not in published(bare)


def test_a_name_that_fits_no_table_is_wrong_usage(bare: Capture) -> None:
    for arguments in (["--exclude", "dos"], ["--schema", "nowhere"], ["--identity", "x.y=full"]):
        with pytest.raises(UsageError, match="the source has no"):
            command(bare, "setup", *arguments)


def test_identity_default_is_remembered_and_taken_back(bare: Capture) -> None:
    set_up(bare, "--identity", "patient=default")
    assert identity(bare, "patient") == "d"
    set_up(bare)
    assert identity(bare, "patient") == "d"
    assert ask(bare)["replica_identity"].state == "ok"
    set_up(bare, "--identity", "public.patient=full")
    assert identity(bare, "patient") == "f"


def test_identity_default_is_refused_where_it_would_break_the_application(bare: Capture) -> None:
    bare.source.execute("CREATE TABLE loose (a int)")
    with pytest.raises(UsageError, match="has no primary key"):
        command(bare, "setup", "--identity", "loose=default")


def test_a_lock_that_cannot_be_had_names_who_holds_it_and_setup_goes_on_where_it_ended(
    bare: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.source.setup.LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr("pgaudit_ctx.source.setup._PAUSE_SECONDS", 0.01)
    with bare.source.connect() as other, other.transaction():
        other.execute("LOCK TABLE dose IN ROW EXCLUSIVE MODE")
        done = command(bare, "setup")
        assert done.exit_code == 1
        assert f"process {other.info.backend_pid} (idle in transaction" in done.output
        assert published(bare) == ["public.patient", "public.sample"]
    said = set_up(bare)
    assert "old values of public.dose reach the log" in said
    assert "public.dose is sent from here on" in said
    assert "patient" not in said
    assert len(published(bare)) == 3


def test_the_slot_waits_for_old_transactions_as_long_as_it_may_and_names_them(
    bare: Capture,
) -> None:
    with bare.source.connect() as other, other.transaction():
        other.execute("SELECT pg_current_xact_id()")
        pid = other.info.backend_pid
        with pytest.raises(SourceNotReady, match=f"process {pid} .idle in transaction") as refused:
            command(bare, "setup", "--wait", "0.3s")
        assert "within 0 s" in str(refused.value)
        (left,) = bare.source.execute(
            f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{bare.options.slot}'"
        )
        assert left.count == 0
        ending = threading.Timer(0.5, other.execute, ["SELECT 1"])
        ending.start()
        ending.join()
    assert "captured from" in set_up(bare)


def test_setup_says_whom_the_slot_waits_for_before_it_waits(bare: Capture) -> None:
    seen = []
    with bare.source.connect() as other:
        other.execute("BEGIN")
        other.execute("SELECT pg_current_xact_id()")

        def waiting(sessions) -> None:
            seen.extend(sessions)
            other.execute("COMMIT")

        with connect(bare.source.url, "source") as connection:
            source_setup.run(connection, bare.options.slot, "pgaudit_ctx", waiting=waiting)
        assert [session.pid for session in seen] == [other.info.backend_pid]


def test_a_publication_for_all_tables_is_refused_with_the_reason(bare: Capture) -> None:
    bare.source.execute("CREATE PUBLICATION pgaudit_ctx FOR ALL TABLES")
    with pytest.raises(SourceNotReady, match="would capture itself"):
        command(bare, "setup")
    assert identity(bare, "patient") == "d"


def test_a_trail_in_the_audited_database_does_not_capture_itself(source: Database) -> None:
    both = Capture(source, source)
    set_up(both)
    source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    both.run()
    assert len(both.changes()) == 1


def test_for_a_table_that_is_new_a_snapshot_is_offered(bare: Capture) -> None:
    assert "snapshot" not in set_up(bare)
    bare.source.execute("CREATE TABLE new (id int PRIMARY KEY); INSERT INTO new VALUES (1)")
    (offered,) = re.findall(r"pgaudit-ctx (snapshot public.new)", set_up(bare))
    assert command(bare, *offered.split()).exit_code == 0
    (row,) = bare.changes("new")
    assert (row.operation, row.after) == ("SNAPSHOT", {"id": 1})


@pytest.fixture
def twin(server: Server, source_template: str) -> Iterator[Capture]:
    made = Capture(create_database(server, source_template), create_database(server))
    yield made
    drop_database(made.source)
    drop_database(made.destination)


@pytest.fixture
def roles(bare: Capture) -> Iterator[None]:
    """Drops the roles of this module, whatever was made of them."""
    yield
    for prefix in ("alpha", "omega"):
        for role in ("replication", "owner", "writer", "reader"):
            name = f"{prefix}_{role}"
            for end in (bare.source, bare.destination):
                end.execute(
                    f"DO $$BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}')"
                    f" THEN DROP OWNED BY {name} CASCADE; END IF; END$$"
                )


_SOURCE_STATE = """
    SELECT 'table ' || relname AS what, relreplident::text || coalesce(relacl::text, '') AS value
    FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    UNION ALL SELECT 'schema', nspacl::text FROM pg_namespace WHERE nspname = 'public'
    UNION ALL SELECT 'publication', concat_ws(' ', pubviaroot, pubinsert, pubtruncate)
    FROM pg_publication
    UNION ALL SELECT 'published ' || tablename, '' FROM pg_publication_tables
    UNION ALL SELECT 'slot', plugin FROM pg_replication_slots WHERE database = current_database()
    UNION ALL SELECT 'default', defaclacl::text FROM pg_default_acl
    UNION ALL SELECT 'role', concat_ws(' ', rolname, rolreplication, rolcanlogin, rolsuper)
    FROM pg_roles WHERE rolname = %s || '_replication'
    ORDER BY 1, 2"""
_DESTINATION_STATE = """
    SELECT 'relation ' || c.relname AS what,
        concat_ws(' ', pg_get_userbyid(relowner), relacl) AS value
    FROM pg_class c WHERE relnamespace = 'pgaudit_ctx'::regnamespace
    UNION ALL SELECT 'column', concat_ws('.', attrelid::regclass, attname, atttypid::regtype)
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid AND c.relkind <> 'i'
    WHERE relnamespace = 'pgaudit_ctx'::regnamespace AND attnum > 0
    UNION ALL SELECT 'routine',
        concat_ws(' ', proname, pg_get_userbyid(proowner), proacl, prosecdef)
    FROM pg_proc WHERE pronamespace = 'pgaudit_ctx'::regnamespace
    UNION ALL SELECT 'trigger', concat_ws(' ', tgrelid::regclass, tgname, tgenabled)
    FROM pg_trigger
    UNION ALL SELECT 'schema', concat_ws(' ', pg_get_userbyid(nspowner), nspacl) FROM pg_namespace
    WHERE nspname = 'pgaudit_ctx'
    UNION ALL SELECT 'migration', name FROM pgaudit_ctx.migrations
    UNION ALL SELECT 'tracked', concat_ws(' ', table_name, identity, identity_before)
    FROM pgaudit_ctx.tracked
    UNION ALL SELECT 'default', defaclacl::text FROM pg_default_acl
    UNION ALL SELECT 'role', concat_ws(' ', rolname, rolcanlogin, rolsuper, rolcreaterole)
    FROM pg_roles WHERE rolname LIKE %s || '%%' AND rolname NOT LIKE '%%replication'
    ORDER BY 1, 2"""


def state(capture: Capture, prefix: str) -> list[tuple[str, str]]:
    rows = capture.source.execute(_SOURCE_STATE, [prefix]) + capture.destination.execute(
        _DESTINATION_STATE, [prefix]
    )
    return [(what, (value or "").replace(prefix, "PREFIX")) for what, value in rows]


def test_what_is_printed_gives_the_same_state_when_psql_runs_it(
    server: Server, bare: Capture, twin: Capture, roles: None
) -> None:
    set_up(bare, "--roles", "alpha", "--identity", "dose=default")
    printed = set_up(twin, "--print-sql", "--roles", "omega", "--identity", "dose=default")
    source, destination = re.split(r"^-- destination$", printed, flags=re.MULTILINE)
    assert source.startswith("-- source\n-- run by an administrator")
    assert "-- run by the owner of the tables:" in source
    stop = ("-v", "ON_ERROR_STOP=1", "-q")
    run_binary(server, "psql", *stop, twin.source.url, script=source)
    run_binary(server, "psql", *stop, twin.destination.url, script=destination)
    wanted = state(bare, "alpha")
    assert state(twin, "omega") == wanted
    assert len(wanted) > 100
    assert "nothing to do" in set_up(twin, "--roles", "omega")


def test_no_statement_of_the_application_waits_for_longer_than_three_seconds(
    server: Server, bare: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.source.setup._ATTEMPTS", 2)
    run_binary(server, "pgbench", "-i", "-q", bare.source.url)
    waits: list[float] = []
    stop = threading.Event()
    load = threading.Thread(target=pgbench, args=(server, bare.source))
    watch = threading.Thread(target=watch_waits, args=(bare.source, waits, stop))
    with bare.source.connect() as idle, idle.transaction():
        # In the way of our lock, but of no row of pgbench's.
        idle.execute("INSERT INTO pgbench_tellers VALUES (1000, 1, 0)")
        load.start()
        watch.start()
        eventually(lambda: writes(bare.source) > 10, "pgbench writes")
        with pytest.raises(SourceNotReady, match="are open still"):
            command(bare, "setup", "--wait", "0.5s")
        before = writes(bare.source)
        eventually(lambda: writes(bare.source) > before, "pgbench goes on")
    load.join()
    stop.set()
    watch.join()
    assert 1.0 < max(waits) <= 3.0  # it did wait for us
    set_up(bare)
    assert "public.pgbench_tellers" in published(bare)


def pgbench(server: Server, database: Database) -> None:
    run_binary(server, "pgbench", "-n", "-c", "2", "-T", "8", database.url)


def writes(database: Database) -> int:
    ((count,),) = database.execute("SELECT count(*) FROM pgbench_history")
    return int(count)


def watch_waits(database: Database, waits: list[float], stop: threading.Event) -> None:
    """How long the application's statements have been waiting for a lock, looked at often."""
    with database.connect() as connection:
        while not stop.is_set():
            for (seconds,) in connection.execute(
                "SELECT extract(epoch FROM clock_timestamp() - query_start)::float8"
                " FROM pg_stat_activity WHERE application_name = 'pgbench'"
                " AND wait_event_type = 'Lock'"
            ):
                waits.append(seconds)
            time.sleep(0.02)  # between two samples; nobody waits for it
