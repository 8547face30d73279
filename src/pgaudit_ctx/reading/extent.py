"""What the trail can know of some tables: since when, up to where, and with which holes; pure."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pgaudit_ctx.errors import NotCaptured, SourceAmbiguous, SourceUnknown
from pgaudit_ctx.wal.lsn import parse_lsn

Table = tuple[str, str]
"""Schema and name."""

NOT_CAPTURED: Final = "the table was not captured"


class CompleteUpTo(NamedTuple):
    """Up to where the trail holds everything: a position in an epoch, and the source's clock."""

    lsn: str
    time: dt.datetime
    epoch: int = 1


class Gap(NamedTuple):
    """A range of the log that was lost, or in which the table was not captured.

    ``to_epoch``, ``to_lsn`` and ``to_time`` are ``None`` while it is not captured.
    """

    epoch: int
    from_lsn: str
    to_epoch: int | None
    to_lsn: str | None
    from_time: dt.datetime
    to_time: dt.datetime | None
    cause: str


class Relation(NamedTuple):
    """A table of the source under whatever name: its oid, which holds within one epoch."""

    epoch: int
    oid: int


class Baseline(NamedTuple):
    """Where every row of the first table that existed was stored; its rows come just before it."""

    epoch: int
    lsn: str
    time: dt.datetime


@dataclass(frozen=True)
class Extent:
    """What the trail can know of the tables of one record.

    Attributes:
        source: The source that holds them.
        key_columns: The primary key's columns in key order, for each table.
        began_at: Since when the trail has what happened to the first of them: since its capture
            began, or since what was pruned.
        complete_up_to: Up to where nothing is missing but what ``gaps`` says.
        gaps: What was lost or not captured, in order.
        undone: For an epoch that was left behind by a failover, the position from which its changes
            never happened on the server that went on.
        baselines: Snapshots of the whole first table, in order.
        pruned_before: Changes committed before this were dropped because they were old.
        untouched: Whether no worker has stored anything yet, not even a position.
        renamed: Relations that had another name before, and the table they are now.
    """

    source: str
    key_columns: Mapping[Table, tuple[str, ...]]
    began_at: dt.datetime
    complete_up_to: CompleteUpTo
    gaps: Sequence[Gap]
    undone: Mapping[int, str]
    renamed: Mapping[Relation, Table]
    baselines: Sequence[Baseline] = ()
    untouched: bool = False
    pruned_before: dt.datetime | None = None

    @property
    def beginning(self) -> str:
        """Why nothing is known of earlier times, for messages."""
        why = (
            "capture of the table began at"
            if self.pruned_before is None
            else "pruned is all before"
        )
        return f"{why} {self.began_at:%Y-%m-%d %H:%M:%S%z}"


def extent_of(
    facts: Iterable[Any], tables: Sequence[Table], source: str | None, label: str
) -> Extent:
    """Read what :func:`pgaudit_ctx.reading.extent_facts.select_extent` found.

    Args:
        facts: Its rows, in any order.
        tables: The tables of the record, the one that must have been captured first.
        source: The source that was asked for, if one was.
        label: What to call the record's kind in messages.

    Raises:
        NotCaptured: If the first table was never captured.
        SourceAmbiguous: If several sources hold it and none was named.
        SourceUnknown: If the named one does not.
    """
    rows = list(facts)
    covered = [row for row in rows if row.fact == "coverage"]
    chosen = _source(covered, tables[0], source, label)
    own = sorted((row for row in rows if row.source == chosen), key=_position)
    epochs = {row.epoch: row for row in own if row.fact == "epoch"}
    found: list[Gap] = [_gap(row) for row in own if row.fact == "gap"]
    began_at: dt.datetime | None = None
    keys: dict[Table, tuple[str, ...]] = {}
    renamed: dict[Relation, Table] = {}
    for table in tables:
        intervals = _intervals([row for row in own if row.fact == "coverage"], table)
        if not intervals:
            continue
        keys[table] = tuple(intervals[-1].key_columns)
        began_at = began_at or intervals[0].from_time
        found += holes(intervals, epochs, found)
        renamed |= {_relation(row): table for row in intervals if _table(row) != table}
    undone = undone_from(epochs)
    assert began_at is not None  # noqa: S101 - _source() has seen an interval of the first table
    forgotten = [row.from_time for row in own if row.fact == "pruned"]
    pruned_before = max((moment for moment in forgotten if moment > began_at), default=None)
    began_at = pruned_before or began_at
    return Extent(
        chosen,
        keys,
        began_at,
        complete_of(own),
        sorted((gap for gap in found if not _is_undone(gap, undone)), key=_gap_position),
        undone,
        renamed,
        [
            Baseline(row.epoch, row.from_lsn, row.from_time)
            for row in own
            if row.fact == "baseline"
            and _table(row) == tables[0]
            and not is_undone(undone, row.epoch, row.from_lsn)
            # The rows of an older one are gone.
            and (pruned_before is None or row.from_time >= pruned_before)
        ],
        _is_untouched(own, epochs),
        pruned_before,
    )


