"""A planned move to another server leaves no gap, unless something was written in between."""

import datetime as dt
import hashlib
from collections.abc import Iterator

import pytest
from typer.testing import Result

from pgaudit_ctx import AuditReader, HistoryUnknown
from pgaudit_ctx.connection import connect
from pgaudit_ctx.errors import PositionMismatch, SourceNotReady
from pgaudit_ctx.source.digest import Content, Digest, digest_tables
from support.clinic import Patient
from support.database import Capture, Database, create_database, drop_database
from support.doctor import command
from support.positions import insert, run_and_refuse
from support.server import Server


class Quiet:
    """Shows no progress."""

    def begins(self, table: str, blocks: int) -> None: ...

    def read(self, blocks: int) -> None: ...

    def ends(self, table: str) -> None: ...


def begin(capture: Capture, *more: str) -> Result:
    return command(capture, "handover", "begin", "--yes", *more)


def finish(capture: Capture, *more: str) -> Result:
    name = capture.options.name or capture.source.name
    return command(
        capture, "handover", "finish", "--no-roles", *more, more={"PGAUDIT_CTX_NAME": name}
    )


def slots(capture: Capture) -> int:
    (row,) = capture.source.execute(
        "SELECT count(*) AS n FROM pg_replication_slots WHERE slot_name = %s",
        [capture.options.slot],
    )
    return int(row.n)


def epochs(capture: Capture) -> list[tuple[int, bool]]:
    rows = capture.destination.execute("SELECT epoch, clean FROM pgaudit_ctx.epochs ORDER BY epoch")
    return [tuple(row) for row in rows]


def gaps(capture: Capture) -> list[str]:
    return [row.cause for row in capture.destination.execute("SELECT cause FROM pgaudit_ctx.gaps")]


def acts(capture: Capture) -> list[tuple[str, str]]:
    rows = capture.destination.execute(
        "SELECT command, result FROM pgaudit_ctx.operations"
        " WHERE command LIKE 'handover%' ORDER BY id"
    )
    return [tuple(row) for row in rows]


def elsewhere(old: Capture, server: Server) -> Capture:
    """The same rows in another database, in another order and without what setup made."""
    copy = create_database(server, old.source.name)
    copy.execute("DROP PUBLICATION pgaudit_ctx")
    copy.execute("CREATE TABLE aside AS SELECT * FROM patient ORDER BY id DESC")
    copy.execute("DELETE FROM patient")
    copy.execute("INSERT INTO patient SELECT * FROM aside")
    copy.execute("DROP TABLE aside")
    new = Capture(copy, old.destination)
    new.options = old.options._replace(source=copy.url, name=old.source.name)
    return new


@pytest.fixture
def old(capture: Capture) -> Capture:
    insert(capture.source, 1, 2)
    capture.source.execute("UPDATE patient SET name = 'Änne' WHERE id = 2")
    return capture


@pytest.fixture
def new(old: Capture, server: Server) -> Iterator[Capture]:
    assert begin(old).exit_code == 0
    moved = elsewhere(old, server)
    yield moved
    drop_database(moved.source)


def test_both_ends_equal_begin_a_clean_epoch_without_a_gap(old: Capture, new: Capture) -> None:
    assert slots(old) == 0
    done = finish(new, "--yes")
    assert done.exit_code == 0, done.output
    assert "public.patient: 2 rows" in done.output
    new.source.execute("UPDATE patient SET name = 'Eva' WHERE id = 1")
    new.run()
    assert epochs(new) == [(1, True), (2, True)]
    assert gaps(new) == []
    reader = AuditReader(new.destination.engine(), source=new.options.name)
    versions = reader.history("public.patient", 1)
    assert [version.operation for version in versions] == ["INSERT", "UPDATE"]
    assert not versions.gaps
    between = versions[0].committed_at + (versions[1].committed_at - versions[0].committed_at) / 2
    version = reader.as_of(Patient, 1, between)
    assert version is not None
    assert version.number == 1
    assert [command for command, _ in acts(new)] == ["handover begin", "handover finish"]
    assert acts(new)[1][1] == "both ends are equal"


def test_a_write_that_slipped_between_is_a_gap_that_names_its_table(new: Capture) -> None:
    new.source.execute("UPDATE patient SET name = 'slipped' WHERE id = 1")
    done = finish(new, "--yes")
    assert done.exit_code == 1
    assert "public.patient: 2 rows before, 2 now, with other values" in done.output
    new.run()
    assert epochs(new) == [(1, True), (2, False)]
    (cause,) = gaps(new)
    assert "public.patient differ" in cause
    reader = AuditReader(new.destination.engine(), source=new.options.name)
    assert len(reader.history("public.patient", 1).gaps) == 1
    with pytest.raises(HistoryUnknown):
        reader.as_of(Patient, 1, dt.datetime.now(dt.UTC))


