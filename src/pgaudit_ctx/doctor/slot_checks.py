"""Checks of slot, publication and checkpoint: whether nothing is lost, and how far we are."""

from collections.abc import Iterator
from typing import Final

from pgaudit_ctx.doctor.facts import CheckpointFacts, Destination, Facts, Slot, Source
from pgaudit_ctx.doctor.finding import Finding, Group, State
from pgaudit_ctx.doctor.lag import explain_lag, stored_up_to
from pgaudit_ctx.doctor.wording import command, few, size
from pgaudit_ctx.source.catalog import VERSION_WITH_FAILOVER
from pgaudit_ctx.source.service import quoted
from pgaudit_ctx.wal.lsn import format_lsn

_OURS: Final = "pgaudit_ctx"
_ANEW: Final = ("--recreate-slot", "--yes")


def checkpoint_of(facts: Facts) -> CheckpointFacts | None:
    """Give how far the trail is, if there is one that could be read."""
    end = facts.destination
    return end.trail.checkpoint if isinstance(end, Destination) and end.trail else None


def check_publication(facts: Facts, source: Source) -> Iterator[Finding]:
    """Check that the publication is there, sends everything, and is older than the slot."""
    name, publication = quoted(facts.names.publication), source.publication
    if publication is None:
        again = command(facts.names, "setup", "--recreate-slot", "--yes")
        beside = source.slot is not None
        yield Finding(
            "publication",
            Group.SOURCE,
            State.PROBLEM,
            f"there is no publication {name}"
            + (": what was written without it cannot be read through the slot" if beside else ""),
            f"run {again if beside else command(facts.names, 'setup')}",
        )
        return
    yield Finding("publication", Group.SOURCE, State.OK, f"{name} exists")
    yield _filters(facts, name, source)
    yield _order(facts, source)


def _filters(facts: Facts, name: str, source: Source) -> Finding:
    check, publication = "publication_filters", source.publication
    assert publication is not None  # noqa: S101 - its caller looked
    if publication.all_tables:
        return Finding(
            check,
            Group.SOURCE,
            State.PROBLEM,
            f"{name} is FOR ALL TABLES, so the trail's own tables would be captured into the trail "
            "where both are in one database, and each new table breaks its own UPDATE until it "
            "has an identity",
            f"on the source run `DROP PUBLICATION {name}`, then run "
            + command(facts.names, "setup", *(() if source.slot is None else _ANEW)),
        )
    if publication.withheld:
        return Finding(
            check,
            Group.SOURCE,
            State.PROBLEM,
            f"{name} does not send {', '.join(publication.withheld)}",
            "on the source run "
            f"`ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')`",
        )
    if not publication.via_root:
        return Finding(
            check,
            Group.SOURCE,
            State.PROBLEM,
            f"{name} sends partitions under their own names",
            f"on the source run `ALTER PUBLICATION {name} SET (publish_via_partition_root = true)`",
        )
    if publication.filtered:
        tables = publication.filtered
        drop = f"`ALTER PUBLICATION {name} DROP TABLE {', '.join(tables)}`"
        return Finding(
            check,
            Group.SOURCE,
            State.PROBLEM,
            f"{name} leaves out rows or columns of {few(tables)}",
            f"on the source run {drop}, then run {command(facts.names, 'setup')}",
        )
    return Finding(check, Group.SOURCE, State.OK, "no filter, no column list, all operations")


def _order(facts: Facts, source: Source) -> Finding:
    check, slot, age = "publication_order", source.slot, source.publication_age
    if slot is None or age is None or slot.catalog_xmin_age is None:
        return Finding(check, Group.SOURCE, State.OK, "no slot yet: publication first, then slot")
    end = facts.destination
    trail = end.trail if isinstance(end, Destination) else None
    known = trail.decided.get("publication_oid") if trail is not None else None
    # Where setup did not write down which one it was, the slot's horizon tells; but that may lie
    # before the slot's own beginning, so it is no proof of the contrary.
    oid = None if source.publication is None else source.publication.oid
    older = age > slot.catalog_xmin_age if known is None else known == oid
    if older or (slot.active_pid is not None and known is None):
        return Finding(check, Group.SOURCE, State.OK, "older than the place the slot reads from")
    return Finding(
        check,
        Group.SOURCE,
        State.WARNING if known is None else State.PROBLEM,
        "made or changed after the place the slot reads from: what was written in between cannot "
        "be read",
        f"run {command(facts.names, 'setup', '--recreate-slot', '--yes')}"
        + (" if the worker refuses" if known is None else ", which writes down the gap"),
    )


