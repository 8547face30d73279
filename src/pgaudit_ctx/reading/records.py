"""Asks for the changes of records: of one, of many, and of those that are gone; pure."""

import datetime as dt
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    exists,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import aliased

from pgaudit_ctx.change import Operation
from pgaudit_ctx.reading.extent import Extent, Relation, Table
from pgaudit_ctx.reading.query import (
    aware,
    before_forks,
    has_key,
    named_now_or_before,
    newest_first,
    of_tables,
    still_valid,
)
from pgaudit_ctx.reading.trail import Change, PgLsn

_changes = Change.__table__.c


class Bound(NamedTuple):
    """A statement that was built before, and the values of its parameters for this time."""

    statement: Executable
    values: Mapping[str, Any]


def select_record(
    extent: Extent,
    tables: Sequence[Table],
    keys: Mapping[Table, tuple[str, ...]],
    *,
    include_undone: bool = False,
) -> Bound:
    """Ask for every change of one record, and every TRUNCATE of its tables, oldest first.

    Args:
        extent: What is known of the tables.
        tables: The tables that make up the record.
        keys: The record's key in each of them that was captured.
        include_undone: Also what a failover has undone.
    """
    parts: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        if table in keys:
            parts.setdefault(keys[table], []).append(table)
    statement = _select_record(
        extent.source,
        tuple(map(tuple, parts.values())),
        tuple(extent.renamed),
        () if include_undone else tuple(extent.undone.items()),
    )
    return Bound(statement, {f"key_{place}": list(key) for place, key in enumerate(parts)})


@lru_cache(maxsize=256)
def _select_record(
    source: str,
    parts: tuple[tuple[Table, ...], ...],
    renamed: tuple[Relation, ...],
    undone: tuple[tuple[int, str], ...],
) -> Select[Any]:
    """Build it once for all records: that takes longer than the server takes for the answer."""
    conditions = [
        or_(
            has_key(Change.primary_key, bindparam(f"key_{place}", type_=ARRAY(Text))),
            has_key(Change.previous_key, bindparam(f"key_{place}", type_=ARRAY(Text))),
            _changes.operation == literal_column(f"'{Operation.TRUNCATE}'"),
        )
        & named_now_or_before(tables, renamed)
        for place, tables in enumerate(parts)
    ]
    return (
        select(*_changes)
        .where(_changes.source == source, or_(*conditions), *before_forks(undone))
        .order_by(_changes.epoch, _changes.commit_lsn, _changes.ordinal)
    )


def select_records(
    extent: Extent, tables: Sequence[Table], keys: Sequence[tuple[str, ...]]
) -> Select[Any]:
    """Ask for the changes of many records at once, and every TRUNCATE; oldest first.

    Keys are found by their hashes alone: :func:`belongs` says to which record a row belongs.
    """
    zero: ColumnElement[int] = literal_column("0")
    hashes = [
        func.hash_array_extended(cast(list(key), ARRAY(Text)), zero) for key in dict.fromkeys(keys)
    ]
    return (
        select(*_changes)
        .where(
            _changes.source == extent.source,
            of_tables(extent, tables),
            or_(
                func.hash_array_extended(_changes.primary_key, zero).in_(hashes),
                and_(
                    func.hash_array_extended(_changes.previous_key, zero).in_(hashes),
                    _changes.previous_key.is_not(None),
                ),
                _changes.operation == literal_column(f"'{Operation.TRUNCATE}'"),
            ),
            *still_valid(extent),
        )
        .order_by(_changes.epoch, _changes.commit_lsn, _changes.ordinal)
    )


def belongs(row: Any, keys: Mapping[Table, tuple[str, ...]]) -> bool:
    """Whether a row of several records' is one of a certain record."""
    if row.operation == Operation.TRUNCATE:
        return True
    own = set(keys.values())
    return tuple(row.primary_key or ()) in own or tuple(row.previous_key or ()) in own


def select_last_truncate(extent: Extent, table: Table) -> Select[Any]:
    """Ask for the position of a table's last TRUNCATE."""
    return (
        select(_changes.epoch, _changes.commit_lsn, _changes.ordinal)
        .where(
            _changes.source == extent.source,
            of_tables(extent, [table]),
            _changes.operation == literal_column(f"'{Operation.TRUNCATE}'"),
            *still_valid(extent),
        )
        .order_by(*newest_first())
        .limit(1)
    )


def select_gone(
    extent: Extent,
    table: Table,
    emptied: tuple[Any, ...] | None,
    *,
    since: dt.datetime | None,
    until: dt.datetime | None,
    limit: int | None,
) -> Select[Any]:
    """Ask for the keys of records whose last change is a DELETE, or older than the last TRUNCATE.

    Args:
        extent: What is known of the table.
        table: The table that each record has a row in.
        emptied: The position of its last TRUNCATE.
        since: Whose last change was committed at or after this.
        until: Before this.
        limit: The newest so many.
    """
    later = aliased(Change)
    zero: ColumnElement[int] = literal_column("0")
    position = (_changes.epoch, _changes.commit_lsn, _changes.ordinal)
    ends: ColumnElement[bool] = _changes.operation == Operation.DELETE.value
    if emptied is not None:
        epoch, lsn, ordinal = emptied
        before = tuple_(*position) < tuple_(
            literal(epoch), cast(literal(lsn, Text), PgLsn), literal(ordinal)
        )
        ends = or_(ends, before)
    conditions = [
        _changes.source == extent.source,
        of_tables(extent, [table]),
        _changes.primary_key.is_not(None),
        ends,
        *still_valid(extent),
        not_(
            exists()
            .where(
                later.source == _changes.source,
                later.schema_name == _changes.schema_name,
                later.table_name == _changes.table_name,
                or_(
                    and_(
                        func.hash_array_extended(later.primary_key, zero)
                        == func.hash_array_extended(_changes.primary_key, zero),
                        later.primary_key == _changes.primary_key,
                    ),
                    and_(
                        func.hash_array_extended(later.previous_key, zero)
                        == func.hash_array_extended(_changes.primary_key, zero),
                        later.previous_key == _changes.primary_key,
                    ),
                ),
                tuple_(later.epoch, later.commit_lsn, later.ordinal) > tuple_(*position),
                *(
                    not_(and_(later.epoch == epoch, later.commit_lsn >= fork))
                    for epoch, fork in extent.undone.items()
                ),
            )
            .correlate(Change.__table__)
        ),
    ]
    if since is not None:
        conditions.append(_changes.committed_at >= aware(since, "since"))
    if until is not None:
        conditions.append(_changes.committed_at < aware(until, "until"))
    return select(_changes.primary_key).where(*conditions).order_by(*newest_first()).limit(limit)
