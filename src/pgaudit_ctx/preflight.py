"""What is checked and written down before a capture goes on: both ends, and that they fit."""

import logging
import time
from contextlib import closing
from typing import Final, NamedTuple

import psycopg

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.continuity import SourceFacts, judge
from pgaudit_ctx.coverage import look
from pgaudit_ctx.destination import handovers, ledger
from pgaudit_ctx.destination.schema import Connection, check_schema
from pgaudit_ctx.errors import PositionMismatch, ServerReadOnly, SlotMissing, SourceNotReady
from pgaudit_ctx.source import catalog
from pgaudit_ctx.source.setup import check_source, refuse_filters
from pgaudit_ctx.source.stream import slot_busy
from pgaudit_ctx.source.timelines import read_history
from pgaudit_ctx.wal.filters import Filters
from pgaudit_ctx.wal.lsn import format_lsn

log = logging.getLogger(__name__)

# How long a process may still read the slot after its worker, and how often that is looked at.
_LINGER_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.02
_WAYS_OUT: Final = (
    "Remedy: check the URLs, and find out what happened. If what lies between is lost for good, "
    "start the worker once with --accept-gap, which writes the gap down and goes on; or start a "
    "trail of its own with another --name and --slot, and the old one stays readable"
)


class WorkerOptions(NamedTuple):
    """Where a worker reads from and writes to.

    Attributes:
        source: The source's URL.
        destination: The destination's URL; may be the same database.
        slot: The replication slot.
        publication: The publication.
        name: What the source is called in the trail; its database name by default.
        filters: What is left out or blanked.
        accept_gap: Write down a gap, and go on, where else the worker would refuse.
        ack_delay: Seconds for which the slot is kept back behind what is stored.
        batch_bytes: Transactions are committed together until so many bytes of them were sent.
        batch_seconds: Or until the first of them has waited for so long.
    """

    source: str
    destination: str
    slot: str = "pgaudit_ctx"
    publication: str = "pgaudit_ctx"
    name: str | None = None
    filters: Filters = Filters()
    accept_gap: bool = False
    ack_delay: float = 0.0
    batch_bytes: int = 32 * 2**20
    batch_seconds: float = 1.0


def begin_capture(
    source: Connection,
    destination: Connection,
    options: WorkerOptions,
    *,
    keep_filters: bool = False,
) -> ledger.Checkpoint:
    """Check both ends, open the trail where it is new, and write down what is covered.

    Safe to repeat: ``setup`` calls it when both ends are there, and every worker at its start.

    Args:
        source: An ordinary connection to the audited database.
        destination: To the trail.
        options: The names that are used, and a worker's filters.
        keep_filters: Leave the filters as the worker that ran last had them.

    Returns:
        The checkpoint to go on from.

    Raises:
        UsageError: If a filter blanks a column of a primary key.
        PositionMismatch: If slot and checkpoint do not belong together, or a hand-over has begun.
        SourceNotReady: If a setting, the publication or the slot is missing.
        ServerReadOnly: If the source is a standby, or the destination cannot be written to.
        DestinationNotReady: If the schema is missing or of another version.
    """
    check_source(source, options.slot)
    _refuse_read_only(destination)
    check_schema(destination)
    identity = catalog.read_identity(source)
    name = options.name or identity.database
    checkpoint = ledger.read_checkpoint(destination, name)
    if checkpoint is None:
        _refuse_other_name(destination, name, options.slot, identity)
    elif checkpoint.slot != options.slot:
        raise _other_slot(checkpoint, name, options)
    elif not options.accept_gap:
        refuse_handed_over(source, destination, name, checkpoint)
    publication = catalog.read_publication(source, options.publication)
    if publication is None:
        raise SourceNotReady(
            f"the source has no publication {options.publication!r}. Remedy: run pgaudit-ctx setup"
        )
    refuse_filters(publication, options.publication)
    position = catalog.read_position(source)
    first = None
    if checkpoint is None:
        slot = catalog.read_slot(source, options.slot)
        if slot is None or slot.wal_status == "lost":
            raise slot_missing(options.slot, name, None)
        # The slot came after the publication, so what is published now was published then.
        first = position._replace(lsn=slot.confirmed_flush)
        begins = ledger.Checkpoint(
            options.slot,
            1,
            0,
            slot.confirmed_flush,
            identity.system_identifier,
            identity.timeline,
            identity.database_oid,
        )
        ledger.open_trail(destination, name, begins, position.time)
        checkpoint = ledger.read_checkpoint(destination, name) or begins
    else:
        checkpoint = _go_on(source, destination, options, name, checkpoint, identity, position)
    look(
        source,
        destination,
        name,
        checkpoint.epoch,
        options.publication,
        options.filters,
        since=first,
        keep_filters=keep_filters,
    )
    return checkpoint