def check_slot(facts: Facts, source: Source) -> Iterator[Finding]:
    """Check that the slot is there, is ours, and has lost nothing."""
    names, slot, checkpoint = facts.names, source.slot, checkpoint_of(facts)
    recreate = command(names, "setup", "--recreate-slot", "--yes")
    if slot is None:
        lost = checkpoint is not None
        yield Finding(
            "slot",
            Group.SOURCE,
            State.PROBLEM,
            f"there is no replication slot {names.slot!r}"
            + (
                f", but the trail ends at {format_lsn(checkpoint.end_lsn)}: what was written since "
                "then is lost"
                if checkpoint is not None
                else ""
            ),
            f"run {recreate if lost else command(names, 'setup')}"
            + (", which writes down the gap" if lost else ""),
        )
        return
    yield Finding("slot", Group.SOURCE, State.OK, f"{names.slot!r} exists")
    yield _plugin(facts, source, slot)
    lost = slot.wal_status == "lost"
    unreserved = slot.wal_status == "unreserved"
    if lost:
        yield Finding(
            "slot_wal_status",
            Group.SOURCE,
            State.PROBLEM,
            "lost: the server has discarded the log that the slot kept (max_slot_wal_keep_size)",
            f"run {recreate}, which writes down the gap",
        )
    elif unreserved:
        yield Finding(
            "slot_wal_status",
            Group.SOURCE,
            State.PROBLEM,
            "unreserved: the server is about to discard the log that the slot needs",
            f"run {command(names, 'worker')} now",
        )
    else:
        yield Finding("slot_wal_status", Group.SOURCE, State.OK, slot.wal_status or "reserved")
    yield _failover(facts, source, slot)


def _plugin(facts: Facts, source: Source, slot: Slot) -> Finding:
    if slot.plugin == "pgoutput" and slot.database == source.server.database:
        return Finding("slot_plugin", Group.SOURCE, State.OK, "pgoutput, of this database")
    return Finding(
        "slot_plugin",
        Group.SOURCE,
        State.PROBLEM,
        f"{facts.names.slot!r} belongs to the plugin {slot.plugin} and the database "
        f"{slot.database or '(none)'}",
        "choose another name: `export PGAUDIT_CTX_SLOT=pgaudit_ctx_"
        f"{source.server.database}`, then run `pgaudit-ctx setup`",
    )


def _failover(facts: Facts, source: Source, slot: Slot) -> Finding:
    check = "failover"
    if source.server.version < VERSION_WITH_FAILOVER:
        return Finding(check, Group.SOURCE, State.OK, "slots follow a failover from 17 on only")
    if slot.failover:
        return _synchronized(source)
    if source.standbys == 0:
        return Finding(check, Group.SOURCE, State.OK, "no standby has a slot here")
    return Finding(
        check,
        Group.SOURCE,
        State.WARNING,
        f"{source.standbys} standby(s), but the slot does not follow a failover",
        "end the worker, and on a connection with replication=database run "
        f"`ALTER_REPLICATION_SLOT {quoted(facts.names.slot)} (FAILOVER true)`; on the standby set "
        "sync_replication_slots = on",
    )


def _synchronized(source: Source) -> Finding:
    """Look at what a slot that is kept on standbys waits for."""
    named = source.server.settings.get("synchronized_standby_slots", "")
    awaited = [name.strip().strip('"') for name in named.split(",") if name.strip()]
    missing = [name for name in awaited if name not in source.following]
    if missing:
        return Finding(
            "failover",
            Group.SOURCE,
            State.PROBLEM,
            f"synchronized_standby_slots names {', '.join(missing)}, which no standby reads: until "
            "one does, nothing is sent to the worker",
            "start that standby; if it is gone for good, on the source run `ALTER SYSTEM SET "
            "synchronized_standby_slots = "
            f"'{', '.join(name for name in awaited if name not in missing)}'`, then run "
            "`SELECT pg_reload_conf()`",
        )
    if source.standbys and not awaited:
        return Finding(
            "failover",
            Group.SOURCE,
            State.WARNING,
            "the slot is kept on standbys too, but it does not wait for them: one that is promoted "
            "may lack what is captured already",
            "on the source set synchronized_standby_slots to the slot of the standby that would be "
            "promoted; on that one set sync_replication_slots = on",
        )
    return Finding("failover", Group.SOURCE, State.OK, "the slot is kept on standbys too")


