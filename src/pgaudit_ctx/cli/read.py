"""``pgaudit-ctx log`` and ``history``: what the trail holds."""

from typing import Annotated

import typer
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from pgaudit_ctx.change import Operation
from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, out, parse_moment
from pgaudit_ctx.cli.render import json_line, print_changes, print_versions
from pgaudit_ctx.connection import connect
from pgaudit_ctx.reading.query import select_log
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.reading.steps import explained

Since = Annotated[
    str | None, typer.Option("--since", help="Committed at or after this, e.g. 2026-11-24T10:00Z.")
]
Until = Annotated[str | None, typer.Option("--until", help="Committed before this.")]


def reading_engine(url: str) -> Engine:
    """Make an engine whose connection errors say what to do."""
    return create_engine(
        "postgresql+psycopg://", creator=lambda: connect(url, "destination"), poolclass=NullPool
    )


def log(
    *,
    destination: options.Destination = None,
    name: options.Name = None,
    table: Annotated[str | None, typer.Option("--table", help="Of this table only.")] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="Of this record only; once per key column.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Done by this user only.")] = None,
    operation: Annotated[
        Operation | None,
        typer.Option("--operation", case_sensitive=False, help="Of this kind only."),
    ] = None,
    since: Since = None,
    until: Until = None,
    without_context: Annotated[
        bool, typer.Option("--without-context", help="Only what nobody explained.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, max=2**31, help="The newest so many.")
    ] = 50,
    user_key: options.UserKey = "user",
    reason_key: options.ReasonKey = "reason",
    json: options.AsJson = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Show the newest changes, newest first: who, when, why, and old → new."""
    statement = select_log(
        source=name,
        table=table,
        key=tuple(key) if key else None,
        user=user,
        user_key=user_key,
        operation=operation,
        since=None if since is None else parse_moment(since),
        until=None if until is None else parse_moment(until),
        without_context=without_context,
        limit=limit,
    )
    engine = reading_engine(needed(destination, "destination"))
    with explained(), engine.connect() as connection:
        rows = connection.execute(statement).all()
    if json:
        for row in rows:
            typer.echo(json_line(row))
    else:
        print_changes(out, rows, user_key, reason_key)
        if not rows:
            err.print("no changes match")


def history(
    *,
    table: Annotated[str, typer.Argument(help="The table, with its schema unless it is public.")],
    key: Annotated[list[str], typer.Argument(help="The key's values, in key order.")],
    destination: options.Destination = None,
    name: options.Name = None,
    since: Since = None,
    until: Until = None,
    user: Annotated[str | None, typer.Option("--user", help="Done by this user only.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, help="The newest so many.")] = None,
    user_key: options.UserKey = "user",
    reason_key: options.ReasonKey = "reason",
    json: options.AsJson = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Show every version of one record, oldest first; exit code 1 if it left no trace."""
    reader = AuditReader(
        reading_engine(needed(destination, "destination")),
        source=name,
        user_key=user_key,
        reason_key=reason_key,
    )
    versions = reader.history(
        table,
        tuple(key),
        since=None if since is None else parse_moment(since),
        until=None if until is None else parse_moment(until),
        user=user,
        limit=limit,
    )
    if json:
        for version in versions:
            typer.echo(json_line(version.row, version=version.number))
    else:
        print_versions(out, versions, user_key, reason_key)
    for gap in versions.gaps:
        err.print(f"[red]gap[/red] {gap.from_time} to {gap.to_time or 'now'}: {gap.cause}")
    if not json:
        complete = versions.complete_up_to
        out.print(f"[dim]complete up to {complete.time:%Y-%m-%d %H:%M:%S%z} ({complete.lsn})[/dim]")
    if not versions:
        err.print(f"no version of this record in {table} matches")
        raise typer.Exit(1)
