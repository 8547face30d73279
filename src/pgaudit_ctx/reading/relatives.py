"""The records that a relationship led to, and which of their versions belong together; pure."""

import datetime as dt
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import HistoryUnknown
from pgaudit_ctx.reading.extent import Extent
from pgaudit_ctx.reading.history import asked_at, version_at
from pgaudit_ctx.reading.relationship import Columns, Relationship, Values
from pgaudit_ctx.reading.version import Trail, Version
from pgaudit_ctx.wal.lsn import parse_lsn

Image: TypeAlias = Mapping[str, Any]
Commit: TypeAlias = tuple[int, int]
"""An epoch, and a commit's position in it."""


class Life:
    """What the trail stores of a record, at any commit.

    Args:
        trail: The record's.
    """

    def __init__(self, trail: Trail[Any]) -> None:
        self._commits = [commit_of(version) for version in trail.versions]
        first = trail.versions[0] if trail.versions else None
        self._images: list[Image | None] = [None if first is None else old_image(first)]
        self._images += [v.row.after if v.exists else None for v in trail.versions]

    def before(self, commit: Commit) -> Image | None:
        """Give the image until a commit."""
        return self._images[bisect_left(self._commits, commit)]

    def after(self, commit: Commit) -> Image | None:
        """Give the image from a commit on."""
        return self._images[bisect_right(self._commits, commit)]

    def around(self, commit: Commit, columns: Columns) -> set[Values]:
        """Give what some columns held before a commit, and after it."""
        found = (columns.values(self.before(commit)), columns.values(self.after(commit)))
        return {values for values in found if values is not None}

    def all(self, columns: Columns) -> set[Values]:
        """Give all that some columns ever held."""
        found = (columns.values(image) for image in self._images)
        return {values for values in found if values is not None}


def commit_of(version: Version[Any]) -> Commit:
    """Give the commit that made a version."""
    return version.epoch, parse_lsn(version.commit_lsn)


def old_image(version: Version[Any]) -> Image | None:
    """Give what was stored before a version, as far as its own row says."""
    row = version.row
    if row.before is None:
        return None
    return {**row.after, **row.before} if version.operation is Operation.UPDATE else row.before


@dataclass(frozen=True)
class Related:
    """All records that one relationship ever led to from a record.

    Attributes:
        relationship: Which.
        own: The record's own trail.
        trails: Those of the related records.
        links: Those of the association's rows.
        extents: What is known of their tables.
        searched: Of these, the tables in which related records are found by what they hold, so that
            one that left no trace is not seen.
    """

    relationship: Relationship
    own: Trail[Any]
    trails: Sequence[Trail[Any]]
    links: Sequence[Trail[Any]]
    extents: Sequence[Extent]
    searched: Sequence[Extent]

    def valid_with(self, version: Version[Any], when: dt.datetime | None) -> list[Version[Any]]:
        """Give the versions valid at a moment of one of the record's own, or as it was made.

        Raises:
            HistoryUnknown: If the trail cannot know.
        """
        local = self.relationship.local.values(version.row.after) if version.exists else None
        if local is None:
            return []
        moment = version.committed_at if when is None else when
        for extent in self.searched:
            _check_known(extent, moment, self.relationship.target.label)
        up_to = commit_of(version) if when is None else None
        wanted = {local}
        association = self.relationship.association
        if association is not None:
            rows = [image_at(link, moment, up_to) for link in self.links]
            wanted = {
                values
                for row in rows
                if association.near.values(row) == local
                and (values := association.far.values(row)) is not None
            }
        found = []
        for trail, ever in zip(self.trails, self._ever, strict=True):
            if not wanted & ever:
                continue
            valid = version_at(trail, moment, up_to=up_to)
            if valid is not None and self.relationship.remote.values(valid.row.after) in wanted:
                found.append(asked_at(valid, moment) or valid)
        return self._ordered(found)

    def linked(self, versions: Iterable[Version[Any]]) -> list[Version[Any]]:
        """Choose the versions of related records that were made while these belonged to it.

        A change that makes or ends the link is among them.
        """
        found = []
        wanted: dict[Commit, set[Values]] = {}
        for version in versions:
            commit = commit_of(version)
            if commit not in wanted:
                wanted[commit] = self._wanted(commit)
            if wanted[commit] & _both_sides(version, self.relationship.remote):
                found.append(version)
        return found

    def link_versions(self) -> list[Version[Any]]:
        """Give the versions of the association's rows that link the record to something."""
        association = self.relationship.association
        return [
            version
            for link in self.links
            for version in link.versions
            if association is not None
            and self._local(commit_of(version)) & _both_sides(version, association.near)
        ]

    @cached_property
    def _own_life(self) -> Life:
        return Life(self.own)

    @cached_property
    def _link_lives(self) -> Sequence[Life]:
        return [Life(link) for link in self.links]

    @cached_property
    def _ever(self) -> Sequence[set[Values]]:
        """All that each related record ever held; its key if it left no trace."""
        remote = self.relationship.remote
        return [Life(t).all(remote) if t.versions else {t.key} for t in self.trails]

    def _wanted(self, commit: Commit) -> set[Values]:
        """Give what a related record has to hold to belong, before a commit or after it."""
        local = self._local(commit)
        association = self.relationship.association
        if association is None:
            return local
        found: set[Values] = set()
        for life in self._link_lives:
            for row in (life.before(commit), life.after(commit)):
                far = association.far.values(row)
                if far is not None and association.near.values(row) in local:
                    found.add(far)
        return found

    def _local(self, commit: Commit) -> set[Values]:
        columns = self.relationship.local
        found = self._own_life.around(commit, columns)
        fixed = key_values(self.own, columns)
        return found if fixed is None else found | {fixed}

    def _ordered(self, versions: list[Version[Any]]) -> list[Version[Any]]:
        for attribute, backwards in reversed(self.relationship.order_by):
            versions.sort(
                key=lambda v, a=attribute: _sort_key((v.after or {}).get(a)),  # type: ignore[misc]
                reverse=backwards,
            )
        return versions