def check_worker(facts: Facts, source: Source) -> Iterator[Finding]:
    """Check that somebody reads the slot, that it is our worker, and how far it is."""
    slot, checkpoint = source.slot, checkpoint_of(facts)
    if slot is None:
        return
    run = command(facts.names, "worker")
    if slot.active_pid is None:
        has_run = checkpoint is not None and checkpoint.worker_has_run
        since = f" since {checkpoint.updated_at:%Y-%m-%d %H:%M:%S %Z}" if has_run else ""  # type: ignore[union-attr] # has_run says so
        yield Finding(
            "worker",
            Group.WORKER,
            State.PROBLEM if has_run else State.WARNING,
            f"no worker runs{since}" if has_run else "no worker has run yet",
            f"run {run}",
        )
    elif slot.reader is not None and not slot.reader.startswith(_OURS):
        yield Finding(
            "worker",
            Group.WORKER,
            State.PROBLEM,
            f"the slot is busy: process {slot.active_pid} ({slot.reader or 'without a name'}) "
            "reads it, which is none of our workers",
            f"on the source run `SELECT pg_terminate_backend({slot.active_pid})`, then run {run}",
        )
    else:
        yield Finding(
            "worker", Group.WORKER, State.OK, f"reads the slot, process {slot.active_pid}"
        )
    yield from _positions(facts, source, slot, checkpoint)
    yield from _amounts(facts, source, slot, checkpoint)


def _positions(
    facts: Facts, source: Source, slot: Slot, checkpoint: CheckpointFacts | None
) -> Iterator[Finding]:
    check = "checkpoint"
    if checkpoint is None:
        if isinstance(facts.destination, Destination):
            yield Finding(
                check,
                Group.WORKER,
                State.WARNING,
                f"the trail knows nothing of a source {facts.names.source!r} yet",
                f"run {command(facts.names, 'setup')}",
            )
        return
    identity = source.identity
    if (checkpoint.system_identifier, checkpoint.database_oid) != (
        identity.system_identifier,
        identity.database_oid,
    ):
        yield Finding(
            check,
            Group.WORKER,
            State.PROBLEM,
            f"the trail of {facts.names.source!r} belongs to another database (system identifier "
            f"{checkpoint.system_identifier}, oid {checkpoint.database_oid}; this one has "
            f"{identity.system_identifier}, {identity.database_oid})",
            "check the source's URL, or give this database a name of its own with --name",
        )
    elif checkpoint.timeline != identity.timeline:
        yield Finding(
            check,
            Group.WORKER,
            State.WARNING,
            f"the source is on timeline {identity.timeline}, the trail on {checkpoint.timeline}: a "
            "standby was promoted",
            f"run {command(facts.names, 'worker')}, which says whether anything was lost",
        )
    elif slot.confirmed_flush > checkpoint.end_lsn:
        yield Finding(
            check,
            Group.WORKER,
            State.PROBLEM,
            f"the slot has moved to {format_lsn(slot.confirmed_flush)}, but the trail holds "
            f"everything only up to {format_lsn(checkpoint.end_lsn)}: the slot was recreated or "
            "advanced, or the destination restored from a backup",
            f"run {command(facts.names, 'worker', '--accept-gap')}, which writes down the gap",
        )
    else:
        yield Finding(
            check,
            Group.WORKER,
            State.OK,
            f"complete up to {format_lsn(checkpoint.end_lsn)}, "
            f"{checkpoint.complete_at:%Y-%m-%d %H:%M:%S %Z}",
        )


def _amounts(
    facts: Facts, source: Source, slot: Slot, checkpoint: CheckpointFacts | None
) -> Iterator[Finding]:
    lag = max(0, source.position - stored_up_to(source, checkpoint))
    if lag <= facts.limits.lag:
        yield Finding("lag", Group.WORKER, State.OK, f"{size(lag)} behind")
    else:
        cause, remedy = explain_lag(facts, slot)
        yield Finding(
            "lag",
            Group.WORKER,
            State.PROBLEM,
            f"{size(lag)} behind (the limit is {size(facts.limits.lag)}): {cause}",
            remedy,
        )
    retained = max(0, source.position - slot.restart) if slot.restart else 0
    enough = retained <= facts.limits.retained_wal
    yield Finding(
        "retained_wal",
        Group.WORKER,
        State.OK if enough else State.PROBLEM,
        f"the slot keeps {size(retained)} of log"
        + ("" if enough else f" (the limit is {size(facts.limits.retained_wal)})"),
        ""
        if enough
        else f"run {command(facts.names, 'worker')} until it has caught up; if the disk fills up "
        "before that, `SELECT pg_drop_replication_slot("
        f"'{facts.names.slot}')` on the source saves the application and loses the trail's rest",
    )
