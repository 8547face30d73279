"""Builds the selects that reading needs; pure."""

import datetime as dt
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    cast,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import NaiveDatetime, UsageError
from pgaudit_ctx.reading.trail import Change, checkpoints, coverage, gaps

_changes = Change.__table__.c


def select_coverage(schema: str, table: str) -> Select[Any]:
    """Ask where and since when a table was captured, oldest first, with its source's position."""
    return (
        select(
            coverage.c.source,
            coverage.c.key_columns,
            coverage.c.epoch,
            coverage.c.from_lsn,
            coverage.c.from_time,
            coverage.c.to_lsn,
            coverage.c.to_time,
            checkpoints.c.end_lsn,
            checkpoints.c.complete_at,
        )
        .join(checkpoints, checkpoints.c.source == coverage.c.source)
        .where(coverage.c.schema_name == schema, coverage.c.table_name == table)
        .order_by(coverage.c.source, coverage.c.epoch, coverage.c.from_lsn)
    )


def select_gaps(source: str) -> Select[Any]:
    """Ask for what was lost of a source."""
    return select(gaps).where(gaps.c.source == source).order_by(gaps.c.epoch, gaps.c.from_lsn)


def select_record(source: str, schema: str, table: str, key: tuple[str, ...]) -> Select[Any]:
    """Ask for every change of one record, and every TRUNCATE of its table, oldest first."""
    return (
        select(*_changes)
        .where(
            _changes.source == source,
            _changes.schema_name == schema,
            _changes.table_name == table,
            or_(
                _has_key(Change.primary_key, key),
                _has_key(Change.previous_key, key),
                _changes.operation == literal_column(f"'{Operation.TRUNCATE}'"),
            ),
        )
        .order_by(_changes.epoch, _changes.commit_lsn, _changes.ordinal)
    )


def select_log(
    *,
    source: str | None = None,
    table: str | None = None,
    key: tuple[str, ...] | None = None,
    user: str | None = None,
    user_key: str = "user",
    operation: str | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    without_context: bool = False,
    limit: int | None = None,
) -> Select[Any]:
    """Ask for the newest changes, newest first.

    Args:
        source: Of this source only.
        table: Of this table only, with or without its schema.
        key: Of the record with this key only, its values as PostgreSQL prints them.
        user: Only where the context's user is this.
        user_key: Which context key that is; dots lead into objects.
        operation: One of the five.
        since: Committed at or after this.
        until: Committed before this.
        without_context: Only what nobody has explained.
        limit: At most so many.

    Raises:
        NaiveDatetime: If a time has no zone.
    """
    statement = select(*_changes)
    if source is not None:
        statement = statement.where(_changes.source == source)
    if table is not None:
        schema, _, name = table.rpartition(".")
        statement = statement.where(_changes.table_name == name)
        if schema:
            statement = statement.where(_changes.schema_name == schema)
    if key is not None:
        statement = statement.where(
            or_(_has_key(Change.primary_key, key), _has_key(Change.previous_key, key))
        )
    if user is not None:
        path = cast(user_key.split("."), ARRAY(Text))
        statement = statement.where(
            or_(
                _changes.context.op("->>")(user_key) == user,
                _changes.context.op("#>>")(path) == user,
            )
        )
    if operation is not None:
        statement = statement.where(_changes.operation == operation.upper())
    if since is not None:
        statement = statement.where(_changes.committed_at >= aware(since, "since"))
    if until is not None:
        statement = statement.where(_changes.committed_at < aware(until, "until"))
    if without_context:
        statement = statement.where(_changes.context.is_(None))
    return statement.order_by(
        _changes.epoch.desc(), _changes.commit_lsn.desc(), _changes.ordinal.desc()
    ).limit(limit)


def aware(moment: dt.datetime, name: str) -> dt.datetime:
    """Refuse a moment without a time zone.

    Raises:
        NaiveDatetime: Naming the argument.
        UsageError: If it is no datetime at all.
    """
    if not isinstance(moment, dt.datetime):
        raise UsageError(
            f"{name} must be a datetime with a time zone, not a {type(moment).__name__}"
        )
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise NaiveDatetime(
            f"{name} has no time zone, so it is no moment: pass datetime.now(timezone.utc), or "
            "moment.astimezone() for local time"
        )
    return moment


def _has_key(
    column: InstrumentedAttribute[list[str] | None], key: tuple[str, ...]
) -> ColumnElement[bool]:
    wanted = cast(list(key), ARRAY(Text))
    zero: ColumnElement[int] = literal_column("0")
    conditions = [
        func.hash_array_extended(column, zero) == func.hash_array_extended(wanted, zero),
        column == wanted,
    ]
    if column is Change.previous_key:
        conditions.append(column.is_not(None))
    return and_(*conditions)
