"""Setup publishes what it can prepare, names what it cannot, and writes down what it did."""

import psycopg
import pytest
from typer.testing import CliRunner

from pgaudit_ctx.cli.app import app
from pgaudit_ctx.connection import connect
from pgaudit_ctx.errors import AuditError, SourceNotReady
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.source.catalog import Publication, SourceTable, read_tables
from pgaudit_ctx.source.plan import SourcePlan, SourceState, plan
from pgaudit_ctx.source.step import Step
from support.database import Capture, Database, create_database
from support.server import Server, server_of_its_own

VIRTUAL_COLUMNS = 18_00_00


def table(oid: int, name: str, **fields) -> SourceTable:
    common = {
        "oid": oid,
        "schema": "public",
        "name": name,
        "root": oid,
        "partitioned": False,
        "partition": False,
        "unlogged": False,
        "remote": False,
        "identity": "d",
        "key_columns": ["id"],
        "published": False,
        "virtual_columns": False,
        "extension": None,
    }
    return SourceTable(**{**common, **fields})


def planned(*tables: SourceTable, version: int = 15_00_00, **state) -> SourcePlan:
    publication = Publication([], via_root=True, filtered=[]) if state.get("publication") else None
    found = SourceState(version, tables, publication, state.get("has_slot", False))
    return plan(found, "slot", "pub", state.get("without", ()))


def statements(made: SourcePlan) -> list[str]:
    return [statement for step in made.steps for statement in step.statements]


def run_setup(database: Database, slot: str = "") -> tuple[SourcePlan, list[tuple[Step, str]]]:
    with connect(database.url, "source") as connection:
        return source_setup.run(connection, slot or f"test_{database.name}", "pgaudit_ctx")


def published(database: Database) -> list[str]:
    rows = database.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
    return [row.tablename for row in rows]


def identities(database: Database) -> dict[str, str]:
    with connect(database.url, "source") as connection:
        return {found.name: found.identity for found in read_tables(connection, "pgaudit_ctx")}


def test_the_plan_prepares_before_it_publishes_and_makes_the_slot_last() -> None:
    assert statements(planned(table(1, "a"), table(2, 'B "x"'))) == [
        'ALTER TABLE "public"."a" REPLICA IDENTITY FULL',
        'ALTER TABLE "public"."B ""x""" REPLICA IDENTITY FULL',
        (
            'CREATE PUBLICATION "pub" FOR TABLE "public"."a", "public"."B ""x"""'
            " WITH (publish_via_partition_root = true)"
        ),
        "SELECT pg_create_logical_replication_slot('slot', 'pgoutput')",
    ]


def test_the_plan_publishes_stored_generated_columns_where_the_server_can() -> None:
    created = statements(planned(table(1, "a"), version=VIRTUAL_COLUMNS))[1]
    assert "publish_generated_columns = stored" in created


def test_the_plan_is_empty_when_everything_is_done() -> None:
    done = table(1, "a", identity="f", published=True)
    assert statements(planned(done, publication=True, has_slot=True)) == []


def test_the_plan_adds_a_table_that_is_new() -> None:
    made = planned(
        table(1, "a", identity="f", published=True),
        table(2, "b", identity="f"),
        publication=True,
        has_slot=True,
    )
    assert statements(made) == [
        'LOCK TABLE "public"."b" IN SHARE ROW EXCLUSIVE MODE',
        'ALTER PUBLICATION "pub" ADD TABLE "public"."b"',
    ]
    (step,) = made.steps
    assert step.script.startswith("BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE")


def test_the_plan_prepares_each_partition_but_publishes_the_root() -> None:
    made = planned(table(1, "root", partitioned=True), table(2, "part", root=1, partition=True))
    assert statements(made)[:2] == [
        'ALTER TABLE "public"."root" REPLICA IDENTITY FULL',
        'ALTER TABLE "public"."part" REPLICA IDENTITY FULL',
    ]
    assert 'FOR TABLE "public"."root" WITH' in statements(made)[2]


