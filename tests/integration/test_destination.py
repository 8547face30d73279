"""The trail's own tables: made once, partitioned by time, never held up by whoever reads them."""

import datetime as dt
import threading
from collections.abc import Iterator

import psycopg
import pytest

from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from pgaudit_ctx.destination.sink import Sink
from pgaudit_ctx.errors import DatabaseError
from pgaudit_ctx.wal.pgoutput import Begin, Column, Relation
from pgaudit_ctx.wal.stitcher import CapturedChange
from pgaudit_ctx.wal.table import CapturedTable
from support.database import Capture, Database

FAR = 2**40
"""A position that no log of a test reaches."""
EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def migrate(database: Database, unit: schema.PartitionUnit = "quarter") -> list[str]:
    with connect(database.url, "destination") as connection:
        return list(schema.migrate(connection, unit))


def partitions(database: Database) -> dict[str, str]:
    return {
        row.name: row.bounds
        for row in database.execute(
            "SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds"
            " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'pgaudit_ctx.changes'::regclass"
        )
    }


def ensure(database: Database, moment: str) -> tuple[str, str]:
    ((lower, upper),) = database.execute(
        "SELECT lower_bound AT TIME ZONE 'UTC' AS lower_bound,"
        " upper_bound AT TIME ZONE 'UTC' AS upper_bound"
        " FROM pgaudit_ctx.ensure_partition(%s)",
        [moment],
    )
    return f"{lower:%Y-%m-%d}", f"{upper:%Y-%m-%d}"


def indexes(database: Database, table: str) -> list[str]:
    return sorted(
        row.definition.split(" USING ", 1)[1]
        for row in database.execute(
            "SELECT pg_get_indexdef(indexrelid) AS definition FROM pg_index"
            " WHERE indrelid = %s::regclass",
            [f"pgaudit_ctx.{table}"],
        )
    )


def test_migrations_run_twice_do_nothing_the_second_time(empty_database: Database) -> None:
    assert migrate(empty_database) == [made.name for made in schema.migrations()]
    before = partitions(empty_database)
    assert migrate(empty_database) == []
    assert partitions(empty_database) == before


def test_migrations_run_by_several_at_once_run_once(empty_database: Database) -> None:
    applied: list[list[str]] = []
    together = threading.Barrier(4)

    def run() -> None:
        together.wait()
        applied.append(migrate(empty_database))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], [], [], [made.name for made in schema.migrations()]]


def test_the_first_setup_decides_how_long_a_time_a_partition_covers(
    empty_database: Database,
) -> None:
    migrate(empty_database, "month")
    migrate(empty_database, "year")
    assert ensure(empty_database, "2031-05-17 00:00+00") == ("2031-05-01", "2031-06-01")


@pytest.mark.parametrize("unit", ["month", "quarter", "year"])
def test_the_partitions_of_now_and_of_the_time_after_are_there_from_the_start(
    empty_database: Database, unit: schema.PartitionUnit
) -> None:
    migrate(empty_database, unit)
    assert len(partitions(empty_database)) == 2
    ((covered,),) = empty_database.execute(
        "SELECT bool_and(to_regclass('pgaudit_ctx.changes_' || to_char("
        "now() AT TIME ZONE 'UTC' + n * %s::interval, %s)) IS NOT NULL) AS covered"
        " FROM generate_series(0, 1) n",
        [
            {"month": "1 month", "quarter": "3 months", "year": "1 year"}[unit],
            {"month": 'YYYY"m"MM', "quarter": 'YYYY"q"Q', "year": "YYYY"}[unit],
        ],
    )
    assert covered


@pytest.mark.parametrize(
    ("unit", "moment", "bounds"),
    [
        ("month", "2024-02-29 23:59:59.999999+00", ("2024-02-01", "2024-03-01")),
        ("month", "2024-03-01 00:00:00+00", ("2024-03-01", "2024-04-01")),
        ("month", "2024-03-01 00:30:00+02", ("2024-02-01", "2024-03-01")),
        ("quarter", "1999-12-31 23:00:00+00", ("1999-10-01", "2000-01-01")),
        ("quarter", "2024-04-01 00:00:00+00", ("2024-04-01", "2024-07-01")),
        ("year", "1970-01-01 00:00:00+00", ("1970-01-01", "1971-01-01")),
    ],
)
def test_any_moment_gets_its_partition_on_demand(
    empty_database: Database, unit: schema.PartitionUnit, moment: str, bounds: tuple[str, str]
) -> None:
    migrate(empty_database, unit)
    empty_database.execute(f"ALTER DATABASE {empty_database.name} SET TimeZone = 'Asia/Kolkata'")
    assert ensure(empty_database, moment) == bounds
    count = len(partitions(empty_database))
    assert ensure(empty_database, moment) == bounds
    assert len(partitions(empty_database)) == count == 3


