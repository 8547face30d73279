"""The stitcher against a model of the server's log: any transactions, any delivery it may choose.

The model writes records one after the other, as the server does: rows (several for a COPY) carry
where their record starts, messages where theirs ends. At the commit it merges the surviving
subtransactions by position; where two heads are equal their ranks, which Hypothesis chose, decide.
What is right follows from the order in the log alone.
"""

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgaudit_ctx.wal.pgoutput import Begin, Column, Commit, Insert, Message, Relation, Truncate
from pgaudit_ctx.wal.stitcher import CapturedChange, Stitcher
from pgaudit_ctx.wal.table import TableFacts

TABLE = Relation(1, "public", "t", "f", (Column("id", 23, -1, True),))
OTHER = TABLE._replace(oid=2, name="u")
CONTEXTS = st.sampled_from(['{"user":"a"}', '{"user":"b"}', '{"user":"c"}', "{}"])


class Place(NamedTuple):
    """Whether a record has a savepoint to itself, and its rank among others of its position."""

    alone: bool
    rank: int


PLACES = st.builds(Place, st.booleans(), st.integers(0, 1))


class Record(NamedTuple):
    """One record of the log."""

    start: int
    end: int
    subtransaction: int
    rank: int
    keys: tuple[int, ...] = ()
    prefix: str = ""
    text: str = ""
    truncates: bool = False

    @property
    def position(self) -> int:
        """What the server sorts by."""
        return self.end if self.prefix else self.start

    def messages(self) -> list[object]:
        if self.prefix:
            return [Message(True, self.end, self.prefix, self.text.encode())]
        if self.truncates:
            return [Truncate(False, False, (1, 2))]
        return [Insert(1, [str(key).encode()]) for key in self.keys]


class Log(RuleBasedStateMachine):
    """Writes transactions, and hands each committed one to the stitcher."""

    def __init__(self) -> None:
        super().__init__()
        self.lsn = 1000
        self.numbers = iter(range(10**9))
        self.stitcher = Stitcher(lambda r: TableFacts(r.oid, r.schema, r.name, ("id",), {}))
        self.described = False
        self.records: list[Record] = []
        self.open: list[int] = []
        self.got: list[CapturedChange] = []

    @initialize()
    def begin(self) -> None:
        self.records = []
        self.open = [next(self.numbers)]

    def write(self, size: int, place: Place, **what) -> None:
        subtransaction = next(self.numbers) if place.alone else self.open[-1]
        self.records.append(Record(self.lsn, self.lsn + size, subtransaction, place.rank, **what))
        self.lsn += size

    @precondition(lambda self: self.records)
    @rule()
    def others_write(self) -> None:
        self.lsn += 8

    @rule(text=CONTEXTS, place=PLACES)
    def emit(self, text: str, place: Place) -> None:
        self.write(56, place, prefix="pgaudit_ctx", text=text)

    @rule(text=CONTEXTS, place=PLACES)
    def emit_as_bemi_does(self, text: str, place: Place) -> None:
        self.write(48, place, prefix="_bemi", text=text)

    @precondition(lambda self: self.records)
    @rule(place=PLACES)
    def emit_for_somebody_else(self, place: Place) -> None:
        self.write(40, place, prefix="other", text='{"user":"x"}')

    @rule(count=st.integers(1, 3), place=PLACES)
    def insert(self, count: int, place: Place) -> None:
        self.write(64, place, keys=tuple(next(self.numbers) for _ in range(count)))

    @rule(place=PLACES)
    def truncate(self, place: Place) -> None:
        self.write(32, place, truncates=True)

    @rule()
    def savepoint(self) -> None:
        self.open.append(next(self.numbers))

    @precondition(lambda self: len(self.open) > 1)
    @rule()
    def release(self) -> None:
        # The subtransaction keeps its own stream; what follows is the parent's again.
        self.open.pop()

    @precondition(lambda self: len(self.open) > 1)
    @rule()
    def roll_back_to_savepoint(self) -> None:
        gone = self.open.pop()
        self.records = [record for record in self.records if record.subtransaction < gone]

    @rule(again=st.booleans())
    def commit(self, *, again: bool) -> None:
        commit_lsn = self.lsn
        self.lsn += 56
        changes = list(self.stitcher.receive(commit_lsn, Begin(commit_lsn, 0, 1)))
        if not self.described:
            for relation in (TABLE, OTHER):
                changes += self.stitcher.receive(0, relation)
            self.described = not again  # the server describes its tables as often as it likes
        for record in self.delivered():
            for message in record.messages():
                changes += self.stitcher.receive(record.position, message)
        changes += self.stitcher.receive(commit_lsn, Commit(commit_lsn, self.lsn, 0))
        expected = self.right()
        assert [(c.key and int(c.key[0]), c.context) for c in changes] == expected
        assert [c.ordinal for c in changes] == list(range(1, len(expected) + 1))
        self.begin()

    def delivered(self) -> list[Record]:
        """Merge the subtransactions by position, as the server's reorder buffer does."""
        streams: dict[int, list[Record]] = {}
        for record in self.records:
            streams.setdefault(record.subtransaction, []).append(record)
        merged = []
        while streams:
            least = min(streams.values(), key=lambda stream: (stream[0].position, stream[0].rank))
            merged.append(least.pop(0))
            streams = {key: stream for key, stream in streams.items() if stream}
        return merged

    def teardown(self) -> None:
        self.commit(again=False)

    def right(self) -> list[tuple[int | None, str | None]]:
        """Read the log from its beginning to its end."""
        lasting: str | None = None
        once: list[str | None] = []
        found: list[tuple[int | None, str | None]] = []
        for record in self.records:
            text = None if record.text == "{}" else record.text
            if record.prefix == "pgaudit_ctx":
                lasting = text
            elif record.prefix == "_bemi":
                once = [text]
            keys = (None, None) if record.truncates else record.keys
            found += [(key, once.pop() if once else lasting) for key in keys]
        return found

    @invariant()
    def nothing_is_left_of_what_was_committed(self) -> None:
        assert not self.stitcher._held


Log.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestStitcher = Log.TestCase
