"""Stores changes and checkpoint in one destination transaction, by COPY."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import psycopg
from psycopg import sql
from psycopg.copy import LibpqWriter

from pgaudit_ctx.connection import refusal
from pgaudit_ctx.destination.copy_format import COLUMNS, HEADER, TRAILER, RowEncoder
from pgaudit_ctx.destination.ledger import advance_checkpoint
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.errors import AuditError
from pgaudit_ctx.wal.pgoutput import Begin
from pgaudit_ctx.wal.stitcher import CapturedChange

_COPY: Final = sql.SQL("COPY pgaudit_ctx.changes ({}) FROM STDIN (FORMAT binary)").format(
    sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
)
_CHUNK: Final = 64 * 1024
# How far the server may fall behind before we wait for it; a part of the memory we may use.
_UNSENT: Final = 8 * 2**20
_ENSURE: Final = """
    WITH epoch(start) AS (SELECT timestamptz '2000-01-01 00:00:00+00')
    SELECT (extract(epoch FROM p.lower_bound - start) * 1000000)::bigint,
        (extract(epoch FROM p.upper_bound - start) * 1000000)::bigint
    FROM epoch, pgaudit_ctx.ensure_partition(start + %s * interval '1 microsecond') p"""


class Sink:
    """Keeps one COPY open for as many transactions as arrive, then commits them together.

    Args:
        connection: To the destination, in autocommit mode, used by nobody else.
        source: The source's name.
        epoch: The epoch that is being captured.
    """

    def __init__(self, connection: Connection, source: str, epoch: int) -> None:
        self._connection = connection
        self._source = source
        self._epoch = epoch
        self._encoder = RowEncoder(source, epoch)
        self._cursor = connection.cursor()
        self._open = ExitStack()
        self._copy: psycopg.Copy | None = None
        self._buffer = bytearray()
        self._covered = (0, 0)
        self.rows = 0
        self.bytes = 0
        connection.execute("SET synchronous_commit = on")

    def begin(self, transaction: Begin) -> None:
        """Prepare for the rows of a transaction.

        A partition that is missing is attached first, in a transaction of its own: so this must be
        called with nothing pending if :meth:`needs_partition` says so.
        """
        if self.needs_partition(transaction):
            self._attach_partition(transaction.committed_at)
        self._encoder.begin(transaction)

    def needs_partition(self, transaction: Begin) -> bool:
        """Say whether no known partition covers the transaction's commit time."""
        lower, upper = self._covered
        return not lower <= transaction.committed_at < upper

    def write(self, changes: Sequence[CapturedChange]) -> None:
        """Send changes of the current transaction; they are stored by :meth:`commit`."""
        count, data = self._encoder.encode(changes)
        self.rows += count
        self.bytes += len(data)
        self._buffer += data
        if len(self._buffer) >= _CHUNK:
            self._send()

    def commit(self, *, end_lsn: int, time: int | None, commit_lsn: int | None = None) -> None:
        """Store everything written so far, and the checkpoint, in one transaction.

        Args:
            end_lsn: What may be acknowledged when this returns.
            time: The source's clock there, in microseconds since 2000-01-01 UTC, if it is known.
            commit_lsn: Of the last transaction that is stored; ``None`` if there is no new one.

        Raises:
            DatabaseError: If the destination refuses; nothing is stored then.
        """
        try:
            if self._buffer:
                self._send()
            copied, self._copy = self._copy, None
            if copied is not None:
                copied.write(TRAILER)
                self._open.close()
            advance_checkpoint(
                self._connection,
                self._source,
                self._epoch,
                end_lsn=end_lsn,
                time=time,
                commit_lsn=commit_lsn,
            )
            if copied is not None:
                self._connection.execute("COMMIT")
        except psycopg.Error as error:
            raise self._refused(error) from None

    def _send(self) -> None:
        try:
            if self._copy is None:
                self._connection.execute("BEGIN")
                self._copy = self._open.enter_context(
                    self._cursor.copy(
                        _COPY, writer=LibpqWriter(self._cursor, flush_threshold=_UNSENT)
                    )
                )
                self._copy.write(HEADER)
            self._copy.write(bytes(self._buffer))
        except psycopg.Error as error:
            raise self._refused(error) from None
        self._buffer.clear()

    def _attach_partition(self, committed_at: int) -> None:
        try:
            row = self._connection.execute(_ENSURE, [committed_at]).fetchone()
        except psycopg.Error as error:
            raise self._refused(error) from None
        assert row is not None  # noqa: S101 - it selects from a function
        self._covered = row

    def _refused(self, error: psycopg.Error) -> AuditError:
        return refusal(error, "store changes in the destination")
