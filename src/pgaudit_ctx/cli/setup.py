"""``pgaudit-ctx setup``: prepares both ends."""

import enum
import sys
from collections.abc import Sequence
from typing import Annotated

import psycopg
import typer

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination import decisions, ledger, roles, schema
from pgaudit_ctx.destination.gap import what_is_lost
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.preflight import WorkerOptions, begin_capture, require_capture
from pgaudit_ctx.preparation import (
    Choice,
    drop_slot,
    prepare_destination,
    prepare_source,
    refuse_lost_slot,
    tracked_script,
    wishes_of,
)
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.source.catalog import read_position, read_publication, read_tables
from pgaudit_ctx.source.plan import SourcePlan, by_hand, plan, script
from pgaudit_ctx.source.selection import Selection
from pgaudit_ctx.source.setup import Session
from pgaudit_ctx.source.step import Step, Who
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
    schemas: Annotated[
        list[str] | None,
        typer.Option("--schema", metavar="NAME", help="Capture the tables of this schema only."),
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--table", metavar="SCHEMA.TABLE", help="Capture this table only."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="SCHEMA.TABLE", help="Leave this table out."),
    ] = None,
    all_tables: Annotated[
        bool, typer.Option("--all-tables", help="Forget an earlier choice of tables.")
    ] = False,
    identity: Annotated[
        list[str] | None,
        typer.Option(
            "--identity",
            metavar="SCHEMA.TABLE=default|full",
            help="Keep only the key of a wide table's old rows, or take that back.",
        ),
    ] = None,
    keep_size: Annotated[
        str | None,
        typer.Option(
            "--max-slot-wal-keep-size",
            metavar="unlimited|SIZE",
            help="Whom to protect while the worker is away: the trail, or the application.",
        ),
    ] = None,
    role_prefix: Annotated[
        str, typer.Option("--roles", metavar="PREFIX", help="What our roles' names begin with.")
    ] = "pgaudit_ctx",
    no_roles: Annotated[
        bool, typer.Option("--no-roles", help="Make no roles and grant nothing.")
    ] = False,
    wait: options.Wait = "60s",
    partition: Annotated[
        Unit | None,
        typer.Option(
            "--partition",
            help="How long a time one partition of changes covers.  [default: quarter]",
        ),
    ] = None,
    recreate_slot: Annotated[
        bool,
        typer.Option(
            "--recreate-slot", help="Make a new slot where the old one is lost; records the gap."
        ),
    ] = False,
    yes: options.Yes = False,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print every statement and run none.")
    ] = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Prepare the source (identity, publication, slot) and the destination (schema, roles).

    Safe to repeat: it does what is missing. Run again, it adds the tables that are new.
    """
    chosen = WorkerOptions(source or "", destination or "", slot, publication, name)
    choice = Choice(
        _selection(schemas, tables, exclude, all_tables),
        _identities(identity or ()),
        _keep_size(keep_size),
        None if no_roles else role_prefix,
        options.parse_duration(wait),
        (partition or Unit.QUARTER).value,
    )
    source_end = destination_end = None
    try:
        if only is not Side.SOURCE and not (print_sql and destination is None):
            destination_end = connect(needed(destination, "destination"), "destination")
        if only is not Side.DESTINATION:
            source_end = connect(needed(source, "source"), "source")
        if print_sql:
            _print_sql(source_end, destination_end, chosen, choice, only)
            return
        if recreate_slot:
            _recreate(source_end, destination_end, chosen, yes=yes)
        complete = _run(
            source_end, destination_end, chosen, choice, partition, recreate=recreate_slot
        )
    except psycopg.Error as error:
        raise refusal(error, "set up the capture") from None
    finally:
        for end in (source_end, destination_end):
            if end is not None:
                end.close()
    if not complete:
        raise typer.Exit(1)


def _selection(
    schemas: Sequence[str] | None,
    tables: Sequence[str] | None,
    exclude: Sequence[str] | None,
    all_tables: bool,  # noqa: FBT001 - as it was given
) -> Selection | None:
    if all_tables:
        if schemas or tables or exclude:
            raise UsageError("--all-tables forgets a choice of tables; it cannot be given with one")
        return Selection()
    if not (schemas or tables or exclude):
        return None
    return Selection(
        schemas or (), *([_qualified(name) for name in names or ()] for names in (tables, exclude))
    )


def _qualified(table: str) -> str:
    return table if "." in table else f"public.{table}"


def _identities(given: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for text in given:
        table, _, identity = text.rpartition("=")
        if not table or identity.upper() not in {"DEFAULT", "FULL"}:
            raise UsageError(
                f"--identity {text!r} is not SCHEMA.TABLE=default or SCHEMA.TABLE=full"
            )
        chosen[_qualified(table)] = identity.upper()
    return chosen


def _keep_size(given: str | None) -> str | None:
    if given is None or given == "unlimited":
        return given
    options.parse_size(given)
    return given


def _recreate(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    *,
    yes: bool,
) -> None:
    if source is None or destination is None:
        raise UsageError("--recreate-slot needs both ends, because it writes down the gap")
    if schema.applied_migrations(destination):
        name = chosen.name or source.info.dbname
        if ledger.read_checkpoint(destination, name) is not None:
            require_capture(source, destination, chosen)  # never another database's
        lost = what_is_lost(destination, name, read_position(source).time)
        if lost is not None:
            err.print(
                f"[bold red]lost[/bold red]         what was written from "
                f"{lost.since:%Y-%m-%d %H:%M:%S %Z} to {lost.until:%Y-%m-%d %H:%M:%S %Z} "
                f"({lost.hours:.1f} hours) will be missing for ever, of {len(lost.tables)} "
                f"table(s): {', '.join(lost.tables) or 'none'}"
            )
    if not yes:
        raise UsageError("a new slot leaves out what the old one kept. Remedy: repeat with --yes")
    drop_slot(source, chosen.slot)


def _run(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    choice: Choice,
    unit: Unit | None,
    *,
    recreate: bool,
) -> bool:
    complete = True
    if source is not None:
        choice = _ask_whom_to_protect(source, choice)
    if destination is not None:
        _prepare_destination(destination, choice, unit)
    arguments: dict[str, object] = {
        "slot": chosen.slot,
        "publication": chosen.publication,
        "name": chosen.name,
        "recreate_slot": recreate,
    }
    if source is not None:
        complete, remembered = _prepare_source(
            source, destination, chosen, choice, recreate=recreate
        )
        arguments |= remembered
    if destination is not None:
        result = "done" if complete else "some tables could not be taken"
        ledger.record_operation(destination, "setup", arguments, result)
    if source is not None and destination is not None:
        # What a new slot leaves out was said, and accepted with --yes.
        accepting = chosen._replace(accept_gap=recreate)
        checkpoint = begin_capture(source, destination, accepting, keep_filters=True)
        out.print(f"[bold]ready[/bold]        captured from {format_lsn(checkpoint.end_lsn)} on")
        out.print("next         pgaudit-ctx worker, with the same two URLs")
    return complete


def _ask_whom_to_protect(source: schema.Connection, choice: Choice) -> Choice:
    unlimited = source.execute("SELECT current_setting('max_slot_wal_keep_size') = '-1'").fetchone()
    asked = choice.keep_size is None and unlimited is not None and unlimited[0]
    if not asked or not sys.stdin.isatty():
        return choice
    out.print(
        "While the worker is away the source keeps its log for it, without a limit. If the disk "
        "fills up, the application stops; with a limit, the trail gets a gap instead."
    )
    answer = typer.prompt("Limit (a size like 50GB, or unlimited)", default="unlimited")
    return choice._replace(keep_size=_keep_size(answer))


def _prepare_destination(destination: schema.Connection, choice: Choice, unit: Unit | None) -> None:
    applied, refused = prepare_destination(destination, choice)
    out.print(
        "[bold]destination[/bold]  "
        + (f"schema pgaudit_ctx: {', '.join(applied)}" if applied else "schema is up to date")
    )
    names = choice.trail_roles
    if names is not None and refused is None:
        out.print(
            f"[bold]destination[/bold]  {names.owner} owns the trail, {names.writer} may only add "
            f"to it, {names.reader} reads it"
        )
    elif names is not None:
        err.print(
            f"[yellow]note[/yellow]         the destination's roles were not assigned: {refused}. "
            "An administrator can run setup --only destination, or what --print-sql prints"
        )
    if unit is not None and schema.partition_unit(destination) != unit.value:
        err.print(
            f"[yellow]note[/yellow]         the trail is partitioned by "
            f"{schema.partition_unit(destination)}; --partition counts only for a new one"
        )


def _prepare_source(
    source: schema.Connection,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    choice: Choice,
    *,
    recreate: bool,
) -> tuple[bool, dict[str, object]]:
    source_setup.check_source(source, chosen.slot)
    name = chosen.name or source.info.dbname
    if destination is not None and not recreate:
        refuse_lost_slot(source, destination, chosen)
    wishes = wishes_of(choice, destination, name, read_tables(source, chosen.publication))
    plan_done, failed = prepare_source(
        source,
        destination,
        chosen,
        wishes,
        choice,
        _tell_step,
        _tell_waiting,
    )
    _tell(plan_done, failed, chosen.publication)
    published = read_publication(source, chosen.publication)
    earlier = {} if destination is None else decisions.last_setup(destination, name)
    return not any(step.table is not None for step, _ in failed), {
        "source": name,
        "selection": wishes.selection.as_arguments(),
        "publication_oid": None if published is None else published.oid,
        "max_slot_wal_keep_size": choice.keep_size or earlier.get("max_slot_wal_keep_size"),
    }


def _tell_step(step: Step) -> None:
    if not step.optional:  # those are told together when they are done
        out.print(f"[bold]source[/bold]       {step.purpose}")


def _tell_waiting(sessions: Sequence[Session]) -> None:
    err.print(
        "[yellow]waiting[/yellow]      the slot waits for transactions that are open: "
        + ", ".join(map(str, sessions))
    )


def _tell(done: SourcePlan, failed: Sequence[tuple[Step, str]], publication: str) -> None:
    refused = [step for step, _ in failed]
    granted = [step for step in done.steps if step.optional and step not in refused]
    if granted:
        out.print("[bold]source[/bold]       a role of its own may replicate and read all this")
    for step in granted:
        if step.statements[0].startswith("ALTER DEFAULT PRIVILEGES"):
            out.print(f"[bold]source[/bold]       {step.purpose}")
    if not done.steps:
        out.print("[bold]source[/bold]       nothing to do")
    out.print(f"[bold]captured[/bold]     {len(done.captured)} table(s)")
    # Beside a slot that was there already a table is added by a step of its own.
    added = [step.table for step in done.steps if step.table and step.statements[0][:4] == "LOCK"]
    if added:
        names = " ".join(table.qualified for table in added)
        out.print(f"next         pgaudit-ctx snapshot {names}, for the rows they hold already")
    for table, reason in done.left_out:
        err.print(f"[yellow]not captured[/yellow] {table}: {reason}")
    for table, note in done.notes:
        err.print(f"[yellow]note[/yellow]         {table}: {note}")
    _tell_failed(failed, publication)


def _tell_failed(failed: Sequence[tuple[Step, str]], publication: str) -> None:
    left = [(step, reason) for step, reason in failed if step.table is None]
    if left:
        err.print(
            f"[yellow]note[/yellow]         the role that replicates lacks something "
            f"({left[0][1]}); without it a worker needs another. What is left to run:"
        )
        err.print(script([step for step, _ in left]), markup=False)
    for step, reason in failed:
        if step.table is not None:
            err.print(
                f"[red]not captured[/red] {step.table.qualified}: {reason}. Run setup again, or as "
                "its owner, who must own the publication too, or a superuser: "
                f"{by_hand(step, publication)}"
            )


def _print_sql(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    choice: Choice,
    only: Side | None,
) -> None:
    # Statements are for psql: no colours, no wrapping.
    done = set() if destination is None else schema.applied_migrations(destination)
    tracked = ""
    if source is not None:
        source_setup.check_source(source, chosen.slot)
        if destination is not None and done:
            refuse_lost_slot(source, destination, chosen)
        name = chosen.name or source.info.dbname
        state = source_setup.read_state(
            source, chosen.slot, chosen.publication, choice.replication_role
        )
        wishes = wishes_of(choice, destination, name, state.tables)
        planned = plan(state, chosen.slot, chosen.publication, wishes=wishes)
        tracked = tracked_script(name, planned, state.tables, wishes)
        typer.echo("-- source")
        typer.echo(script(planned.steps))
    if only is not Side.SOURCE:
        typer.echo("-- destination")
        typer.echo(schema.script(choice.unit, done))
        if choice.trail_roles is not None:
            typer.echo(f"-- run by {Who.ADMINISTRATOR.value}:")
            typer.echo("\n".join(f"{line};" for line in roles.statements(choice.trail_roles)))
        if tracked:
            typer.echo(tracked)
