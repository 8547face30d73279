"""``history(include=...)``: a record's versions and those of related ones, in one order; pure."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar, overload

from sqlalchemy.orm import QueryableAttribute

from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.reading.extent import CompleteUpTo, Extent, Gap
from pgaudit_ctx.reading.history import History, HistoryFilters, choose
from pgaudit_ctx.reading.relatives import Related
from pgaudit_ctx.reading.shape import field_name
from pgaudit_ctx.reading.version import Trail, Version
from pgaudit_ctx.wal.lsn import parse_lsn

M = TypeVar("M")
R = TypeVar("R")


class Timeline(Sequence[Version[Any]], Generic[M]):
    """The versions of a record and of the records related to it, oldest first.

    A version of a related record is in it if it was made while that record belonged to this one;
    the change that made the link and the one that ended it are. For a many-to-many relationship
    the rows of the association table are in it too, as versions whose instances are dicts.
    ``version.model`` and ``version.table`` say what each is a version of.

    Args:
        history: The record's own versions.
        versions: All of them, in order.
        related: For each relationship, the histories of the related records.
        extents: What is known of all the tables.
    """

    def __init__(
        self,
        history: History[M],
        versions: Sequence[Version[Any]],
        related: Mapping[str, Sequence[History[Any]]],
        extents: Sequence[Extent],
    ) -> None:
        self.history = history
        """The record's own versions, without the related ones."""
        self._versions = versions
        self._related = related
        self._extents = extents

    @overload
    def __getitem__(self, index: int) -> Version[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Version[Any]]: ...

    def __getitem__(self, index: int | slice) -> Version[Any] | Sequence[Version[Any]]:
        return self._versions[index]

    def __len__(self) -> int:
        return len(self._versions)

    def __iter__(self) -> Iterator[Version[Any]]:
        return iter(self._versions)

    def __repr__(self) -> str:
        return f"<Timeline of {len(self)} versions: {self.history!r}, {', '.join(self._related)}>"

    @property
    def latest(self) -> Version[Any] | None:
        """The newest of these versions; ``None`` if there are none."""
        return self._versions[-1] if self._versions else None

    @property
    def gaps(self) -> Sequence[Gap]:
        """The ranges of the log that were lost for any of the tables, in order, each once."""
        found = dict.fromkeys(gap for extent in self._extents for gap in extent.gaps)
        return sorted(found, key=lambda gap: (gap.epoch, parse_lsn(gap.from_lsn)))

    @property
    def complete_up_to(self) -> CompleteUpTo:
        """Up to where the trail holds everything of all the tables."""
        bounds = [extent.complete_up_to for extent in self._extents]
        return min(bounds, key=lambda bound: (bound.epoch, parse_lsn(bound.lsn)))

    @overload
    def related(
        self, relationship: QueryableAttribute[list[R]] | QueryableAttribute[set[R]]
    ) -> Sequence[History[R]]: ...

    @overload
    def related(self, relationship: QueryableAttribute[R | None]) -> Sequence[History[R]]: ...

    @overload
    def related(self, relationship: str) -> Sequence[History[Any]]: ...

    def related(self, relationship: Any) -> Sequence[History[Any]]:
        """Give the related records, each with those of its versions that are in the timeline.

        Args:
            relationship: One of those that were included, by name or as ``Patient.visits``.

        Returns:
            A history for each record, in the order in which the trail first saw them.

        Raises:
            UsageError: If it was not included.
        """
        name = field_name(relationship)
        if name not in self._related:
            raise UsageError(
                f"{name} was not included: this timeline has {', '.join(self._related) or 'none'}. "
                "Remedy: pass it in include="
            )
        return self._related[name]


def merge(trail: Trail[M], loaded: Mapping[str, Related], filters: HistoryFilters) -> Timeline[M]:
    """Merge a whole history with those of related records, and filter them.

    Args:
        trail: The record's.
        loaded: Relationship → what it led to.
        filters: As for ``history``; ``fields`` and ``include_undone`` are about the record itself,
            ``limit`` about all together.
    """
    own: HistoryFilters = {**filters}
    own.pop("limit", None)
    others: HistoryFilters = {**own}
    others.pop("fields", None)
    others.pop("include_undone", None)
    versions = list(choose(trail, own))
    found: dict[tuple[int, int, int], Version[Any]] = {v.position: v for v in versions}
    related: dict[str, list[tuple[Trail[Any], list[Version[Any]]]]] = {}
    for name, one in loaded.items():
        related[name] = [(each, one.linked(choose(each, others))) for each in one.trails]
        linking = set(one.link_versions())
        rows = (v for link in one.links for v in choose(link, others) if v in linking)
        for version in chain(*(linked for _, linked in related[name]), rows):
            found.setdefault(version.position, version)
    limit = filters.get("limit")
    positions = sorted(found)
    kept = set(positions if limit is None else positions[max(0, len(positions) - limit) :])

    def histories(pairs: Sequence[tuple[Trail[Any], list[Version[Any]]]]) -> list[History[Any]]:
        chosen = ((each, [v for v in linked if v.position in kept]) for each, linked in pairs)
        return [History(each, linked) for each, linked in chosen if linked]

    return Timeline(
        History(trail, [version for version in versions if version.position in kept]),
        [found[position] for position in sorted(kept)],
        {name: histories(pairs) for name, pairs in related.items()},
        [trail.extent, *(extent for one in loaded.values() for extent in one.extents)],
    )