def test_a_table_that_could_not_be_prepared_is_not_in_the_plan() -> None:
    made = planned(table(1, "a"), table(2, "b"), without=[2])
    assert '"b"' not in " ".join(statements(made))


def test_setup_run_twice_does_nothing_the_second_time(source: Database) -> None:
    first, failed = run_setup(source)
    assert (len(first.captured), failed) == (3, [])
    assert published(source) == ["dose", "patient", "sample"]
    assert set(identities(source).values()) == {"f"}
    second, _ = run_setup(source)
    assert (list(second.steps), len(second.captured)) == ([], 3)


def test_setup_of_a_database_without_tables_makes_publication_and_slot(
    empty_database: Database,
) -> None:
    made, failed = run_setup(empty_database)
    assert (list(made.captured), failed) == ([], [])
    assert len(empty_database.execute("SELECT 1 FROM pg_publication")) == 1
    empty_database.execute("CREATE TABLE t (id int)")
    assert published(empty_database) == []
    run_setup(empty_database)
    assert published(empty_database) == ["t"]


def test_what_can_never_be_captured_is_named_with_the_reason(empty_database: Database) -> None:
    empty_database.execute(
        "CREATE TABLE t (id int PRIMARY KEY);"
        "CREATE UNLOGGED TABLE fast (id int PRIMARY KEY);"
        "CREATE TEMPORARY TABLE fleeting (id int);"
        "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER s FOREIGN DATA WRAPPER nothing;"
        "CREATE FOREIGN TABLE far (id int) SERVER s;"
        "SELECT lo_create(0)"
    )
    made, failed = run_setup(empty_database)
    assert failed == []
    assert published(empty_database) == ["t"]
    reasons = dict(made.left_out)
    assert "UNLOGGED" in reasons["public.fast"]
    assert "foreign" in reasons["public.far"]
    assert "content" in reasons["1 large object(s)"]
    assert len(reasons) == 3


def test_the_tables_of_an_extension_are_left_alone(empty_database: Database) -> None:
    empty_database.execute("CREATE TABLE config (id int PRIMARY KEY)")
    empty_database.execute(
        "INSERT INTO pg_depend SELECT 'pg_class'::regclass, 'config'::regclass, 0,"
        " 'pg_extension'::regclass, oid, 0, 'e' FROM pg_extension WHERE extname = 'plpgsql'"
    )
    made, _ = run_setup(empty_database)
    assert dict(made.left_out) == {"public.config": "belongs to the extension plpgsql"}
    assert identities(empty_database)["config"] == "d"
    empty_database.execute(
        "DELETE FROM pg_depend WHERE objid = 'config'::regclass AND deptype = 'e'"
    )


