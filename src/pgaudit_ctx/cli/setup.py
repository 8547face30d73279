"""``pgaudit-ctx setup``: prepares both ends."""

import enum
from typing import Annotated

import psycopg
import typer

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination import ledger, schema
from pgaudit_ctx.errors import PositionMismatch
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.wal.lsn import format_lsn
from pgaudit_ctx.worker import WorkerOptions, begin_capture


class Side(enum.StrEnum):
    """One of the two ends."""

    SOURCE = "source"
    DESTINATION = "destination"


class Unit(enum.StrEnum):
    """How long a time one partition covers."""

    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


def setup(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    only: Annotated[
        Side | None, typer.Option("--only", help="Prepare one end; by default both.")
    ] = None,
    partition: Annotated[
        Unit, typer.Option("--partition", help="How long a time one partition of changes covers.")
    ] = Unit.QUARTER,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print every statement and run none.")
    ] = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Prepare the source (identity, publication, slot) and the destination (schema).

    Safe to repeat: it does what is missing. Run again, it adds the tables that are new.
    """
    source_end = destination_end = None
    try:
        if only is not Side.SOURCE:
            url = needed(destination, "destination")
            destination_end = None if print_sql else connect(url, "destination")
        if only is not Side.DESTINATION:
            source_end = connect(needed(source, "source"), "source")
        if print_sql:
            _print_sql(source_end, slot, publication, None if only is Side.SOURCE else partition)
            return
        chosen = WorkerOptions(source or "", destination or "", slot, publication, name)
        failed = _run(source_end, destination_end, chosen, partition)
    except psycopg.Error as error:
        raise refusal(error, "set up the capture") from None
    finally:
        for end in (source_end, destination_end):
            if end is not None:
                end.close()
    if failed:
        raise typer.Exit(1)


def _run(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    unit: Unit,
) -> bool:
    if destination is not None:
        applied = schema.migrate(destination, unit.value)
        out.print(
            "[bold]destination[/bold]  "
            + (f"schema pgaudit_ctx: {', '.join(applied)}" if applied else "schema is up to date")
        )
    failed = False
    if source is not None:
        failed = _prepare_source(source, destination, chosen)
    if destination is not None:
        arguments = {"slot": chosen.slot, "publication": chosen.publication, "name": chosen.name}
        ledger.record_operation(
            destination, "setup", arguments, "some tables could not be taken" if failed else "done"
        )
    if source is not None and destination is not None and not failed:
        checkpoint = begin_capture(source, destination, chosen)
        out.print(f"[bold]ready[/bold]        captured from {format_lsn(checkpoint.end_lsn)} on")
        out.print("next         pgaudit-ctx worker, with the same two URLs")
    return failed


def _prepare_source(
    source: schema.Connection, destination: schema.Connection | None, chosen: WorkerOptions
) -> bool:
    source_setup.check_source(source, chosen.slot)
    state = source_setup.read_state(source, chosen.slot, chosen.publication)
    plan = source_setup.plan(state, chosen.slot, chosen.publication)
    name = chosen.name or source.info.dbname
    if destination is not None:
        _refuse_lost_slot(destination, name, state, chosen.slot)
        identity_after = {step.table for step in plan.steps if step.table is not None}
        ledger.record_tracked(
            destination,
            name,
            [
                (t.schema, t.name, "f" if t.qualified in identity_after else t.identity, t.identity)
                for t in state.tables
                if not (t.unlogged or t.remote)
            ],
        )
    failed = source_setup.run(
        source, plan.steps, lambda step: out.print(f"[bold]source[/bold]       {step.purpose}")
    )
    if not plan.steps:
        out.print("[bold]source[/bold]       nothing to do")
    out.print(f"[bold]tables[/bold]       {len(plan.captured)} are captured")
    for table, reason in plan.left_out:
        err.print(f"[yellow]not captured[/yellow] {table}: {reason}")
    without_key = [t.qualified for t in plan.captured if not t.key_columns]
    if without_key:
        err.print(
            f"[yellow]no key[/yellow]       {', '.join(without_key)}: every change is captured, "
            "but without a primary key no record has a history of its own"
        )
    for step, reason in failed:
        err.print(
            f"[red]not done[/red]     {reason}. Run setup again, or as the owner: {step.statement};"
        )
    return bool(failed)


def _refuse_lost_slot(
    destination: schema.Connection, name: str, state: source_setup.SourceState, slot: str
) -> None:
    checkpoint = ledger.read_checkpoint(destination, name)
    if checkpoint is not None and not state.has_slot:
        raise PositionMismatch(
            f"the trail of {name!r} ends at {format_lsn(checkpoint.end_lsn)}, but the slot "
            f"{slot!r} that kept the log from there on is gone: a new one would leave a hole that "
            "nobody sees. Remedy: start a trail of its own with another --name and --slot; the old one "
            "stays readable"
        )


def _print_sql(
    source: schema.Connection | None, slot: str, publication: str, unit: Unit | None
) -> None:
    # Statements are for psql: no colours, no wrapping.
    if source is not None:
        source_setup.check_source(source, slot)
        state = source_setup.read_state(source, slot, publication)
        typer.echo("-- source")
        for step in source_setup.plan(state, slot, publication).steps:
            typer.echo(f"{step.statement};")
    if unit is not None:
        typer.echo("-- destination")
        typer.echo(schema.script(unit.value))
