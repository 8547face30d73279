"""Row count and digest of tables, made by the server: what two servers compare to prove them equal.

A digest depends on the rows alone: not on their physical order, on partitions, on the order of the
columns, on the server's version or its encoding. Each row's text, under fixed settings, is hashed
with SHA-256, and half of each hash is added up. The server needs constant memory for that, and a
large table is read in ranges of its blocks, all in one snapshot.

It tells two tables apart that differ by accident; it is not made to withstand somebody who chooses
the rows of both. PostgreSQL documentation: "TID Scan", "Binary String Functions".
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from psycopg import errors, sql

from pgaudit_ctx.source.catalog import Connection

_BLOCKS_AT_ONCE: Final = 8192
# A table's own rows are in one relation, a partitioned one's in its leaves.
_PARTS: Final = """
    SELECT n.nspname::text, c.relname::text, c.relkind = 'r',
        CASE WHEN c.relkind = 'r'
            THEN pg_relation_size(c.oid) / current_setting('block_size')::int ELSE 0 END
    FROM (
        SELECT %(oid)s::oid AS oid
        UNION SELECT relid::oid FROM pg_partition_tree(%(oid)s::oid::regclass) WHERE isleaf
    ) part
    JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'f')"""
_FIND: Final = """
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')"""
_SUMS: Final = """
    SELECT count(*), coalesce(sum(('x' || substr(hash, 1, 16))::bit(64)::bigint), 0),
        coalesce(sum(('x' || substr(hash, 17, 16))::bit(64)::bigint), 0)
    FROM (
        SELECT encode(sha256(convert_to(ROW({columns})::text, 'UTF8')), 'hex') AS hash
        FROM ONLY {part} WHERE {range} OFFSET 0
    ) AS hashed"""


class Content(NamedTuple):
    """What to compare of one table: its captured columns, sorted by name."""

    schema: str
    name: str
    columns: Sequence[str]

    @property
    def qualified(self) -> str:
        """The name to show: ``schema.table``."""
        return f"{self.schema}.{self.name}"


class Digest(NamedTuple):
    """How many rows a table has, and what they add up to: equal for equal rows."""

    rows: int
    digest: str


class Reporter(Protocol):
    """Is told how it goes."""

    def begins(self, table: str, blocks: int) -> None:
        """A table of so many blocks is read now."""

    def read(self, blocks: int) -> None:
        """So many more of them have been read."""

    def ends(self, table: str) -> None:
        """A table is done."""


def digest_tables(
    connection: Connection, tables: Sequence[Content], report: Reporter
) -> list[Digest | None]:
    """Count and digest the rows of tables, all of them in one snapshot.

    Args:
        connection: To the source, in autocommit mode.
        tables: Which ones, and which of their columns.
        report: Is told how it goes.

    Returns:
        For each table its digest; ``None`` if it, or one of its columns, is not there.

    Raises:
        psycopg.errors.InsufficientPrivilege: If the role may not read a table, or would not see all
            of its rows.
    """
    with _snapshot(connection):
        return [_digest(connection, table, report) for table in tables]


@contextmanager
def _snapshot(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    try:
        # Where a policy would hide rows this raises an error instead.
        connection.execute("SET LOCAL row_security = off")
        yield
    finally:
        if not connection.broken:
            connection.execute("ROLLBACK")


def _digest(connection: Connection, table: Content, report: Reporter) -> Digest | None:
    found = connection.execute(_FIND, [table.schema, table.name]).fetchone()
    if found is None:
        return None
    parts = connection.execute(_PARTS, {"oid": found[0]}).fetchall()
    report.begins(table.qualified, sum(blocks for *_, blocks in parts))
    total = (0, 0, 0)
    try:
        with connection.transaction():
            for schema, name, local, blocks in parts:
                part = sql.Identifier(schema, name)
                for begin in range(0, max(blocks, 1), _BLOCKS_AT_ONCE):
                    end = begin + _BLOCKS_AT_ONCE
                    found_here = connection.execute(
                        sql.SQL(_SUMS).format(
                            columns=sql.SQL(", ").join(map(sql.Identifier, table.columns)),
                            part=part,
                            range=_range(begin, end if end < blocks else None, local=local),
                        )
                    ).fetchone()
                    total = _add(total, found_here)
                    report.read(min(_BLOCKS_AT_ONCE, blocks - begin))
    except (errors.UndefinedColumn, errors.UndefinedTable):
        return None
    finally:
        report.ends(table.qualified)
    rows, *sums = total
    return Digest(rows, hashlib.sha256(f"{rows} {sums}".encode()).hexdigest())


def _range(begin: int, end: int | None, *, local: bool) -> sql.Composable:
    """Give the condition for a range of blocks; the last one has no end."""
    if not local or (begin == 0 and end is None):
        return sql.SQL("true")
    condition = sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({begin},0)"))
    if end is None:
        return condition
    return condition + sql.SQL(" AND ctid < {}::tid").format(sql.Literal(f"({end},0)"))


def _add(total: tuple[int, int, int], row: Any) -> tuple[int, int, int]:
    # Sums of bigint are numeric on the server, and so as exact as Python's integers.
    rows, one, other = map(int, row)
    return total[0] + rows, total[1] + one, total[2] + other