def test_without_yes_both_ends_are_compared_and_nothing_is_done(new: Capture) -> None:
    with pytest.raises(Exception, match="repeat with --yes"):
        finish(new)
    assert epochs(new) == [(1, True)]
    assert slots(new) == 0
    assert new.source.execute("SELECT 1 AS one FROM pg_publication") == []


def test_begin_refuses_while_a_transaction_that_wrote_is_open(old: Capture) -> None:
    with old.source.connect() as writer, writer.transaction():
        writer.execute("DELETE FROM patient WHERE id = 1")
        with pytest.raises(Exception, match="writes have not stopped"):
            begin(old)
    assert slots(old) == 1
    assert acts(old) == []


def test_begin_refuses_if_something_is_written_while_it_reads(
    old: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_digest(*arguments: object) -> object:
        found = digest_tables(*arguments)
        insert(old.source, 3)
        return found

    monkeypatch.setattr("pgaudit_ctx.source.digest.digest_tables", write_and_digest)
    with pytest.raises(Exception, match=r"1 change\(s\) came while the tables were read"):
        begin(old)
    assert slots(old) == 1
    assert acts(old) == []


def test_begin_says_how_to_stop_writes_until_new_sessions_are_read_only(old: Capture) -> None:
    statement = f'ALTER DATABASE "{old.source.name}" SET default_transaction_read_only = on'
    assert statement in begin(old, "--keep-slot").output
    old.source.execute(statement)
    assert "read_only" not in begin(old, "--keep-slot").output


def test_a_worker_is_sent_to_finish_by_either_server(old: Capture, new: Capture) -> None:
    assert "handover finish --yes" in run_and_refuse(new, PositionMismatch)
    assert "handover finish --yes" in run_and_refuse(old, PositionMismatch)


def test_a_move_that_is_called_off_goes_on_where_it_was_if_the_slot_was_kept(
    old: Capture,
) -> None:
    assert begin(old, "--keep-slot").exit_code == 0
    insert(old.source, 3)  # the application writes again
    done = finish(old, "--yes")
    assert done.exit_code == 0
    assert "called off" in done.output
    old.run()
    assert epochs(old) == [(1, True)]
    assert gaps(old) == []
    assert [change.primary_key for change in old.changes("patient")][-1] == ["3"]


def test_a_move_that_is_called_off_without_its_slot_begins_a_clean_epoch(old: Capture) -> None:
    assert begin(old).exit_code == 0
    assert finish(old, "--yes").exit_code == 0
    assert epochs(old) == [(1, True), (2, True)]
    assert gaps(old) == []


def test_a_trail_that_has_gone_on_since_is_not_handed_over(old: Capture, new: Capture) -> None:
    old.destination.execute("UPDATE pgaudit_ctx.checkpoints SET end_lsn = end_lsn + 8")
    with pytest.raises(PositionMismatch, match="has gone on"):
        finish(new, "--yes")


def test_filters_stay_in_force_and_ignored_columns_are_not_compared(
    old: Capture, server: Server
) -> None:
    filters = {"PGAUDIT_CTX_IGNORE_COLUMN": "patient.name"}
    done = command(old, "worker", "--until-caught-up", more=filters)
    assert done.exit_code == 0, done.output
    with pytest.raises(Exception, match="the worker that ran last had other filters"):
        begin(old)
    done = command(old, "handover", "begin", "--yes", more=filters)
    assert done.exit_code == 0, done.output
    moved = elsewhere(old, server)
    moved.source.execute("UPDATE patient SET name = 'ignored'")
    assert finish(moved, "--yes").exit_code == 0
    (row,) = old.destination.execute(
        "SELECT ignored FROM pgaudit_ctx.coverage WHERE epoch = 2 AND table_name = 'patient'"
    )
    assert row.ignored == ["name"]
    drop_database(moved.source)


def digest(database: Database, table: str, *columns: str) -> Digest | None:
    with connect(database.url, "source") as connection:
        (found,) = digest_tables(connection, [Content("public", table, columns)], Quiet())
    return found


def test_a_digest_is_what_anybody_can_compute_from_the_rows(empty_database: Database) -> None:
    empty_database.execute(
        "CREATE TABLE t (a float8, b timestamptz, c text, d bytea, e money, f interval)"
    )
    empty_database.execute(
        "INSERT INTO t VALUES (0.1, '2024-02-29 12:00+02', 'ä, \"b\"', '\\x00ff', 1.5, '1 day'),"
        " (NULL, 'infinity', '', NULL, NULL, '-01:00')"
    )
    rows = [
        '(0.1,"2024-02-29 10:00:00+00","ä, ""b""","\\\\x00ff",$1.50,"1 day")',
        '(,infinity,"",,,-01:00:00)',
    ]
    hashes = [hashlib.sha256(row.encode()).digest() for row in rows]
    words = [
        sum(int.from_bytes(digest[start : start + 8], signed=True) for digest in hashes)
        for start in (0, 8)
    ]
    wanted = hashlib.sha256(f"2 {words}".encode()).hexdigest()
    assert digest(empty_database, "t", *"abcdef") == Digest(2, wanted)


def test_a_digest_depends_on_the_rows_alone(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = empty_database.execute
    run("CREATE TABLE one (id int, name text)")
    run("INSERT INTO one SELECT i, repeat('x', i % 50) FROM generate_series(1, 3000) i")
    run("CREATE TABLE other (gone int, name text, id int)")
    run("ALTER TABLE other DROP COLUMN gone")
    run("INSERT INTO other (id, name) SELECT id, name FROM one ORDER BY id DESC")
    run("CREATE TABLE parts (id int, name text) PARTITION BY HASH (id)")
    for number in range(2):
        run(
            f"CREATE TABLE part{number} PARTITION OF parts"
            f" FOR VALUES WITH (MODULUS 2, REMAINDER {number})"
        )
    run("INSERT INTO parts TABLE one")
    whole = digest(empty_database, "one", "id", "name")
    assert whole is not None
    assert whole.rows == 3000
    assert digest(empty_database, "other", "id", "name") == whole
    assert digest(empty_database, "parts", "id", "name") == whole
    monkeypatch.setattr("pgaudit_ctx.source.digest._BLOCKS_AT_ONCE", 3)
    assert digest(empty_database, "one", "id", "name") == whole
    assert digest(empty_database, "parts", "id", "name") == whole
    run("UPDATE one SET name = name || 'y' WHERE id = 1500")
    assert digest(empty_database, "one", "id", "name") != whole


def test_a_table_or_a_column_that_is_not_there_has_no_digest(empty_database: Database) -> None:
    empty_database.execute("CREATE TABLE t (a int)")
    assert digest(empty_database, "t", "b") is None
    assert digest(empty_database, "u", "a") is None


def test_a_table_that_is_not_published_there_is_named_and_is_a_hole_of_its_own(
    source: Database, destination: Database, server: Server
) -> None:
    old = Capture(source, destination)
    assert command(old, "setup", "--no-roles", "--table", "public.sample").exit_code == 0
    source.execute("ALTER TABLE patient REPLICA IDENTITY FULL")
    source.execute("ALTER PUBLICATION pgaudit_ctx ADD TABLE patient")
    old.run()
    insert(source, 1)
    old.run()
    assert begin(old).exit_code == 0
    new = elsewhere(old, server)
    try:
        done = finish(new, "--yes")
        assert done.exit_code == 1
        assert "public.patient: it was on the old server" in " ".join(done.output.split())
        new.source.execute("UPDATE patient SET name = 'lost' WHERE id = 1")
        new.run()
        reader = AuditReader(new.destination.engine(), source=new.options.name)
        (gap,) = reader.history("public.patient", 1).gaps
        assert gap.to_lsn is None
        with pytest.raises(HistoryUnknown):
            reader.as_of(Patient, 1, dt.datetime.now(dt.UTC))
        told = command(new, "doctor", more={"PGAUDIT_CTX_NAME": new.options.name or ""}).output
        assert "public.patient" in told[told.index("coverage_holes") :]
        # The doctor knows the new server's publication.
        (order,) = (line for line in told.splitlines() if "publication_order" in line)
        assert "ok" in order
    finally:
        drop_database(new.source)


def test_a_slot_that_waits_on_the_new_server_already_is_refused(old: Capture, new: Capture) -> None:
    new.source.execute("DELETE FROM patient")
    assert command(new, "setup", "--only", "source", "--no-roles").exit_code == 0
    insert(new.source, 1, 2)
    new.source.execute("UPDATE patient SET name = 'Änne' WHERE id = 2")
    slot = new.options.slot
    with pytest.raises(SourceNotReady, match=rf"pg_drop_replication_slot\('{slot}'\)"):
        finish(new, "--yes")
    assert epochs(old) == [(1, True)]
    new.source.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    assert finish(new, "--yes").exit_code == 0
    new.run()
    (changes,) = new.destination.execute("SELECT count(*) AS n FROM pgaudit_ctx.changes")
    assert changes.n == 3
