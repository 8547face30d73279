"""``pgaudit-ctx teardown``: undoes what setup did."""

from contextlib import closing
from typing import Annotated

import psycopg
import typer

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination.schema import check_schema
from pgaudit_ctx.doctor.wording import size
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.teardown import Loss, assess, drop_trail, refuse_others, tear_down


def teardown(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    role_prefix: Annotated[
        str, typer.Option("--roles", metavar="PREFIX", help="What our roles' names begin with.")
    ] = "pgaudit_ctx",
    trail_too: Annotated[
        bool, typer.Option("--drop-trail", help="Drop the trail as well; nothing brings it back.")
    ] = False,
    yes: options.Yes = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Drop slot and publication, and give each table the identity it had before setup.

    The trail stays readable unless it is dropped too. Roles stay, without rights in the source:
    other databases may use them.
    """
    chosen = WorkerOptions(
        needed(source, "source"), needed(destination, "destination"), slot, publication, name
    )
    with (
        closing(connect(chosen.source, "source")) as source_end,
        closing(connect(chosen.destination, "destination")) as destination_end,
    ):
        check_schema(destination_end)
        try:
            loss = assess(source_end, destination_end, chosen)
            _tell(loss, trail_too=trail_too)
            if trail_too:
                refuse_others(loss)
            if not yes:
                raise UsageError("nothing was done yet. Remedy: repeat with --yes")
            failed = tear_down(
                source_end,
                destination_end,
                chosen,
                f"{role_prefix}_replication",
                lambda done: out.print(f"[bold]source[/bold]       {done}"),
            )
            if trail_too and not failed:
                drop_trail(destination_end)
                out.print("[bold]destination[/bold]  the trail is gone")
        except psycopg.Error as error:
            raise refusal(error, "tear the capture down") from None
    for step, reason in failed:
        err.print(f"[red]not done[/red]     {reason}. Run it again, or: {step.script}")
    if failed:
        raise typer.Exit(1)


def _tell(loss: Loss, *, trail_too: bool) -> None:
    out.print(
        f"[bold]lost[/bold]         {len(loss.tables)} table(s) are captured no more, and "
        f"{size(loss.unread)} of log that no worker has read are given up"
    )
    kept = f"about {loss.changes:,} changes"
    if trail_too:
        out.print(f"[bold red]lost[/bold red]         the trail, with {kept}")
    else:
        out.print(f"[bold]kept[/bold]         the trail, with {kept}")