def key_values(trail: Trail[Any], columns: Columns) -> Values | None:
    """Give what columns hold that are part of the key, also while the record left no trace."""
    table = trail.shape.tables[0]
    if columns.table != table:
        return None
    key = dict(zip(trail.extent.key_columns[table], trail.key, strict=False))
    found = [next((key[n] for n in names if n in key), None) for names in columns.names]
    return None if None in found else tuple(value for value in found if value is not None)


def _sort_key(value: Any) -> tuple[bool, Any]:
    """Let NULL be larger than all else, as PostgreSQL sorts it."""
    return value is None, value if value is not None else 0


def _both_sides(version: Version[Any], columns: Columns) -> set[Values]:
    before = old_image(version)
    if before is None and version.previous is not None:
        before = version.previous.row.after
    found = (columns.values(before), columns.values(version.row.after))
    return {values for values in found if values is not None}


def image_at(trail: Trail[Any], when: dt.datetime, up_to: Commit | None) -> Image | None:
    """Give what is stored of a record at a moment."""
    version = version_at(trail, when, up_to=up_to)
    image: Image | None = None if version is None else version.row.after
    return image


def _check_known(extent: Extent, when: dt.datetime, label: str) -> None:
    if when < extent.began_at:
        raise HistoryUnknown(
            f"the trail knows which {label} there were from "
            f"{extent.began_at:%Y-%m-%d %H:%M:%S%z} on"
        )
    for gap in extent.gaps:
        known_again = any(
            baseline.time <= when
            and (baseline.epoch, parse_lsn(baseline.lsn)) >= (gap.epoch, parse_lsn(gap.from_lsn))
            for baseline in extent.baselines
        )
        if gap.from_time <= when and not known_again:
            raise HistoryUnknown(
                f"from {gap.from_time:%Y-%m-%d %H:%M:%S%z} on changes are missing ({gap.cause}), "
                f"so which {label} there were is unknown"
            )


def keyed_by(rows: Iterable[Any]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Put each row with the keys it belongs to.

    Args:
        rows: Rows of ``changes`` in order; every TRUNCATE belongs to each key.

    Yields:
        A key, in the order of their first trace, and its rows in order.
    """
    ordered = list(rows)
    places: dict[tuple[str, ...], list[int]] = {}
    everywhere: list[int] = []
    for place, row in enumerate(ordered):
        if row.operation == Operation.TRUNCATE:
            everywhere.append(place)
        told = (row.previous_key, row.primary_key)
        for key in dict.fromkeys(tuple(key) for key in told if key is not None):
            places.setdefault(key, []).append(place)
    for key, own in places.items():
        yield key, [ordered[place] for place in sorted([*own, *everywhere])]
