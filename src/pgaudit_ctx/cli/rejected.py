"""``pgaudit-ctx rejected``: the changes that the destination refused, and how to store them."""

import json
from contextlib import closing
from typing import Annotated

import psycopg
import typer
from rich.table import Table

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination import rejected
from pgaudit_ctx.destination.schema import check_schema

app = typer.Typer(
    name="rejected",
    help="Changes that the destination refused: list them, or store them after all.",
    no_args_is_help=True,
)
OnlyName = Annotated[
    str | None,
    typer.Option("--name", envvar="PGAUDIT_CTX_NAME", help="Of this source only."),
]


@app.command("list")
def list_(
    *,
    destination: options.Destination = None,
    name: OnlyName = None,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Also those that have been stored since.")
    ] = False,
    json_lines: options.AsJson = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """List what was refused and why, without values; exit code 1 if something waits."""
    try:
        with closing(connect(needed(destination, "destination"), "destination")) as connection:
            check_schema(connection)
            found = rejected.waiting(connection, name, replayed_too=replayed)
    except psycopg.Error as error:
        raise refusal(error, "list what was refused") from None
    if json_lines:
        for change in found:
            typer.echo(json.dumps(change._asdict(), default=str))
    elif found:
        table = Table("source", "position", "committed", "operation", "table", "why", "stored")
        for change in found:
            table.add_row(
                change.source,
                f"{change.epoch}:{change.commit_lsn}:{change.ordinal}",
                f"{change.committed_at:%Y-%m-%d %H:%M:%S}",
                change.operation,
                f"{change.schema_name}.{change.table_name}",
                f"{change.sqlstate} {change.reason}",
                "" if change.replayed_at is None else f"{change.replayed_at:%Y-%m-%d %H:%M:%S}",
            )
        out.print(table)
    waiting = sum(change.replayed_at is None for change in found)
    err.print(f"{waiting:,} changes wait to be replayed")
    if waiting:
        raise typer.Exit(1)


@app.command()
def replay(
    *,
    destination: options.Destination = None,
    name: OnlyName = None,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Store what was refused, in order; exit code 1 if something still is."""
    stored = refused = 0
    try:
        with closing(connect(needed(destination, "destination"), "destination")) as connection:
            check_schema(connection)
            for change, why in rejected.replay(connection, name):
                if why:
                    refused += 1
                    err.print(
                        f"{change.source} {change.epoch}:{change.commit_lsn}:{change.ordinal} of "
                        f"{change.schema_name}.{change.table_name} is still refused: {why}"
                    )
                else:
                    stored += 1
    except psycopg.Error as error:
        raise refusal(error, "store what was refused") from None
    err.print(f"{stored:,} changes stored, {refused:,} still refused")
    if refused:
        raise typer.Exit(1)
