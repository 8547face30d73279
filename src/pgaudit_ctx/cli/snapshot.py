"""``pgaudit-ctx snapshot``: stores the rows that exist already."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

from pgaudit_ctx.baseline import Baseline
from pgaudit_ctx.cli import filters, options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.source.snapshot import OpenTransaction


def snapshot(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TABLE...", help="TABLE or SCHEMA.TABLE.  [default: all that are captured]"
        ),
    ] = None,
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            min=0,
            help="Seconds to wait at most for transactions that are open.  [default: no limit]",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also tables that have a baseline already.")
    ] = False,
    hash_key: filters.HashKey = None,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Store the rows that exist already, while everybody goes on writing.

    Interrupted, it goes on where it was when it is run again.
    """
    chosen = WorkerOptions(
        needed(source, "source"), needed(destination, "destination"), slot, publication, name
    )
    with _Bar() as bar:
        key = (hash_key or "").encode()
        failures = Baseline(chosen, bar, key).run(tables or (), wait=wait, again=again)
    for table, reason in failures:
        err.print(f"[red]not stored[/red]   {table}: {reason}")
    if failures:
        raise typer.Exit(1)


class _Bar(Progress):
    """A bar on a terminal, and a line for each table anywhere."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            console=err,
            transient=True,
        )
        self._task: TaskID | None = None

    def waiting(self, transactions: Sequence[OpenTransaction]) -> None:
        listed = "; ".join(map(str, transactions)) or "none that this role may see"
        err.print(f"[yellow]waiting[/yellow]      for transactions that are open: {listed}")

    def begins(self, table: str, rows: int, *, resumed: bool) -> None:
        if resumed:
            err.print(f"[bold]goes on[/bold]      {table}, after the last row that is stored")
        self._task = self.add_task(table, total=rows or None)

    def stored(self, rows: int) -> None:
        if self._task is not None:
            self.advance(self._task, rows)

    def ends(self, table: str, rows: int) -> None:
        if self._task is not None:
            self.remove_task(self._task)
        out.print(f"[bold]stored[/bold]       {table}: {rows:,} rows")

    def skips(self, table: str) -> None:
        out.print(f"[bold]skipped[/bold]      {table}: has a baseline (--again takes another)")
