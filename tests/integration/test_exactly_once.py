"""Nothing twice and nothing lost, whatever ends the worker, and wherever."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pgaudit_ctx.destination.sink import Sink
from pgaudit_ctx.errors import (
    DatabaseError,
    PositionMismatch,
    SlotBusy,
    SourceNotReady,
)
from pgaudit_ctx.source.stream import ReplicationStream
from pgaudit_ctx.wal.lsn import parse_lsn
from pgaudit_ctx.worker import Worker
from support.database import Capture, Database, create_database, drop_database
from support.doctor import command
from support.positions import acknowledged, checkpoint, insert, run_and_refuse
from support.server import Server
from support.waiting import eventually


class Crash(BaseException):
    """Ends a worker as suddenly as a test can."""


def keys(capture: Capture) -> list[int]:
    return [int(row.primary_key[0]) for row in capture.changes()]


def stored(capture: Capture) -> list[int]:
    return [
        int(row.primary_key[0])
        for row in capture.destination.execute(
            "SELECT primary_key FROM pgaudit_ctx.changes ORDER BY epoch, commit_lsn, ordinal"
        )
    ]


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    """A worker that captures in another thread while the block runs."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join()
        worker.close()
    assert failed == []


def test_a_second_run_stores_nothing_again(capture: Capture) -> None:
    insert(capture.source, 1, 2)
    assert keys(capture) == [1, 2]
    assert capture.run().changes == 0
    assert keys(capture) == [1, 2]