def test_there_is_no_default_partition(destination: Database) -> None:
    assert "DEFAULT" not in partitions(destination).values()


def test_there_are_at_most_four_indexes_beside_the_primary_key(destination: Database) -> None:
    found = indexes(destination, "changes")
    assert "btree (source, epoch, commit_lsn, ordinal, committed_at)" in found
    assert len(found) <= 5
    assert any("hash_array_extended(primary_key" in definition for definition in found)


def test_a_partition_made_on_demand_has_the_indexes_and_checks_of_the_others(
    destination: Database,
) -> None:
    ensure(destination, "2001-01-01 00:00+00")
    assert indexes(destination, "changes_2001q1") == [
        definition.replace("ONLY ", "") for definition in indexes(destination, "changes")
    ]
    # An index that is no part of the parent's would be built twice.
    ((attached,),) = destination.execute(
        "SELECT count(*) AS n FROM pg_index x JOIN pg_inherits i ON i.inhrelid = x.indexrelid"
        " WHERE x.indrelid = 'pgaudit_ctx.changes_2001q1'::regclass"
    )
    assert attached == len(indexes(destination, "changes_2001q1"))
    with pytest.raises(psycopg.errors.CheckViolation):
        destination.execute(
            "INSERT INTO pgaudit_ctx.changes (source, epoch, commit_lsn, ordinal, transaction_id,"
            " committed_at, operation, schema_name, table_name, relation_oid)"
            " VALUES ('s', 1, '0/1', 1, 1, '2001-01-02', 'MERGE', 's', 't', 1)"
        )


def test_a_report_that_is_open_does_not_delay_a_new_partition(destination: Database) -> None:
    with destination.connect() as report, report.transaction():
        report.execute("SELECT count(*) FROM pgaudit_ctx.changes").fetchall()
        report.execute("SELECT count(*) FROM pgaudit_ctx.change_log").fetchall()
        with destination.connect() as connection:
            connection.execute("SET lock_timeout = '5s'")
            connection.execute("SELECT pgaudit_ctx.ensure_partition('2001-01-01')")
    assert "changes_2001q1" in partitions(destination)


def test_several_who_need_the_same_partition_at_once_make_it_once(destination: Database) -> None:
    together = threading.Barrier(4)
    failed: list[BaseException] = []

    def run() -> None:
        together.wait()
        try:
            ensure(destination, "2001-01-01 00:00+00")
        except psycopg.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert "changes_2001q1" in partitions(destination)


TABLE = CapturedTable(Relation(7, "public", "t", "f", (Column("id", 23, -1, True),)), None)


@pytest.fixture
def sink(capture: Capture) -> Iterator[Sink]:
    with connect(capture.destination.url, "destination") as connection:
        yield Sink(connection, capture.source.name, 1)


def one(ordinal: int = 1, after: str = '{"id": 1}') -> CapturedChange:
    return CapturedChange(ordinal, "INSERT", TABLE, (b"1",), None, None, after, None)


def microseconds(moment: dt.datetime) -> int:
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def test_the_sink_stores_transactions_of_any_time_in_their_partitions(
    capture: Capture, sink: Sink
) -> None:
    moments = [
        dt.datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
        dt.datetime(2038, 1, 19, 3, 14, 8, tzinfo=dt.UTC),
        dt.datetime(2000, 1, 1, tzinfo=dt.UTC),
    ]
    capture.destination.execute("UPDATE pgaudit_ctx.checkpoints SET end_lsn = '0/0'")
    for lsn, moment in enumerate(moments, start=FAR):
        sink.begin(Begin(lsn, microseconds(moment), 700))
        sink.write([one(1), one(2)])
        sink.commit(end_lsn=lsn, time=microseconds(moment), commit_lsn=lsn)
    rows = capture.destination.execute(
        "SELECT commit_lsn::text AS lsn, ordinal, transaction_id, committed_at,"
        " tableoid::regclass::text AS place FROM pgaudit_ctx.changes ORDER BY 1, 2"
    )
    assert [(row.lsn, row.ordinal, row.committed_at) for row in rows] == [
        (f"100/{number}", ordinal, moment)
        for number, moment in enumerate(moments)
        for ordinal in (1, 2)
    ]
    assert [row.place for row in rows[::2]] == [
        "pgaudit_ctx.changes_1999q4",
        "pgaudit_ctx.changes_2038q1",
        "pgaudit_ctx.changes_2000q1",
    ]


