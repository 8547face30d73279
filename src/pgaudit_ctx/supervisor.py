"""Keeps a capture alive: whatever ends a worker and may pass, the next one goes on after it."""

import logging
from collections.abc import Callable
from contextlib import closing
from typing import Final

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential, wait_random

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination.schema import check_schema
from pgaudit_ctx.errors import (
    ChangeRefused,
    ChangeUnreadable,
    DatabaseError,
    DestinationNotReady,
    ProtocolError,
    PublicationReplaced,
    SlotBusy,
    SourceNotReady,
)
from pgaudit_ctx.preflight import WorkerOptions, renew_slot
from pgaudit_ctx.source import catalog
from pgaudit_ctx.stop import StopRequest
from pgaudit_ctx.worker import Progress, Worker

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.2
"""Seconds until the first attempt to connect again; twice as long until each one after it."""
LONGEST_PAUSE: Final = 30.0
_STANDBY_SECONDS: Final = 1.0
NOTHING_LOST: Final = (
    "Nothing after the checkpoint has been acknowledged, so nothing is lost. Remedy: start the "
    "worker again; if it ends in the same way, report this with the versions of pgaudit-ctx and "
    "PostgreSQL"
)
"""What to do about what should not happen."""


class Supervisor:
    """Runs one worker after the other on the same source and destination.

    At its first start everything that is not ready is an error. Once a worker has run, a lost or
    refusing server is waited for, however long it takes; what ends it then is only what would lose
    or falsify something. Each new worker makes the checks of a first start again.

    Args:
        options: Both URLs, and the names.
        standby: Wait for a slot that another worker reads, and take over when it ends.

    Raises:
        DatabaseError: If an end cannot be reached, or the destination has no schema.
    """

    def __init__(self, options: WorkerOptions, *, standby: bool = False) -> None:
        with closing(connect(options.source, "source")) as source:
            self.name = options.name or source.info.dbname
        with closing(connect(options.destination, "destination")) as destination:
            try:
                check_schema(destination)
            except psycopg.Error as error:
                raise refusal(error, "look at the trail's schema in the destination") from None
        self._options = options._replace(name=self.name)
        self._standby = standby
        self._stop = StopRequest()
        self._has_run = False
        self._done = False
        self._careful_until = 0
        self._skip = 0
        self._accepted_until = 0
        self._before = Progress(0, 0, 0, 0)

    def stop(self) -> None:
        """Ask for the end; safe to call from a signal handler."""
        self._stop.make()

    def close(self) -> None:
        """Let go of what :meth:`stop` needed."""
        self._stop.close()

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
            What has been stored, by all workers together.

        Raises:
            AuditError: At the first start whatever is not ready; later only what would lose or
                falsify something.
        """
        while not self._done and not self._stop:
            # Anew after each worker that has stored something, so that the pauses begin small.
            try:
                self._patience()(self._capture, until_caught_up, on_batch)
            except ProtocolError as error:
                raise ProtocolError(
                    f"what the source sends cannot be read: {error}. {NOTHING_LOST}"
                ) from None
        return self._before

    def _patience(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception(self._may_pass),
            wait=wait_exponential(FIRST_PAUSE, LONGEST_PAUSE) + wait_random(0, FIRST_PAUSE),
            stop=lambda _: bool(self._stop),
            retry_error_callback=lambda _: None,
            sleep=self._stop.wait,
            before_sleep=_tell,
            reraise=True,
        )

    def _may_pass(self, error: BaseException) -> bool:
        if isinstance(error, SlotBusy):
            return self._has_run or self._standby
        lasting = (SourceNotReady, DestinationNotReady, ChangeRefused)
        return self._has_run and isinstance(error, DatabaseError) and not isinstance(error, lasting)

    def _capture(self, until_caught_up: bool, on_batch: Callable[[Progress], None]) -> None:  # noqa: FBT001 - private
        """Run one worker; an error of one that has stored something is swallowed if it may pass."""
        if self._standby:
            self._await_slot()
        if self._stop:
            return
        careful_until, self._careful_until = self._careful_until, 0
        # What is lost later, while nobody looks, is not what somebody has accepted at the start.
        options = self._options._replace(accept_gap=False) if self._has_run else self._options
        skip, self._skip = self._skip, 0
        worker = Worker(options, stop=self._stop, careful_until=careful_until, skip=skip)
        if options.accept_gap:
            self._accepted_until = worker.began_at
        before = self._before
        try:
            worker.run(
                until_caught_up=until_caught_up,
                on_batch=lambda progress: on_batch(_sum(before, progress)),
            )
            self._done = not careful_until and not skip
        except ChangeRefused as error:
            if careful_until:
                raise ChangeRefused(
                    f"{error}. It is not taken by pgaudit_ctx.rejected either. Remedy: remove what "
                    "was added to the tables of the schema pgaudit_ctx (triggers, constraints), "
                    "and start the worker again"
                ) from None
            log.warning("%s; the rows since the checkpoint are sorted out one by one", error)
            self._careful_until = worker.reached + 1
        except ChangeUnreadable as error:
            self._skip = self._accepted(error)
        except PublicationReplaced as error:
            self._renew_slot(worker, options, error)
        except DatabaseError as error:
            self._has_run = self._has_run or worker.streaming
            if not (worker.has_stored and self._may_pass(error)):
                raise
            log.warning("%s; connecting again", error)
        finally:
            self._has_run = self._has_run or worker.streaming
            self._before = _sum(before, worker.progress)
            worker.close()

    def _accepted(self, error: ChangeUnreadable) -> int:
        """Give the position of the transaction to leave out, if somebody has accepted that."""
        if not error.commit_lsn:
            raise ChangeUnreadable(
                f"{error}. Remedy: mend what it names, if that can be done; else pgaudit-ctx setup "
                "--recreate-slot --yes begins behind it, and writes down the gap"
            ) from None
        if error.commit_lsn >= self._accepted_until:
            raise error
        log.warning("%s", error)
        return error.commit_lsn

    def _renew_slot(
        self, worker: Worker, options: WorkerOptions, error: PublicationReplaced
    ) -> None:
        """Make the slot anew, if the publication was replaced before somebody accepted a gap."""
        if not (options.accept_gap and worker.publication_stands()):
            raise error
        worker.close()
        renew_slot(options)
        log.warning("%s; it was accepted, and the gap is written down", error)

    def _await_slot(self) -> None:
        """Wait until nobody reads the slot."""
        told = None
        with closing(connect(self._options.source, "source")) as source:
            while not self._stop:
                try:
                    slot = catalog.read_slot(source, self._options.slot)
                except psycopg.Error as error:
                    raise refusal(error, "look at the slot") from None
                if slot is None or slot.active_pid is None:
                    return
                if told != slot.active_pid:
                    told = slot.active_pid
                    log.info("standing by: the slot is read by the server's process %d", told)
                self._has_run = True
                self._stop.wait(_STANDBY_SECONDS)


def _sum(before: Progress, progress: Progress) -> Progress:
    return Progress(
        before.changes + progress.changes,
        before.bytes + progress.bytes,
        before.transactions + progress.transactions,
        progress.end_lsn,
        before.rejected + progress.rejected,
    )


def _tell(state: RetryCallState) -> None:
    error = state.outcome and state.outcome.exception()
    pause = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s; trying again in %.1f seconds", error, pause)