def test_what_was_stored_but_never_acknowledged_is_not_stored_again(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledge = ReplicationStream.acknowledge
    begun_at = acknowledged(capture)
    insert(capture.source, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(
            ReplicationStream,
            "acknowledge",
            lambda stream, _lsn, **options: acknowledge(stream, begun_at, **options),
        )
        assert keys(capture) == [1, 2]
    assert acknowledged(capture) == begun_at
    insert(capture.source, 3)
    assert keys(capture) == [1, 2, 3]
    assert acknowledged(capture) > begun_at


def test_a_crash_between_the_destinations_commit_and_the_acknowledgement_loses_nothing(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_arguments: object, **_options: object) -> None:
        raise Crash

    insert(capture.source, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(ReplicationStream, "acknowledge", crash)
        with pytest.raises(Crash):
            capture.run()
    assert keys(capture) == [1, 2]


def test_a_crash_before_the_destinations_commit_loses_nothing(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_arguments: object, **_options: object) -> None:
        raise Crash

    insert(capture.source, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("pgaudit_ctx.destination.sink.advance_checkpoint", crash)
        with pytest.raises(Crash):
            capture.run()
    assert stored(capture) == []
    assert keys(capture) == [1, 2]


def test_a_worker_that_crashes_at_every_step_gets_everything_stored_once(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture.options = capture.options._replace(batch_bytes=1)
    acknowledge, commit = ReplicationStream.acknowledge, Sink.start_commit
    insert(capture.source, *range(1, 13))
    steps = iter([None, None, "commit", None, "acknowledge"] * 100)

    def crash_if(place: str) -> None:
        if next(steps) == place:
            raise Crash

    def crashing_commit(sink: Sink, **options: object) -> None:
        crash_if("commit")
        commit(sink, **options)

    def crashing_acknowledge(stream: ReplicationStream, lsn: int, **options: object) -> None:
        crash_if("acknowledge")
        acknowledge(stream, lsn, **options)

    crashes = 0
    with monkeypatch.context() as patch:
        patch.setattr(Sink, "start_commit", crashing_commit)
        patch.setattr(ReplicationStream, "acknowledge", crashing_acknowledge)
        while len(stored(capture)) < 12:
            try:
                capture.run()
            except Crash:
                crashes += 1
    assert crashes >= 3
    assert keys(capture) == list(range(1, 13))


@pytest.mark.parametrize(
    ("options", "commits"),
    [([], 1), (["--batch-size", "1B"], 3), (["--batch-time", "0s"], 3)],
)
def test_batches_end_where_the_options_say(
    capture: Capture, monkeypatch: pytest.MonkeyPatch, options: list[str], commits: int
) -> None:
    monkeypatch.setattr("pgaudit_ctx.worker._LULL_SECONDS", 0.5)  # a busy walsender is no lull
    insert(capture.source, *range(1, 4))
    assert command(capture, "worker", "--until-caught-up", *options).exit_code == 0
    # Rows that one transaction of the destination has stored bear its number.
    rows = "SELECT count(DISTINCT xmin::text) AS commits FROM pgaudit_ctx.changes"
    assert capture.destination.execute(rows) == [(commits,)]


def test_no_position_is_acknowledged_that_the_checkpoint_does_not_hold(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture.options = capture.options._replace(batch_bytes=1)
    acknowledge = ReplicationStream.acknowledge
    seen = []

    def watched(stream: ReplicationStream, lsn: int, **options: object) -> None:
        seen.append((lsn, checkpoint(capture)))
        acknowledge(stream, lsn, **options)

    monkeypatch.setattr(ReplicationStream, "acknowledge", watched)
    insert(capture.source, *range(1, 6))
    capture.source.execute("SELECT pg_logical_emit_message(true, 'other', 'alone')")
    assert keys(capture) == [1, 2, 3, 4, 5]
    assert len(seen) >= 5
    assert all(lsn <= held for lsn, held in seen)
    assert acknowledged(capture) <= checkpoint(capture)


def test_a_worker_asked_to_stop_stores_what_it_has_and_the_next_goes_on(
    capture: Capture,
) -> None:
    capture.options = capture.options._replace(batch_bytes=1)
    insert(capture.source, *range(1, 6))
    worker = Worker(capture.options)
    worker.run(on_batch=lambda _: worker.stop())
    worker.close()
    assert stored(capture) in ([1], [1, 2])  # the second may have been on its way
    assert keys(capture) == [1, 2, 3, 4, 5]


def test_a_running_worker_stores_what_is_written_and_stops_when_asked(capture: Capture) -> None:
    with running(Worker(capture.options)):
        insert(capture.source, 1)
        eventually(lambda: stored(capture) == [1], "the change is stored")
        insert(capture.source, 2)
        eventually(lambda: stored(capture) == [1, 2], "the next one too")


@pytest.mark.parametrize("end", ["source", "source stream", "destination"])
def test_a_lost_connection_ends_the_worker_with_an_error_and_the_next_goes_on(
    capture: Capture, end: str
) -> None:
    worker = Worker(capture.options)
    kind = "walsender" if end == "source stream" else "client backend"
    database = capture.destination if end == "destination" else capture.source
    insert(capture.source, 1)

    def end_it(_: object) -> None:
        database.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = %s"
            " AND application_name LIKE 'pgaudit_ctx%%'",
            [kind],
        )
        # A table that the worker has not met, so that it asks the source's catalog.
        capture.source.execute(f"INSERT INTO sample (id) VALUES ('{uuid.uuid4()}')")

    with pytest.raises(DatabaseError):
        worker.run(on_batch=end_it)
    worker.close()
    assert [row.table_name for row in capture.changes()] == ["patient", "sample"]


def test_a_refusal_of_the_destination_ends_the_worker_without_quoting_the_row(
    capture: Capture,
) -> None:
    before = checkpoint(capture)
    capture.destination.execute(
        "ALTER TABLE pgaudit_ctx.changes"
        " ADD CONSTRAINT no_hunter CHECK (after::text NOT LIKE '%hunter2%')"
    )
    insert(capture.source, 1)
    capture.source.execute("UPDATE patient SET name = 'hunter2'")
    message = run_and_refuse(capture, DatabaseError)
    assert "hunter2" not in message
    assert "no_hunter" in message
    assert "23514" in message
    assert checkpoint(capture) == before == acknowledged(capture)
    assert stored(capture) == []


def test_after_the_destination_was_mended_the_retry_is_complete(capture: Capture) -> None:
    capture.destination.execute(
        "ALTER TABLE pgaudit_ctx.changes ADD CONSTRAINT no CHECK (table_name <> 'patient')"
    )
    insert(capture.source, 1, 2)
    run_and_refuse(capture, DatabaseError)
    capture.destination.execute("ALTER TABLE pgaudit_ctx.changes DROP CONSTRAINT no")
    assert keys(capture) == [1, 2]


def test_a_slot_that_another_process_reads_is_busy_naming_its_pid(capture: Capture) -> None:
    options = capture.options
    with ReplicationStream(options.source, options.slot, options.publication) as other:
        other.start(0)
        ((pid,),) = capture.source.execute(
            f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{options.slot}'"
        )
        message = run_and_refuse(capture, SlotBusy)
    assert str(pid) in message


def test_a_publication_made_anew_over_a_backlog_stops_before_anything_is_acknowledged(
    capture: Capture,
) -> None:
    before = checkpoint(capture)
    insert(capture.source, 1)
    capture.source.execute("DROP PUBLICATION pgaudit_ctx")
    insert(capture.source, 2)
    capture.source.execute("CREATE PUBLICATION pgaudit_ctx FOR TABLE patient, dose, sample")
    insert(capture.source, 3)
    message = run_and_refuse(capture, SourceNotReady)
    assert "publication" in message
    assert checkpoint(capture) == before == acknowledged(capture)


def test_another_database_under_the_same_name_is_refused(
    capture: Capture, empty_database: Database
) -> None:
    other = Capture(empty_database, capture.destination)
    other.options = other.options._replace(name=capture.source.name)
    with pytest.raises(PositionMismatch, match="--name"):
        other.setup()


def test_a_busy_neighbour_does_not_hold_the_slot_of_an_idle_source_back(
    capture: Capture, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.worker._IDLE_SECONDS", 0.05)
    with running(Worker(capture.options)):
        empty_database.execute("CREATE TABLE busy AS SELECT generate_series(1, 1000)")
        ((position,),) = empty_database.execute("SELECT pg_current_wal_lsn()::text AS lsn")

        def caught_up() -> bool:
            # Something must end the neighbour's last record, as its next write does.
            empty_database.execute("SELECT pg_logical_emit_message(false, 'x', 'y')")
            return min(checkpoint(capture), acknowledged(capture)) >= parse_lsn(position)

        eventually(caught_up, "checkpoint and slot pass the neighbour's writes")
    assert acknowledged(capture) <= checkpoint(capture)
    insert(capture.source, 1)
    assert keys(capture) == [1]


def test_a_transaction_of_messages_alone_moves_the_checkpoint(capture: Capture) -> None:
    before = checkpoint(capture)
    capture.source.execute("SELECT pg_logical_emit_message(true, 'pgaudit_ctx', '{\"a\": 1}')")
    ((position,),) = capture.source.execute("SELECT pg_current_wal_lsn()::text AS lsn")
    capture.run()
    assert before < parse_lsn(position) <= checkpoint(capture)


def test_source_and_destination_may_be_one_database_without_feeding_on_itself(
    source: Database,
) -> None:
    same = Capture(source, source)
    same.setup()
    same.setup()
    insert(source, 1)
    assert keys(same) == [1]
    assert same.run().changes == 0
    insert(source, 2)
    assert keys(same) == [1, 2]


def test_two_sources_share_a_destination_without_touching_each_other(
    server: Server, capture: Capture, source_template: str
) -> None:
    second = create_database(server, source_template)
    try:
        other = Capture(second, capture.destination)
        other.setup()
        insert(capture.source, 1)
        insert(second, 1)
        capture.run()
        rows = other.changes()
        assert sorted((row.source, row.primary_key[0]) for row in rows) == sorted(
            [(capture.source.name, "1"), (second.name, "1")]
        )
    finally:
        drop_database(second)


def test_a_commit_time_far_from_now_gets_its_partition_in_the_middle_of_a_run(
    capture: Capture,
) -> None:
    capture.destination.execute(
        "DO $$ DECLARE p regclass; BEGIN"
        " FOR p IN SELECT inhrelid::regclass FROM pg_inherits"
        " WHERE inhparent = 'pgaudit_ctx.changes'::regclass LOOP"
        " EXECUTE format('DROP TABLE %s', p); END LOOP; END $$"
    )
    insert(capture.source, 1)
    worker = Worker(capture.options)
    try:
        worker.run(until_caught_up=True)
    finally:
        worker.close()
    assert stored(capture) == [1]
