"""The rows that exist already, as they stood at one position of the log.

A temporary slot gives the position, and exports the snapshot that belongs to it: it shows every
transaction that committed before, and none that the stream sends from there on. The slot is dropped
at once, and a transaction that reads nothing keeps the snapshot: no table is locked for longer than
it is read. PostgreSQL documentation: "CREATE_REPLICATION_SLOT", "SET TRANSACTION SNAPSHOT".
"""

import os
import secrets
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Final, NamedTuple, Self

from psycopg import errors, sql
from psycopg.rows import class_row

from pgaudit_ctx.connection import connect
from pgaudit_ctx.errors import SourceNotReady
from pgaudit_ctx.source.catalog import Connection, Position, SourceTable
from pgaudit_ctx.wal.copy_text import parse_rows
from pgaudit_ctx.wal.lsn import parse_lsn
from pgaudit_ctx.wal.pgoutput import Relation, Tuple

# So long a slot may take to come into being before it is said what it waits for.
_TELL_SECONDS: Final = 1.0
_BATCH_BYTES: Final = 4 * 2**20
_OPEN: Final = """
    SELECT pid, datname::text AS database, usename::text AS role, application_name AS application,
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    ORDER BY xact_start"""
_FILES: Final = """
    SELECT t.oid, array_agg(coalesce(pg_relation_filenode(member), 0) ORDER BY member::oid)
    FROM unnest(%s::oid[]) AS t(oid)
    CROSS JOIN LATERAL (
        SELECT t.oid::regclass AS member UNION SELECT relid FROM pg_partition_tree(t.oid::regclass)
    ) m
    JOIN pg_class c ON c.oid = t.oid
    GROUP BY t.oid"""
_ESTIMATE: Final = """
    SELECT t.oid, sum(greatest(c.reltuples, 0))::bigint
    FROM unnest(%s::oid[]) AS t(oid)
    CROSS JOIN LATERAL (
        SELECT t.oid AS member UNION SELECT relid FROM pg_partition_tree(t.oid::regclass)
    ) m
    JOIN pg_class c ON c.oid = m.member
    GROUP BY t.oid"""


class OpenTransaction(NamedTuple):
    """A transaction that has written something, and that a new slot has to wait for."""

    pid: int
    database: str | None
    role: str | None
    application: str | None
    seconds: float | None

    def __str__(self) -> str:
        """Say where it is and how old, without its query, which may hold values."""
        about = " ".join(word for word in (self.role, self.database, self.application) if word)
        age = "" if self.seconds is None else f", open for {self.seconds:.0f} s"
        return f"PID {self.pid} ({about or 'unknown'}{age})"


class Snapshot:
    """Reads tables as they stood at one position.

    Args:
        url: The source's URL.
        wait: Seconds to wait at most for transactions that are open; ``None`` without a limit.
        on_wait: Called with them, once, if they are waited for.

    Raises:
        ConnectionFailed: If no connection can be made.
        SourceNotReady: If a transaction is still open after that time.
    """

    def __init__(
        self,
        url: str,
        *,
        wait: float | None = None,
        on_wait: Callable[[Sequence[OpenTransaction]], None] = lambda _: None,
    ) -> None:
        with ExitStack() as opened:
            self._holder = opened.enter_context(closing(connect(url, "source")))
            self._reader = opened.enter_context(closing(connect(url, "source")))
            with closing(connect(url, "source", replication="database")) as walsender:
                lsn, exported = _create_slot(walsender, self._holder, wait, on_wait)
                _import(self._holder, exported)
            row = self._holder.execute("SELECT pg_export_snapshot(), clock_timestamp()").fetchone()
            assert row is not None  # noqa: S101 - functions without FROM give one row
            self._exported = row[0]
            self.position = Position(lsn, row[1])
            """Where it is consistent, and the source's clock then or a moment later."""
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    def rows(
        self, table: SourceTable, relation: Relation, after: Sequence[str] | None
    ) -> Generator[list[Tuple], None, None]:
        """Read a table's rows in the order of its key, some megabytes at a time.

        Args:
            table: The table; a partitioned one is read with its partitions.
            relation: Its columns.
            after: Only rows with a greater key than this.

        Yields:
            Rows, with their values as text.

        Raises:
            psycopg.errors.InsufficientPrivilege: If the role may not read the table, or would not
                see all of its rows.
        """
        query = sql.SQL("COPY ({}) TO STDOUT").format(_query(table, relation, after))
        _import(self._reader, self._exported)
        try:
            # Where a policy would hide rows this raises an error instead.
            self._reader.execute("SET LOCAL row_security = off")
            with self._reader.cursor().copy(query) as copy:
                pieces: list[bytes] = []
                size = 0
                for piece in copy:
                    pieces.append(bytes(piece))
                    size += len(piece)
                    if size >= _BATCH_BYTES and pieces[-1].endswith(b"\n"):
                        yield parse_rows(b"".join(pieces), len(relation.columns))
                        pieces.clear()
                        size = 0
                if pieces:
                    yield parse_rows(b"".join(pieces), len(relation.columns))
        finally:
            if not self._reader.broken:
                self._reader.execute("ROLLBACK")


