"""Whether a capture can go on where the trail ends, and what is lost if it goes on nevertheless.

Pure: the facts are gathered, and the outcome is written down, by ``preflight.py``. PostgreSQL does
not tell: a slot begins silently at its own position where that is later than the one asked for, and
after a failover or a restore positions mean something else, or nothing.

PostgreSQL documentation: "Timelines" in the chapter on continuous archiving, and the commands
``IDENTIFY_SYSTEM`` and ``TIMELINE_HISTORY`` of the streaming replication protocol.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from pgaudit_ctx.destination.ledger import Checkpoint
from pgaudit_ctx.wal.lsn import format_lsn


class SourceFacts(NamedTuple):
    """What the source says of itself.

    Attributes:
        system_identifier: Of the cluster; ``initdb`` and ``pg_upgrade`` make a new one.
        timeline: The one that is written to.
        history: Where each timeline before it ended: where the next one forked off.
        database_oid: Of the database.
        position: Up to where something has been written.
        slot_lsn: Up to where the slot has been acknowledged; ``None`` if it cannot be read, because
            it is gone or the log that it kept is.
        slot_lost: Whether the slot is still there, without its log.
    """

    system_identifier: int
    timeline: int
    history: Mapping[int, int]
    database_oid: int
    position: int
    slot_lsn: int | None
    slot_lost: bool = False


@dataclass(frozen=True)
class Loss:
    """What the trail will not hold if the capture goes on.

    Attributes:
        cause: Why, for the trail.
        found: The same for a person, with both positions.
        needs_slot: Whether a new slot has to be made first; the gap then reaches up to it.
        new_epoch: Whether positions are not comparable any more.
        fork_lsn: Where a failover forked off, if it has undone what was captured after that.
        from_lsn: Where the gap begins.
        to_lsn: Where it ends; where the capture goes on.
    """

    cause: str
    found: str
    needs_slot: bool = False
    new_epoch: bool = False
    fork_lsn: int | None = None
    from_lsn: int = 0
    to_lsn: int = 0

    def is_gap(self, resumed: int) -> bool:
        """Say whether something was lost; not if a failover has only undone what was captured.

        Args:
            resumed: Where the capture goes on.
        """
        return self.fork_lsn is None or resumed > self.from_lsn


def judge(name: str, slot: str, checkpoint: Checkpoint, source: SourceFacts) -> Loss | None:
    """Compare where the trail ends with what the source offers.

    Args:
        name: The source's, for messages.
        slot: The slot's name, for messages.
        checkpoint: Where the trail ends.
        source: What the source says of itself now.

    Returns:
        ``None`` if nothing is lost: the slot has all from the checkpoint on, on the same timeline
        or on one that forked off at the checkpoint or after it.
    """
    ends = f"the trail of {name!r} ends at {format_lsn(checkpoint.end_lsn)}"
    other = _other_server(checkpoint, source, ends)
    if other is not None:
        return _at_slot(other, checkpoint, source)
    forked = _fork(checkpoint, source, ends)
    if forked is not None:
        return _at_slot(forked, checkpoint, source)
    if source.position < checkpoint.end_lsn:
        return _at_slot(
            Loss(
                "the source was taken back to an earlier state",
                f"{ends}, but the source has been written to only up to "
                f"{format_lsn(source.position)}: it was taken back to an earlier state, and "
                "positions are given out a second time",
                new_epoch=True,
            ),
            checkpoint,
            source,
        )
    if source.slot_lsn is None:
        what = (
            "has lost the log it kept (see max_slot_wal_keep_size)"
            if source.slot_lost
            else "that kept the log from there on is gone"
        )
        cause = "the slot lost its log" if source.slot_lost else "the slot was dropped"
        found = f"{ends}, but the slot {slot!r} {what}; a new one begins where the source is now"
        return _at_slot(Loss(cause, found), checkpoint, source)
    if source.slot_lsn > checkpoint.end_lsn:
        return _at_slot(
            Loss(
                "the slot was recreated or advanced, or the destination restored",
                f"{ends}, but the slot {slot!r} begins at {format_lsn(source.slot_lsn)}: what lies "
                "between was never stored. The slot was recreated or advanced, or the destination "
                "was restored from a backup",
            ),
            checkpoint,
            source,
        )
    return None


def _other_server(checkpoint: Checkpoint, source: SourceFacts, ends: str) -> Loss | None:
    if checkpoint.system_identifier != source.system_identifier:
        return Loss(
            "the source is another cluster",
            f"{ends} in the cluster with system identifier {checkpoint.system_identifier}, but the "
            f"source has {source.system_identifier} and stands at {format_lsn(source.position)}: "
            "it is another server, or was upgraded with pg_upgrade, or restored from a dump",
            new_epoch=True,
        )
    if checkpoint.database_oid != source.database_oid:
        return Loss(
            "the source is another database",
            f"{ends} in the database with oid {checkpoint.database_oid}, but the source has "
            f"{source.database_oid} and stands at {format_lsn(source.position)}: it is another "
            "database of the same server, or was dropped and made anew",
            new_epoch=True,
        )
    return None


def _fork(checkpoint: Checkpoint, source: SourceFacts, ends: str) -> Loss | None:
    if checkpoint.timeline == source.timeline:
        return None
    fork = source.history.get(checkpoint.timeline)
    if fork is None:
        return Loss(
            "the source is on a timeline that the trail does not know",
            f"{ends} on timeline {checkpoint.timeline}, which is not among those that the source's "
            f"timeline {source.timeline} at {format_lsn(source.position)} descends from: it was "
            "restored from a backup, or an old primary came back",
            new_epoch=True,
        )
    if fork >= checkpoint.end_lsn:
        return None
    return Loss(
        "a standby was promoted that did not have everything",
        f"{ends} on timeline {checkpoint.timeline}, but the source's timeline {source.timeline} "
        f"forked off at {format_lsn(fork)}: a standby was promoted, or a backup restored, that did "
        "not have everything. What was captured after that has been undone",
        new_epoch=True,
        fork_lsn=fork,
    )


def _at_slot(loss: Loss, checkpoint: Checkpoint, source: SourceFacts) -> Loss:
    """Complete a loss with the range that it concerns."""
    begins = checkpoint.end_lsn if loss.fork_lsn is None else loss.fork_lsn
    resumed = source.slot_lsn
    needs_slot = resumed is None
    if resumed is None:
        resumed = source.position
    if loss.fork_lsn is not None:
        # What lies before the fork was captured before it.
        resumed = max(resumed, loss.fork_lsn)
    return replace(loss, needs_slot=needs_slot, from_lsn=begins, to_lsn=resumed)
