"""The steps that load what a relationship led to: a number that no number of records changes."""

from collections.abc import Collection, Generator, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    Text,
    and_,
    bindparam,
    literal_column,
    or_,
    select,
)

from pgaudit_ctx.change import Operation
from pgaudit_ctx.reading.extent import Extent, Table, extent_of
from pgaudit_ctx.reading.extent_facts import select_extent
from pgaudit_ctx.reading.mapped import ModelShape
from pgaudit_ctx.reading.query import of_tables, still_valid
from pgaudit_ctx.reading.records import select_records
from pgaudit_ctx.reading.relationship import Association, Columns, Values, relationship_of
from pgaudit_ctx.reading.relatives import Life, Related, key_values, keyed_by
from pgaudit_ctx.reading.timeline import build_trail
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.version import Trail

_changes = Change.__table__.c


def related_steps(trail: Trail[Any], name: str) -> Generator[Executable, Any, Related]:
    """Give the steps that load one relationship of a record, for all its versions at once.

    Args:
        trail: The record's; what was loaded is kept in its ``relatives``.
        name: The relationship.

    Raises:
        NotCaptured: If a table of the relationship was never captured.
        Unsupported: If the relationship compares more than columns that are equal.
        UsageError: If there is no such relationship.
    """
    relationship = relationship_of(trail.shape, name)
    target, association = relationship.target, relationship.association
    between = () if association is None else association.shape.tables
    source = trail.extent.source
    facts = yield select_extent([*target.tables, *between])
    extent = extent_of(facts, target.tables, source, target.label)
    extents = [extent]
    searched: list[Extent] = []
    values = Life(trail).all(relationship.local)
    fixed = key_values(trail, relationship.local)
    values |= set() if fixed is None else {fixed}
    links: list[Trail[Any]] = []
    if association is not None:
        known = extent_of(facts, between, source, association.shape.label)
        extents.append(known)
        searched.append(known)
        rows = (yield _select_links(known, association.near, values)) if values else []
        links = _link_trails(trail, association, known, rows)
        values = {far for link in links for far in Life(link).all(association.far)}
    keys = _keys_of(extent, relationship.remote, values)
    if keys is None:
        searched.append(extent)
        held = (yield _select_keys(extent, relationship.remote, values)) if values else []
        keys = _base_keys(target, extent, relationship.remote.table, held)
    trails = {
        key: Trail(
            target,
            target.keys(key, extent.key_columns),
            extent,
            trail.context_keys,
            load=trail.load,
        )
        for key in sorted(keys)
    }
    rows = []
    if trails:
        every = [key for one in trails.values() for key in one.keys.values()]
        rows = yield select_records(extent, target.tables, every)
    related = Related(relationship, trail, _filled(target, trails, rows), links, extents, searched)
    trail.relatives[name] = related
    return related


def _filled(
    target: ModelShape[Any], trails: dict[tuple[str, ...], Trail[Any]], rows: Sequence[Any]
) -> list[Trail[Any]]:
    """Build the related records, in the order of their first trace."""
    of_key = dict(keyed_by(rows))
    truncates = [row for row in rows if row.operation == Operation.TRUNCATE]
    found = []
    for key, one in trails.items():
        own = of_key.get(key, truncates)
        if len(target.tables) > 1 and set(one.keys.values()) != {key}:
            wanted = set(one.keys.values())
            own = [r for r in rows if _key(r) in wanted or r.operation == Operation.TRUNCATE]
        found.append(build_trail(one, own))
    return sorted(found, key=lambda one: [version.position for version in one.versions[:1]])


def _key(row: Any) -> tuple[str, ...]:
    return tuple(row.primary_key or ())


def _keys_of(
    extent: Extent, columns: Columns, values: Collection[Values]
) -> Collection[tuple[str, ...]] | None:
    """Turn values into keys, if the columns are the primary key of the first table."""
    table, key_columns = next(iter(extent.key_columns.items()))
    names = [names[0] for names in columns.names]
    if columns.table != table or sorted(names) != sorted(key_columns):
        return None
    order = [names.index(name) for name in key_columns]
    return {tuple(held[place] for place in order) for held in values}


def _base_keys(
    target: ModelShape[Any], extent: Extent, table: Table, held: Iterable[Any]
) -> set[tuple[str, ...]]:
    """Put the keys of a table in the order that the record's first table has them."""
    first = extent.key_columns[target.tables[0]]
    # Of each key column of the table, which column of the first table it is.
    names = target.keys(first, extent.key_columns)[table]
    found = set()
    for row in held:
        for key in row:
            if key is not None:
                value = dict(zip(names, key, strict=True))
                found.add(tuple(value[name] for name in first))
    return found


def _link_trails(
    trail: Trail[Any], association: Association, extent: Extent, rows: Sequence[Any]
) -> list[Trail[Any]]:
    if not extent.key_columns[association.shape.tables[0]]:
        rows = [_with_key(row, association) for row in rows]
    table = association.shape.tables[0]
    return [
        build_trail(Trail(association.shape, {table: key}, extent, trail.context_keys), own)
        for key, own in keyed_by(rows)
    ]


def _with_key(row: Any, association: Association) -> Any:
    """Take all the linking columns for the key, where the table has none."""
    if row.operation == Operation.TRUNCATE:
        return row
    before = None if row.before is None else {**(row.after or {}), **row.before}
    old, new = (
        [value or "" for side in (association.near, association.far) for value in _all(side, image)]
        for image in (before, row.after)
    )
    key = old if row.after is None else new
    moved = before is not None and row.after is not None and old != new
    return SimpleNamespace(
        **{**row._asdict(), "primary_key": key, "previous_key": old if moved else None}
    )


def _all(columns: Columns, image: Any) -> Sequence[str | None]:
    return columns.values(image) or [None] * len(columns.names)


def _select_keys(extent: Extent, columns: Columns, values: Collection[Values]) -> Select[Any]:
    """Ask for the keys of rows that ever held one of some values."""
    return (
        select(_changes.primary_key, _changes.previous_key)
        .where(
            _changes.source == extent.source,
            of_tables(extent, [columns.table]),
            _changes.primary_key.is_not(None),
            _ever_held(columns, values),
            *still_valid(extent),
        )
        .distinct()
    )


def _select_links(extent: Extent, columns: Columns, values: Collection[Values]) -> Select[Any]:
    """Ask for the rows of an association that ever held one of some values, and each TRUNCATE."""
    truncate = _changes.operation == literal_column(f"'{Operation.TRUNCATE}'")
    return (
        select(*_changes)
        .where(
            _changes.source == extent.source,
            of_tables(extent, [columns.table]),
            or_(_ever_held(columns, values), truncate),
            *still_valid(extent),
        )
        .order_by(_changes.epoch, _changes.commit_lsn, _changes.ordinal)
    )


def _ever_held(columns: Columns, values: Collection[Values]) -> ColumnElement[bool]:
    """Compare each column by itself: of several columns that finds more than is asked for."""
    return and_(
        *(
            or_(
                *(
                    image.op("->>")(_literal(name)).in_(sorted({held[place] for held in values}))
                    for name in names
                    for image in (_changes.after, _changes.before)
                )
            )
            for place, names in enumerate(columns.names)
        )
    )


def _literal(text: str) -> ColumnElement[str]:
    """Write a name into the statement's text, so that an index on the expression is found."""
    return bindparam(None, text, Text, literal_execute=True)