def test_changes_and_checkpoint_are_stored_together_or_not_at_all(
    capture: Capture, sink: Sink
) -> None:
    def state() -> tuple[int, str]:
        ((count,),) = capture.destination.execute("SELECT count(*) AS n FROM pgaudit_ctx.changes")
        ((lsn,),) = capture.destination.execute("SELECT end_lsn FROM pgaudit_ctx.checkpoints")
        return count, lsn

    before = state()
    sink.begin(Begin(FAR, microseconds(dt.datetime.now(dt.UTC)), 7))
    sink.write([one(1)])
    assert state() == before
    sink.commit(end_lsn=FAR + 8, time=0, commit_lsn=FAR)
    assert state() == (1, "100/8")
    sink.begin(Begin(2 * FAR, microseconds(dt.datetime.now(dt.UTC)), 8))
    sink.write([one(1), one(1, after='{"secret": "hunter2"}')])
    with pytest.raises(DatabaseError) as refused:
        sink.commit(end_lsn=2 * FAR + 8, time=0, commit_lsn=2 * FAR)
    assert state() == (1, "100/8")
    assert "hunter2" not in str(refused.value)
    assert "23505" in str(refused.value)


def test_the_checkpoints_clock_never_goes_back(capture: Capture, sink: Sink) -> None:
    ((before,),) = capture.destination.execute("SELECT complete_at FROM pgaudit_ctx.checkpoints")
    sink.commit(end_lsn=FAR, time=0)
    ((after,),) = capture.destination.execute("SELECT complete_at FROM pgaudit_ctx.checkpoints")
    assert after == before


def test_a_destination_that_does_not_wait_for_its_disk_is_told_to(capture: Capture) -> None:
    capture.destination.execute(
        f"ALTER DATABASE {capture.destination.name} SET synchronous_commit = off"
    )
    with connect(capture.destination.url, "destination") as connection:
        Sink(connection, capture.source.name, 1)
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_the_change_log_shows_whole_rows_and_names_what_changed(capture: Capture) -> None:
    for statement in (
        "INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')",
        "UPDATE patient SET name = 'Eve', notes = 'null'",
        "UPDATE patient SET name = name",
        "DELETE FROM patient",
        "TRUNCATE dose",
    ):
        capture.source.execute(statement)
    insert, update, nothing, delete, truncate = capture.changes()
    old = {"id": 1, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None}
    new = {**old, "name": "Eve", "notes": {"$pgaudit_ctx": "value", "value": None}}
    assert (insert.before, insert.after, insert.changed) == (None, old, None)
    assert (update.before, update.after, sorted(update.changed)) == (old, new, ["name", "notes"])
    assert (nothing.before, nothing.after, nothing.changed) == (new, new, [])
    assert (delete.before, delete.after, delete.changed) == (new, None, None)
    assert (truncate.before, truncate.after, truncate.changed) == (None, None, None)


def test_the_tables_have_the_columns_that_others_rely_on(destination: Database) -> None:
    columns: dict[str, list[str]] = {}
    for row in destination.execute(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'pgaudit_ctx' ORDER BY ordinal_position"
    ):
        columns.setdefault(row.table_name, []).append(row.column_name)
    assert " ".join(columns["changes"]) == (
        "source epoch commit_lsn ordinal transaction_id committed_at captured_at operation"
        " schema_name table_name relation_oid primary_key previous_key before after context"
    )
    for table, wanted in {
        "checkpoints": "source slot epoch commit_lsn end_lsn system_identifier timeline"
        " database_oid updated_at",
        "epochs": "source epoch system_identifier timeline from_lsn fork_lsn started_at cause"
        " clean",
        "gaps": "source epoch from_lsn to_epoch to_lsn from_time to_time cause detected_at",
        "rejected": "source epoch commit_lsn ordinal committed_at change sqlstate rejected_at"
        " replayed_at",
        "coverage": "source epoch schema_name table_name relation_oid from_lsn to_lsn from_time"
        " to_time key_columns identity publication ignored redacted reason",
        "tracked": "source schema_name table_name identity identity_before since",
        "operations": "at actor command arguments result",
        "change_log": "before after changed context",
    }.items():
        assert set(wanted.split()) <= set(columns[table]), table
