"""Stores what follows a refusal: piece by piece, so that only the refused rows are left out."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final

import psycopg

from pgaudit_ctx.connection import PatientConnection
from pgaudit_ctx.destination import rejected
from pgaudit_ctx.destination.copy_format import HEADER, TRAILER
from pgaudit_ctx.destination.ledger import advance_checkpoint
from pgaudit_ctx.destination.sink import Sink, is_of_the_row
from pgaudit_ctx.errors import PositionMismatch
from pgaudit_ctx.wal.lsn import format_lsn
from pgaudit_ctx.wal.pgoutput import Begin
from pgaudit_ctx.wal.stitcher import CapturedChange

log = logging.getLogger(__name__)

# Rows that are tried together; each piece takes a savepoint, each refused row a few more.
_PIECE: Final = 256
_UNIQUE_VIOLATION: Final = "23505"


class CarefulSink(Sink):
    """Does what :class:`Sink` does, and keeps in ``rejected`` what the destination refuses.

    COPY does not say which row it was. So a piece that is refused is halved until it is one row.
    All of it stays one transaction: the rest, what was refused and the checkpoint commit together.
    """

    def __init__(self, connection: PatientConnection, source: str, epoch: int) -> None:
        super().__init__(connection, source, epoch)
        self._begun = False
        self._transaction = Begin(0, 0, 0)
        self._refusals: Counter[tuple[str, str]] = Counter()

    def begin(self, transaction: Begin) -> None:
        """Prepare for the rows of a transaction."""
        super().begin(transaction)
        self._transaction = transaction

    def write(self, changes: Sequence[CapturedChange]) -> None:
        """Store changes of the current transaction, or keep them as refused."""
        try:
            if not self._begun:
                # What a deferred constraint says in COMMIT could not be told of any row.
                self._connection.execute("BEGIN; SET CONSTRAINTS ALL IMMEDIATE")
                self._begun = True
            for start in range(0, len(changes), _PIECE):
                self._store(changes[start : start + _PIECE])
        except psycopg.Error as error:
            raise self._refused(error) from None

    def start_commit(
        self, *, end_lsn: int, time: int | None, commit_lsn: int | None = None
    ) -> None:
        """Commit at once: nothing is left for :meth:`finish`."""
        try:
            advance_checkpoint(
                self._connection,
                self._source,
                self._epoch,
                end_lsn=end_lsn,
                time=time,
                commit_lsn=commit_lsn,
            )
            if self._begun:
                self._connection.execute("COMMIT")
                self._begun = False
        except psycopg.Error as error:
            raise self._refused(error) from None
        for (table, reason), count in self._refusals.items():
            log.warning(
                "the destination refused %d change(s) of %s up to %s (%s): they are kept in "
                "pgaudit_ctx.rejected; remove the cause and run pgaudit-ctx rejected replay",
                count,
                table,
                format_lsn(end_lsn),
                reason,
            )
        self._refusals.clear()

    def _store(self, changes: Sequence[CapturedChange]) -> None:
        count, data = self._encoder.encode(changes)
        try:
            with (
                self._connection.transaction(),
                self._connection.cursor() as cursor,
                cursor.copy(rejected.COPY) as copy,
            ):
                copy.write(HEADER + data + TRAILER)
        except psycopg.Error as error:
            if not is_of_the_row(error):
                raise
            if count == 1:
                self._keep(changes[0], data, error)
                return
            self._store(changes[: count // 2])
            self._store(changes[count // 2 :])
            return
        self.rows += count
        self.bytes += len(data)

    def _keep(self, change: CapturedChange, encoded: bytes, error: psycopg.Error) -> None:
        transaction = self._transaction
        if error.sqlstate == _UNIQUE_VIOLATION and self._is_stored(change):
            raise PositionMismatch(
                f"the trail of {self._source!r} holds changes of the commit at "
                f"{format_lsn(transaction.final_lsn)} already, which lies after its checkpoint: "
                "somebody else has changed it. Remedy: find out who writes to pgaudit_ctx.changes "
                "or has restored a part of it"
            )
        rejected.keep(
            self._connection, self._source, self._epoch, transaction, change, encoded, error
        )
        self.rejected += 1
        table = f"{change.table.schema}.{change.table.name}"
        self._refusals[table, f"SQLSTATE {error.sqlstate}, {rejected.reason(error)}"] += 1

    def _is_stored(self, change: CapturedChange) -> bool:
        row = self._connection.execute(
            "SELECT EXISTS (SELECT FROM pgaudit_ctx.changes WHERE source = %s AND epoch = %s"
            " AND commit_lsn = %s AND ordinal = %s)",
            [self._source, self._epoch, format_lsn(self._transaction.final_lsn), change.ordinal],
        ).fetchone()
        return row is not None and bool(row[0])