def test_a_table_that_another_session_holds_is_not_published_but_named(
    source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.source.setup.LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr("pgaudit_ctx.source.setup._PAUSE_SECONDS", 0.01)
    with source.connect() as other, other.transaction():
        other.execute("LOCK TABLE dose IN ACCESS SHARE MODE")
        other.execute("LOCK TABLE patient IN ROW EXCLUSIVE MODE")
        made, failed = run_setup(source)
        assert [step.table.name for step, _ in failed] == ["dose", "patient"]
        assert published(source) == ["sample"]
        assert [found.name for found in made.captured] == ["sample"]
    made, failed = run_setup(source)
    assert failed == []
    assert published(source) == ["dose", "patient", "sample"]


def test_a_partition_that_is_held_keeps_its_whole_table_back(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.source.setup.LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr("pgaudit_ctx.source.setup._PAUSE_SECONDS", 0.01)
    empty_database.execute(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10)"
    )
    with empty_database.connect() as other, other.transaction():
        other.execute("LOCK TABLE ONLY t_1 IN ROW EXCLUSIVE MODE")
        _, failed = run_setup(empty_database)
        assert [step.table.name for step, _ in failed] == ["t_1"]
        assert published(empty_database) == []


def test_stored_generated_columns_do_not_break_the_applications_update(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 5)")
    blank.source.execute("UPDATE t SET a = 6")
    blank.source.execute("DELETE FROM t")
    _, update, delete = blank.changes()
    assert update.before["a"] == 5
    if update.after.get("twice") is not None:  # from PostgreSQL 18 on
        assert (update.before["twice"], update.after["twice"]) == (10, 12)
    assert delete.before["a"] == 6


def test_virtual_generated_columns_keep_identity_default_and_say_what_that_costs(
    server: Server, blank: Capture
) -> None:
    with psycopg.connect(server.url("postgres")) as connection:
        if connection.info.server_version < VIRTUAL_COLUMNS:
            pytest.skip("virtual generated columns came with PostgreSQL 18")
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) VIRTUAL);"
        "CREATE TABLE keyless (a int, twice int GENERATED ALWAYS AS (a * 2) VIRTUAL)"
    )
    blank.setup()
    made, _ = run_setup(blank.source)
    assert identities(blank.source) == {"t": "d", "keyless": "d"}
    assert "virtual" in dict(made.notes)["public.t"]
    assert "virtual" in dict(made.left_out)["public.keyless"]
    assert published(blank.source) == ["t"]
    for statement in (
        "INSERT INTO t VALUES (1, 5)",
        "UPDATE t SET a = 6",
        "DELETE FROM t",
        "INSERT INTO keyless VALUES (5)",
        "UPDATE keyless SET a = 6",
    ):
        blank.source.execute(statement)
    assert [(row.operation, row.primary_key) for row in blank.changes()] == [
        ("INSERT", ["1"]),
        ("UPDATE", ["1"]),
        ("DELETE", ["1"]),
    ]


