"""``pgaudit-ctx setup``: prepares both ends."""

import enum
import sys
from collections.abc import Sequence
from typing import Annotated

import psycopg
import typer

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, optional, out
from pgaudit_ctx.cli.setup_report import (
    tell_destination,
    tell_lost,
    tell_source,
    tell_step,
    tell_waiting,
)
from pgaudit_ctx.cli.setup_script import print_statements
from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination import ledger, schema
from pgaudit_ctx.destination.gap import what_is_lost
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.preflight import WorkerOptions, begin_capture, require_capture
from pgaudit_ctx.preparation import (
    KEEP_SIZES,
    Choice,
    check_ends,
    drop_slot,
    prepare_destination,
    prepare_source,
    remembered,
    wishes_of,
)
from pgaudit_ctx.source.catalog import read_position, read_tables
from pgaudit_ctx.source.selection import Selection
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
        if only is not Side.SOURCE:
            # What is printed for a destination that nobody named is for a new one.
            url = (optional if print_sql else needed)(destination, "destination")
            destination_end = None if url is None else connect(url, "destination")
        if only is not Side.DESTINATION:
            source_end = connect(needed(source, "source"), "source")
            check_ends(source_end, destination_end, chosen, recreate=recreate_slot)
        if print_sql:
            with_destination = only is not Side.SOURCE
            print_statements(
                source_end, destination_end, chosen, choice, with_destination=with_destination
            )
            return
        if recreate_slot:
            _recreate(source_end, destination_end, chosen, yes=yes)
        complete = _run(source_end, destination_end, chosen, choice, partition, recreate_slot)
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
            tell_lost(lost)
    if not yes:
        raise UsageError("a new slot leaves out what the old one kept. Remedy: repeat with --yes")
    drop_slot(source, chosen.slot)


def _run(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    choice: Choice,
    unit: Unit | None,
    recreate: bool,  # noqa: FBT001 - as it was given
) -> bool:
    complete, wishes = True, None
    if source is not None:
        name = chosen.name or source.info.dbname
        wishes = wishes_of(choice, destination, name, read_tables(source, chosen.publication))
        if choice.keep_size is None and (size := _ask_whom_to_protect(source)) is not None:
            choice = choice._replace(keep_size=size)
            wishes = wishes._replace(keep_size=KEEP_SIZES.get(size, size))
    if destination is not None:
        tell_destination(*prepare_destination(destination, choice), choice.trail_roles)
        if unit is not None:
            _tell_unit(destination, unit)
    arguments: dict[str, object] = {
        "slot": chosen.slot,
        "publication": chosen.publication,
        "name": chosen.name,
        "recreate_slot": recreate,
    }
    if source is not None and wishes is not None:
        done, failed = prepare_source(
            source, destination, chosen, wishes, choice, tell_step, tell_waiting
        )
        tell_source(done, failed, chosen.publication)
        complete = not any(step.table is not None for step, _ in failed)
        arguments |= remembered(source, destination, chosen, wishes, choice)
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


def _ask_whom_to_protect(source: schema.Connection) -> str | None:
    unlimited = source.execute("SELECT current_setting('max_slot_wal_keep_size') = '-1'").fetchone()
    if not sys.stdin.isatty() or unlimited is None or not unlimited[0]:
        return None
    out.print(
        "While the worker is away the source keeps its log for it, without a limit. If the disk "
        "fills up, the application stops; with a limit, the trail gets a gap instead."
    )
    answer = typer.prompt("Limit (a size like 50GB, or unlimited)", default="unlimited")
    return _keep_size(answer)


def _tell_unit(destination: schema.Connection, unit: Unit) -> None:
    there = schema.partition_unit(destination)
    if there != unit.value:
        err.print(
            f"[yellow]note[/yellow]         the trail is partitioned by {there}; --partition "
            "counts only for a new one"
        )
