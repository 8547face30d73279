"""Each thing that can be wrong is named, and following its remedy to the letter repairs it."""

import json
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pgaudit_ctx.doctor.facts import Limits
from pgaudit_ctx.doctor.finding import Finding, State
from support.command import start, urls_of
from support.database import Capture, Database, create_database, drop_database
from support.doctor import ask, command, follow, run_step, steps
from support.server import Server
from support.waiting import eventually


@pytest.fixture
def ready(source: Database, destination: Database) -> Capture:
    """The clinic after ``pgaudit-ctx setup``; no worker has run yet."""
    made = Capture(source, destination)
    done = command(made, "setup")
    assert done.exit_code == 0, done.output
    return made


@pytest.fixture(scope="module")
def shared(server: Server, source_template: str, destination_template: str) -> Iterator[Capture]:
    """One for tests that leave it as they found it."""
    made = Capture(
        create_database(server, source_template), create_database(server, destination_template)
    )
    done = command(made, "setup")
    assert done.exit_code == 0, done.output
    yield made
    drop_database(made.source)
    drop_database(made.destination)


@pytest.fixture
def running(ready: Capture) -> Iterator[Capture]:
    """The same, with a worker."""
    worker = start("worker", env=urls_of(ready))
    eventually(lambda: ask(ready)["worker"].state is State.OK, "the worker reads the slot")
    yield ready
    worker.terminate()
    worker.communicate(timeout=30)


def unwell(capture: Capture) -> dict[str, Finding]:
    return {name: f for name, f in ask(capture).items() if f.state is not State.OK}


def test_a_trail_that_runs_has_no_problem_and_says_what_it_saw(running: Capture) -> None:
    found = unwell(running)
    assert {name: f.state for name, f in found.items()} == {
        "max_slot_wal_keep_size": State.WARNING,  # nobody decided yet
    }
    assert all(finding.evidence for finding in ask(running).values())


def test_whom_to_protect_is_a_warning_until_somebody_decided(ready: Capture) -> None:
    finding = ask(ready)["max_slot_wal_keep_size"]
    assert finding.state is State.WARNING
    run_step(ready, finding, steps(finding)[0])
    assert ask(ready)["max_slot_wal_keep_size"].state is State.OK
    command(ready, "setup")
    assert ask(ready)["max_slot_wal_keep_size"].state is State.OK


def broken(capture: Capture, check: str) -> Finding:
    finding = ask(capture)[check]
    assert finding.state is not State.OK, finding
    assert finding.evidence
    return finding


def repaired(capture: Capture, check: str) -> None:
    follow(capture, broken(capture, check))
    finding = ask(capture)[check]
    assert finding.state is State.OK, finding


def slot_of(capture: Capture) -> str:
    return capture.options.slot


SOURCE_DAMAGE: dict[str, tuple[str, str]] = {
    "a table left out": (
        "tables_published",
        "ALTER PUBLICATION pgaudit_ctx DROP TABLE dose",
    ),
    "a new table": ("tables_published", "CREATE TABLE new (id int PRIMARY KEY)"),
    "an identity that was lost": (
        "replica_identity",
        "ALTER TABLE patient REPLICA IDENTITY DEFAULT",
    ),
    "an identity that breaks the application": (
        "replica_identity",
        "ALTER TABLE patient REPLICA IDENTITY NOTHING",
    ),
    "a publication that leaves out operations": (
        "publication_filters",
        "ALTER PUBLICATION pgaudit_ctx SET (publish = 'insert')",
    ),
    "partitions under their own names": (
        "publication_filters",
        "ALTER PUBLICATION pgaudit_ctx SET (publish_via_partition_root = false)",
    ),
    "no publication beside the slot": ("publication", "DROP PUBLICATION pgaudit_ctx"),
    "a publication for all tables": (
        "publication_filters",
        "DROP PUBLICATION pgaudit_ctx; CREATE PUBLICATION pgaudit_ctx FOR ALL TABLES",
    ),
    "a row filter": (
        "publication_filters",
        "ALTER PUBLICATION pgaudit_ctx SET TABLE patient WHERE (id > 5), dose, sample",
    ),
    "an unlogged table": ("unlogged", "CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)"),
    "a new partition": (
        "partitioned",
        """CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
        ALTER TABLE parted REPLICA IDENTITY FULL;
        ALTER PUBLICATION pgaudit_ctx ADD TABLE parted;
        CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)""",
    ),
}


