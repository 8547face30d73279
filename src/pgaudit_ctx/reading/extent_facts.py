"""Asks for all that is written down about the capture of some tables; pure."""

from collections.abc import Sequence
from functools import lru_cache
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
    cast,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, OID
from sqlalchemy.types import TypeEngine

from pgaudit_ctx.reading.extent import Table
from pgaudit_ctx.reading.trail import (
    PgLsn,
    checkpoints,
    coverage,
    epochs,
    gaps,
    pruned,
    rejected,
    snapshots,
)


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
    return _select_extent(tuple(tables))


@lru_cache(maxsize=256)
def _select_extent(tables: tuple[Table, ...]) -> CompoundSelect[Any]:
    """Build it once: SQLAlchemy takes longer for that than the server for the answer."""
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
