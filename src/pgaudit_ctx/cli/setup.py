"""``pgaudit-ctx setup``: prepares both ends."""

import enum
from typing import Annotated

import psycopg
import typer

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination import ledger, schema
from pgaudit_ctx.preflight import WorkerOptions, begin_capture, slot_missing
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.source.catalog import read_slot, read_tables
from pgaudit_ctx.wal.lsn import format_lsn


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
        Unit | None,
        typer.Option(
            "--partition",
            help="How long a time one partition of changes covers.  [default: quarter]",
        ),
    ] = None,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print every statement and run none.")
    ] = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Prepare the source (identity, publication, slot) and the destination (schema).

    Safe to repeat: it does what is missing. Run again, it adds the tables that are new.
    """
    chosen = WorkerOptions(source or "", destination or "", slot, publication, name)
    source_end = destination_end = None
    try:
        if only is not Side.SOURCE and not (print_sql and destination is None):
            destination_end = connect(needed(destination, "destination"), "destination")
        if only is not Side.DESTINATION:
            source_end = connect(needed(source, "source"), "source")
        if print_sql:
            unit = None if only is Side.SOURCE else partition or Unit.QUARTER
            _print_sql(source_end, destination_end, chosen, unit)
            return
        complete = _run(source_end, destination_end, chosen, partition)
    except psycopg.Error as error:
        raise refusal(error, "set up the capture") from None
    finally:
        for end in (source_end, destination_end):
            if end is not None:
                end.close()
    if not complete:
        raise typer.Exit(1)


def _run(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    unit: Unit | None,
) -> bool:
    complete = True
    if destination is not None:
        applied = schema.migrate(destination, (unit or Unit.QUARTER).value)
        out.print(
            "[bold]destination[/bold]  "
            + (f"schema pgaudit_ctx: {', '.join(applied)}" if applied else "schema is up to date")
        )
        if unit is not None and schema.partition_unit(destination) != unit.value:
            err.print(
                f"[yellow]note[/yellow]         the trail is partitioned by "
                f"{schema.partition_unit(destination)}; --partition counts only for a new one"
            )
    if source is not None:
        complete = _prepare_source(source, destination, chosen)
    if destination is not None:
        arguments = {"slot": chosen.slot, "publication": chosen.publication, "name": chosen.name}
        result = "done" if complete else "some tables could not be taken"
        ledger.record_operation(destination, "setup", arguments, result)
    if source is not None and destination is not None:
        checkpoint = begin_capture(source, destination, chosen, keep_filters=True)
        out.print(f"[bold]ready[/bold]        captured from {format_lsn(checkpoint.end_lsn)} on")
        out.print("next         pgaudit-ctx worker, with the same two URLs")
    return complete


def _prepare_source(
    source: schema.Connection, destination: schema.Connection | None, chosen: WorkerOptions
) -> bool:
    source_setup.check_source(source, chosen.slot)
    name = chosen.name or source.info.dbname
    if destination is not None:
        _refuse_lost_slot(source, destination, chosen)
    before = {t.oid: t.identity for t in read_tables(source, chosen.publication)}
    plan, failed = source_setup.run(
        source,
        chosen.slot,
        chosen.publication,
        lambda step: out.print(f"[bold]source[/bold]       {step.purpose}"),
    )
    if destination is not None:
        ledger.record_tracked(
            destination,
            name,
            [
                (table.schema, table.name, table.identity, before[table.oid])
                for table in read_tables(source, chosen.publication)
                if table.published and table.oid in before
            ],
        )
    if not plan.steps:
        out.print("[bold]source[/bold]       nothing to do")
    out.print(f"[bold]captured[/bold]     {len(plan.captured)} table(s)")
    for table, reason in plan.left_out:
        err.print(f"[yellow]not captured[/yellow] {table}: {reason}")
    for table, note in plan.notes:
        err.print(f"[yellow]note[/yellow]         {table}: {note}")
    for step, reason in failed:
        assert step.table is not None  # noqa: S101 - only the steps of a table can fail
        err.print(
            f"[red]not captured[/red] {step.table.qualified}: {reason}. Run setup again, or as its "
            f"owner: {step.script}"
        )
    return not failed


def _refuse_lost_slot(
    source: schema.Connection, destination: schema.Connection, chosen: WorkerOptions
) -> None:
    name = chosen.name or source.info.dbname
    checkpoint = ledger.read_checkpoint(destination, name)
    if checkpoint is not None and read_slot(source, chosen.slot) is None:
        raise slot_missing(chosen.slot, name, checkpoint)


def _print_sql(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    unit: Unit | None,
) -> None:
    # Statements are for psql: no colours, no wrapping.
    done = set() if destination is None else schema.applied_migrations(destination)
    if source is not None:
        source_setup.check_source(source, chosen.slot)
        if destination is not None and done:
            _refuse_lost_slot(source, destination, chosen)
        state = source_setup.read_state(source, chosen.slot, chosen.publication)
        typer.echo("-- source")
        for step in source_setup.plan(state, chosen.slot, chosen.publication).steps:
            typer.echo(step.script)
    if unit is not None:
        typer.echo("-- destination")
        typer.echo(schema.script(unit.value, done))
