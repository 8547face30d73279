"""Keeps the slot back, so that a destination restored from a backup can replay what it lacks.

The slot is told only what was captured longer ago than a delay. So it still has everything that a
backup of the destination lacks, if the backup is younger than that; and a worker begins where its
checkpoint is, whatever the slot has been told, so nothing is stored twice.
"""

import time
from collections.abc import Callable
from typing import Final

from pgaudit_ctx.destination.captured_positions import (
    forget_before,
    note_position,
    position_before,
)
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.wal.lsn import format_lsn

# So often the position is written down: so much longer than asked for the log is kept.
_LONGEST_PAUSE: Final = 60.0
_PAUSES: Final = 20


class AckDelay:
    """Notes where the checkpoint is, and tells the slot what has been there long enough.

    Args:
        destination: To the trail, in autocommit mode.
        source: The source's name.
        epoch: The current one.
        seconds: The delay.
        told: What the slot has been told already; it is never told less.
        confirm: Tells the slot.
    """

    def __init__(
        self,
        destination: Connection,
        source: str,
        epoch: int,
        seconds: float,
        told: int,
        confirm: Callable[[int], None],
    ) -> None:
        self._destination = destination
        self._where = (source, epoch)
        self._seconds = seconds
        self._told = told
        self._confirm = confirm
        self._pause = min(_LONGEST_PAUSE, seconds / _PAUSES)
        self.due_at = time.monotonic()
        """When :meth:`advance` has something to do again, on the monotonic clock."""

    def advance(self) -> None:
        """Note where the checkpoint is, and tell the slot how far it may be; while no COPY is open.

        What was noted survives a restart of the worker, and is in each backup of the destination.
        """
        self.due_at = time.monotonic() + self._pause
        note_position(self._destination, *self._where)
        position = position_before(self._destination, *self._where, self._seconds)
        if position > self._told:
            self._told = position
            self._confirm(position)
            forget_before(self._destination, *self._where, format_lsn(position))
