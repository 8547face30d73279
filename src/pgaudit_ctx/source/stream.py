"""The replication stream: psycopg's ``pgconn`` in non-blocking mode, with a selector.

PostgreSQL documentation: "Streaming Replication Protocol" and "Logical Streaming Replication
Parameters". libpq's blocking ``PQgetCopyData`` would hold the GIL, so only the non-blocking form
is used.
"""

import selectors
import time
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import pq, sql

from pgaudit_ctx.connection import connect
from pgaudit_ctx.errors import (
    ChangeUnreadable,
    ConnectionFailed,
    PublicationReplaced,
    SlotBusy,
    SlotMissing,
    SourceNotReady,
)
from pgaudit_ctx.stop import StopRequest
from pgaudit_ctx.wal.frames import standby_status
from pgaudit_ctx.wal.lsn import format_lsn

# Bytes that are handed over at once: they fit into a processor's cache, and what they cost is so
# little time that neither server has to wait for us to come back to its socket.
_READ_AT_ONCE: Final = 32 * 2**10
# libpq reads no more at once than its buffer holds: a few reads empty the socket, whose own buffer
# holds too few small frames for the walsender to run ahead of us.
_READS: Final = 3
_POSTGRES_EPOCH: Final = 946_684_800
_OBJECT_IN_USE: Final = "55006"
_UNDEFINED_OBJECT: Final = "42704"
_NOT_IN_STATE: Final = "55000"
# SQLSTATE classes of what ends by itself: connection, resources, an operator or the system.
_PASSING: Final = frozenset({"", "08", "53", "57", "58"})
# The server is told this often at least how far we are, as libpq's own receivers do.
_REPORT_SECONDS: Final = 10.0
_TIMEOUT: Final = "SELECT setting::int FROM pg_settings WHERE name = 'wal_sender_timeout'"


