"""A planned move of the source to another server: begin on the old one, finish on the new one.

While nobody writes, the trail is brought to its end, and each captured table is counted and
digested. If the new server gives the same for each, whatever way the rows took, nothing was written
between: the trail goes on there in a new epoch that is clean. Else a gap says what may be missing.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from typing import Final, NamedTuple, Protocol

import psycopg

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.coverage import apply_filters, published_tables, refuse_blanked_keys
from pgaudit_ctx.destination import handovers, ledger
from pgaudit_ctx.destination.coverage import (
    RecordedFilters,
    filters_by_name,
    filters_in_force,
    record_coverage,
)
from pgaudit_ctx.destination.handovers import Handover, TableState
from pgaudit_ctx.destination.schema import Connection, check_schema
from pgaudit_ctx.errors import PositionMismatch, SourceNotReady, UsageError
from pgaudit_ctx.preflight import WorkerOptions, refuse_busy, require_capture, slot_is_at
from pgaudit_ctx.preparation import Choice, drop_slot, prepare_source, remembered, wishes_of
from pgaudit_ctx.source import catalog, digest
from pgaudit_ctx.source.digest import Content, Digest
from pgaudit_ctx.source.setup import Session, check_source
from pgaudit_ctx.source.step import Step
from pgaudit_ctx.source.writers import new_sessions_are_read_only, writers
from pgaudit_ctx.wal.filters import Filters
from pgaudit_ctx.wal.lsn import format_lsn
from pgaudit_ctx.worker import Worker

_CAUSE: Final = "handed over to another server"


class Reporter(digest.Reporter, Protocol):
    """Is told how it goes."""

    def warns(self, text: str) -> None:
        """Something does not end it, and should be known."""

    def prepares(self, step: Step) -> None:
        """This is done to the new server now."""

    def waits(self, sessions: Sequence[Session]) -> None:
        """These transactions are waited for."""


class Begun(NamedTuple):
    """What was written down of the old server."""

    end_lsn: int
    tables: Sequence[TableState]


class Comparison(NamedTuple):
    """One table at both ends; ``now`` is ``None`` if it, or a column, is not there."""

    table: TableState
    now: Digest | None

    @property
    def equal(self) -> bool:
        """Whether it holds the same rows."""
        return self.now == Digest(self.table.rows, self.table.digest)


class Finished(NamedTuple):
    """How a move ended.

    Attributes:
        tables: Each table at both ends.
        epoch: In which epoch the trail goes on; ``None`` if both ends were only compared.
        lsn: From where on, on the new server.
        failed: Tables that could not be prepared there, and why.
        called_off: Whether this is the old server, whose slot was kept: nothing has moved.
        uncaptured: Tables that were captured on the old server and are not on this one.
    """

    tables: Sequence[Comparison]
    epoch: int | None = None
    lsn: int = 0
    failed: Sequence[tuple[Step, str]] = ()
    called_off: bool = False
    uncaptured: Sequence[str] = ()

    @property
    def differing(self) -> Sequence[str]:
        """The tables that are not equal."""
        return [f"{c.table.schema}.{c.table.name}" for c in self.tables if not c.equal]


def begin(options: WorkerOptions, report: Reporter, *, keep_slot: bool = False) -> Begun:
    """Capture the old server to its end and write down what it holds, while nobody writes.

    Args:
        options: Both URLs, the names, and the worker's filters.
        report: Is told how it goes.
        keep_slot: Leave the slot where it is, so that the move can be called off.

    Returns:
        Where the trail ends, and what each table held.

    Raises:
        SourceNotReady: If somebody writes, or a worker runs.
        UsageError: If the filters are not those of the worker that ran last.
    """
    try:
        with (
            closing(connect(options.source, "source")) as source,
            closing(connect(options.destination, "destination")) as destination,
        ):
            name, _ = require_capture(source, destination, options)
            refuse_busy(source, options.slot)
            if not new_sessions_are_read_only(options.source):
                report.warns(
                    "nothing stops new sessions from writing. Remedy: ALTER DATABASE "
                    f'"{source.info.dbname}" SET default_transaction_read_only = on, and end the '
                    "sessions that are open"
                )
            _refuse_writers(source)
            tables = _contents(source, destination, name, options)
            _capture(options)
            states = _states(source, tables, report)
            written = _capture(options)
            if written:
                raise SourceNotReady(
                    f"writes have not stopped: {written:,} change(s) came while the tables were "
                    "read, so nothing was handed over; they are in the trail. Remedy: stop what "
                    "writes, and begin again"
                )
            _refuse_writers(source)
            refuse_busy(source, options.slot)  # our own walsender may be ending still
            checkpoint = ledger.read_checkpoint(destination, name)
            assert checkpoint is not None  # noqa: S101 - require_capture() has seen one
            with destination.transaction():
                handovers.record_begin(
                    destination,
                    name,
                    checkpoint.epoch,
                    checkpoint.end_lsn,
                    states,
                    slot_kept=keep_slot,
                )
                arguments = {"source": name, "slot": options.slot, "keep_slot": keep_slot}
                result = f"captured up to {format_lsn(checkpoint.end_lsn)}, {len(states)} table(s)"
                ledger.record_operation(destination, "handover begin", arguments, result)
            if not keep_slot:
                drop_slot(source, options.slot)
            return Begun(checkpoint.end_lsn, states)
    except psycopg.Error as error:
        raise refusal(error, "begin the hand-over") from None


def finish(
    options: WorkerOptions, choice: Choice, report: Reporter, *, compare_only: bool = False
) -> Finished:
    """Compare the new server with what the old one held, and go on with the trail there.

    Publication, identities and slot are made where they are missing. The slot comes before the
    comparison, so that whatever is written from then on is captured.

    Args:
        options: The new server's URL, the destination's, and the names.
        choice: Roles, and how long the slot may wait.
        report: Is told how it goes.
        compare_only: Change nothing at either end.

    Returns:
        How both ends compare, and where the trail goes on.

    Raises:
        UsageError: If no move of this source has begun.
        PositionMismatch: If the trail has gone on since.
        SourceNotReady: If the new server cannot be captured, or has the slot already.
    """
    try:
        with (
            closing(connect(options.source, "source")) as source,
            closing(connect(options.destination, "destination")) as destination,
        ):
            check_schema(destination)
            name = options.name or source.info.dbname
            handover, before = _pending(destination, name, options)
            check_source(source, options.slot)
            contents = [Content(t.schema, t.name, t.columns) for t in handover.tables]
            if compare_only:
                now = digest.digest_tables(source, contents, report)
                return Finished(list(map(Comparison, handover.tables, now)))
            if handover.slot_kept and slot_is_at(source, before):
                with destination.transaction():
                    handovers.record_finish(destination, name, handover.begun_at, before.epoch, [])
                    _record(destination, name, options, "called off: the slot is where it was")
                return Finished([], before.epoch, before.end_lsn, called_off=True)
            _refuse_earlier_slot(source, options.slot)
            failed = _prepare(source, destination, options, choice, name, report)
            slot = catalog.read_slot(source, options.slot)
            assert slot is not None  # noqa: S101 - it was made, or an error raised
            position = catalog.Position(slot.confirmed_flush, catalog.read_position(source).time)
            now = digest.digest_tables(source, contents, report)
            finished = Finished(
                list(map(Comparison, handover.tables, now)),
                before.epoch + 1,
                position.lsn,
                failed,
            )
            covered = _go_on(
                source, destination, options, name, handover, before, position, finished
            )
            was = [(table.schema, table.name) for table in handover.tables]
            missing = [
                f"{schema}.{table}" for schema, table in was if (schema, table) not in covered
            ]
            return finished._replace(uncaptured=missing)
    except psycopg.Error as error:
        raise refusal(error, "finish the hand-over") from None


def _refuse_earlier_slot(source: Connection, slot: str) -> None:
    """Refuse a slot that has waited: it would send the rows of the move itself once more."""
    if catalog.read_slot(source, slot) is not None:
        raise SourceNotReady(
            f"the new server has a slot {slot!r} already, which would send what the move itself "
            "has written, as if the application had. Remedy: run SELECT pg_drop_replication_slot("
            f"'{slot}') there, and then the same command again, which makes it anew"
        )


def _refuse_writers(source: Connection) -> None:
    found = writers(source)
    if found:
        raise SourceNotReady(
            f"writes have not stopped: {', '.join(map(str, found))} has written and not committed. "
            "Remedy: end it (SELECT pg_terminate_backend(pid), ROLLBACK PREPARED), or wait for it"
        )


def _contents(
    source: Connection, destination: Connection, name: str, options: WorkerOptions
) -> Sequence[Content]:
    """Say what to compare: the captured columns of each captured table."""
    published = published_tables(source, options.publication)
    given = _by_table(published, options.filters)
    in_force = filters_in_force(destination, name)
    other = sorted(
        table.qualified
        for table in published
        if table.oid in in_force and not _same(in_force[table.oid], given[table.oid])
    )
    if other:
        raise UsageError(
            f"the worker that ran last had other filters for {', '.join(other)}. Remedy: pass the "
            "options of the worker (--exclude-table, --ignore-column …), or set their variables"
        )
    return [
        Content(
            table.schema,
            table.name,
            sorted(set(table.columns).difference(given[table.oid].ignored)),
        )
        for table in published
        if not given[table.oid].excluded
    ]


def _same(one: RecordedFilters, other: RecordedFilters) -> bool:
    return (one.excluded and other.excluded) or one == other


def _by_table(
    published: Sequence[catalog.SourceTable], filters: Filters
) -> Mapping[int, RecordedFilters]:
    refuse_blanked_keys(published, filters)
    covered, excluded = apply_filters(published, filters)
    found = {oid: RecordedFilters(True, [], []) for oid in excluded}
    for table in covered:
        found[table.oid] = RecordedFilters(
            False,
            sorted(table.ignored),
            sorted(table.redacted),
        )
    return found


def _capture(options: WorkerOptions) -> int:
    """Capture everything that was committed until now, and say how many changes that was."""
    worker = Worker(options)
    try:
        return worker.run(until_caught_up=True).changes
    finally:
        worker.close()


def _states(
    source: Connection, tables: Sequence[Content], report: Reporter
) -> Sequence[TableState]:
    found = digest.digest_tables(source, tables, report)
    missing = [t.qualified for t, state in zip(tables, found, strict=True) if state is None]
    if missing:
        raise SourceNotReady(
            f"{', '.join(missing)} changed while it was read. Remedy: stop what alters tables, and "
            "begin again"
        )
    return [
        TableState(table.schema, table.name, table.columns, *state)
        for table, state in zip(tables, found, strict=True)
        if state is not None
    ]


def _pending(
    destination: Connection, name: str, options: WorkerOptions
) -> tuple[Handover, ledger.Checkpoint]:
    handover = handovers.pending(destination, name)
    checkpoint = ledger.read_checkpoint(destination, name)
    if handover is None or checkpoint is None:
        raise UsageError(
            f"no hand-over of {name!r} has begun. Remedy: run pgaudit-ctx handover begin on the "
            "old server first; pass --name if the trail's source has another name"
        )
    if checkpoint.slot != options.slot:
        raise UsageError(
            f"{name!r} is captured through the slot {checkpoint.slot!r}. Remedy: pass "
            f"--slot {checkpoint.slot}"
        )
    if (checkpoint.epoch, checkpoint.end_lsn) != (handover.epoch, handover.end_lsn):
        raise PositionMismatch(
            f"the hand-over of {name!r} was begun at {format_lsn(handover.end_lsn)} in epoch "
            f"{handover.epoch}, but the trail has gone on to {format_lsn(checkpoint.end_lsn)} in "
            f"epoch {checkpoint.epoch} since: a worker ran. Remedy: begin again, while nobody "
            "writes"
        )
    return handover, checkpoint


def _prepare(
    source: Connection,
    destination: Connection,
    options: WorkerOptions,
    choice: Choice,
    name: str,
    report: Reporter,
) -> Sequence[tuple[Step, str]]:
    tables = catalog.read_tables(source, options.publication)
    named = options._replace(name=name)
    wishes = wishes_of(choice, destination, name, tables)
    _, failed = prepare_source(
        source, destination, named, wishes, choice, report.prepares, report.waits
    )
    # What the doctor compares with: this server's publication is not the old one's.
    decided = remembered(source, destination, named, wishes, choice)
    ledger.record_operation(destination, "setup", decided, "done by handover finish")
    return failed


def _go_on(
    source: Connection,
    destination: Connection,
    options: WorkerOptions,
    name: str,
    handover: Handover,
    before: ledger.Checkpoint,
    position: catalog.Position,
    finished: Finished,
) -> Collection[tuple[str, str]]:
    """Begin the new epoch, with its coverage; all of it or nothing.

    Returns:
        Schema and name of the tables that are captured in it, or left out by a filter.
    """
    identity = catalog.read_identity(source)
    after = ledger.Checkpoint(
        before.slot,
        before.epoch + 1,
        0,
        position.lsn,
        *(identity.system_identifier, identity.timeline, identity.database_oid),
    )
    looked_from = catalog.read_position(source)
    published = published_tables(source, options.publication)
    by_name = filters_by_name(destination, name)
    known = {t.oid: by_name[t.schema, t.name] for t in published if (t.schema, t.name) in by_name}
    covered, excluded = apply_filters(published, Filters(), known)
    differing = finished.differing
    cause = _CAUSE if not differing else f"{_CAUSE}, and {', '.join(differing)} differ"
    with destination.transaction():
        ledger.move_on(
            destination,
            name,
            before,
            after,
            cause,
            catalog.read_position(source).time,
            clean=not differing,
            fork_lsn=None,
            gap_from=before.end_lsn if differing else None,
        )
        record_coverage(
            destination,
            name,
            after.epoch,
            *position,
            options.publication,
            covered,
            excluded,
            looked_from=looked_from,
        )
        handovers.record_finish(destination, name, handover.begun_at, after.epoch, differing)
        _record(destination, name, options, cause if differing else "both ends are equal")
    return {(table.schema, table.name) for table in published}


def _record(destination: Connection, name: str, options: WorkerOptions, result: str) -> None:
    arguments = {"source": name, "slot": options.slot, "publication": options.publication}
    ledger.record_operation(destination, "handover finish", arguments, result)
