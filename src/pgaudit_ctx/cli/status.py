"""``pgaudit-ctx status``: how far the trail is, once or again and again."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Final

import typer
from rich.live import Live
from rich.table import Table

from pgaudit_ctx import __version__
from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import needed, out
from pgaudit_ctx.doctor.facts import Limits, Names
from pgaudit_ctx.doctor.gather import glance
from pgaudit_ctx.doctor.status import Status, status_of
from pgaudit_ctx.doctor.wording import size

_BETWEEN: Final = 2.0


def status(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")
    ] = False,
    as_json: options.AsJson = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Show how far the trail is, and what the source keeps for it.

    Exit code 1 if an end cannot be reached.
    """
    urls = needed(source, "source"), needed(destination, "destination")
    names = Names(slot, publication, name or "", named=name is not None)

    def look() -> Status:
        return status_of(glance(*urls, names, Limits(), __version__))

    if watch:
        _watch(look, as_json=as_json)
        return
    seen = look()
    if as_json:
        typer.echo(json.dumps(seen.as_dict()))
    else:
        out.print(_table(seen))
    if seen.problems:
        raise typer.Exit(1)


def _watch(look: Callable[[], Status], *, as_json: bool) -> None:
    try:
        if as_json:
            while True:
                typer.echo(json.dumps(look().as_dict()))
                time.sleep(_BETWEEN)
        with Live(console=out, auto_refresh=False) as live:
            while True:
                live.update(_table(look()), refresh=True)
                time.sleep(_BETWEEN)
    except KeyboardInterrupt:
        return


def _table(seen: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    yes = {True: "a worker reads it", False: "[bold red]nobody reads it[/bold red]", None: "?"}
    behind = "?" if seen.lag_seconds is None else f"{seen.lag_seconds:.1f} s"
    for label, value in (
        ("source", seen.source or "?"),
        ("slot", f"{seen.slot}, {yes[seen.slot_active]}"),
        ("behind", f"{_shown(seen.lag_bytes)}, {behind}"),
        ("log kept", _shown(seen.retained_wal_bytes)),
        (
            "complete up to",
            "nothing is captured yet"
            if seen.complete_up_to is None
            else f"{seen.checkpoint_lsn}, {seen.complete_up_to:%Y-%m-%d %H:%M:%S %Z}",
        ),
        ("gaps", "?" if seen.gaps is None else str(seen.gaps)),
        ("rejected", "?" if seen.rejected is None else str(seen.rejected)),
    ):
        table.add_row(f"[bold]{label}[/bold]", value)
    for problem in seen.problems:
        table.add_row("[bold red]problem[/bold red]", problem)
    return table


def _shown(amount: int | None) -> str:
    return "?" if amount is None else size(amount)