@pytest.mark.parametrize("damage", SOURCE_DAMAGE)
def test_damage_to_the_source_is_named_and_repaired(damage: str, shared: Capture) -> None:
    check, statement = SOURCE_DAMAGE[damage]
    shared.source.execute(statement)
    repaired(shared, check)


DESTINATION_DAMAGE = {
    "no room ahead": (
        "partitions_ahead",
        """DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT inhrelid FROM pg_inherits
        WHERE inhparent = 'pgaudit_ctx.changes'::regclass
        LOOP EXECUTE format('DROP TABLE %s', p); END LOOP; END $$""",
    ),
    "a migration that is missing": (
        "schema_version",
        """DELETE FROM pgaudit_ctx.migrations WHERE number = 4;
        DROP PROCEDURE pgaudit_ctx.assign_roles; DROP PROCEDURE pgaudit_ctx.guard;
        DROP FUNCTION pgaudit_ctx.refuse_change CASCADE""",
    ),
    "no trail": ("schema_version", "DROP SCHEMA pgaudit_ctx CASCADE"),
}


@pytest.mark.parametrize("damage", DESTINATION_DAMAGE)
def test_damage_to_the_destination_is_named_and_repaired(damage: str, shared: Capture) -> None:
    check, statement = DESTINATION_DAMAGE[damage]
    shared.destination.execute(statement)
    repaired(shared, check)


def test_a_trail_that_can_be_changed_is_a_problem(ready: Capture) -> None:
    ready.destination.execute("ALTER TABLE pgaudit_ctx.changes DISABLE TRIGGER refuse_change")
    assert broken(ready, "append_only").state is State.PROBLEM


def test_a_slot_that_was_never_made_is_repaired_by_setup(capture: Capture) -> None:
    capture.source.execute(f"SELECT pg_drop_replication_slot('{slot_of(capture)}')")
    capture.destination.execute(
        "DELETE FROM pgaudit_ctx.checkpoints; DELETE FROM pgaudit_ctx.epochs"
    )
    repaired(capture, "slot")


def test_a_slot_that_is_lost_is_repaired_by_a_new_one_and_a_gap(capture: Capture) -> None:
    capture.run()
    capture.source.execute(f"SELECT pg_drop_replication_slot('{slot_of(capture)}')")
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    repaired(capture, "slot")
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (2, 'b', 'ACTIVE')")
    assert [row.after["id"] for row in capture.changes("patient")] == [2]
    found = ask(capture)["gaps"]
    assert (found.state, found.evidence.partition(" ")[0]) == (State.WARNING, "1")
    (gap,) = capture.destination.execute("SELECT * FROM pgaudit_ctx.gaps")
    assert (gap.epoch, gap.to_epoch) == (1, 1)
    assert gap.from_lsn < gap.to_lsn


def test_a_publication_that_is_newer_than_the_slot_is_noticed_and_costs_a_gap(
    ready: Capture,
) -> None:
    ready.run()
    ready.source.execute("DROP PUBLICATION pgaudit_ctx")
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    ready.source.execute(
        "CREATE PUBLICATION pgaudit_ctx FOR TABLE patient WITH (publish_via_partition_root = true)"
    )
    repaired(ready, "publication_order")
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (2, 'b', 'ACTIVE')")
    assert [row.after["id"] for row in ready.changes("patient")] == [2]


def test_a_slot_of_another_plugin_is_named_and_another_name_repairs_it(ready: Capture) -> None:
    ready.source.execute("SELECT pg_create_logical_replication_slot('theirs', 'test_decoding')")
    mine = ready.options
    ready.options = mine._replace(slot="theirs")
    export, setup = steps(broken(ready, "slot_plugin"))
    ready.options = mine._replace(slot=export.removeprefix("export PGAUDIT_CTX_SLOT="))
    ready.destination.execute("DELETE FROM pgaudit_ctx.checkpoints")
    assert command(ready, *setup.split()[1:]).exit_code == 0
    assert ask(ready)["slot_plugin"].state is State.OK


