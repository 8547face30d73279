"""``pgaudit-ctx prune``: takes old changes out of the trail."""

from collections.abc import Sequence
from contextlib import closing
from typing import Annotated

import typer

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import needed, out
from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination.retention import OldPartition, Reader, old_partitions
from pgaudit_ctx.destination.retention import prune as drop
from pgaudit_ctx.destination.schema import check_schema
from pgaudit_ctx.doctor.wording import size
from pgaudit_ctx.errors import UsageError


def prune(
    *,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="TIME",
            envvar="PGAUDIT_CTX_OLDER_THAN",
            help="Drop what was committed longer ago than this: 2190d is six years.",
        ),
    ],
    destination: options.Destination = None,
    wait: Annotated[
        str,
        typer.Option(
            "--wait", metavar="TIME", help="Wait at most so long for readers of each partition."
        ),
    ] = "10min",
    yes: options.Yes = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Drop the partitions whose changes are all older than a time; nothing brings them back.

    Run it as the trail's owner. Capture and other readers go on meanwhile.
    """
    seconds, patience = options.parse_duration(older_than), options.parse_duration(wait)
    if not seconds:
        raise UsageError(
            "--older-than 0 would empty the trail. Remedy: pass the time that changes must be "
            "kept for; pgaudit-ctx teardown --drop-trail ends a trail"
        )
    with closing(connect(needed(destination, "destination"), "destination")) as connection:
        check_schema(connection)
        partitions = old_partitions(connection, seconds)
        if not partitions:
            out.print(
                f"[bold]nothing[/bold]      no partition is older than {older_than} as a whole"
            )
            return
        if not yes:
            for partition in partitions:
                _tell("would go", partition)
            raise UsageError("nothing was done yet. Remedy: repeat with --yes")

        def report(partition: OldPartition, readers: Sequence[Reader]) -> None:
            _tell("goes", partition)
            if readers:
                waits = f"for {', '.join(map(str, readers))}, at most {wait}"
                out.print(f"[bold yellow]waits[/bold yellow]        {waits}")

        drop(connection, partitions, older_than=seconds, wait=patience, report=report)
    kept_from = f"{partitions[-1].upper:%Y-%m-%d %H:%M:%S%z}"
    out.print(f"[bold]kept[/bold]         every change committed at {kept_from} or later")


def _tell(what: str, partition: OldPartition) -> None:
    out.print(
        f"[bold]{what:<12}[/bold] {partition.name}: {partition.lower:%Y-%m-%d} to "
        f"{partition.upper:%Y-%m-%d}, about {partition.rows:,} changes, {size(partition.bytes)}"
    )
