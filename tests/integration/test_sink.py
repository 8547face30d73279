"""Rows go on to the destination while a commit is under way, and belong to the next one."""

import datetime as dt
from collections.abc import Iterator

import pytest

from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import sink as module
from pgaudit_ctx.destination.sink import Sink
from pgaudit_ctx.errors import AuditError
from pgaudit_ctx.wal.pgoutput import Begin, Column, Relation
from pgaudit_ctx.wal.stitcher import CapturedChange
from pgaudit_ctx.wal.table import CapturedTable
from support.database import Capture

FAR = 1 << 40
TABLE = CapturedTable(Relation(7, "public", "t", "f", (Column("id", 23, -1, True),)), None)


@pytest.fixture
def sink(capture: Capture) -> Iterator[Sink]:
    with connect(capture.destination.url, "destination") as connection:
        yield Sink(connection, capture.source.name, 1)


def begin(sink: Sink, lsn: int) -> None:
    now = dt.datetime.now(dt.UTC) - dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    sink.begin(Begin(lsn, now // dt.timedelta(microseconds=1), 700))


def change(ordinal: int, text: str = "") -> CapturedChange:
    after = f'{{"id": "{text}"}}'
    return CapturedChange(ordinal, "INSERT", TABLE, (b"1",), None, None, after, None)


def stored(capture: Capture) -> tuple[int, str]:
    ((count,),) = capture.destination.execute("SELECT count(*) AS n FROM pgaudit_ctx.changes")
    ((lsn,),) = capture.destination.execute("SELECT end_lsn FROM pgaudit_ctx.checkpoints")
    return count, lsn


def test_rows_written_while_a_commit_is_under_way_belong_to_the_next(
    capture: Capture, sink: Sink
) -> None:
    begin(sink, FAR)
    sink.write([change(1), change(2)])
    sink.start_commit(end_lsn=FAR + 8, time=0, commit_lsn=FAR)
    assert sink.committing
    begin(sink, FAR + 16)
    sink.write([change(1)])
    sink.finish()
    assert not sink.committing
    assert stored(capture) == (2, "100/8")
    sink.commit(end_lsn=FAR + 32, time=0, commit_lsn=FAR + 16)
    assert stored(capture) == (3, "100/20")


def test_a_second_commit_waits_for_the_first(capture: Capture, sink: Sink) -> None:
    for lsn in range(FAR, FAR + 80, 8):
        begin(sink, lsn)
        sink.write([change(1)])
        sink.start_commit(end_lsn=lsn + 8, time=0, commit_lsn=lsn)
        assert stored(capture)[0] >= (lsn - FAR) // 8
    sink.finish()
    assert stored(capture) == (10, "100/50")


def test_more_than_the_destination_takes_at_once_waits_and_is_stored_whole(
    capture: Capture, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_UNSENT", 4)
    begin(sink, FAR)
    for ordinal in range(1, 201):
        sink.write([change(ordinal, "ä" * 100_000)])
        assert len(sink._unsent) < 8  # what the memory of a worker depends on
    sink.commit(end_lsn=FAR + 8, time=0, commit_lsn=FAR)
    ((count, length),) = capture.destination.execute(
        "SELECT count(*), sum(length(after ->> 'id')) FROM pgaudit_ctx.changes"
    )
    assert (count, length) == (200, 200 * 100_000)


def test_a_destination_that_is_lost_in_a_commit_is_an_error_and_nothing_is_stored(
    capture: Capture, sink: Sink
) -> None:
    before = stored(capture)
    begin(sink, FAR)
    sink.write([change(1)])
    capture.destination.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE application_name = 'pgaudit_ctx destination'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pytest.raises(AuditError):
        sink.commit(end_lsn=FAR + 8, time=0, commit_lsn=FAR)
    assert stored(capture) == before
