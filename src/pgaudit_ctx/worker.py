"""The only loop: stream → decode → stitch → sink → acknowledge.

Changes and checkpoint are committed together in the destination, and only then is the slot told.
So a crash anywhere means that something is sent again, and the checkpoint says what to skip. A
worker that loses an end is ended; :mod:`pgaudit_ctx.supervisor` makes the next one.
"""

import datetime as dt
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Final, NamedTuple

import psycopg

from pgaudit_ctx.ack_delay import AckDelay
from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination import ledger
from pgaudit_ctx.destination.careful import CarefulSink
from pgaudit_ctx.destination.coverage import keys_at_checkpoint
from pgaudit_ctx.destination.schema import check_schema
from pgaudit_ctx.destination.sink import Sink
from pgaudit_ctx.errors import ChangeUnreadable
from pgaudit_ctx.preflight import WorkerOptions, begin_capture, refuse_busy
from pgaudit_ctx.source import catalog
from pgaudit_ctx.source.catalog import POSTGRES_EPOCH
from pgaudit_ctx.source.keys import KeyHistory
from pgaudit_ctx.source.stream import ReplicationStream
from pgaudit_ctx.stop import StopRequest
from pgaudit_ctx.upkeep import Upkeep
from pgaudit_ctx.wal.encodings import codec_for
from pgaudit_ctx.wal.frames import PAYLOAD, Keepalive, XLogData, parse_frame, wal_starts
from pgaudit_ctx.wal.lsn import format_lsn, last_record_end
from pgaudit_ctx.wal.pgoutput import Begin, Commit, Relation, decode
from pgaudit_ctx.wal.stitcher import CapturedChange, Stitcher
from pgaudit_ctx.wal.table import TableFacts

log = logging.getLogger(__name__)

_IDLE_SECONDS: Final = 10.0
# So long the rest of a transaction is waited for when a stop was asked for; then it is dropped.
_STOP_SECONDS: Final = 5.0
# So long nothing may come before what has come is stored; a busy walsender pauses for less.
_LULL_SECONDS: Final = 0.005
_CATCH_UP_SECONDS: Final = 0.05


class Progress(NamedTuple):
    """What a worker has stored since it was started."""

    changes: int
    bytes: int
    transactions: int
    end_lsn: int
    rejected: int = 0