def refuse_handed_over(
    source: Connection, destination: Connection, name: str, checkpoint: ledger.Checkpoint
) -> None:
    """Refuse to go on in the middle of a hand-over, but where it began and the slot was kept.

    Raises:
        PositionMismatch: With the way out.
    """
    handover = handovers.pending(destination, name)
    if handover is None or handover.end_lsn != checkpoint.end_lsn:
        return
    if slot_is_at(source, checkpoint):
        return
    raise PositionMismatch(
        f"a hand-over of {name!r} to another server was begun at {format_lsn(handover.end_lsn)} "
        "and is not finished. Remedy: run pgaudit-ctx handover finish --yes with the new server's "
        "URL; or, if it is called off, with that of the old one"
    )


def slot_is_at(source: Connection, checkpoint: ledger.Checkpoint) -> bool:
    """Whether this is the server that was captured, with a slot that has all from there on."""
    identity = catalog.read_identity(source)
    slot = catalog.read_slot(source, checkpoint.slot)
    return (
        (checkpoint.system_identifier, checkpoint.timeline, checkpoint.database_oid)
        == (identity.system_identifier, identity.timeline, identity.database_oid)
        and slot is not None
        and slot.wal_status != "lost"
        and slot.confirmed_flush <= checkpoint.end_lsn
    )


def refuse_busy(source: Connection, slot: str) -> None:
    """Refuse a slot that another process reads; one that has just ended is given a moment.

    Raises:
        SlotBusy: Naming the process.
    """
    deadline = time.monotonic() + _LINGER_SECONDS
    while (state := catalog.read_slot(source, slot)) is not None and state.active_pid is not None:
        if time.monotonic() >= deadline:
            raise slot_busy(slot, f"the server's process with PID {state.active_pid}")
        time.sleep(_LOOK_SECONDS)


def require_capture(
    source: Connection, destination: Connection, options: WorkerOptions
) -> tuple[str, ledger.Checkpoint]:
    """Give the source's name and its checkpoint; what asks for them needs a capture.

    Raises:
        DestinationNotReady: If the schema is missing or of another version.
        PositionMismatch: If the trail of that name is another database's.
        SourceNotReady: If the source is not captured.
    """
    check_schema(destination)
    identity = catalog.read_identity(source)
    name = options.name or identity.database
    checkpoint = ledger.read_checkpoint(destination, name)
    if checkpoint is None:
        raise SourceNotReady(
            f"the destination has no trail of {name!r} yet, so nothing would connect its rows with "
            "what comes after. Remedy: run pgaudit-ctx setup, with --name if it has another name"
        )
    refuse_other_database(checkpoint, identity, name, options)
    return name, checkpoint


def slot_missing(slot: str, name: str, checkpoint: ledger.Checkpoint | None) -> SlotMissing:
    """Explain a slot that is not there: never was, or is lost together with the log it kept."""
    if checkpoint is None:
        return SlotMissing(
            f"the source has no replication slot {slot!r}. Remedy: run pgaudit-ctx setup"
        )
    return SlotMissing(
        f"the trail of {name!r} ends at {format_lsn(checkpoint.end_lsn)}, but the slot {slot!r} "
        f"that kept the log from there on is gone: a new one would leave a hole. {_WAYS_OUT}"
    )


def _refuse_read_only(destination: Connection) -> None:
    """Refuse a destination that cannot be written to, before its checkpoint is believed.

    That of a standby may be older than what the slot has been told, and will not be for long.
    """
    row = destination.execute(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')"
    ).fetchone()
    in_recovery, read_only = row or (False, "off")
    if in_recovery:
        raise ServerReadOnly(
            "the destination is a standby, on which nothing can be stored. Remedy: use the "
            "primary's address, or promote it"
        )
    if read_only == "on":
        raise ServerReadOnly(
            "the destination is read-only: default_transaction_read_only is on. Remedy: see who "
            "has set it and why (managed services do when the disk is nearly full: make room), "
            "then set it off; or, to write all the same, append "
            "?options=-c%20default_transaction_read_only%3Doff to the destination's URL"
        )


