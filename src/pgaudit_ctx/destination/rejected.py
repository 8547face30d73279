"""Changes that the destination refused: kept beside the trail until they can be stored."""

import datetime as dt
from collections.abc import Iterator
from typing import Final, NamedTuple

import psycopg
from psycopg import errors, sql
from psycopg.rows import class_row

from pgaudit_ctx.destination.copy_format import COLUMNS, HEADER, TRAILER
from pgaudit_ctx.destination.ledger import record_operation
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.destination.sink import is_of_the_row
from pgaudit_ctx.wal.lsn import format_lsn
from pgaudit_ctx.wal.pgoutput import Begin
from pgaudit_ctx.wal.stitcher import CapturedChange

COPY: Final = sql.SQL("COPY pgaudit_ctx.changes ({}) FROM STDIN (FORMAT binary)").format(
    sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
)
_KEEP: Final = """
    INSERT INTO pgaudit_ctx.rejected (source, epoch, commit_lsn, ordinal, committed_at, change,
        sqlstate, transaction_id, operation, schema_name, table_name, reason)
    VALUES (%s, %s, %s, %s, timestamptz '2000-01-01 00:00:00+00' + %s * interval '1 microsecond',
        %s, %s, %s, %s, %s, %s, %s)"""
_WAITING: Final = """
    SELECT source, epoch, commit_lsn::text, ordinal, committed_at, transaction_id, operation,
        schema_name, table_name, sqlstate, reason, rejected_at, replayed_at
    FROM pgaudit_ctx.rejected
    WHERE (%(source)s::text IS NULL OR source = %(source)s) AND (%(all)s OR replayed_at IS NULL)
    ORDER BY source, epoch, rejected.commit_lsn, ordinal"""
_IDENTITY: Final = "source = %s AND epoch = %s AND commit_lsn = %s AND ordinal = %s"


class Rejected(NamedTuple):
    """One change that was refused, without its values; the columns of ``rejected``."""

    source: str
    epoch: int
    commit_lsn: str
    ordinal: int
    committed_at: dt.datetime
    transaction_id: int
    operation: str
    schema_name: str
    table_name: str
    sqlstate: str
    reason: str
    rejected_at: dt.datetime
    replayed_at: dt.datetime | None


def reason(error: psycopg.Error) -> str:
    """Say why a row was refused: the condition and what it names, never a value."""
    diag = error.diag
    try:
        condition = errors.lookup(diag.sqlstate or "").__name__
    except KeyError:
        condition = "Error"
    named = (
        ("constraint", diag.constraint_name),
        ("column", diag.column_name),
        ("type", diag.datatype_name),
        ("table", diag.table_name),
    )
    return ", ".join([condition, *(f"{what} {name}" for what, name in named if name)])


def keep(
    connection: Connection,
    source: str,
    epoch: int,
    transaction: Begin,
    change: CapturedChange,
    encoded: bytes,
    error: psycopg.Error,
) -> None:
    """Write a refused change down, in the caller's transaction.

    Args:
        connection: To the destination.
        source: The source's name.
        epoch: The epoch that is being captured.
        transaction: The transaction that the change belongs to.
        change: The change.
        encoded: The same as one tuple of COPY.
        error: Why it was refused.
    """
    connection.execute(
        _KEEP,
        [
            source,
            epoch,
            format_lsn(transaction.final_lsn),
            change.ordinal,
            transaction.committed_at,
            encoded,
            error.sqlstate,
            transaction.xid,
            change.operation,
            change.table.schema,
            change.table.name,
            reason(error),
        ],
    )


def waiting(
    connection: Connection, source: str | None = None, *, replayed_too: bool = False
) -> list[Rejected]:
    """List the changes that were refused and are not stored yet, in the trail's order.

    Args:
        connection: To the destination.
        source: Of this source only.
        replayed_too: Also those that have been stored since.
    """
    with connection.cursor(row_factory=class_row(Rejected)) as cursor:
        return cursor.execute(_WAITING, {"source": source, "all": replayed_too}).fetchall()


def replay(connection: Connection, source: str | None = None) -> Iterator[tuple[Rejected, str]]:
    """Store the changes that were refused, each in a transaction of its own, in order.

    Args:
        connection: To the destination, in autocommit mode.
        source: Of this source only.

    Yields:
        Each change with the reason for which it is still refused; empty if it is stored now.
    """
    for change in waiting(connection, source):
        why = ""
        try:
            _replay(connection, change)
        except psycopg.Error as error:
            if not is_of_the_row(error):
                raise
            why = reason(error)
        yield change, why


def _replay(connection: Connection, change: Rejected) -> None:
    identity = change[:4]
    with connection.transaction(), connection.cursor() as cursor:
        row = cursor.execute(
            f"SELECT change FROM pgaudit_ctx.rejected WHERE {_IDENTITY}"  # noqa: S608 - our own text
            " AND replayed_at IS NULL FOR UPDATE",
            identity,
            binary=True,
        ).fetchone()
        if row is None:
            return  # somebody else has just done it
        connection.execute("SELECT pgaudit_ctx.ensure_partition(%s)", [change.committed_at])
        with cursor.copy(COPY) as copy:
            copy.write(HEADER + row[0] + TRAILER)
        connection.execute(
            f"UPDATE pgaudit_ctx.rejected SET replayed_at = clock_timestamp() WHERE {_IDENTITY}",  # noqa: S608
            identity,
        )
        record_operation(
            connection,
            "rejected replay",
            {"source": change.source, "commit_lsn": change.commit_lsn, "ordinal": change.ordinal},
            "stored",
        )