def _source(covered: Sequence[Any], table: Table, source: str | None, label: str) -> str:
    sources = sorted({row.source for row in covered if _table(row) == table})
    if source is not None:
        if sources and source not in sources:
            raise SourceUnknown(
                f"the trail holds {label} of {', '.join(sources)}, but not of the source "
                f"{source!r}. Remedy: pass source= with one of these"
            )
        sources = [source] if source in sources else []
    if len(sources) > 1:
        raise SourceAmbiguous(
            f"the trail holds {label} of several sources: {', '.join(sources)}. Remedy: pass "
            "source= to the reader, or to configure()"
        )
    if not sources:
        raise never_captured(label)
    return str(sources[0])


def _intervals(covered: Sequence[Any], table: Table) -> list[Any]:
    """Give the intervals of a table, those under earlier names of the same relation included.

    A relation is followed only to the last name it had in its epoch, so that a table that was
    replaced (``RENAME TO t_old``, and a new ``t``) does not take the new one's changes.
    """
    last = {_relation(row): _table(row) for row in covered}
    return [row for row in covered if _table(row) == table or last[_relation(row)] == table]


def holes(
    intervals: Sequence[Any], epochs: Mapping[int, Any], known: Sequence[Gap] = ()
) -> list[Gap]:
    """Give the holes between the intervals in which one table was captured.

    Args:
        intervals: Rows of ``coverage`` of one table of one source, in order.
        epochs: Rows of ``epochs`` by number. An interval that was open when a new epoch began goes
            on into it if the new one is clean, and the table has an interval there as well.
        known: Gaps that are written down already, which need not be found again.

    Returns:
        A gap for each hole; the last one is open if the table is not captured any more.
    """
    found = []
    end = intervals[0]
    for after in intervals[1:]:
        if not _goes_on(end, after, epochs):
            found.append(_between(end, after, epochs))
            end = after
        elif after.to_lsn is None or _reaches_further(after, end):
            end = after
    if end.to_lsn is not None or any(number > end.epoch for number in epochs):
        found.append(_between(end, None, epochs))
    return [gap for gap in found if not any(_covers(other, gap) for other in known)]


def _goes_on(end: Any, after: Any, epochs: Mapping[int, Any]) -> bool:
    if end.epoch == after.epoch:
        return end.to_lsn is None or parse_lsn(after.from_lsn) <= parse_lsn(end.to_lsn)
    between = [epochs[n] for n in range(end.epoch + 1, after.epoch + 1) if n in epochs]
    if len(between) != after.epoch - end.epoch or not all(epoch.clean for epoch in between):
        return False
    first, last = between[0], between[-1]
    until_the_end = end.to_lsn is None or (
        first.to_lsn is not None and parse_lsn(end.to_lsn) >= parse_lsn(first.to_lsn)
    )
    return until_the_end and parse_lsn(after.from_lsn) <= parse_lsn(last.from_lsn)


def _reaches_further(after: Any, end: Any) -> bool:
    if after.epoch != end.epoch:
        return True
    return end.to_lsn is not None and parse_lsn(after.to_lsn) > parse_lsn(end.to_lsn)


def _between(end: Any, after: Any | None, epochs: Mapping[int, Any]) -> Gap:
    new = epochs.get(end.epoch + 1) if end.to_lsn is None else None
    from_lsn = end.to_lsn
    if from_lsn is None:
        # Where the old epoch ended is not written down. Its interval may hold up to its last byte.
        from_lsn = "FFFFFFFF/FFFFFFFF"
    cause = NOT_CAPTURED if new is None else f"epoch {new.epoch} began: {new.note}"
    from_time = end.to_time if new is None else new.from_time
    if after is None:
        return Gap(end.epoch, from_lsn, None, None, from_time, None, cause)
    to_time = max(after.from_time, from_time)
    return Gap(end.epoch, from_lsn, after.epoch, after.from_lsn, from_time, to_time, cause)