def files(connection: Connection, oids: Collection[int]) -> dict[int, list[int]]:
    """Say in which files tables are kept: TRUNCATE and a rewrite begin new ones.

    Both empty a table also for snapshots that are older than they.
    """
    return dict(connection.execute(_FILES, [list(oids)]).fetchall())


def estimates(connection: Connection, oids: Collection[int]) -> dict[int, int]:
    """Give about how many rows tables have, from the planner's statistics."""
    return dict(connection.execute(_ESTIMATE, [list(oids)]).fetchall())


def _create_slot(
    walsender: Connection,
    other: Connection,
    wait: float | None,
    on_wait: Callable[[Sequence[OpenTransaction]], None],
) -> tuple[int, str]:
    name = f"pgaudit_ctx_snapshot_{os.getpid()}_{secrets.token_hex(4)}"
    timers = [threading.Timer(_TELL_SECONDS, lambda: on_wait(_open_transactions(other)))]
    if wait is not None:
        timers.append(threading.Timer(wait, walsender.cancel))
    for timer in timers:
        timer.start()
    try:
        row = walsender.execute(
            sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT").format(
                sql.Identifier(name)
            )
        ).fetchone()
    except errors.QueryCanceled:
        waited = "; ".join(map(str, _open_transactions(other)))
        raise SourceNotReady(
            f"after {wait:g} s transactions are still open that had begun to write before: "
            f"{waited or 'none that this role may see'}. A snapshot has to wait for all of the "
            "cluster. Remedy: end them, or wait longer with --wait"
        ) from None
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
    assert row is not None  # noqa: S101 - the command gives one row
    return parse_lsn(row[1]), str(row[2])


def _open_transactions(connection: Connection) -> Sequence[OpenTransaction]:
    with connection.cursor(row_factory=class_row(OpenTransaction)) as cursor:
        return cursor.execute(_OPEN).fetchall()


def _import(connection: Connection, snapshot: str) -> None:
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))


def _query(table: SourceTable, relation: Relation, after: Sequence[str] | None) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in relation.columns)
    only = sql.SQL("" if table.partitioned else "ONLY ")
    query = sql.SQL("SELECT {} FROM {}{}").format(
        columns, only, sql.Identifier(table.schema, table.name)
    )
    if not table.key_columns:
        return query
    key = sql.SQL(", ").join(map(sql.Identifier, table.key_columns))
    if after is not None:
        # A literal without a type takes that of the column it is compared with.
        values = sql.SQL(", ").join(map(sql.Literal, after))
        query += sql.SQL(" WHERE ({}) > ({})").format(key, values)
    return query + sql.SQL(" ORDER BY {}").format(key)
