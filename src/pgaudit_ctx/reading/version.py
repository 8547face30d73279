"""Rebuilds the versions of one record from its changes; pure."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar, cast

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import HistoryUnknown
from pgaudit_ctx.reading.shape import Shape

M = TypeVar("M")

GONE = frozenset({Operation.DELETE, Operation.TRUNCATE})
"""The operations after which a record is not there any more."""


class Difference(NamedTuple):
    """One attribute on both sides of a change."""

    old: Any
    new: Any


class CompleteUpTo(NamedTuple):
    """Up to where the trail holds everything: a position, and the source's clock there."""

    lsn: str
    time: dt.datetime


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


def holes(intervals: Sequence[Any]) -> list[Gap]:
    """Give the holes between the intervals in which one table was captured.

    Args:
        intervals: Rows of ``coverage`` of one table of one source, in order.

    Returns:
        A gap for each hole; the last one is open if the table is not captured any more.
    """
    found = []
    following = [*intervals[1:], None]
    for interval, after in zip(intervals, following, strict=True):
        if interval.to_lsn is None:
            continue
        if after is None:
            end: tuple[int | None, str | None, dt.datetime | None] = (None, None, None)
        elif (after.epoch, str(after.from_lsn)) == (interval.epoch, str(interval.to_lsn)):
            continue
        else:
            end = (after.epoch, str(after.from_lsn), after.from_time)
        to_epoch, to_lsn, to_time = end
        found.append(
            Gap(
                interval.epoch,
                str(interval.to_lsn),
                to_epoch,
                to_lsn,
                interval.to_time,
                to_time,
                "the table was not captured",
            )
        )
    return found


@dataclass(frozen=True)
class Trail(Generic[M]):
    """What all versions of one record share."""

    shape: Shape[M]
    key: tuple[str, ...]
    began_at: dt.datetime
    complete_up_to: CompleteUpTo
    gaps: Sequence[Gap]
    user_key: str
    reason_key: str
    versions: "list[Version[M]]" = field(default_factory=list)


