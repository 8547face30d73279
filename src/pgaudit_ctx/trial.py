"""Proves the whole path on the user's own servers: three changes of a scratch table."""

import secrets
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.context import audit_context
from pgaudit_ctx.errors import SourceNotReady
from pgaudit_ctx.hook import install, uninstall
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.source import catalog
from pgaudit_ctx.urls import sqlalchemy_url

WAIT_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.1
_STATEMENTS: Final = (
    "INSERT INTO {} VALUES (1, 'written')",
    "UPDATE {} SET note = 'changed'",
    "DELETE FROM {}",
)
EXPECTED: Final = ("INSERT", "UPDATE", "DELETE")
"""The operations that have to arrive."""


def require_worker(source: psycopg.Connection[Any], options: WorkerOptions) -> None:
    """Refuse a source that nobody captures right now.

    Raises:
        SourceNotReady: With the remedy.
    """
    slot = catalog.read_slot(source, options.slot)
    if slot is None or catalog.read_publication(source, options.publication) is None:
        raise SourceNotReady(
            "the source is not set up, so nothing can be captured. Remedy: run pgaudit-ctx setup"
        )
    if slot.active_pid is None:
        raise SourceNotReady(
            f"no worker reads the slot {options.slot!r}, so nothing would arrive. Remedy: start "
            "pgaudit-ctx worker in another terminal, then try again"
        )


def run_trial(options: WorkerOptions, wait: float = WAIT_SECONDS) -> Sequence[Any]:
    """Insert, update and delete a row under a context, through the hook, and wait for the trail.

    The table lives in a schema of its own, which is dropped whatever happens. Its three changes
    stay in the trail.

    Args:
        options: Both ends, and the names.
        wait: Seconds, at most.

    Returns:
        The rows of ``changes`` that arrived, in order.

    Raises:
        SourceNotReady: If no worker runs.
        DatabaseError: If a server refuses.
    """
    schema = f"pgaudit_ctx_try_{secrets.token_hex(4)}"
    scratch = sql.Identifier(schema, "scratch")
    publication = sql.Identifier(options.publication)
    with (
        closing(connect(options.source, "source")) as source,
        closing(connect(options.destination, "destination")) as destination,
    ):
        require_worker(source, options)
        try:
            with source.transaction():
                for statement in (
                    sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)),
                    sql.SQL("CREATE TABLE {} (id integer PRIMARY KEY, note text)").format(scratch),
                    sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(scratch),
                    sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(publication, scratch),
                ):
                    source.execute(statement)
            _write(options.source, scratch.as_string(source))
            return _wait_for(destination, schema, wait)
        except psycopg.Error as error:
            raise refusal(error, "try the capture") from None
        finally:
            drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
            source.execute("SET client_min_messages = warning")
            source.execute(drop)


def _write(url: str, table: str) -> None:
    engine = create_engine(sqlalchemy_url(url), poolclass=NullPool)
    install(engine)
    try:
        with audit_context(user="pgaudit-ctx", reason="try: does the trail work?"):
            for statement in _STATEMENTS:
                with engine.begin() as connection:
                    connection.execute(text(statement.format(table)))
    finally:
        uninstall(engine)
        engine.dispose()


def _wait_for(destination: psycopg.Connection[Any], schema: str, wait: float) -> Sequence[Any]:
    deadline = time.monotonic() + wait
    with destination.cursor(row_factory=namedtuple_row) as cursor:
        while True:
            rows = cursor.execute(
                "SELECT * FROM pgaudit_ctx.changes WHERE schema_name = %s"
                " AND committed_at > now() - interval '1 hour' ORDER BY commit_lsn, ordinal",
                [schema],
            ).fetchall()
            if len(rows) >= len(EXPECTED) or time.monotonic() >= deadline:
                return rows
            time.sleep(_LOOK_SECONDS)
