"""A slot that loses its log while it is read ends in the refusal of a start, not in a loop."""

from collections.abc import Iterator

import psycopg
import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.errors import SlotMissing
from pgaudit_ctx.worker import Worker
from support.database import Capture, create_database, drop_database
from support.positions import insert
from support.server import Server, server_of_its_own
from support.supervised import supervised
from support.waiting import eventually


@pytest.fixture(scope="module")
def thrifty(server: Server) -> Iterator[EmbeddedPostgres]:
    """A source that keeps next to no log for a slot."""
    with server_of_its_own(server, {"max_slot_wal_keep_size": "1MB"}) as running:
        yield running


@pytest.fixture
def lossy(
    thrifty: EmbeddedPostgres, server: Server, destination_template: str
) -> Iterator[Capture]:
    source = create_database(thrifty)
    source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
    destination = create_database(server, destination_template)
    capture = Capture(source, destination)
    capture.setup()
    yield capture
    drop_database(source)
    drop_database(destination)


def stored(capture: Capture) -> list[str]:
    rows = capture.destination.execute(
        "SELECT primary_key[1] AS id FROM pgaudit_ctx.changes ORDER BY epoch, commit_lsn, ordinal"
    )
    return [row.id for row in rows]


def status(capture: Capture) -> str | None:
    (row,) = capture.source.execute(
        "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", [capture.options.slot]
    )
    return row.wal_status


def write_much_log(capture: Capture) -> None:
    for _ in range(4):
        capture.source.execute("SELECT pg_logical_emit_message(false, 'noise', 'x')")
        capture.source.execute("SELECT pg_switch_wal()")
    capture.source.execute("CHECKPOINT")


def lose(capture: Capture) -> None:
    def lost() -> bool:
        write_much_log(capture)
        return status(capture) == "lost"

    eventually(lost, "the slot has lost its log")


@pytest.mark.parametrize("stalled", ["the destination", "the source"])
def test_a_slot_lost_in_mid_stream_ends_in_a_refusal_and_the_gap_can_be_accepted(
    lossy: Capture, stalled: str
) -> None:
    insert(lossy.source, 1)
    with pytest.raises(SlotMissing, match="has lost the log it kept") as refused:  # noqa: PT012, SIM117 - what the block brings about
        with supervised(lossy.options, ends_by_itself=True):
            eventually(lambda: stored(lossy) == ["1"], "the worker runs")
            end = lossy.destination if stalled == "the destination" else lossy.source
            statement = (
                "LOCK TABLE pgaudit_ctx.changes"
                if stalled == "the destination"
                else "INSERT INTO patient VALUES (7, 'x', 'ACTIVE')"  # open, so its log is needed
            )
            with psycopg.connect(end.url) as holder:
                holder.execute(statement)
                insert(lossy.source, 2)
                lose(lossy)
                holder.rollback()
    assert "--accept-gap" in str(refused.value)
    worker = Worker(lossy.options._replace(accept_gap=True))
    try:
        insert(lossy.source, 3)
        worker.run(until_caught_up=True)
    finally:
        worker.close()
    assert stored(lossy)[0] == "1"
    assert stored(lossy)[-1] == "3"
    (gap,) = lossy.destination.execute("SELECT cause FROM pgaudit_ctx.gaps")
    assert gap.cause == "the slot lost its log"
