"""How far the trail is, in figures; pure, from the same facts as the checks."""

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

from pgaudit_ctx.doctor.facts import Destination, Facts, Source
from pgaudit_ctx.wal.lsn import format_lsn


class Status(NamedTuple):
    """Where a source's capture stands; what could not be seen is ``None``.

    Attributes:
        source: The source's name.
        slot: The slot's name.
        slot_active: Whether a worker reads it.
        lag_bytes: Log that is written and not stored yet.
        lag_seconds: How old the trail is: the source's clock, less that of the last position
            that is stored; 0 where nothing is left to store.
        retained_wal_bytes: Log that the source keeps for the slot.
        checkpoint_lsn: Everything before it is stored.
        complete_up_to: The source's clock there.
        epoch: The current epoch.
        gaps: How many ranges are known to be lost.
        rejected: How many changes the destination refused and still waits for.
        problems: Why an end could not be looked at.
    """

    source: str
    slot: str
    slot_active: bool | None
    lag_bytes: int | None
    lag_seconds: float | None
    retained_wal_bytes: int | None
    checkpoint_lsn: str | None
    complete_up_to: dt.datetime | None
    epoch: int | None
    gaps: int | None
    rejected: int | None
    problems: list[str]

    def as_dict(self) -> Mapping[str, Any]:
        """The same as an object for JSON; the moment is ISO 8601."""
        moment = None if self.complete_up_to is None else self.complete_up_to.isoformat()
        return {**self._asdict(), "complete_up_to": moment}


def status_of(facts: Facts) -> Status:
    """Put together what was seen.

    Args:
        facts: What was seen; an end that could not be reached is told in ``problems``.
    """
    source = facts.source if isinstance(facts.source, Source) else None
    end = facts.destination
    trail = end.trail if isinstance(end, Destination) else None
    checkpoint = None if trail is None else trail.checkpoint
    slot = None if source is None else source.slot
    lag_bytes = lag_seconds = None
    stored = None if checkpoint is None else checkpoint.end_lsn
    if stored is None and slot is not None:
        stored = slot.confirmed_flush
    if source is not None and stored is not None:
        lag_bytes = max(0, source.position - stored)
    if source is not None and checkpoint is not None:
        age = (source.time - checkpoint.complete_at).total_seconds()
        lag_seconds = 0.0 if lag_bytes == 0 else max(0.0, age)
    retained = None
    if source is not None and slot is not None and slot.restart:
        retained = max(0, source.position - slot.restart)
    return Status(
        facts.names.source,
        facts.names.slot,
        None if source is None else slot is not None and slot.active_pid is not None,
        lag_bytes,
        lag_seconds,
        retained,
        None if checkpoint is None else format_lsn(checkpoint.end_lsn),
        None if checkpoint is None else checkpoint.complete_at,
        None if checkpoint is None else checkpoint.epoch,
        None if trail is None else len(trail.gaps),
        None if trail is None else trail.rejected,
        [seen for seen in (facts.source, facts.destination) if isinstance(seen, str)],
    )