def test_a_worker_that_is_down_is_a_warning_before_its_first_run_and_then_a_problem(
    ready: Capture,
) -> None:
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    finding = broken(ready, "worker")
    assert finding.state is State.WARNING
    follow(ready, finding)
    assert broken(ready, "worker").state is State.PROBLEM


def test_a_slot_that_a_stranger_reads_is_busy_and_ending_the_stranger_repairs_it(
    ready: Capture,
) -> None:
    url = f"{ready.source.url}&application_name=stranger&replication=database"
    stranger = psycopg.pq.PGconn.connect(url.encode())
    stranger.exec_(
        f"START_REPLICATION SLOT {slot_of(ready)} LOGICAL 0/0"
        " (proto_version '1', publication_names 'pgaudit_ctx')".encode()
    )
    finding = broken(ready, "worker")
    assert "stranger" in finding.evidence
    terminate, worker = steps(finding)
    run_step(ready, finding, terminate)
    eventually(lambda: "busy" not in ask(ready)["worker"].evidence, "the stranger has gone")
    run_step(ready, finding, worker)
    stranger.finish()


def test_a_log_that_piles_up_is_named_and_a_worker_works_it_off(ready: Capture) -> None:
    few = Limits(lag=10_000, retained_wal=10_000)
    ready.source.execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 100000))")
    found = ask(ready, few)
    assert found["lag"].state is State.PROBLEM
    assert "no worker" in found["lag"].evidence
    assert found["retained_wal"].state is State.PROBLEM
    follow(ready, found["lag"])
    assert ask(ready, few)["lag"].state is State.OK


def test_a_checkpoint_that_the_slot_has_passed_is_named(ready: Capture) -> None:
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    ready.run()
    ready.destination.execute("UPDATE pgaudit_ctx.checkpoints SET end_lsn = '0/1'")
    repaired(ready, "checkpoint")


def test_a_source_whose_trail_belongs_to_another_database_is_named(ready: Capture) -> None:
    ready.destination.execute("UPDATE pgaudit_ctx.checkpoints SET system_identifier = 1")
    assert "another database" in broken(ready, "checkpoint").evidence


def test_rejected_changes_are_a_problem_until_they_are_replayed(ready: Capture) -> None:
    ready.destination.execute(
        "INSERT INTO pgaudit_ctx.rejected (source, epoch, commit_lsn, ordinal, committed_at,"
        " change, sqlstate, transaction_id, operation, schema_name, table_name, reason)"
        f" VALUES ('{ready.source.name}', 1, '0/1', 1, now(), '', '23514', 1, 'INSERT', 's', 't',"
        " 'a check')"
    )
    assert "rejected list" in broken(ready, "rejected").remedy
    ready.destination.execute("UPDATE pgaudit_ctx.rejected SET replayed_at = now()")
    assert ask(ready)["rejected"].state is State.OK


def test_a_table_that_was_taken_out_and_put_back_is_a_hole_until_a_snapshot(
    ready: Capture,
) -> None:
    ready.run()
    ready.source.execute("ALTER PUBLICATION pgaudit_ctx DROP TABLE dose")
    ready.run()
    assert "public.dose from" in broken(ready, "coverage_holes").evidence
    command(ready, "setup")
    finding = broken(ready, "coverage_holes")
    assert "snapshot public.dose" in finding.remedy
    ready.destination.execute(
        "INSERT INTO pgaudit_ctx.changes (source, epoch, commit_lsn, ordinal, transaction_id,"
        " committed_at, operation, schema_name, table_name, relation_oid)"
        " SELECT source, epoch, from_lsn, 1, 0, now(), 'SNAPSHOT', schema_name, table_name,"
        " relation_oid FROM pgaudit_ctx.coverage WHERE table_name = 'dose' AND to_lsn IS NULL"
    )
    assert ask(ready)["coverage_holes"].state is State.OK


