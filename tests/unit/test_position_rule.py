"""The position rule as a property: any delivery that the server may choose gives the same."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.wal.pgoutput import Begin, Column, Commit, Insert, Message, Relation
from pgaudit_ctx.wal.stitcher import Stitcher
from pgaudit_ctx.wal.table import TableFacts

TABLE = Relation(1, "public", "t", "f", (Column("id", 23, -1, True),))


class Record(NamedTuple):
    """One record of the log: rows (several for a COPY), or a context where there are none."""

    rows: int
    context: str | None
    gap: int
    row_first: bool


records = st.lists(
    st.builds(
        Record,
        rows=st.integers(0, 3),
        context=st.sampled_from(['{"user":"a"}', '{"user":"b"}', "{}"]),
        gap=st.integers(0, 2),
        row_first=st.booleans(),
    ),
    max_size=25,
)


class Delivery(NamedTuple):
    """What the server sends, and the contexts that are right."""

    stream: list[tuple[int, object]]
    right: list[str | None]


def deliver(log: list[Record]) -> Delivery:
    """Lay the records out in a log, and send them in an order that keeps positions in order.

    A message's LSN is where its record ends, a row's where its record starts; between a message
    and the rows at its LSN the server has the choice.
    """
    lsn, key = 100, 0
    current: str | None = None
    stream: list[tuple[int, object]] = []
    right: list[str | None] = []
    pending: Message | None = None
    for record in log:
        lsn += 8 * record.gap
        if pending is not None and (record.rows == 0 or pending.lsn != lsn):
            stream.append((pending.lsn, pending))
            pending = None
        if record.rows == 0:
            lsn += 56
            pending = Message(True, lsn, "pgaudit_ctx", str(record.context).encode())
            current = None if record.context == "{}" else record.context
            continue
        rows = []
        for _ in range(record.rows):
            key += 1
            rows.append((lsn, Insert(1, [str(key).encode()])))
            right.append(current)
        if pending is not None:
            at = len(rows) if record.row_first else 0
            rows.insert(at, (pending.lsn, pending))
            pending = None
        stream += rows
        lsn += 40 * record.rows
    if pending is not None:
        stream.append((pending.lsn, pending))
    return Delivery(stream, right)


@given(records)
def test_contexts_follow_positions_in_whatever_order_the_server_delivers(log) -> None:
    delivery = deliver(log)
    stitcher = Stitcher(lambda _: TableFacts(1, "public", "t", ("id",), {}))
    changes = list(stitcher.receive(0, Begin(1, 0, 1)))
    changes += stitcher.receive(0, TABLE)
    for position, message in delivery.stream:
        changes += stitcher.receive(position, message)
    changes += stitcher.receive(1, Commit(1, 2, 0))
    assert [change.context for change in changes] == delivery.right
    assert [change.ordinal for change in changes] == list(range(1, len(changes) + 1))


def test_the_property_really_delivers_rows_before_their_message() -> None:
    delivery = deliver([Record(0, '{"user":"a"}', 0, False), Record(2, None, 0, True)])
    assert [type(message).__name__ for _, message in delivery.stream] == [
        "Insert",
        "Insert",
        "Message",
    ]
