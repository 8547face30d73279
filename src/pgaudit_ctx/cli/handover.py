"""``pgaudit-ctx handover``: moves a source to another server without a gap."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

from pgaudit_ctx import handover
from pgaudit_ctx.cli import filters, options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.handover import Finished
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.preparation import Choice
from pgaudit_ctx.source.setup import Session
from pgaudit_ctx.source.step import Step
from pgaudit_ctx.wal.lsn import format_lsn

app = typer.Typer(
    name="handover",
    help="Move a source to another server without a gap: begin on the old one, finish on the new.",
    no_args_is_help=True,
)
_BLOCK_BYTES = 8192


@app.command()
def begin(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    include_table: filters.IncludeTable = None,
    exclude_table: filters.ExcludeTable = None,
    include_schema: filters.IncludeSchema = None,
    exclude_schema: filters.ExcludeSchema = None,
    ignore_column: filters.IgnoreColumn = None,
    redact_column: filters.RedactColumn = None,
    hash_key: filters.HashKey = None,
    keep_slot: Annotated[
        bool,
        typer.Option("--keep-slot", help="Leave the slot, so that the move can be called off."),
    ] = False,
    yes: options.Yes = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """On the old server, while nobody writes: capture to the end, write down what it holds."""
    chosen = WorkerOptions(
        needed(source, "source"),
        needed(destination, "destination"),
        slot,
        publication,
        name,
        filters.chosen_filters(
            include_table,
            exclude_table,
            include_schema,
            exclude_schema,
            ignore_column,
            redact_column,
            hash_key,
        ),
    )
    if not yes:
        kept = "kept" if keep_slot else "dropped"
        raise UsageError(
            f"this ends the capture of the old server, and its slot is {kept}. Remedy: stop what "
            "writes and the worker, and repeat with --yes"
        )
    with _Bar() as bar:
        begun = handover.begin(chosen, bar, keep_slot=keep_slot)
    rows = sum(table.rows for table in begun.tables)
    out.print(f"[bold]captured[/bold]     everything up to {format_lsn(begun.end_lsn)}")
    out.print(f"[bold]digested[/bold]     {len(begun.tables)} table(s), {rows:,} rows")
    out.print(
        "next         move the database; then, before anybody writes there, pgaudit-ctx handover "
        "finish --yes with the new server's URL as --source"
    )


@app.command()
def finish(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    role_prefix: Annotated[
        str, typer.Option("--roles", metavar="PREFIX", help="What our roles' names begin with.")
    ] = "pgaudit_ctx",
    no_roles: Annotated[
        bool, typer.Option("--no-roles", help="Make no roles and grant nothing.")
    ] = False,
    wait: options.Wait = "60s",
    yes: options.Yes = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """On the new server, before anybody writes: prove it equal, and go on with the trail there.

    Exit code 1 if it is not: the trail then goes on after a gap. Without --yes it only compares.
    """
    chosen = WorkerOptions(
        needed(source, "source"), needed(destination, "destination"), slot, publication, name
    )
    choice = Choice(roles=None if no_roles else role_prefix, wait=options.parse_duration(wait))
    with _Bar() as bar:
        finished = handover.finish(chosen, choice, bar, compare_only=not yes)
    _tell(finished)
    if not yes:
        raise UsageError("both ends were compared, nothing was done. Remedy: repeat with --yes")
    if (
        finished.differing
        or finished.uncaptured
        or any(step.table is not None for step, _ in finished.failed)
    ):
        raise typer.Exit(1)


def _tell(finished: Finished) -> None:
    for comparison in finished.tables:
        table, now = comparison
        label = f"{table.schema}.{table.name}"
        if comparison.equal:
            out.print(f"[bold]equal[/bold]        {label}: {table.rows:,} rows")
        elif now is None:
            err.print(f"[red]different[/red]    {label}: it, or a column of it, is not there")
        else:
            err.print(
                f"[red]different[/red]    {label}: {table.rows:,} rows before, {now.rows:,} now"
                + (", with other values" if table.rows == now.rows else "")
            )
    for step, reason in finished.failed:
        about = step.purpose if step.table is None else step.table.qualified
        err.print(f"[red]not done[/red]     {about}: {reason}. Run pgaudit-ctx setup again")
    for missing in finished.uncaptured:
        err.print(
            f"[red]not captured[/red] {missing}: it was on the old server and is not published "
            "here, so a hole in its coverage begins. Run pgaudit-ctx setup with its --table"
        )
    if finished.called_off:
        out.print("[bold]called off[/bold]   this is the old server, with its slot: nothing moved")
    elif finished.epoch is not None and finished.differing:
        err.print(
            f"[red]gap[/red]          something was written between the two ends, or the move is "
            f"not complete: a gap is written down, and epoch {finished.epoch} begins after it"
        )
    elif finished.epoch is not None:
        out.print(f"[bold]clean[/bold]        epoch {finished.epoch} begins without a gap")
    if finished.epoch is not None:
        out.print(f"[bold]ready[/bold]        captured from {format_lsn(finished.lsn)} on")
        out.print("next         let the application write again, and start pgaudit-ctx worker")


class _Bar(Progress):
    """A bar on a terminal for each table, in bytes."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            Remaining(),
            console=err,
            transient=True,
        )
        self._task: TaskID | None = None

    def begins(self, table: str, blocks: int) -> None:
        self._task = self.add_task(table, total=blocks * _BLOCK_BYTES)

    def read(self, blocks: int) -> None:
        if self._task is not None:
            self.advance(self._task, blocks * _BLOCK_BYTES)

    def ends(self, table: str) -> None:  # noqa: ARG002 - of the one that began last
        if self._task is not None:
            self.remove_task(self._task)
            self._task = None

    def warns(self, text: str) -> None:
        err.print(f"[yellow]note[/yellow]         {text}")

    def prepares(self, step: Step) -> None:
        out.print(f"[bold]source[/bold]       {step.purpose}")

    def waits(self, sessions: Sequence[Session]) -> None:
        err.print(
            "[yellow]waiting[/yellow]      the slot waits for transactions that are open: "
            + ", ".join(map(str, sessions))
        )