def _covers(known: Gap, gap: Gap) -> bool:
    """Whether a gap that was written down says all that a hole at an epoch's border would."""
    return (
        known.epoch == gap.epoch
        and known.to_epoch == gap.to_epoch
        and parse_lsn(known.from_lsn) <= parse_lsn(gap.from_lsn)
        and known.to_lsn is not None
        and gap.to_lsn is not None
        and parse_lsn(known.to_lsn) >= parse_lsn(gap.to_lsn)
    )


def undone_from(epochs: Mapping[int, Any]) -> dict[int, str]:
    """Say which changes a failover has left behind.

    The new epoch's row says where it forked off. If the epoch before began with a fork itself, its
    positions continue those of the one before that, which the new fork then may cut shorter.

    Args:
        epochs: Rows of ``epochs`` by number; ``to_lsn`` is ``fork_lsn``.

    Returns:
        For each epoch that was cut: changes with ``commit_lsn`` at or past this are undone.
    """
    cut: dict[int, str] = {}
    lowest: str | None = None
    for number in sorted(epochs, reverse=True):
        fork = epochs[number].to_lsn
        if fork is None:
            lowest = None
        elif lowest is None or parse_lsn(fork) < parse_lsn(lowest):
            lowest = fork
        if lowest is not None:
            cut[number - 1] = lowest
    return cut


def is_undone(undone: Mapping[int, str], epoch: int, lsn: str) -> bool:
    """Whether a position was left behind by a failover."""
    fork = undone.get(epoch)
    return fork is not None and parse_lsn(lsn) >= parse_lsn(fork)


def _is_undone(gap: Gap, undone: Mapping[int, str]) -> bool:
    return gap.to_epoch == gap.epoch and is_undone(undone, gap.epoch, gap.from_lsn)


def complete_of(own: Sequence[Any]) -> CompleteUpTo:
    """Say up to where a source is complete: its checkpoint, or its first rejected change."""
    bounds = [
        CompleteUpTo(row.from_lsn, row.from_time, row.epoch)
        for row in own
        if row.fact in {"checkpoint", "rejected"}
    ]
    if not bounds:
        raise NotCaptured(
            "the source of this table has no checkpoint yet. Remedy: start pgaudit-ctx worker"
        )
    return min(bounds, key=lambda bound: (bound.epoch, parse_lsn(bound.lsn)))


def _is_untouched(own: Sequence[Any], epochs: Mapping[int, Any]) -> bool:
    (reached,) = [row for row in own if row.fact == "checkpoint"] or [None]
    first = epochs.get(min(epochs, default=0))
    return (
        reached is not None
        and first is not None
        and (reached.epoch, reached.from_lsn) == (first.epoch, first.from_lsn)
    )


def never_captured(label: str) -> NotCaptured:
    """Give the error for a table that the trail has never heard of."""
    return NotCaptured(
        f"{label} was never captured. Remedy: run pgaudit-ctx setup, which adds new "
        "tables, or check the schema (schema=) and the destination"
    )


def nothing_yet(sources: Iterable[str]) -> NotCaptured:
    """Give the error for a question to a trail whose worker has never run."""
    of = f" of {', '.join(sources)}" if sources else ""
    return NotCaptured(
        f"nothing was captured{of} yet, because the worker has not run. Remedy: start pgaudit-ctx "
        "worker, and keep it running; pgaudit-ctx status shows how far it is"
    )


def gaps_of(own: Sequence[Any]) -> list[Gap]:
    """Give what a source has lost, but for what a failover has undone."""
    undone = undone_from({row.epoch: row for row in own if row.fact == "epoch"})
    gaps = [_gap(row) for row in own if row.fact == "gap"]
    return [gap for gap in gaps if not _is_undone(gap, undone)]


def _gap(row: Any) -> Gap:
    return Gap(
        row.epoch, row.from_lsn, row.to_epoch, row.to_lsn, row.from_time, row.to_time, row.note
    )


def _gap_position(gap: Gap) -> tuple[int, int]:
    return gap.epoch, parse_lsn(gap.from_lsn)


def _position(row: Any) -> tuple[int, int]:
    return row.epoch, parse_lsn(row.from_lsn)


def _table(row: Any) -> Table:
    return row.schema_name, row.table_name


def _relation(row: Any) -> Relation:
    return Relation(row.epoch, row.relation_oid)
