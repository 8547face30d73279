"""Stores changes and checkpoint in one destination transaction, by COPY.

libpq's non-blocking calls are used here, not psycopg's Copy: so the server can work off what it was
sent, and wait for its disk in a commit, while the next rows are prepared.
"""

import selectors
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import psycopg
from psycopg import errors, pq, sql
from psycopg.errors import error_from_result

from pgaudit_ctx.connection import PatientConnection, refusal
from pgaudit_ctx.destination.copy_format import COLUMNS, HEADER, TRAILER, RowEncoder
from pgaudit_ctx.destination.ledger import advance_checkpoint
from pgaudit_ctx.errors import AuditError, ChangeRefused
from pgaudit_ctx.wal.pgoutput import Begin
from pgaudit_ctx.wal.stitcher import CapturedChange

_COPY: Final = sql.SQL("BEGIN; COPY pgaudit_ctx.changes ({}) FROM STDIN (FORMAT binary)").format(
    sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
)
# What libpq is given at once: more it would only move about in its own buffer.
_CHUNK: Final = 64 * 2**10
# So many chunks may wait for the server before we wait for it; a part of the memory we may use.
_MAX_UNSENT: Final = 128
# How often the connection's ``meanwhile`` is called while the server keeps us waiting.
_MEANWHILE_SECONDS: Final = 0.1
# SQLSTATE classes of what is wrong with a row: its data, a constraint, a limit, a trigger's own.
_OF_THE_ROW: Final = frozenset({"22", "23", "44", "54", "P0"})
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE
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

    def __init__(self, connection: PatientConnection, source: str, epoch: int) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._copy = _COPY.as_bytes(connection)
        self._source = source
        self._epoch = epoch
        self._encoder = RowEncoder(source, epoch)
        self._copying = False
        self._rows: list[bytes] = []
        self._rows_size = 0
        self._unsent: deque[bytes] = deque()
        self._opening: Iterator[int] | None = None
        self._underway: Iterator[int] | None = None
        self._awaited = 0
        self._covered = (0, 0)
        self.rows = 0
        self.bytes = 0
        self.rejected = 0
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
        """Take changes of the current transaction; they are stored by a commit.

        They are sent as the server takes them. It is waited for only if it is far behind.
        """
        count, data = self._encoder.encode(changes)
        self.rows += count
        self.bytes += len(data)
        self._rows.append(data)
        self._rows_size += len(data)
        if self._rows_size >= _CHUNK:
            self._cut()
            self.advance()
            while len(self._unsent) >= _MAX_UNSENT:
                self._wait()

    def commit(self, *, end_lsn: int, time: int | None, commit_lsn: int | None = None) -> None:
        """Store everything written so far, and the checkpoint, in one transaction.

        Args:
            end_lsn: What may be acknowledged when this returns.
            time: The source's clock there, in microseconds since 2000-01-01 UTC, if it is known.
            commit_lsn: Of the last transaction that is stored; ``None`` if there is no new one.

        Raises:
            ChangeRefused: If the destination refuses a change itself; nothing is stored then.
            DatabaseError: If it refuses or cannot do it now; nothing is stored then either.
        """
        self.start_commit(end_lsn=end_lsn, time=time, commit_lsn=commit_lsn)
        self.finish()

    def start_commit(
        self, *, end_lsn: int, time: int | None, commit_lsn: int | None = None
    ) -> None:
        """Begin what :meth:`commit` does; nothing is stored before :meth:`finish` has returned.

        What is written from now on belongs to the next commit.
        """
        self.finish()
        self._cut()
        chunks, self._unsent = self._unsent, deque()
        self._underway = self._commit(chunks, end_lsn, time, commit_lsn)
        self.advance()

    def finish(self) -> None:
        """Wait for the commit that was started.

        Raises:
            DatabaseError: If the destination refuses; nothing is stored then.
        """
        while self._underway is not None:
            self._wait()

    @property
    def committing(self) -> bool:
        """Whether a commit is under way."""
        return self._underway is not None

    def advance(self) -> None:
        """Do what the server lets us do without waiting for it.

        Raises:
            DatabaseError: If the destination refuses; nothing is stored then.
        """
        try:
            if self._underway is not None:
                self._awaited = next(self._underway, 0)
                if self._awaited:
                    return
                self._underway = None
            if self._unsent and not self._copying:
                self._opening = self._opening or self._open()
                self._awaited = next(self._opening, 0)
                if self._awaited:
                    return
                self._opening = None
            self._awaited = 0 if self._push(self._unsent) else _WRITE
        except psycopg.Error as error:
            raise self._refused(error) from None

    @property
    def awaited(self) -> tuple[int, int]:
        """The connection's socket, and for which of a selector's events to call :meth:`advance`."""
        return self._pgconn.socket, self._awaited

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(*self.awaited)
            while not selector.select(_MEANWHILE_SECONDS):
                self._connection.meanwhile()
        self.advance()

    def _cut(self) -> None:
        data = b"".join(self._rows)
        self._rows.clear()
        self._rows_size = 0
        for start in range(0, len(data), 2 * _CHUNK):
            self._unsent.append(data[start : start + 2 * _CHUNK])

    def _push(self, chunks: deque[bytes]) -> bool:
        """Give the server what it takes now; say whether that was everything."""
        while self._pgconn.flush() == 0:
            if not chunks:
                return True
            self._pgconn.put_copy_data(chunks.popleft())
        return False

    def _commit(
        self, chunks: deque[bytes], end_lsn: int, time: int | None, commit_lsn: int | None
    ) -> Iterator[int]:
        """Commit step by step; gives the event without which it cannot go on."""
        opening, self._opening = self._opening, None
        copied = self._copying or opening is not None or bool(chunks)
        if copied:
            if not self._copying:
                yield from opening or self._open()
            chunks.append(TRAILER)
            while not self._push(chunks):
                yield _WRITE
            self._copying = False
            self._pgconn.put_copy_end()
            yield from self._answer()
        advance_checkpoint(
            self._connection,
            self._source,
            self._epoch,
            end_lsn=end_lsn,
            time=time,
            commit_lsn=commit_lsn,
        )
        if copied:
            self._pgconn.send_query(b"COMMIT")
            yield from self._answer()

    def _open(self) -> Iterator[int]:
        """Begin a transaction and its COPY step by step, like :meth:`_commit`."""
        self._pgconn.send_query(self._copy)
        yield from self._answer()
        self._copying = True
        self._pgconn.put_copy_data(HEADER)

    def _answer(self) -> Iterator[int]:
        """Take the results of what was sent, up to the last or to the one that waits for rows."""
        pgconn = self._pgconn
        while pgconn.flush() != 0:
            yield _WRITE
        failed = None
        while True:
            while pgconn.is_busy():
                yield _READ
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None or result.status == pq.ExecStatus.COPY_IN:
                break
            if result.status != pq.ExecStatus.COMMAND_OK:
                failed = failed or result
        if failed is not None:
            raise error_from_result(failed)

    def _attach_partition(self, committed_at: int) -> None:
        try:
            row = self._connection.execute(_ENSURE, [committed_at]).fetchone()
        except psycopg.Error as error:
            raise self._refused(error) from None
        assert row is not None  # noqa: S101 - it selects from a function
        self._covered = row

    def _refused(self, error: psycopg.Error) -> AuditError:
        refused = refusal(error, "store changes in the destination")
        return ChangeRefused(str(refused)) if is_of_the_row(error) else refused


def is_of_the_row(error: psycopg.Error) -> bool:
    """Say whether a refusal is about the row, so that the same row would be refused again."""
    if isinstance(error, errors.CheckViolation) and error.diag.constraint_name is None:
        return False  # the row has no partition, which is being taken out of the trail
    return (error.sqlstate or "")[:2] in _OF_THE_ROW