def test_a_table_that_was_dropped_is_no_hole(ready: Capture) -> None:
    ready.run()
    ready.source.execute("DROP TABLE dose")
    ready.run()
    assert ask(ready)["coverage_holes"].state is State.OK


def test_changes_that_nobody_explained_are_counted_for_each_table(ready: Capture) -> None:
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    ready.run()
    finding = broken(ready, "context_share")
    assert "public.patient 100% of 1" in finding.evidence
    done = command(ready, *steps(finding)[0].split()[1:])
    assert "INSERT" in done.output


def test_commit_times_that_ran_backwards_are_counted(ready: Capture) -> None:
    ready.destination.execute(
        "INSERT INTO pgaudit_ctx.changes (source, epoch, commit_lsn, ordinal, transaction_id,"
        " committed_at, operation, schema_name, table_name, relation_oid, context)"
        f" SELECT '{ready.source.name}', 1, ('0/' || n)::pg_lsn, 1, n,"
        " now() - n * interval '5 seconds', 'INSERT', 'public', 'patient', 1, '{}'"
        " FROM generate_series(1, 3) n"
    )
    finding = broken(ready, "commit_times")
    assert finding.evidence.startswith("2 time(s)")
    assert "5.0 s" in finding.evidence


def test_a_table_without_a_primary_key_is_a_warning(ready: Capture) -> None:
    ready.source.execute("CREATE TABLE loose (a int)")
    command(ready, "setup")
    finding = broken(ready, "primary_key")
    assert finding.state is State.WARNING
    ready.source.execute(steps(finding)[0].replace("…", "a"))
    assert ask(ready)["primary_key"].state is State.OK


def test_a_column_that_looks_like_a_secret_can_be_blanked_or_its_table_left_out(
    ready: Capture,
) -> None:
    ready.source.execute("CREATE TABLE login (id int PRIMARY KEY, api_key text, pinned boolean)")
    command(ready, "setup")
    finding = broken(ready, "secrets")
    assert "public.login.api_key: looks" in finding.evidence
    blank, *leave_out = steps(finding)
    run_step(ready, finding, blank)
    assert ask(ready)["secrets"].state is State.OK
    for step in leave_out:
        run_step(ready, finding, step)
    found = ask(ready)
    for check in ("secrets", "tables_published", "coverage_holes"):
        assert found[check].state is State.OK, found[check]


def test_a_table_whose_updates_become_dear_is_named_and_may_keep_only_its_key(
    ready: Capture,
) -> None:
    ready.source.execute(
        "CREATE TABLE document (id int PRIMARY KEY, title text, content text);"
        "ALTER TABLE document ALTER content SET STORAGE EXTERNAL;"
        "INSERT INTO document SELECT n, 't', repeat('x', 50000) FROM generate_series(1, 50) n;"
        "ANALYZE document"
    )
    command(ready, "setup")
    repaired(ready, "wal_factor")
    assert ask(ready)["replica_identity"].state is State.OK
    command(ready, "setup")
    (row,) = ready.source.execute(
        "SELECT relreplident::text AS identity FROM pg_class WHERE relname = 'document'"
    )
    assert row.identity == "d"


def test_a_value_over_100_mb_is_named(ready: Capture) -> None:
    ready.source.execute("CREATE TABLE film (id int PRIMARY KEY, content text)")
    ready.source.execute("INSERT INTO film VALUES (1, repeat('x', 101 * 1024 * 1024))")
    command(ready, "setup")
    finding = broken(ready, "large_values")
    assert "public.film (101.0 MB)" in finding.evidence
    follow(ready, finding)
    (row,) = ready.source.execute(
        "SELECT relreplident::text AS identity FROM pg_class WHERE relname = 'film'"
    )
    assert row.identity == "d"


@pytest.fixture
def as_role(ready: Capture) -> Iterator[Callable[[str], Database]]:
    """Another role's connection to the source, chosen by its attributes."""
    ready.source.execute("DROP ROLE IF EXISTS somebody")

    def connected(attributes: str) -> Database:
        ready.source.execute(f"CREATE ROLE somebody {attributes}")
        url = ready.source.url.replace("postgres@", "somebody@")
        ready.options = ready.options._replace(source=url)
        return ready.source

    yield connected
    ready.source.execute("DROP OWNED BY somebody; DROP ROLE somebody")