class Worker:
    """Captures one source into one destination, until it is told to stop or loses an end.

    Args:
        options: Both URLs, and the names.
        stop: Tells it to stop; by default a request of its own.
        careful_until: What the destination refuses before this position is kept in ``rejected``;
            the worker ends where everything before it is stored.
        skip: The commit position of a transaction that the source cannot decode: it becomes a gap,
            and the worker ends there.

    Raises:
        AuditError: From the constructor if either end is not ready.
    """

    def __init__(
        self,
        options: WorkerOptions,
        *,
        stop: StopRequest | None = None,
        careful_until: int = 0,
        skip: int = 0,
    ) -> None:
        with ExitStack() as opened:
            self._stop = opened.enter_context(StopRequest()) if stop is None else stop
            self._source = opened.enter_context(closing(connect(options.source, "source")))
            self._destination = opened.enter_context(
                closing(connect(options.destination, "destination"))
            )
            self.name = options.name or self._source.info.dbname
            try:
                check_schema(self._destination)
                refuse_busy(self._source, options.slot)
                self._checkpoint = self._begin_capture(options)
                self._sink = self._make_sink(careful=careful_until > 0)
                self._stream = opened.enter_context(
                    ReplicationStream(options.source, options.slot, options.publication, self._stop)
                )
                self._probe = catalog.read_position(self._source)
                self._publication = catalog.read_publication(self._source, options.publication)
            except psycopg.Error as error:
                raise refusal(error, "prepare the capture") from None
            # All is well: close() ends them from here on.
            self._opened = opened.pop_all()
        self._options = options
        encoding = self._source.info.parameter_status("server_encoding") or ""
        self._stitcher = Stitcher(self._describe, codec_for(encoding), options.filters)
        self._careful_until = careful_until
        self._skip = skip
        self._batch_bytes = options.batch_bytes
        self._batch_seconds = options.batch_seconds
        self.began_at = self._probe.lsn
        """Where the source's log stood at the start."""
        self._give_up_at = math.inf
        self.streaming = False
        """Whether the source has begun to send."""
        self._transaction = Begin(0, 0, 0)
        self.reached = 0
        """The commit position of the last transaction that has begun to arrive."""
        self._target: int | None = None
        self._stored_lsn = self._checkpoint.end_lsn
        self._pending: Commit | None = None
        self._inside = False
        self._full_at = 0
        self._late_at = 0.0
        self._transactions = 0
        self._underway: Progress | None = None
        self._progress = Progress(0, 0, 0, self._stored_lsn)
        self._heard = Keepalive(0, 0, reply_requested=False)
        self._stored_at = time.monotonic()
        self._upkeep = Upkeep(
            self._source,
            self._destination,
            options,
            self.name,
            self._checkpoint.epoch,
            self._withhold(options),
        )

    def _begin_capture(self, options: WorkerOptions) -> ledger.Checkpoint:
        """Make the checks, end what an earlier worker left, and see that it moved nothing."""
        while True:
            self._keys = KeyHistory(keys_at_checkpoint(self._destination, self.name))
            checkpoint = begin_capture(self._source, self._destination, options)
            ledger.hold_trail(self._destination, self.name)
            if ledger.read_checkpoint(self._destination, self.name) == checkpoint:
                return checkpoint

    def _make_sink(self, *, careful: bool) -> Sink:
        epoch, end_lsn = self._checkpoint.epoch, self._checkpoint.end_lsn
        # A destination that cannot be written to is noticed here, before the source is bothered.
        ledger.advance_checkpoint(self._destination, self.name, epoch, end_lsn=end_lsn, time=None)
        kind = CarefulSink if careful else Sink
        return kind(self._destination, self.name, epoch)

    def _withhold(self, options: WorkerOptions) -> AckDelay | None:
        if not options.ack_delay:
            return None
        self._stream.withholds = True
        slot = catalog.read_slot(self._source, options.slot)
        return AckDelay(
            self._destination,
            self.name,
            self._checkpoint.epoch,
            options.ack_delay,
            self._checkpoint.end_lsn if slot is None else slot.confirmed_flush,
            self._stream.confirm,
        )

    def stop(self) -> None:
        """Ask the loop to finish its batch and return; safe to call from a signal handler."""
        self._stop.make()

    def close(self) -> None:
        """Close all connections; what was not committed will be captured again."""
        self._opened.close()

    @property
    def progress(self) -> Progress:
        """What has been stored since the start."""
        return self._progress._replace(end_lsn=self._stored_lsn)

    def publication_stands(self) -> bool:
        """Whether the publication is the one that it was at the start."""
        now = catalog.read_publication(self._source, self._options.publication)
        return (now and now.oid) == (self._publication and self._publication.oid)

    @property
    def has_stored(self) -> bool:
        """Whether the checkpoint has moved since the start."""
        return self._stored_lsn > self._checkpoint.end_lsn

    def run(
        self,
        *,
        until_caught_up: bool = False,
        on_batch: Callable[[Progress], None] = lambda _: None,
    ) -> Progress:
        """Capture until :meth:`stop` is called.

        Args:
            until_caught_up: Return once everything is stored that was committed before this call.
            on_batch: Called after each commit in the destination.

        Returns:
            What has been stored.

        Raises:
            SlotBusy: If another process reads the slot.
            ConnectionFailed: If either end is lost.
            ChangeRefused: If the destination refuses a change itself.
            ChangeUnreadable: If the source cannot decode a change.
            DatabaseError: If either end refuses for another reason.
        """
        try:
            self._run(until_caught_up, on_batch)
        except psycopg.Error as error:
            raise refusal(error, "go on capturing") from None
        return self.progress

    def _run(self, until_caught_up: bool, on_batch: Callable[[Progress], None]) -> None:  # noqa: FBT001 - private
        if until_caught_up:
            self._probe = catalog.read_position(self._source)
            self._target = last_record_end(self._probe.lsn)
        self._start()
        while not self._finished():
            self._sink.advance()
            if not self._sink.committing:
                self._finish(on_batch)
            self._report()
            if frames := self._read():
                self._take(frames, on_batch)
            elif self._inside or self._underway:
                self._stream.wait(
                    _STOP_SECONDS if self._stop else _IDLE_SECONDS, self._sink.awaited
                )
            elif self._pending:
                if not self._stream.wait(_LULL_SECONDS):
                    self._store(on_batch)
            else:
                # A keepalive's position counts: nothing before it is still on its way to us.
                self._store_heard()
                if not self._finished():
                    self._rest()
        if not self._inside:  # else the batch is dropped, and will be captured again
            self._store(on_batch)
        self._finish(on_batch)

    def _start(self) -> None:
        self._stream.start(self._checkpoint.end_lsn)
        self.streaming = True
        for connection in (self._source, self._destination):
            connection.meanwhile = self._report
        log.info(
            "capturing %s from %s into epoch %d",
            self.name,
            format_lsn(self._checkpoint.end_lsn),
            self._checkpoint.epoch,
        )

    def _finished(self) -> bool:
        if self._stop:
            # The batch is finished first, unless its last transaction takes too long to come.
            self._give_up_at = min(self._give_up_at, time.monotonic() + _STOP_SECONDS)
            return not self._inside or time.monotonic() >= self._give_up_at
        if self._skip and self._stored_lsn > self._skip:
            return True
        if self._careful_until:
            return self._stored_lsn >= self._careful_until
        return self._target is not None and self._stored_lsn >= self._target

    def _read(self) -> list[bytes]:
        try:
            return self._stream.read()
        except ChangeUnreadable as error:
            if not self._inside:
                raise
            when = POSTGRES_EPOCH + dt.timedelta(microseconds=self._transaction.committed_at)
            raise ChangeUnreadable(
                f"the transaction {self._transaction.xid}, committed at {when:%Y-%m-%d %H:%M:%S} "
                f"UTC at {format_lsn(self.reached)}, cannot be decoded: {error}. A row of it is "
                "larger as text than the 1 GB that PostgreSQL can handle at once, so no attempt "
                "will succeed, and the slot keeps the log until it is passed. Remedy: start the "
                "worker once with --accept-gap, which writes this one transaction down as a gap "
                "and goes on",
                self.reached,
            ) from None

    def _report(self) -> None:
        self._stream.report(self._stored_lsn)

    def _describe(self, relation: Relation) -> TableFacts | None:
        self._upkeep.expect_change()
        return catalog.describe(self._source, self._keys, relation)

    def _take(self, frames: Sequence[bytes], on_batch: Callable[[Progress], None]) -> None:
        """Take some frames, and store transactions in as few commits as their size allows.

        One step after the other for all frames, not all steps for one frame after the other: that
        takes a fifth less time, for what a step needs stays in the processor's caches.
        """
        positions = wal_starts(frames)
        messages = [
            None if position is None else decode(data, PAYLOAD)
            for position, data in zip(positions, frames, strict=True)
        ]
        receive = self._stitcher.receive
        ready: list[CapturedChange] = []
        for position, message, data in zip(positions, messages, frames, strict=True):
            if position is None or message is None:
                self._hear(parse_frame(data))
                continue
            ready += receive(position, message)
            if type(message) is Begin:
                if message.final_lsn == self._skip:
                    self._leave_out(message, on_batch)
                    return
                self._begin(message, on_batch)
            elif type(message) is Commit:
                self._sink.write(ready)
                ready.clear()
                self._end(message, on_batch)
                if self._stop:
                    return
        if ready:
            self._sink.write(ready)

    def _begin(self, transaction: Begin, on_batch: Callable[[Progress], None]) -> None:
        self._inside = True
        for relation in self._keys.begin(transaction.final_lsn):
            self._stitcher.receive(transaction.final_lsn, relation)
        self._transaction = transaction
        self.reached = transaction.final_lsn
        if self._sink.needs_partition(transaction):
            self._store(on_batch)
            self._finish(on_batch)
        if self._pending is None:
            self._full_at = self._sink.bytes + self._batch_bytes
            self._late_at = time.monotonic() + self._batch_seconds
        self._sink.begin(transaction)

    def _leave_out(self, transaction: Begin, on_batch: Callable[[Progress], None]) -> None:
        """Store what came before a transaction, and write it down as a gap."""
        self._store(on_batch)
        self._finish(on_batch)
        before = ledger.read_checkpoint(self._destination, self.name) or self._checkpoint
        # A transaction is sent if its commit record starts at the checkpoint or after it.
        after = before._replace(end_lsn=transaction.final_lsn + 1)
        ledger.accept_loss(
            self._destination,
            self.name,
            before,
            after,
            f"transaction {transaction.xid} could not be decoded",
            POSTGRES_EPOCH + dt.timedelta(microseconds=transaction.committed_at),
            fork_lsn=None,
            gap_from=transaction.final_lsn,
        )
        log.warning(
            "left out the transaction %d at %s, which cannot be decoded, and wrote down the gap",
            transaction.xid,
            format_lsn(transaction.final_lsn),
        )
        self._acknowledge(after.end_lsn)

    def _end(self, transaction: Commit, on_batch: Callable[[Progress], None]) -> None:
        self._inside = False
        self._pending = transaction
        self._transactions += 1
        if self._sink.bytes >= self._full_at or time.monotonic() >= self._late_at:
            self._store(on_batch)

    def _hear(self, keepalive: XLogData | Keepalive) -> None:
        if not isinstance(keepalive, Keepalive):
            return
        self._heard = keepalive
        if keepalive.reply_requested:
            self._stream.acknowledge(self._stored_lsn)

    def _store(self, on_batch: Callable[[Progress], None]) -> None:
        """Begin to commit what is pending, with its checkpoint; one commit after the other."""
        commit, self._pending = self._pending, None
        if commit is None:
            return
        self._finish(on_batch)
        self._underway = Progress(
            self._sink.rows,
            self._sink.bytes,
            self._transactions,
            commit.end_lsn,
            self._sink.rejected,
        )
        self._sink.start_commit(
            end_lsn=commit.end_lsn,
            time=commit.committed_at,
            commit_lsn=commit.commit_lsn,
        )
        if time.monotonic() >= self._upkeep.due_at:
            self._finish(on_batch)
            self._upkeep.do_due()

    def _finish(self, on_batch: Callable[[Progress], None]) -> None:
        """Wait for the commit that is under way, and only then acknowledge it."""
        stored, self._underway = self._underway, None
        if stored is None:
            return
        self._sink.finish()
        self._progress = stored
        self._acknowledge(stored.end_lsn)
        on_batch(stored)

    def _store_heard(self) -> None:
        """Take over a keepalive's position: all before it has been sent, received and stored.

        Else a source where nothing is written would keep the log of its busy neighbours for ever.
        """
        heard = self._heard.wal_end
        if heard <= self._stored_lsn:
            return
        reached_target = self._target is not None and heard >= self._target
        if reached_target or time.monotonic() - self._stored_at >= _IDLE_SECONDS:
            # The source's clock is known for a position that was looked up before, not for this.
            passed = heard >= last_record_end(self._probe.lsn)
            self._sink.commit(end_lsn=heard, time=self._probe.microseconds if passed else None)
            self._acknowledge(heard)
            if passed:
                self._probe = catalog.read_position(self._source)

    def _acknowledge(self, lsn: int) -> None:
        self._stored_lsn = lsn
        self._stored_at = time.monotonic()
        self._stream.acknowledge(lsn)

    def _rest(self) -> None:
        if self._target is None:
            self._stream.wait(_IDLE_SECONDS)
        else:
            self._stream.acknowledge(self._stored_lsn, reply_requested=True)
            self._stream.wait(_CATCH_UP_SECONDS)
        self._upkeep.do_due()
        self._upkeep.beat()