@dataclass(frozen=True, eq=False, repr=False)
class Version(Generic[M]):
    """One state in a record's history: the change that made it, and who made it when and why.

    Attributes:
        number: From 1, the place in the whole history, whatever was filtered.
        committed_at: When the change was committed, by the source's clock; aware.
        valid_to: When a later change ended this state; ``None`` for the current one.
        transaction_id: The source's transaction id (xid).
        commit_lsn: The place of its commit in the log, with ``epoch``.
        epoch: See ``commit_lsn``; positions are comparable within one epoch only.
        row: The row of ``changes`` it was made from.
    """

    number: int
    operation: Operation
    committed_at: dt.datetime
    valid_to: dt.datetime | None
    transaction_id: int
    commit_lsn: str
    epoch: int
    row: Any
    _trail: Trail[M]

    def __repr__(self) -> str:
        return (
            f"<Version {self.number} of {self._trail.shape.label} {'/'.join(self._trail.key)}: "
            f"{self.operation} at {self.committed_at:%Y-%m-%d %H:%M:%S%z}>"
        )

    @property
    def valid_from(self) -> dt.datetime:
        """When this state began: ``committed_at``."""
        return self.committed_at

    @cached_property
    def before(self) -> Mapping[str, Any] | None:
        """The attributes before the change; ``None`` for INSERT and SNAPSHOT, and if unknown."""
        image = self.row.before
        if image is None:
            return None
        if self.operation is Operation.UPDATE:
            image = {**self.row.after, **image}
        return MappingProxyType(self._trail.shape.attributes(image))

    @cached_property
    def after(self) -> Mapping[str, Any] | None:
        """The attributes after the change; ``None`` for DELETE and TRUNCATE."""
        image = self.row.after
        return None if image is None else MappingProxyType(self._trail.shape.attributes(image))

    @cached_property
    def changed(self) -> tuple[str, ...] | None:
        """The attributes that changed; ``None`` if the log did not carry the old row."""
        if self.operation is Operation.UPDATE:
            before = self.row.before
            return None if before is None else self._trail.shape.names(list(before))
        return tuple(self.after or self.before or ())

    @cached_property
    def diff(self) -> Mapping[str, Difference]:
        """What changed: attribute → ``Difference(old, new)``; ``None`` stands for "not there"."""
        before, after = self.before or {}, self.after or {}
        return MappingProxyType(
            {name: Difference(before.get(name), after.get(name)) for name in self.changed or ()}
        )

    @property
    def context(self) -> Mapping[str, Any] | None:
        """The context in force, or ``None`` if nobody explained the change."""
        context = self.row.context
        return None if context is None else MappingProxyType(context)

    @property
    def user(self) -> Any:
        """Who, by the reader's ``user_key``; ``None`` if the context does not say."""
        return look_up(self.row.context, self._trail.user_key)

    @property
    def reason(self) -> Any:
        """Why, by the reader's ``reason_key``; ``None`` if the context does not say."""
        return look_up(self.row.context, self._trail.reason_key)

    @property
    def previous(self) -> "Version[M] | None":
        """The version before, in the whole history."""
        return self._trail.versions[self.number - 2] if self.number > 1 else None

    @property
    def next(self) -> "Version[M] | None":
        """The version after, in the whole history."""
        versions = self._trail.versions
        return versions[self.number] if self.number < len(versions) else None

    @property
    def exists(self) -> bool:
        """Whether the record was there, under this key, after the change."""
        moved_away = tuple(self.row.primary_key or ()) != self._trail.key
        return self.operation not in GONE and not moved_away

    def instance(self) -> M:
        """Make a transient instance of the model with this version's attributes.

        Returns:
            An object without a session, its ``__init__`` not called; for a DELETE as it was
            before. For a table without a model, a dict.

        Raises:
            HistoryUnknown: If the version carries no row (TRUNCATE).
        """
        return self._trail.shape.instance(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Give this version's attributes, for a DELETE as they were before.

        Raises:
            HistoryUnknown: If the version carries no row (TRUNCATE).
        """
        values = self.after if self.after is not None else self.before
        if values is None:
            raise HistoryUnknown(
                f"{self!r} carries no row: TRUNCATE does not write one to the log. Remedy: look at "
                "version.previous"
            )
        return dict(values)


def build_trail(trail: Trail[M], rows: Iterable[Any]) -> Trail[M]:
    """Fill a trail with the versions that a record's rows make.

    Args:
        trail: Without versions.
        rows: Rows of ``changes`` in order, and every TRUNCATE of the table.

    Returns:
        The same trail.
    """
    relevant: list[Any] = []
    alive = True
    for row in rows:
        if row.operation == Operation.TRUNCATE:
            # It ends this record only if it was there; before the first trace that is unknown.
            if not relevant or not alive:
                continue
            alive = False
        else:
            alive = row.operation != Operation.DELETE and tuple(row.primary_key) == trail.key
        relevant.append(row)
    ends = _ends(relevant)
    for number, row in enumerate(relevant, start=1):
        trail.versions.append(
            Version(
                number,
                Operation(row.operation),
                row.committed_at,
                ends[number - 1],
                row.transaction_id,
                str(row.commit_lsn),
                row.epoch,
                row,
                trail,
            )
        )
    return trail


def _ends(rows: Sequence[Any]) -> list[dt.datetime | None]:
    """Give ``valid_to`` of each row: the least commit time after it, never before its own.

    Commit times run backwards now and then, and order is not by time.
    """
    ends: list[dt.datetime | None] = []
    least: dt.datetime | None = None
    for row in reversed(rows):
        ends.append(None if least is None else max(least, row.committed_at))
        least = row.committed_at if least is None else min(least, row.committed_at)
    ends.reverse()
    return ends


def look_up(context: Mapping[str, Any] | None, path: str) -> Any:
    """Find a context value by a dotted path; a key that itself has dots is found first."""
    if context is None:
        return None
    if path in context:
        return context[path]
    value: Any = context
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = cast("Mapping[str, Any]", value)[part]
    return value