def test_a_role_that_may_not_replicate_is_named(
    ready: Capture, as_role: Callable[[str], Database]
) -> None:
    as_role("LOGIN")
    repaired(ready, "role")


def test_row_level_security_is_named_for_a_role_that_is_subject_to_it(
    ready: Capture, as_role: Callable[[str], Database]
) -> None:
    ready.source.execute("ALTER TABLE patient ENABLE ROW LEVEL SECURITY")
    as_role("LOGIN REPLICATION")
    repaired(ready, "row_level_security")


def test_a_destination_role_without_rights_is_named(ready: Capture) -> None:
    ready.destination.execute("CREATE ROLE stranger LOGIN")
    try:
        ready.destination.execute("GRANT USAGE ON SCHEMA pgaudit_ctx TO stranger")
        ready.destination.execute("GRANT SELECT ON ALL TABLES IN SCHEMA pgaudit_ctx TO stranger")
        url = ready.destination.url.replace("postgres@", "stranger@")
        ready.options = ready.options._replace(destination=url)
        repaired(ready, "destination_role")
    finally:
        ready.destination.execute("DROP OWNED BY stranger; DROP ROLE stranger")


def test_stored_generated_columns_that_are_not_published_are_named(ready: Capture) -> None:
    if not since_18(ready):
        pytest.skip("the option came with PostgreSQL 18")
    ready.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)"
    )
    command(ready, "setup")
    ready.source.execute("ALTER PUBLICATION pgaudit_ctx SET (publish_generated_columns = none)")
    repaired(ready, "generated_columns")
    ready.source.execute("INSERT INTO t VALUES (1)")
    ready.source.execute("UPDATE t SET id = 2")


def test_virtual_generated_columns_under_full_are_named(ready: Capture) -> None:
    if not since_18(ready):
        pytest.skip("virtual generated columns came with PostgreSQL 18")
    ready.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)"
    )
    command(ready, "setup")
    ready.source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    repaired(ready, "generated_columns")


def since_18(capture: Capture) -> bool:
    with capture.source.connect() as connection:
        return connection.info.server_version >= 18_00_00


def test_an_end_that_cannot_be_reached_is_a_finding_and_the_other_end_is_looked_at(
    ready: Capture,
) -> None:
    good = ready.options
    ready.options = good._replace(source="postgresql://postgres@no-such-host.invalid/clinic")
    found = ask(ready)
    assert found["source_connection"].state is State.PROBLEM
    assert "check the host" in found["source_connection"].remedy
    assert found["schema_version"].state is State.OK
    ready.options = good._replace(source=ready.source.url.replace(ready.source.name, "nowhere"))
    assert "check the database's name" in broken(ready, "source_connection").remedy
    ready.options = good
    assert ask(ready)["source_connection"].state is State.OK


def test_json_has_one_object_for_each_check_and_the_exit_code_tells(ready: Capture) -> None:
    done = command(ready, "doctor", "--json")
    assert done.exit_code == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(f) == {"check", "group", "state", "evidence", "remedy"} for f in found)
    assert {f["group"] for f in found} == {"source", "destination", "worker", "coverage"}
    assert command(ready, "doctor", "--strict").exit_code == 1
    ready.source.execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 100000))")
    assert command(ready, "doctor", "--max-lag", "10kB").exit_code == 1
    assert command(ready, "doctor", "--max-retained-wal", "10kB").exit_code == 1


def test_text_has_the_remedy_under_the_evidence(ready: Capture) -> None:
    ready.source.execute("ALTER PUBLICATION pgaudit_ctx DROP TABLE dose")
    done = command(ready, "doctor")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    (place,) = [n for n, line in enumerate(lines) if " tables_published " in line]
    assert "problem" in lines[place]
    assert "→ run `pgaudit-ctx setup" in lines[place + 1]
