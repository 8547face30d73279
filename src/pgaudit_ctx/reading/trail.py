"""The destination's tables as SQLAlchemy sees them."""

import datetime as dt
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Integer,
    MetaData,
    Table,
    Text,
    cast,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, OID
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from pgaudit_ctx.wal.lsn import format_lsn

SCHEMA = "pgaudit_ctx"


class PgLsn(UserDefinedType[str]):
    """The type ``pg_lsn``, as text ``X/X``."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Give the type's name in DDL."""
        return "pg_lsn"

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[str]:
        """Send text whatever the driver, and let the server make a position of it."""
        return cast(type_coerce(bindvalue, Text), self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002 - SQLAlchemy's signature
        """Make text of what asyncpg gives as a number."""
        return lambda value: format_lsn(value) if isinstance(value, int) else value


class TrailBase(DeclarativeBase):
    """The declarative base of the trail; of its own, so that no ``create_all`` includes it."""

    metadata = MetaData(schema=SCHEMA)


class Change(TrailBase):
    """One row of ``pgaudit_ctx.changes``: what happened to one row, or to a table for TRUNCATE.

    Usable in any ``select()``. Order is (``epoch``, ``commit_lsn``, ``ordinal``); times are aware.
    """

    __tablename__ = "changes"

    source: Mapped[str] = mapped_column(Text, primary_key=True)
    epoch: Mapped[int] = mapped_column(Integer, primary_key=True)
    commit_lsn: Mapped[str] = mapped_column(PgLsn, primary_key=True)
    ordinal: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    transaction_id: Mapped[int] = mapped_column(BigInteger)
    committed_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    captured_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))
    operation: Mapped[str] = mapped_column(Text)
    schema_name: Mapped[str] = mapped_column(Text)
    table_name: Mapped[str] = mapped_column(Text)
    relation_oid: Mapped[int] = mapped_column(OID)
    primary_key: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    previous_key: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    context: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


def _lsn(name: str) -> Column[str]:
    return Column(name, PgLsn)


def _time(name: str) -> Column[dt.datetime]:
    return Column(name, DateTime(timezone=True))


coverage = Table(
    "coverage",
    TrailBase.metadata,
    Column("source", Text),
    Column("epoch", Integer),
    Column("schema_name", Text),
    Column("table_name", Text),
    Column("relation_oid", OID),
    _lsn("from_lsn"),
    _lsn("to_lsn"),
    _time("from_time"),
    _time("to_time"),
    Column("key_columns", ARRAY(Text)),
    Column("reason", Text),
)

checkpoints = Table(
    "checkpoints",
    TrailBase.metadata,
    Column("source", Text),
    Column("epoch", Integer),
    _lsn("end_lsn"),
    _time("complete_at"),
)

epochs = Table(
    "epochs",
    TrailBase.metadata,
    Column("source", Text),
    Column("epoch", Integer),
    _lsn("from_lsn"),
    _lsn("fork_lsn"),
    _time("started_at"),
    Column("cause", Text),
    Column("clean", Boolean),
)

gaps = Table(
    "gaps",
    TrailBase.metadata,
    Column("source", Text),
    Column("epoch", Integer),
    _lsn("from_lsn"),
    Column("to_epoch", Integer),
    _lsn("to_lsn"),
    _time("from_time"),
    _time("to_time"),
    Column("cause", Text),
)

snapshots = Table(
    "snapshots",
    TrailBase.metadata,
    Column("source", Text),
    Column("epoch", Integer),
    Column("relation_oid", OID),
    _lsn("lsn"),
    Column("schema_name", Text),
    Column("table_name", Text),
    _time("taken_at"),
    Column("after_key", ARRAY(Text)),
    _time("finished_at"),
)

pruned = Table(
    "pruned",
    TrailBase.metadata,
    Column("partition", Text),
    _time("upper_bound"),
)

rejected = Table(
    "rejected",
    TrailBase.metadata,
    Column("source", Text),
    Column("epoch", Integer),
    _lsn("commit_lsn"),
    Column("ordinal", BigInteger),
    _time("committed_at"),
    _time("replayed_at"),
)
