"""Conditions that all selects of changes are made of; pure."""

import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    Text,
    and_,
    cast,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute

from pgaudit_ctx.errors import NaiveDatetime, UsageError
from pgaudit_ctx.reading.extent import Extent, Relation, Table
from pgaudit_ctx.reading.trail import Change, checkpoints, epochs, rejected

_changes = Change.__table__.c


def select_progress(source: str | None, lsn: str) -> Select[Any]:
    """Ask how far sources are captured, and whether something before a position was rejected."""
    waiting = exists().where(
        rejected.c.source == checkpoints.c.source,
        rejected.c.replayed_at.is_(None),
        or_(
            rejected.c.epoch < checkpoints.c.epoch,
            and_(rejected.c.epoch == checkpoints.c.epoch, rejected.c.commit_lsn < lsn),
        ),
    )
    statement = select(
        checkpoints.c.source,
        checkpoints.c.epoch,
        checkpoints.c.end_lsn,
        checkpoints.c.complete_at,
        waiting.label("waiting"),
    )
    return statement if source is None else statement.where(checkpoints.c.source == source)


def of_tables(extent: Extent, tables: Sequence[Table]) -> ColumnElement[bool]:
    """Say which changes belong to some tables, under the names these had before included."""
    return named_now_or_before(tables, extent.renamed)


def named_now_or_before(
    tables: Sequence[Table], renamed: Collection[Relation]
) -> ColumnElement[bool]:
    """Say which changes belong to tables of these names, or to relations that had others."""
    named = (
        and_(_changes.schema_name == tables[0][0], _changes.table_name == tables[0][1])
        if len(tables) == 1
        else tuple_(_changes.schema_name, _changes.table_name).in_(tables)
    )
    if not renamed:
        return named
    return or_(named, tuple_(_changes.epoch, _changes.relation_oid).in_(sorted(renamed)))


def still_valid(extent: Extent) -> list[ColumnElement[bool]]:
    """Leave out what a failover has undone, as far as an extent knows of one."""
    return before_forks(extent.undone.items())


def before_forks(undone: Iterable[tuple[int, str]]) -> list[ColumnElement[bool]]:
    """Leave out the changes of each epoch from a position on."""
    return [
        not_(and_(_changes.epoch == epoch, _changes.commit_lsn >= fork)) for epoch, fork in undone
    ]


def not_undone() -> ColumnElement[bool]:
    """Leave out what a failover has undone, in a statement that stands alone.

    A change is undone if a later epoch forked off at or below it, and no epoch between began anew.
    """
    changes, fork, anew = Change.__table__, epochs.alias("fork"), epochs.alias("anew")
    began_anew = exists().where(
        anew.c.source == fork.c.source,
        anew.c.epoch > _changes.epoch,
        anew.c.epoch < fork.c.epoch,
        anew.c.fork_lsn.is_(None),
    )
    forked_off = exists().where(
        fork.c.source == _changes.source,
        fork.c.epoch > _changes.epoch,
        fork.c.fork_lsn <= _changes.commit_lsn,
        not_(began_anew.correlate(changes, fork)),
    )
    return not_(forked_off.correlate(changes))


def newest_first() -> Sequence[ColumnElement[Any]]:
    """The order of changes, backwards."""
    return (_changes.epoch.desc(), _changes.commit_lsn.desc(), _changes.ordinal.desc())


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


def has_key(
    column: InstrumentedAttribute[list[str] | None], key: tuple[str, ...] | BindParameter[Any]
) -> ColumnElement[bool]:
    """Compare a key by its hash, which is indexed, and then by its value."""
    wanted = cast(list(key) if isinstance(key, tuple) else key, ARRAY(Text))
    zero: ColumnElement[int] = literal_column("0")
    conditions = [
        func.hash_array_extended(column, zero) == func.hash_array_extended(wanted, zero),
        column == wanted,
    ]
    if column is Change.previous_key:
        conditions.append(column.is_not(None))
    return and_(*conditions)
