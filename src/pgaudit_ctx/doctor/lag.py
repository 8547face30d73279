"""Says which of source, network, destination or write volume makes the worker late; pure."""

from typing import Final

from pgaudit_ctx.doctor.facts import Activity, CheckpointFacts, Facts, Slot, Source
from pgaudit_ctx.doctor.wording import command, size

# So much may lie between what was written and what was sent in ordinary work.
_UNSENT: Final = 2**20
_BUSY: Final = 2**20


def stored_up_to(source: Source, checkpoint: CheckpointFacts | None) -> int:
    """Say up to where the trail holds everything: what the slot was told, or more.

    With ``worker --ack-delay`` the slot is told later. The source has a slot.
    """
    assert source.slot is not None  # noqa: S101 - as the caller knows
    told = source.slot.confirmed_flush
    identity = source.identity
    if checkpoint is None or (
        (checkpoint.system_identifier, checkpoint.timeline, checkpoint.database_oid)
        != (identity.system_identifier, identity.timeline, identity.database_oid)
    ):
        return told
    return max(told, checkpoint.end_lsn)


def explain_lag(facts: Facts, slot: Slot) -> tuple[str, str]:
    """Give the cause and the remedy.

    Args:
        facts: What was seen; its ``activity`` holds two looks a moment apart.
        slot: The slot that is behind.

    Returns:
        Cause and remedy, in words.
    """
    run = f"run {command(facts.names, 'worker')}"
    if slot.active_pid is None:
        return "no worker reads the slot", run
    seen = facts.activity
    if seen is None or seen.sent is None:
        return "who causes it cannot be seen by this role", "run this again as a superuser"
    return _cause(seen)


def _cause(seen: Activity) -> tuple[str, str]:
    rates = f"{size(seen.write_rate)}/s are written, {size(seen.confirm_rate)}/s are stored"
    if seen.written - (seen.sent or 0) > _UNSENT:
        if seen.sender_wait == "WalSenderWriteData":
            return (
                f"the network, or a worker without a processor, is waited for; {rates}",
                "move the worker nearer to the source, or give it a processor of its own",
            )
        if seen.write_rate > _BUSY and seen.confirm_rate > seen.write_rate / 2:
            return (
                f"the write volume: {rates}",
                "wait for the end of the bulk load, or spread it over more time",
            )
        return (
            f"the source, whose walsender is still decoding; {rates}",
            "wait; if it lasts, end long transactions and give logical_decoding_work_mem more",
        )
    if seen.destination_state == "active" and seen.destination_wait != "ClientRead":
        wait = seen.destination_wait or "its processor"
        return (
            f"the destination: it works on a batch and waits for {wait}; {rates}",
            "look at the destination's locks and disks",
        )
    return (
        f"the worker, which has been sent everything and is still working on it; {rates}",
        "give the worker a processor of its own",
    )