class ReplicationStream:
    """One walsender of the source, read frame by frame.

    Args:
        url: The source's URL.
        slot: The logical replication slot.
        publication: The publication whose tables are sent.
        stop: Ends a :meth:`wait` when it is made.

    Raises:
        ConnectionFailed: If no replication connection can be made.
    """

    def __init__(
        self, url: str, slot: str, publication: str, stop: StopRequest | None = None
    ) -> None:
        self._slot = slot
        self._publication = publication
        self._connection = connect(url, "source", replication="database")
        self._pgconn = self._connection.pgconn
        self._connection.add_notice_handler(self._notice)
        self._skipped: str | None = None
        self._ended = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pgconn.socket, selectors.EVENT_READ)
        self._stop = stop
        if stop is not None:
            self._selector.register(stop, selectors.EVENT_READ)
        (timeout,) = self._connection.execute(_TIMEOUT).fetchone() or (0,)
        self._report_seconds = min(_REPORT_SECONDS, timeout / 3000 or _REPORT_SECONDS)
        self._report_at = 0.0
        self.withholds = False
        """Whether the slot is told only by :meth:`confirm`, not by :meth:`acknowledge`."""
        self._stored = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the walsender; what was not acknowledged will be sent again."""
        self._selector.close()
        self._connection.close()

    def create_temporary_slot(self) -> None:
        """Make the slot; it is gone with this connection, also if the process is killed.

        Waits for every transaction that is writing now, anywhere in the cluster.

        Raises:
            SourceNotReady: If the server refuses.
        """
        create = sql.SQL("SELECT pg_create_logical_replication_slot({}, 'pgoutput', true)")
        try:
            self._connection.execute(create.format(sql.Literal(self._slot)))
        except psycopg.Error as error:
            said = error.diag.message_primary or " ".join(str(error).split())
            raise SourceNotReady(
                f"cannot make a temporary replication slot: {said}. Remedy: raise "
                "max_replication_slots and max_wal_senders, or end what uses them"
            ) from None

    def start(self, lsn: int) -> None:
        """Begin streaming.

        Args:
            lsn: Transactions that committed before this position are not sent. PostgreSQL silently
                begins at its own ``confirmed_flush_lsn`` where that is later.

        Raises:
            SlotMissing: If there is no such slot.
            SlotBusy: If another process reads it.
            ConnectionFailed: If the server cannot do it now.
            SourceNotReady: If the server refuses for another reason.
        """
        publications = '"' + self._publication.replace('"', '""') + '"'
        slot = '"' + self._slot.replace('"', '""') + '"'
        quoted = publications.replace("'", "''")
        result = self._pgconn.exec_(
            f"START_REPLICATION SLOT {slot} LOGICAL {format_lsn(lsn)} "
            f"(proto_version '1', publication_names '{quoted}', messages 'true')".encode()
        )
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise self._refused(result)
        self._pgconn.nonblocking = 1

    def _refused(self, result: pq.abc.PGresult) -> SourceNotReady | ConnectionFailed:
        state = _field(result, pq.DiagnosticField.SQLSTATE)
        said = _field(result, pq.DiagnosticField.MESSAGE_PRIMARY)
        if state == _OBJECT_IN_USE:
            return slot_busy(self._slot, said)
        if state == _UNDEFINED_OBJECT:
            return SlotMissing(
                f"the slot {self._slot!r} cannot be read: {said}. Remedy: run pgaudit-ctx setup"
            )
        if state[:2] in _PASSING:
            said = said or " ".join(self._pgconn.get_error_message().split())
            return ConnectionFailed(
                f"the source cannot stream now: {said}. Remedy: start the worker again in a while; "
                "the server's log says more"
            )
        return SourceNotReady(
            f"the source refuses to stream: {said} (SQLSTATE {state}). Remedy: mend what it names, "
            "and start the worker again; the server's log says more"
        )

    def read(self) -> list[bytes]:
        """Give the next frames, none if nothing has arrived; never waits.

        Raises:
            ConnectionFailed: If the server ended the stream or the connection is lost.
            ChangeUnreadable: If the server cannot decode what comes now.
        """
        if self._ended:
            raise self._why_ended()
        pgconn, get = self._pgconn, self._pgconn.get_copy_data
        frames: list[bytes] = []
        total = reads = size = 0
        try:
            while total < _READ_AT_ONCE:
                size, data = get(1)
                if size > 0:
                    frames.append(bytes(data))
                    total += size
                elif size < 0 or reads == _READS:
                    break
                else:
                    reads += 1
                    pgconn.consume_input()
            if self._skipped is not None:
                raise PublicationReplaced(self._skipped)
        except psycopg.OperationalError as error:
            raise ConnectionFailed(
                f"the connection to the source was lost: {' '.join(str(error).split())}"
            ) from None
        self._ended = size < 0
        if self._ended and not frames:
            raise self._why_ended()
        return frames

    def _why_ended(self) -> SourceNotReady | ConnectionFailed:
        result = self._pgconn.get_result()
        said = _field(result, pq.DiagnosticField.MESSAGE_PRIMARY)
        state = _field(result, pq.DiagnosticField.SQLSTATE)
        if state == _UNDEFINED_OBJECT:
            return PublicationReplaced(self._without_publication(said))
        if state[:2] not in _PASSING:
            return ChangeUnreadable(
                f"the source cannot send what comes now: {said} (SQLSTATE {state})"
            )
        return ConnectionFailed(f"the source ended the stream: {said or 'it is shutting down'}")

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        # PostgreSQL 18 only warns and skips the rows, where older versions fail.
        if notice.severity_nonlocalized == "WARNING" and notice.sqlstate == _NOT_IN_STATE:
            self._skipped = self._without_publication(notice.message_primary or "")

    def _without_publication(self, said: str) -> str:
        return (
            f"the publication {self._publication!r} did not exist at this place of the log, so "
            f"what was written there cannot be read ({said}). It was dropped or made anew after "
            "the slot. Nothing after the checkpoint has been acknowledged. Remedy: start the "
            "worker once with --accept-gap, which makes the slot anew, writes down the gap up to "
            "there and goes on; or start a trail of its own with another --name and --slot, and "
            "the old one stays readable"
        )

    def wait(self, timeout: float, beside: tuple[int, int] = (-1, 0)) -> bool:
        """Wait until something has arrived, a stop is asked for, or the time is over.

        Args:
            timeout: Seconds.
            beside: Another socket, and for which of a selector's events to wait there as well.

        Returns:
            Whether it was not the time.
        """
        socket_beside, events = beside
        if events:
            self._selector.register(socket_beside, events)
        ready = self._selector.select(timeout)
        if events:
            self._selector.unregister(socket_beside)
        if self._stop:
            self._stop.noticed()
        return bool(ready)

    def report(self, flushed: int) -> None:
        """Do what :meth:`acknowledge` does if the server has not heard of us for a while.

        Else it would take us for dead, after its ``wal_sender_timeout``, while the destination
        keeps us waiting.
        """
        if time.monotonic() >= self._report_at:
            self.acknowledge(flushed)

    def acknowledge(self, flushed: int, *, reply_requested: bool = False) -> None:
        """Tell the server up to where everything is stored durably.

        Args:
            flushed: That position; the server may discard the log before it, unless the slot is
                withheld.
            reply_requested: Ask for a keepalive at once.
        """
        self._stored = flushed
        # A server that is shut down waits until everything it sent was at least written; what
        # nothing is said of as flushed does not keep it waiting.
        self._say(0 if self.withholds else flushed, reply_requested=reply_requested)

    def confirm(self, flushed: int) -> None:
        """Tell a slot that is withheld how far it may go."""
        self._say(flushed)
        self._say(0)

    def _say(self, flushed: int, *, reply_requested: bool = False) -> None:
        if self._ended:
            return  # what came before the end is still stored; the next start tells the slot
        now = int((time.time() - _POSTGRES_EPOCH) * 1_000_000)
        self._pgconn.put_copy_data(
            standby_status(
                flushed,
                now,
                written=max(self._stored, flushed),
                reply_requested=reply_requested,
            )
        )
        self._pgconn.flush()
        self._report_at = time.monotonic() + self._report_seconds


def slot_busy(slot: str, said: str) -> SlotBusy:
    """Explain a slot that another process reads; ``said`` names its process id."""
    return SlotBusy(
        f"the slot {slot!r} is being read by another process: {said}. Remedy: stop that worker "
        "(SELECT pg_terminate_backend(pid) ends one that hangs), let this one wait for it with "
        "--standby, or give this one a slot of its own with --slot"
    )


def _field(result: pq.abc.PGresult | None, name: pq.DiagnosticField) -> str:
    value = None if result is None else result.error_field(name)
    return "" if value is None else value.decode(errors="replace")