def test_an_application_without_rights_on_the_trail_goes_on_writing_after_setup(
    source: Database,
) -> None:
    source.execute("CREATE ROLE app LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
    try:
        run_setup(source)
        source.execute(
            "SET ROLE app; INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE');"
            "UPDATE patient SET name = 'y'; DELETE FROM patient"
        )
    finally:
        source.execute("DROP OWNED BY app; DROP ROLE app")


def test_a_server_whose_log_carries_no_rows_is_refused_with_the_setting(server: Server) -> None:
    with server_of_its_own(server, {"wal_level": "replica"}) as other:
        database = create_database(other)
        with (
            connect(database.url, "source") as connection,
            pytest.raises(SourceNotReady, match="wal_level = replica"),
        ):
            source_setup.check_source(connection, "slot")


def test_a_role_that_may_not_replicate_is_refused_with_the_statement(source: Database) -> None:
    source.execute("CREATE ROLE plain LOGIN")
    try:
        with connect(source.url, "source") as connection:
            connection.execute("SET ROLE plain")
            with pytest.raises(SourceNotReady, match='ALTER ROLE "plain" REPLICATION'):
                source_setup.check_source(connection, "slot")
            connection.execute("RESET ROLE")
            connection.execute("ALTER ROLE plain REPLICATION")
            connection.execute("SET ROLE plain")
            source_setup.check_source(connection, "slot")
    finally:
        source.execute("DROP ROLE plain")


def test_a_slot_of_another_plugin_is_refused(source: Database) -> None:
    source.execute("SELECT pg_create_logical_replication_slot('theirs', 'test_decoding')")
    with (
        connect(source.url, "source") as connection,
        pytest.raises(SourceNotReady, match="test_decoding"),
    ):
        source_setup.check_source(connection, "theirs")


@pytest.fixture
def two_ends(source: Database, empty_database: Database) -> Capture:
    """A source, and a destination that nobody has touched."""
    return Capture(source, empty_database)


def setup_refused(capture: Capture, *arguments: str) -> str:
    urls = ["--source", capture.options.source, "--destination", capture.options.destination]
    names = ["--slot", capture.options.slot]
    with pytest.raises(AuditError) as caught:
        CliRunner().invoke(app, ["setup", *urls, *names, *arguments], catch_exceptions=False)
    return str(caught.value)


def untouched(database: Database) -> bool:
    schemas = database.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'pgaudit_ctx'")
    roles = database.execute("SELECT 1 FROM pg_publication")
    return not schemas and not roles and set(identities(database).values()) <= {"d"}


def test_a_source_that_is_not_ready_leaves_the_destination_as_it_was(two_ends: Capture) -> None:
    name = two_ends.options.slot
    two_ends.source.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')")
    assert "test_decoding" in setup_refused(two_ends)
    assert untouched(two_ends.destination)
    assert untouched(two_ends.source)


def test_a_table_that_is_not_there_leaves_both_ends_as_they_were(two_ends: Capture) -> None:
    assert "public.nowhere" in setup_refused(two_ends, "--table", "nowhere")
    assert untouched(two_ends.destination)
    assert untouched(two_ends.source)


def test_a_destination_that_cannot_take_the_trail_leaves_the_source_as_it_was(
    two_ends: Capture,
) -> None:
    role = f"tenant_{two_ends.destination.name}"
    two_ends.destination.execute(f"CREATE ROLE {role} LOGIN")
    try:
        theirs = two_ends.destination.url.replace("postgres@", f"{role}@")
        two_ends.options = two_ends.options._replace(destination=theirs)
        said = setup_refused(two_ends)
        assert f"the role {role} may not create the trail's schema" in said
        assert untouched(two_ends.source)
        two_ends.destination.execute(said.partition("Remedy, as its owner: ")[2])
        setup_command(two_ends)
    finally:
        two_ends.destination.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_what_is_printed_for_a_destination_is_what_it_lacks_or_a_new_one_if_none_is_named(
    two_ends: Capture,
) -> None:
    def printed(*arguments: str) -> str:
        slot = two_ends.options.slot
        given = ["setup", "--print-sql", "--source", two_ends.source.url, "--slot", slot]
        done = CliRunner().invoke(app, [*given, *arguments], env={}, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output.partition("-- destination")[2]

    create = "CREATE TABLE pgaudit_ctx.changes"
    assert create in printed()
    assert create in printed("--destination", two_ends.destination.url)
    assert untouched(two_ends.destination)
    setup_command(two_ends)
    assert create in printed()
    assert create not in printed("--destination", two_ends.destination.url)


@pytest.fixture
def set_up_by_command(source: Database, destination: Database) -> Capture:
    made = Capture(source, destination)
    source.execute("ALTER TABLE dose REPLICA IDENTITY NOTHING")
    setup_command(made)
    return made


def setup_command(capture: Capture) -> None:
    options = ["--source", capture.source.url, "--destination", capture.destination.url]
    done = CliRunner().invoke(
        app, ["setup", *options, "--slot", capture.options.slot], catch_exceptions=False
    )
    assert done.exit_code == 0


def test_setup_writes_down_the_identity_of_each_table_and_what_it_was(
    set_up_by_command: Capture,
) -> None:
    setup_command(set_up_by_command)
    rows = set_up_by_command.destination.execute(
        "SELECT source, schema_name, table_name, identity, identity_before"
        " FROM pgaudit_ctx.tracked ORDER BY table_name"
    )
    name = set_up_by_command.source.name
    assert [tuple(row) for row in rows] == [
        (name, "public", "dose", "FULL", "NOTHING"),
        (name, "public", "patient", "FULL", "DEFAULT"),
        (name, "public", "sample", "FULL", "DEFAULT"),
    ]


def test_setup_writes_down_that_it_ran_without_any_password(set_up_by_command: Capture) -> None:
    (row,) = set_up_by_command.destination.execute(
        "SELECT actor, command, arguments, result FROM pgaudit_ctx.operations"
    )
    assert (row.actor, row.command, row.result) == ("postgres", "setup", "done")
    oid = row.arguments.pop("publication_oid")
    assert set_up_by_command.source.execute("SELECT oid FROM pg_publication") == [(oid,)]
    assert row.arguments == {
        "slot": set_up_by_command.options.slot,
        "publication": "pgaudit_ctx",
        "name": None,
        "recreate_slot": False,
        "source": set_up_by_command.source.name,
        "selection": {"schemas": [], "tables": [], "exclude": []},
        "max_slot_wal_keep_size": None,
    }


def test_setup_opens_the_first_epoch_where_the_slot_begins(set_up_by_command: Capture) -> None:
    source, destination = set_up_by_command.source, set_up_by_command.destination
    ((begins,),) = source.execute(
        f"SELECT confirmed_flush_lsn FROM pg_replication_slots"
        f" WHERE slot_name = '{set_up_by_command.options.slot}'"
    )
    (epoch,) = destination.execute("SELECT * FROM pgaudit_ctx.epochs")
    assert (epoch.source, epoch.epoch, epoch.from_lsn, epoch.clean) == (
        source.name,
        1,
        begins,
        True,
    )
    ((system_identifier, oid),) = source.execute(
        "SELECT s.system_identifier, d.oid FROM pg_control_system() s, pg_database d"
        " WHERE datname = current_database()"
    )
    (checkpoint,) = destination.execute("SELECT * FROM pgaudit_ctx.checkpoints")
    assert (checkpoint.epoch, checkpoint.end_lsn, checkpoint.slot) == (
        1,
        begins,
        set_up_by_command.options.slot,
    )
    assert (checkpoint.system_identifier, checkpoint.database_oid) == (system_identifier, oid)


def coverage(capture: Capture, name: str) -> list:
    return capture.destination.execute(
        "SELECT * FROM pgaudit_ctx.coverage WHERE table_name = %s ORDER BY from_lsn", [name]
    )


def test_setup_writes_down_which_table_is_captured_how_and_from_where(
    set_up_by_command: Capture,
) -> None:
    (row,) = coverage(set_up_by_command, "dose")
    ((oid,),) = set_up_by_command.source.execute("SELECT 'dose'::regclass::oid")
    assert (row.relation_oid, row.key_columns, row.identity, row.publication) == (
        oid,
        ["patient_id", "given_on"],
        "FULL",
        "pgaudit_ctx",
    )
    assert (row.to_lsn, row.to_time) == (None, None)
    (checkpoint,) = set_up_by_command.destination.execute("SELECT * FROM pgaudit_ctx.checkpoints")
    assert row.from_lsn == checkpoint.end_lsn


def test_coverage_is_not_opened_again_by_a_worker_that_finds_everything_the_same(
    capture: Capture,
) -> None:
    capture.run()
    capture.run()
    assert len(coverage(capture, "patient")) == 1


def test_coverage_ends_when_a_table_leaves_the_publication_and_begins_anew(
    capture: Capture,
) -> None:
    capture.source.execute("ALTER PUBLICATION pgaudit_ctx DROP TABLE dose")
    capture.run()
    (closed,) = coverage(capture, "dose")
    assert closed.to_lsn is not None
    assert closed.to_time >= closed.from_time
    capture.source.execute("ALTER PUBLICATION pgaudit_ctx ADD TABLE dose")
    capture.run()
    first, second = coverage(capture, "dose")
    assert (first.to_lsn, second.to_lsn) == (closed.to_lsn, None)
    assert second.from_time > first.to_time


def test_coverage_begins_anew_when_identity_key_or_name_change(capture: Capture) -> None:
    capture.source.execute("ALTER TABLE patient REPLICA IDENTITY DEFAULT")
    capture.run()
    capture.source.execute("ALTER TABLE patient RENAME TO person")
    capture.run()
    rows = coverage(capture, "patient") + coverage(capture, "person")
    assert [(row.table_name, row.identity, row.to_lsn is None) for row in rows] == [
        ("patient", "FULL", False),
        ("patient", "DEFAULT", False),
        ("person", "DEFAULT", True),
    ]


def test_only_the_root_of_a_partitioned_table_is_covered(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10)"
    )
    blank.setup()
    rows = blank.destination.execute("SELECT table_name FROM pgaudit_ctx.coverage")
    assert [row.table_name for row in rows] == ["t"]