def _go_on(
    source: Connection,
    destination: Connection,
    options: WorkerOptions,
    name: str,
    checkpoint: ledger.Checkpoint,
    identity: catalog.Identity,
    position: catalog.Position,
) -> ledger.Checkpoint:
    """Give the checkpoint to go on from, after what is lost was accepted and written down."""
    slot = catalog.read_slot(source, options.slot)
    lost = slot is not None and slot.wal_status == "lost"
    history = (
        read_history(options.source, identity.timeline)
        if identity.timeline != checkpoint.timeline
        and identity.system_identifier == checkpoint.system_identifier
        else {}
    )
    facts = SourceFacts(
        identity.system_identifier,
        identity.timeline,
        history,
        identity.database_oid,
        position.lsn,
        None if slot is None or lost else slot.confirmed_flush,
        slot_lost=lost,
    )
    loss = judge(name, options.slot, checkpoint, facts)
    if loss is None:
        if identity.timeline != checkpoint.timeline:
            ledger.follow_timeline(destination, name, identity.timeline)
            log.info("%s goes on under timeline %d", name, identity.timeline)
        return checkpoint._replace(timeline=identity.timeline)
    if not options.accept_gap:
        kind = SlotMissing if loss.needs_slot and not loss.new_epoch else PositionMismatch
        raise kind(f"{loss.found}. {_WAYS_OUT}")
    resumed = loss.to_lsn
    if loss.needs_slot:
        resumed = max(resumed, catalog.remake_slot(source, options.slot))
    after = ledger.Checkpoint(
        checkpoint.slot,
        checkpoint.epoch + loss.new_epoch,
        0 if loss.new_epoch else checkpoint.commit_lsn,
        resumed,
        *(identity.system_identifier, identity.timeline, identity.database_oid),
    )
    ledger.accept_loss(
        destination,
        name,
        checkpoint,
        after,
        loss.cause,
        catalog.read_position(source).time,
        fork_lsn=loss.fork_lsn,
        gap_from=loss.from_lsn if loss.is_gap(resumed) else None,
    )
    log.warning("%s; it was accepted, and is written down", loss.found)
    return after


def renew_slot(options: WorkerOptions) -> None:
    """Go on after a publication that was dropped or made anew: the log before it cannot be read.

    PostgreSQL looks a publication up as the catalog was where a change was written, so none of what
    lies before it was made can be sent. A new slot begins after it; the gap is written down.

    Args:
        options: The worker's.
    """
    with (
        closing(connect(options.source, "source")) as source,
        closing(connect(options.destination, "destination")) as destination,
    ):
        try:
            name, checkpoint = require_capture(source, destination, options)
            refuse_busy(source, options.slot)
            after = checkpoint._replace(end_lsn=catalog.remake_slot(source, options.slot))
            ledger.accept_loss(
                destination,
                name,
                checkpoint,
                after,
                "the publication was dropped or made anew",
                catalog.read_position(source).time,
                fork_lsn=None,
                gap_from=checkpoint.end_lsn,
            )
        except psycopg.Error as error:
            raise refusal(error, "make the slot anew") from None


def _refuse_other_name(
    destination: Connection, name: str, slot: str, identity: catalog.Identity
) -> None:
    other = ledger.other_name(
        destination, name, slot, identity.system_identifier, identity.database_oid
    )
    if other is not None:
        raise PositionMismatch(
            f"this database is captured through the slot {slot!r} already, under the name "
            f"{other!r}: as {name!r} it would take a part of that trail's changes. Remedy: use "
            f"--name {other}, or another --slot for a trail of its own"
        )


def refuse_other_database(
    checkpoint: ledger.Checkpoint, identity: catalog.Identity, name: str, options: WorkerOptions
) -> None:
    """Refuse a source that is not the database that the trail was captured from.

    Raises:
        PositionMismatch: With the ways out.
    """
    if (checkpoint.system_identifier, checkpoint.database_oid) != (
        identity.system_identifier,
        identity.database_oid,
    ):
        raise PositionMismatch(
            f"the trail of the source {name!r} belongs to another database (system identifier "
            f"{checkpoint.system_identifier}, oid {checkpoint.database_oid}; this one has "
            f"{identity.system_identifier}, {identity.database_oid}). Remedy: check the source's "
            "URL, or give this database a name of its own with --name; if it replaces the other "
            "for good, run pgaudit-ctx setup --only source, then once worker --accept-gap"
        )
    if checkpoint.slot != options.slot:
        raise _other_slot(checkpoint, name, options)


def _other_slot(
    checkpoint: ledger.Checkpoint, name: str, options: WorkerOptions
) -> PositionMismatch:
    return PositionMismatch(
        f"the source {name!r} is captured through the slot {checkpoint.slot!r}, not "
        f"{options.slot!r}. Remedy: use --slot {checkpoint.slot}, or if this is another database, "
        "give it a name of its own with --name"
    )
