"""A record's history: the versions that filters let through, and which was valid when; pure."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypedDict, TypeVar, overload

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import HistoryUnknown, UsageError
from pgaudit_ctx.reading.extent import CompleteUpTo, Extent, Gap
from pgaudit_ctx.reading.keywords import refuse_unknown
from pgaudit_ctx.reading.query import aware
from pgaudit_ctx.reading.shape import Field, Renamed
from pgaudit_ctx.reading.version import GONE, Trail, Version
from pgaudit_ctx.wal.lsn import parse_lsn

M = TypeVar("M")


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
        return self._trail.extent.gaps

    @property
    def complete_up_to(self) -> CompleteUpTo:
        """Up to where the trail holds everything."""
        return self._trail.extent.complete_up_to

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
        return asked_at(version_at(self._trail, when), when)


def asked_at(version: Version[M] | None, when: dt.datetime) -> Version[M] | None:
    """Let a version know which moment it was asked for, where that is later than its beginning."""
    if version is None or when <= version.committed_at:
        return version
    return replace(version, asked_at=when)


def version_at(
    trail: Trail[M], when: dt.datetime, *, up_to: tuple[int, int] | None = None
) -> Version[M] | None:
    """Find the version valid at a moment: the last one in order committed at or before it.

    Args:
        trail: The record's.
        when: The moment.
        up_to: An epoch and a commit's position, reached at that moment: the last one up to there
            instead, for the clock may have run backwards.

    Raises:
        HistoryUnknown: If the trail cannot know.
        NaiveDatetime: If ``when`` has no time zone.
    """
    aware(when, "when")
    extent = trail.extent
    found = next(
        (
            v
            for v in reversed(trail.versions)
            if (v.committed_at <= when if up_to is None else v.position[:2] <= up_to)
        ),
        None,
    )
    position = (0, 0) if found is None else (found.epoch, parse_lsn(found.commit_lsn))
    absent = False
    baseline = next((b for b in reversed(extent.baselines) if b.time <= when), None)
    # The rows of a snapshot come just before it, so what was there has one from there on.
    if baseline is not None and (baseline.epoch, parse_lsn(baseline.lsn) - 1) > position:
        taken = (baseline.epoch, parse_lsn(baseline.lsn))
        absent = found is None or _lost_between(extent, position, taken)
        position = taken
    for gap in extent.gaps:
        # Some changes may have been captured in a hole, which is taken for longer than it was.
        if gap.from_time <= when and _ends_after(gap, position):
            until = "" if gap.to_time is None else f" until {gap.to_time:%Y-%m-%d %H:%M:%S%z}"
            raise HistoryUnknown(
                f"from {gap.from_time:%Y-%m-%d %H:%M:%S%z}{until} changes are missing "
                f"({gap.cause}), so what {_record(trail)} was afterwards is unknown until its next "
                "change"
            )
    if absent:
        return None
    if found is not None:
        return found if found.exists else None
    first = trail.versions[0] if trail.versions else None
    if first is None:
        raise HistoryUnknown(
            f"the trail has no trace of {_record(trail)}: it may have been there, unchanged, since "
            f"before that ({extent.beginning})"
        )
    # An INSERT, or an UPDATE of the key, shows that the key was free before.
    was_free = first.operation is Operation.INSERT or first.row.previous_key is not None
    if when < extent.began_at or not (was_free and first.exists):
        raise HistoryUnknown(
            f"the trail knows {_record(trail)} only from {first.committed_at:%Y-%m-%d %H:%M:%S%z} "
            f"on: its first trace is {first.operation}, and {extent.beginning}"
        )
    return None


def _lost_between(extent: Extent, start: tuple[int, int], end: tuple[int, int]) -> bool:
    return any(
        (gap.epoch, parse_lsn(gap.from_lsn)) < end and _ends_after(gap, start)
        for gap in extent.gaps
    )


def _ends_after(gap: Gap, position: tuple[int, int]) -> bool:
    if gap.to_epoch is None or gap.to_lsn is None:
        return True
    return (gap.to_epoch, parse_lsn(gap.to_lsn)) > position


def _record(trail: Trail[Any]) -> str:
    return f"this {trail.shape.label}"


class HistoryFilters(TypedDict, total=False):
    """The keywords of ``history``.

    Attributes:
        since: Versions committed at or after this; aware.
        until: Versions committed before this; aware.
        user: Versions of this user only.
        fields: Versions that changed one of these attributes only, by name or as ``Patient.name``.
        limit: The newest so many.
        include_unchanged: Also UPDATEs that changed nothing.
        include_undone: Also what a failover has undone.
        schema: Another schema than the model's.
        renamed: Columns that had another name before: old column → attribute.
    """

    since: dt.datetime | None
    until: dt.datetime | None
    user: Any
    fields: Sequence[Field] | None
    limit: int | None
    include_unchanged: bool
    include_undone: bool
    schema: str | None
    renamed: Renamed | None


def choose(trail: Trail[M], filters: HistoryFilters) -> History[M]:
    """Filter a whole history.

    Raises:
        NaiveDatetime: If a time has no zone.
        UsageError: If the model has no such field, or the limit is negative.
    """
    check_filters(filters)
    since, until = filters.get("since"), filters.get("until")
    limit, user = filters.get("limit"), filters.get("user")
    fields = filters.get("fields")
    wanted = None if fields is None else trail.shape.known(fields)
    all_of_them = filters.get("include_unchanged", False)
    candidates = trail.versions
    if filters.get("include_undone", False):
        candidates = sorted([*candidates, *trail.undone], key=lambda version: version.position)
    versions = [
        version
        for version in candidates
        if (since is None or version.committed_at >= since)
        and (until is None or version.committed_at < until)
        and (user is None or _is_user(version.user, user))
        and (all_of_them or version.changed != () or version.operation in GONE)
        and (wanted is None or version.operation in GONE or _touches(version, wanted))
    ]
    return History(trail, versions if limit is None else versions[max(0, len(versions) - limit) :])


def check_filters(filters: HistoryFilters) -> None:
    """Refuse filters that cannot be meant.

    Raises:
        NaiveDatetime: If a time has no zone.
        UsageError: If there is no such filter, a time is none, the limit negative, or the fields
            one text.
    """
    refuse_unknown("history", filters, HistoryFilters)
    for name, moment in (("since", filters.get("since")), ("until", filters.get("until"))):
        if moment is not None:
            aware(moment, name)
    limit, fields = filters.get("limit"), filters.get("fields")
    if limit is not None and limit < 0:
        raise UsageError(f"limit={limit}: it says how many versions to give, so 0 or more")
    if isinstance(fields, str):
        raise UsageError(f"fields={fields!r}: it takes a list of attributes, as in [{fields!r}]")


def _touches(version: Version[Any], wanted: frozenset[str]) -> bool:
    # What changed is unknown under a weaker replica identity; then it may have been this.
    return version.changed is None or not wanted.isdisjoint(version.changed)


def _is_user(found: Any, wanted: Any) -> bool:
    """Compare as ``->>`` does, so that a filter finds the number 7 as well as the text."""
    return found is not None and (found == wanted or str(found) == str(wanted))
