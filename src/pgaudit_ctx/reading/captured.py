"""Selects that tell whether anything was captured at all; pure."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, and_, exists, or_, select

from pgaudit_ctx.reading.extent import Table
from pgaudit_ctx.reading.shape import ANY_SCHEMA
from pgaudit_ctx.reading.trail import checkpoints, coverage, epochs


def select_sources() -> Select[Any]:
    """Ask which sources there are, and whether a worker has moved their checkpoint yet."""
    moved = exists().where(
        epochs.c.source == checkpoints.c.source, epochs.c.from_lsn < checkpoints.c.end_lsn
    )
    captured = or_(checkpoints.c.epoch > 1, moved).label("captured")
    return select(checkpoints.c.source, captured).order_by(checkpoints.c.source)


def select_covered(tables: Sequence[Table]) -> Select[Any]:
    """Ask which of some tables were ever captured, the newest first, and by which key.

    Args:
        tables: Schema and name of each; a schema of :data:`ANY_SCHEMA` stands for each that has
            such a table.
    """
    named = [
        coverage.c.table_name == name
        if schema == ANY_SCHEMA
        else and_(coverage.c.schema_name == schema, coverage.c.table_name == name)
        for schema, name in tables
    ]
    return (
        select(coverage.c.source, coverage.c.key_columns)
        .where(or_(*named))
        .order_by(coverage.c.from_time.desc())
    )
