"""Rebuilds the versions of one record from its changes; pure."""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, cast, overload

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import HistoryUnknown, UsageError
from pgaudit_ctx.reading.query import aware
from pgaudit_ctx.reading.shape import Shape
from pgaudit_ctx.wal.lsn import parse_lsn

M = TypeVar("M")

_GONE = frozenset({Operation.DELETE, Operation.TRUNCATE})


class Difference(NamedTuple):
    """One attribute on both sides of a change."""

    old: Any
    new: Any


class CompleteUpTo(NamedTuple):
    """Up to where the trail holds everything: a position, and the source's clock there."""

    lsn: str
    time: dt.datetime


class Gap(NamedTuple):
    """A range of the log that was lost."""

    epoch: int
    from_lsn: str
    to_epoch: int
    to_lsn: str
    from_time: dt.datetime
    to_time: dt.datetime
    cause: str


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
        return self.operation not in _GONE and not moved_away

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


class History(Sequence[Version[M]]):
    """The versions of one record, oldest first.

    Args:
        trail: What the versions share.
        versions: Those that the filters let through.
    """

    def __init__(self, trail: Trail[M], versions: Sequence[Version[M]]) -> None:
        self._trail = trail
        self._versions = versions

    @overload
    def __getitem__(self, index: int) -> Version[M]: ...

    @overload
    def __getitem__(self, index: slice) -> "History[M]": ...

    def __getitem__(self, index: int | slice) -> "Version[M] | History[M]":
        if isinstance(index, slice):
            return History(self._trail, self._versions[index])
        return self._versions[index]

    def __len__(self) -> int:
        return len(self._versions)

    def __iter__(self) -> Iterator[Version[M]]:
        return iter(self._versions)

    def __repr__(self) -> str:
        label, key = self._trail.shape.label, "/".join(self._trail.key)
        return f"<History of {label} {key}: {len(self)} versions>"

    @property
    def latest(self) -> Version[M] | None:
        """The newest of these versions; ``None`` if there are none."""
        return self._versions[-1] if self._versions else None

    @property
    def gaps(self) -> Sequence[Gap]:
        """The ranges of the log that were lost, of which nothing can be known."""
        return self._trail.gaps

    @property
    def complete_up_to(self) -> CompleteUpTo:
        """Up to where the trail holds everything."""
        return self._trail.complete_up_to

    def as_of(self, when: dt.datetime) -> Version[M] | None:
        """Give the version that was valid at a moment, in the whole history.

        Args:
            when: An aware datetime.

        Returns:
            The version; ``None`` if the record is known not to have existed then.

        Raises:
            HistoryUnknown: If the trail cannot know.
            NaiveDatetime: If ``when`` has no time zone.
        """
        return version_at(self._trail, when)


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


def version_at(trail: Trail[M], when: dt.datetime) -> Version[M] | None:
    """Find the version valid at a moment: the last one in order committed at or before it.

    Raises:
        HistoryUnknown: If the trail cannot know.
        NaiveDatetime: If ``when`` has no time zone.
    """
    aware(when, "when")
    found = next((v for v in reversed(trail.versions) if v.committed_at <= when), None)
    position = (0, 0) if found is None else (found.epoch, parse_lsn(found.commit_lsn))
    for gap in trail.gaps:
        if gap.from_time <= when and (gap.epoch, parse_lsn(gap.from_lsn)) >= position:
            raise HistoryUnknown(
                f"changes between {gap.from_time:%Y-%m-%d %H:%M:%S%z} and "
                f"{gap.to_time:%Y-%m-%d %H:%M:%S%z} were lost ({gap.cause}), so what "
                f"{_record(trail)} was afterwards is unknown until its next change"
            )
    if found is not None:
        return found if found.exists else None
    first = trail.versions[0] if trail.versions else None
    if first is None:
        raise HistoryUnknown(
            f"the trail has no trace of {_record(trail)}: it may have been there, unchanged, since "
            f"before the trail began at {trail.began_at:%Y-%m-%d %H:%M:%S%z}"
        )
    # An INSERT, or an UPDATE of the key, shows that the key was free before.
    was_free = first.operation is Operation.INSERT or first.row.previous_key is not None
    if when < trail.began_at or not (was_free and first.exists):
        raise HistoryUnknown(
            f"the trail knows {_record(trail)} only from {first.committed_at:%Y-%m-%d %H:%M:%S%z} "
            f"on: its first trace is {first.operation}, and capture of the table began at "
            f"{trail.began_at:%Y-%m-%d %H:%M:%S%z}"
        )
    return None


def _record(trail: Trail[Any]) -> str:
    return f"this {trail.shape.label}"


class HistoryFilters(TypedDict, total=False):
    """The keywords of ``history``.

    Attributes:
        since: Versions committed at or after this; aware.
        until: Versions committed before this; aware.
        user: Versions of this user only.
        fields: Versions that changed one of these attributes only.
        limit: The newest so many.
        include_unchanged: Also UPDATEs that changed nothing.
        schema: Another schema than the model's.
    """

    since: dt.datetime | None
    until: dt.datetime | None
    user: Any
    fields: Sequence[str] | None
    limit: int | None
    include_unchanged: bool
    schema: str | None


def choose(trail: Trail[M], filters: HistoryFilters) -> History[M]:
    """Filter a whole history.

    Raises:
        NaiveDatetime: If a time has no zone.
        UsageError: If the model has no such field, or the limit is negative.
    """
    since, until = filters.get("since"), filters.get("until")
    for name, moment in (("since", since), ("until", until)):
        if moment is not None:
            aware(moment, name)
    limit, user = filters.get("limit"), filters.get("user")
    if limit is not None and limit < 0:
        raise UsageError(f"limit={limit}: it says how many versions to give, so 0 or more")
    fields = filters.get("fields")
    wanted = None if fields is None else trail.shape.known(fields)
    all_of_them = filters.get("include_unchanged", False)
    versions = [
        version
        for version in trail.versions
        if (since is None or version.committed_at >= since)
        and (until is None or version.committed_at < until)
        and (user is None or _is_user(version.user, user))
        and (all_of_them or version.changed != () or version.operation in _GONE)
        and (wanted is None or version.operation in _GONE or _touches(version, wanted))
    ]
    return History(trail, versions if limit is None else versions[max(0, len(versions) - limit) :])


def _touches(version: Version[Any], wanted: frozenset[str]) -> bool:
    # What changed is unknown under a weaker replica identity; then it may have been this.
    return version.changed is None or not wanted.isdisjoint(version.changed)


def _is_user(found: Any, wanted: Any) -> bool:
    """Compare as ``->>`` does, so that a filter finds the number 7 as well as the text."""
    return found is not None and (found == wanted or str(found) == str(wanted))


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
