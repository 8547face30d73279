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
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.reading.caveats import caveats_of, select_covered
from pgaudit_ctx.reading.extent import Gap
from pgaudit_ctx.reading.extent_facts import select_extent
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.reading.shape import ANY_SCHEMA

Since = Annotated[
    str | None, typer.Option("--since", help="Committed at or after this, e.g. 2026-11-24T10:00Z.")
]
Until = Annotated[str | None, typer.Option("--until", help="Committed before this.")]
IncludeUndone = Annotated[
    bool, typer.Option("--include-undone", help="Also what a failover has undone.")
]


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
        list[str] | None,
        typer.Option("--key", help="Of this record of --table only; once per key column."),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Done by this user only.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="For this reason only.")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", help="Where the context says KEY=VALUE; once per key."),
    ] = None,
    operation: Annotated[
        Operation | None,
        typer.Option("--operation", case_sensitive=False, help="Of this kind only."),
    ] = None,
    field: Annotated[
        str | None, typer.Option("--field", help="That set this column of --table only.")
    ] = None,
    transaction: Annotated[
        int | None, typer.Option("--transaction", help="Of this transaction (xid) only.")
    ] = None,
    since: Since = None,
    until: Until = None,
    without_context: Annotated[
        bool, typer.Option("--without-context", help="Only what nobody explained.")
    ] = False,
    include_undone: IncludeUndone = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, max=2**31, help="The newest so many.")
    ] = 50,
    user_key: options.UserKey = "user",
    reason_key: options.ReasonKey = "reason",
    json: options.AsJson = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Show the newest changes, newest first: who, when, why, and old → new."""
    if table is None and (key or field):
        raise UsageError("--key and --field belong to a table. Remedy: pass --table")
    engine = reading_engine(needed(destination, "destination"))
    reader = AuditReader(
        engine,
        source=name,
        user_key=user_key,
        reason_key=reason_key,
    )
    rows = reader.changes(
        table if table is None or "." in table else f"{ANY_SCHEMA}.{table}",
        tuple(key) if key else None,
        limit=limit,
        user=user,
        reason=reason,
        context=dict(_key_and_value(text) for text in context or ()),
        operation=operation,
        field=field,
        transaction=transaction,
        since=None if since is None else parse_moment(since),
        until=None if until is None else parse_moment(until),
        without_context=without_context,
        include_undone=include_undone,
    )
    if json:
        for row in rows:
            typer.echo(json_line(row))
    else:
        print_changes(out, rows, user_key, reason_key)
        if not rows:
            err.print("no changes match")
    _tell_caveats(engine, name, table, since, until)


def _tell_caveats(
    engine: Engine, name: str | None, table: str | None, since: str | None, until: str | None
) -> None:
    """Say on standard error what the list cannot hold, and up to where it is complete."""
    with engine.connect() as connection:
        covered = [
            (source, schema, captured)
            for source, schema, captured in connection.execute(select_covered(name, table))
        ]
        if not covered:
            return
        tables = [(schema, captured) for _, schema, captured in covered]
        facts = connection.execute(select_extent(tables)).all()
    for caveats in caveats_of(
        facts,
        covered,
        holes=table is not None,
        since=None if since is None else parse_moment(since),
        until=None if until is None else parse_moment(until),
    ):
        for gap in caveats.gaps:
            _tell_gap(gap)
        if caveats.rejected:
            err.print(
                "[red]rejected[/red] changes wait to be stored: see pgaudit-ctx rejected list"
            )
        complete = caveats.complete_up_to
        err.print(
            f"[dim]{caveats.source} is complete up to {complete.time:%Y-%m-%d %H:%M:%S%z} "
            f"({complete.lsn})[/dim]"
        )


def _tell_gap(gap: Gap) -> None:
    err.print(f"[red]gap[/red] {gap.from_time} to {gap.to_time or 'now'}: {gap.cause}")


def _key_and_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--context {text}: write it as KEY=VALUE")
    return key, value


def history(
    *,
    table: Annotated[str, typer.Argument(help="The table, with its schema unless it is public.")],
    key: Annotated[list[str], typer.Argument(help="The key's values, in key order.")],
    destination: options.Destination = None,
    name: options.Name = None,
    since: Since = None,
    until: Until = None,
    user: Annotated[str | None, typer.Option("--user", help="Done by this user only.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", help="That changed this column only; once for each of several."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, help="The newest so many.")] = None,
    include_undone: IncludeUndone = False,
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
        fields=field or None,
        limit=limit,
        include_undone=include_undone,
    )
    if json:
        for version in versions:
            typer.echo(json_line(version.row, version=version.number))
    else:
        print_versions(out, versions, user_key, reason_key)
    for gap in versions.gaps:
        _tell_gap(gap)
    complete = versions.complete_up_to
    (err if json else out).print(
        f"[dim]complete up to {complete.time:%Y-%m-%d %H:%M:%S%z} ({complete.lsn})[/dim]"
    )
    if not versions:
        err.print(f"no version of this record in {table} matches")
        raise typer.Exit(1)
