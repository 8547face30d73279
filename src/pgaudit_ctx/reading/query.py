"""Builds the selects that reading needs; pure."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    ColumnElement,
    CompoundSelect,
    DateTime,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    cast,
    exists,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, OID
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.types import TypeEngine

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import NaiveDatetime, UsageError
from pgaudit_ctx.reading.extent import Extent, Table
from pgaudit_ctx.reading.trail import (
    Change,
    PgLsn,
    checkpoints,
    coverage,
    epochs,
    gaps,
    pruned,
    rejected,
    snapshots,
)

_changes = Change.__table__.c


def select_extent(tables: Sequence[Table]) -> CompoundSelect[Any]:
    """Ask for all that is written down about the capture of some tables, and of their sources.

    Args:
        tables: Schema and name of each.

    Returns:
        A select whose rows have a ``fact``: ``coverage`` for each interval of a relation that had
        one of these names, ``checkpoint``, ``epoch`` (``to_lsn`` is where it forked off), ``gap``,
        ``baseline`` for each snapshot of a whole table, ``rejected`` for the first change that
        waits to be replayed, and ``pruned`` if old changes were dropped (``from_time`` is up to
        when).
    """
    named = (
        select(coverage.c.source, coverage.c.epoch, coverage.c.relation_oid)
        .where(tuple_(coverage.c.schema_name, coverage.c.table_name).in_(tables))
        .cte("named")
    )
    sources = select(named.c.source).distinct().cte("sources")
    position = (rejected.c.epoch, rejected.c.commit_lsn, rejected.c.ordinal)
    place = func.row_number().over(partition_by=rejected.c.source, order_by=position)
    waiting = (
        select(rejected, place.label("place"))
        .where(rejected.c.replayed_at.is_(None), rejected.c.source.in_(select(sources.c.source)))
        .subquery()
    )
    forgotten = (
        select(
            sources.c.source, literal(0).label("epoch"), func.max(pruned.c.upper_bound).label("at")
        )
        .join_from(sources, pruned, true())
        .group_by(sources.c.source)
        .subquery()
    )
    return union_all(
        _facts(
            coverage,
            "coverage",
            note=coverage.c.reason,
            key_columns=coverage.c.key_columns,
            schema_name=coverage.c.schema_name,
            table_name=coverage.c.table_name,
            relation_oid=coverage.c.relation_oid,
        ).where(
            tuple_(coverage.c.source, coverage.c.epoch, coverage.c.relation_oid).in_(select(named))
        ),
        _facts(
            checkpoints,
            "checkpoint",
            from_lsn=checkpoints.c.end_lsn,
            from_time=checkpoints.c.complete_at,
        ).where(checkpoints.c.source.in_(select(sources.c.source))),
        _facts(
            epochs,
            "epoch",
            from_time=epochs.c.started_at,
            to_lsn=epochs.c.fork_lsn,
            note=epochs.c.cause,
            clean=epochs.c.clean,
        ).where(epochs.c.source.in_(select(sources.c.source))),
        _facts(
            snapshots,
            "baseline",
            from_lsn=snapshots.c.lsn,
            from_time=snapshots.c.taken_at,
            schema_name=snapshots.c.schema_name,
            table_name=snapshots.c.table_name,
            relation_oid=snapshots.c.relation_oid,
        ).where(
            snapshots.c.source.in_(select(sources.c.source)),
            tuple_(snapshots.c.schema_name, snapshots.c.table_name).in_(tables),
            # One that went on after an interruption holds a part of the table only.
            snapshots.c.finished_at.is_not(None),
            snapshots.c.after_key.is_(None),
        ),
        _facts(gaps, "gap", note=gaps.c.cause).where(gaps.c.source.in_(select(sources.c.source))),
        _facts(
            waiting, "rejected", from_lsn=waiting.c.commit_lsn, from_time=waiting.c.committed_at
        ).where(waiting.c.place == 1),
        _facts(
            forgotten,
            "pruned",
            from_lsn=cast(literal_column("'0/0'"), PgLsn()),
            from_time=forgotten.c.at,
        ),
    )


_FACTS: Final[dict[str, TypeEngine[Any]]] = {
    "from_lsn": PgLsn(),
    "from_time": DateTime(timezone=True),
    "to_epoch": Integer(),
    "to_lsn": PgLsn(),
    "to_time": DateTime(timezone=True),
    "note": Text(),
    "clean": Boolean(),
    "key_columns": ARRAY(Text),
    "schema_name": Text(),
    "table_name": Text(),
    "relation_oid": OID(),
}


def _facts(table: FromClause, fact: str, **columns: ColumnElement[Any]) -> Select[Any]:
    """Select the columns that all kinds of facts share; NULL where a table has none."""
    own = {**dict(table.c), **columns}
    shown = [own.get(name, cast(null(), type_)).label(name) for name, type_ in _FACTS.items()]
    return select(literal_column(f"'{fact}'").label("fact"), table.c.source, table.c.epoch, *shown)


def select_record(
    extent: Extent,
    tables: Sequence[Table],
    keys: Mapping[Table, tuple[str, ...]],
    *,
    include_undone: bool = False,
) -> Select[Any]:
    """Ask for every change of one record, and every TRUNCATE of its tables, oldest first.

    Args:
        extent: What is known of the tables.
        tables: The tables that make up the record.
        keys: The record's key in each of them that was captured.
        include_undone: Also what a failover has undone.
    """
    return (
        select(*_changes)
        .where(of_record(extent, tables, keys, include_undone=include_undone))
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


def of_record(
    extent: Extent,
    tables: Sequence[Table],
    keys: Mapping[Table, tuple[str, ...]],
    *,
    include_undone: bool,
) -> ColumnElement[bool]:
    """Say which changes belong to one record; TRUNCATEs of its tables are among them."""
    parts: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        if table in keys:
            parts.setdefault(keys[table], []).append(table)
    conditions = [
        or_(
            has_key(Change.primary_key, key),
            has_key(Change.previous_key, key),
            _changes.operation == literal_column(f"'{Operation.TRUNCATE}'"),
        )
        & of_tables(extent, named)
        for key, named in parts.items()
    ]
    limits = [_changes.source == extent.source, or_(*conditions)]
    if not include_undone:
        limits += still_valid(extent)
    return and_(*limits)


def of_tables(extent: Extent, tables: Sequence[Table]) -> ColumnElement[bool]:
    """Say which changes belong to some tables, under the names these had before included."""
    named = (
        and_(_changes.schema_name == tables[0][0], _changes.table_name == tables[0][1])
        if len(tables) == 1
        else tuple_(_changes.schema_name, _changes.table_name).in_(tables)
    )
    if not extent.renamed:
        return named
    return or_(named, tuple_(_changes.epoch, _changes.relation_oid).in_(sorted(extent.renamed)))


def still_valid(extent: Extent) -> list[ColumnElement[bool]]:
    """Leave out what a failover has undone, as far as an extent knows of one."""
    return [
        not_(and_(_changes.epoch == epoch, _changes.commit_lsn >= fork))
        for epoch, fork in extent.undone.items()
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
    column: InstrumentedAttribute[list[str] | None], key: tuple[str, ...]
) -> ColumnElement[bool]:
    """Compare a key by its hash, which is indexed, and then by its value."""
    wanted = cast(list(key), ARRAY(Text))
    zero: ColumnElement[int] = literal_column("0")
    conditions = [
        func.hash_array_extended(column, zero) == func.hash_array_extended(wanted, zero),
        column == wanted,
    ]
    if column is Change.previous_key:
        conditions.append(column.is_not(None))
    return and_(*conditions)
