"""Undoes what setup did to the source; the trail stays unless it shall be dropped too."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from pgaudit_ctx.connection import refusal
from pgaudit_ctx.destination import decisions, ledger
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.preparation import drop_slot
from pgaudit_ctx.source import catalog
from pgaudit_ctx.source.setup import take_step
from pgaudit_ctx.source.step import Step

_BEFORE: Final = {"FULL": "f", "DEFAULT": "d", "NOTHING": "n", "INDEX": "i"}


class Loss(NamedTuple):
    """What a teardown ends or takes away.

    Attributes:
        tables: Those that are captured no more.
        unread: Bytes of log that the worker has not read yet.
        changes: About how many changes the trail holds, which stay unless it is dropped.
        others: Other sources that the same trail holds.
    """

    tables: Sequence[str]
    unread: int
    changes: int
    others: Sequence[str]


def assess(source: Connection, destination: Connection, options: WorkerOptions) -> Loss:
    """Say what a teardown would cost; changes nothing."""
    name = options.name or source.info.dbname
    tables = [
        table.qualified
        for table in catalog.read_tables(source, options.publication)
        if table.published and not table.partition
    ]
    slot = catalog.read_slot(source, options.slot)
    position = catalog.read_position(source).lsn
    row = destination.execute(
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'pgaudit_ctx.changes'::regclass"
    ).fetchone()
    others = destination.execute(
        "SELECT source FROM pgaudit_ctx.checkpoints WHERE source <> %s ORDER BY 1", [name]
    )
    return Loss(
        tables,
        0 if slot is None else max(0, position - slot.confirmed_flush),
        0 if row is None else int(row[0]),
        [other for (other,) in others],
    )


def tear_down(
    source: Connection,
    destination: Connection,
    options: WorkerOptions,
    role: str | None,
    report: Callable[[str], None],
) -> Sequence[tuple[Step, str]]:
    """Drop slot and publication, give each table its identity back, and close the trail.

    Args:
        source: To the audited database.
        destination: To the trail, which says what was there before.
        options: The names.
        role: The role whose rights in this database are taken away.
        report: Called with what is done.

    Returns:
        What could not be done, with the reason.

    Raises:
        SlotBusy: If a worker still runs.
        DatabaseError: If a server refuses.
    """
    name = options.name or source.info.dbname
    tracked = decisions.read_tracked(destination, name)
    drop_slot(source, options.slot)
    report(f"the slot {options.slot} is gone: no log is kept for us any more")
    try:
        source.execute(
            sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(options.publication))
        )
    except psycopg.Error as error:
        raise refusal(error, f"drop the publication {options.publication!r}") from None
    report(f"the publication {options.publication} is gone")
    failed = []
    for step in _restoring(catalog.read_tables(source, options.publication), tracked):
        report(step.purpose)
        reason = take_step(source, step)
        if reason is not None:
            failed.append((step, reason))
    if role is not None:
        failed += _take_rights(source, role, report)
    _close(destination, name, done=not failed)
    return failed


def _restoring(
    tables: Sequence[catalog.SourceTable], tracked: Mapping[str, tuple[str, str]]
) -> Iterator[Step]:
    for table in tables:
        before = tracked.get(table.qualified, ("", ""))[1]
        # An index is not remembered by name, so such a table keeps what it has.
        if before not in {"DEFAULT", "NOTHING", "FULL"} or _BEFORE[before] == table.identity:
            continue
        alter = sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(
            sql.Identifier(table.schema, table.name), sql.SQL(before)
        )
        yield Step(
            (alter.as_string(None),), f"{table.qualified} has identity {before} again", table
        )


def _take_rights(
    source: Connection, role: str, report: Callable[[str], None]
) -> list[tuple[Step, str]]:
    exists = source.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone()
    if exists is None:
        return []
    drop = sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)).as_string(None)
    step = Step((drop,), f"{role} has no rights in this database any more", optional=True)
    report(step.purpose)
    reason = take_step(source, step)
    return [] if reason is None else [(step, reason)]


def _close(destination: Connection, name: str, *, done: bool) -> None:
    with destination.transaction():
        destination.execute(
            "UPDATE pgaudit_ctx.coverage c SET to_lsn = greatest(p.end_lsn, c.from_lsn),"
            " to_time = greatest(p.complete_at, c.from_time), reason = 'torn down'"
            " FROM pgaudit_ctx.checkpoints p WHERE p.source = c.source AND c.source = %s"
            " AND c.to_lsn IS NULL",
            [name],
        )
        if done:
            decisions.forget_tracked(destination, name)
        arguments: dict[str, Any] = {"source": name}
        result = "done" if done else "some tables keep their identity"
        ledger.record_operation(destination, "teardown", arguments, result)


def refuse_others(loss: Loss) -> None:
    """Refuse to drop a trail that holds other sources too.

    Raises:
        UsageError: Naming them.
    """
    if loss.others:
        raise UsageError(
            f"the trail holds {', '.join(loss.others)} too, so it is not dropped. Remedy: tear "
            "those down first, or leave the trail"
        )


def drop_trail(destination: Connection) -> None:
    """Drop the whole trail."""
    try:
        destination.execute("SET client_min_messages = warning")
        destination.execute("DROP SCHEMA pgaudit_ctx CASCADE")
    except psycopg.Error as error:
        raise refusal(error, "drop the trail") from None
