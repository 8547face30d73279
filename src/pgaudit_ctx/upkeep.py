"""What a capture needs now and then beside the loop: partitions, looks at the catalog, heartbeats.

Nothing here is on the path of a change. The loop asks for it between two commits, while no COPY is
open in the destination, and where nothing arrives.
"""

import logging
import time
from typing import Final

import psycopg

from pgaudit_ctx.ack_delay import AckDelay
from pgaudit_ctx.coverage import look
from pgaudit_ctx.destination.schema import Connection, attach_ahead
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.source import catalog

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 300.0
HEARTBEAT_BYTES: Final = 16 * 2**20
PARTITION_SECONDS: Final = 3600.0
# So often the source's catalog is compared with what is known to be covered: at least, and at most
# when Relation messages say that something may have changed.
LOOK_SECONDS: Final = 60.0
_LOOK_PAUSE_SECONDS: Final = 1.0


class Upkeep:
    """Remembers when each of these duties is due next, and does what is.

    Args:
        source: An ordinary connection to the audited database.
        destination: To the trail, in autocommit mode.
        options: The worker's.
        name: The source's.
        epoch: The current one.
        ack_delay: Keeps the slot back, if that was asked for.
    """

    def __init__(
        self,
        source: Connection,
        destination: Connection,
        options: WorkerOptions,
        name: str,
        epoch: int,
        ack_delay: AckDelay | None = None,
    ) -> None:
        self._source = source
        self._destination = destination
        self._options = options
        self._name = name
        self._epoch = epoch
        self._ack_delay = ack_delay
        now = time.monotonic()
        self._partition_at = now + PARTITION_SECONDS
        self._looked_at = now
        self._look_at = now + LOOK_SECONDS
        self._slot_moved_at = now
        self._slot_looked_at = now
        self._restart_lsn = 0
        self.due_at = self._next()
        """When :meth:`do_due` has something to do again, on the monotonic clock."""

    def expect_change(self) -> None:
        """Look at the catalog soon: what the source sends says that a table may have changed."""
        self._look_at = min(self._look_at, self._looked_at + _LOOK_PAUSE_SECONDS)
        self.due_at = min(self.due_at, self._look_at)

    def do_due(self) -> None:
        """Do what is due; only while no COPY is open."""
        now = time.monotonic()
        if now < self.due_at:
            return
        if now >= self._partition_at:
            self._partition_at = now + PARTITION_SECONDS
            attach_ahead(self._destination)
        if now >= self._look_at:
            self._looked_at, self._look_at = now, now + LOOK_SECONDS
            self._look()
        if self._ack_delay is not None and now >= self._ack_delay.due_at:
            self._ack_delay.advance()
        self.due_at = self._next()

    def _next(self) -> float:
        due_at = min(self._partition_at, self._look_at)
        return due_at if self._ack_delay is None else min(due_at, self._ack_delay.due_at)

    def _look(self) -> None:
        """See whether everything is still published; what is not is a hole, and not an end."""
        try:
            look(
                self._source,
                self._destination,
                self._name,
                self._epoch,
                self._options.publication,
                self._options.filters,
                keep_filters=True,
            )
        except UsageError as error:
            log.warning("%s", error)

    def beat(self) -> None:
        """Write a heartbeat if the slot keeps much of the log and has not moved for long.

        Keepalives move what is acknowledged. From where on the log is kept moves with transactions
        that are decoded, and a source where nothing is written has none.
        """
        now = time.monotonic()
        if now - self._slot_looked_at < HEARTBEAT_SECONDS / 10:
            return
        self._slot_looked_at = now
        restart_lsn, retained = catalog.read_retained(self._source, self._options.slot)
        if restart_lsn != self._restart_lsn:
            self._restart_lsn, self._slot_moved_at = restart_lsn, now
        elif now - self._slot_moved_at >= HEARTBEAT_SECONDS and retained >= HEARTBEAT_BYTES:
            self._slot_moved_at = now
            try:
                catalog.emit_heartbeat(self._source)
            except psycopg.errors.InsufficientPrivilege:
                log.warning(
                    "the slot keeps %d bytes of the log, and this role may not write the message "
                    "that would free them. Remedy: grant it EXECUTE on the function "
                    "pg_logical_emit_message(boolean, text, text)",
                    retained,
                )
