"""How a message reaches the server: with BEGIN, with the write, or in a trip of its own."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection

from pgaudit_ctx.emission.own_statements import EMIT, prepared, run
from pgaudit_ctx.emission.transactions import driver_connection, is_open

if TYPE_CHECKING:
    from types import ModuleType

Execute: TypeAlias = Callable[[], None]
"""Hands the statement that is being executed to the driver."""


def send(connection: Connection, content: str) -> None:
    """Send a message ahead of whatever comes next in the transaction, which is begun if need be.

    Raises:
        Exception: The driver's own, if the server refuses.
    """
    if connection.dialect.driver == "psycopg" and not is_open(connection):
        raw = connection.connection.dbapi_connection
        _psycopg().begin_with(raw, driver_connection(connection), content)
    else:
        send_apart(connection, content)


def send_apart(connection: Connection, content: str) -> None:
    """Send a message in a trip of its own."""
    statement, parameters = prepared(connection.dialect, EMIT, content)
    run(connection, statement, parameters)


def can_pipeline(connection: Connection) -> bool:
    """Say whether a message can travel in one trip with a statement, in an open transaction."""
    return connection.dialect.driver == "psycopg" and not connection.dialect.is_async


def send_pipelined(connection: Connection, cursor: Any, execute: Execute, content: str) -> None:
    """Send a message and execute a statement, in one trip.

    Args:
        connection: One of which ``can_pipeline`` holds, with a transaction open.
        cursor: What executes a single query or DML statement; a client's cursor.
        execute: Does that.
        content: The message's text.
    """
    statement, parameters = prepared(connection.dialect, EMIT, content)
    _psycopg().execute_pipelined(cursor, execute, statement, parameters)


def send_wrapped(connection: Connection, cursor: Any, execute: Execute, content: str) -> None:
    """Give message and statement a transaction, where AUTOCOMMIT would give each its own.

    Args:
        connection: A connection in AUTOCOMMIT mode without an open transaction.
        cursor: What executes a single statement that runs alike inside of a transaction and
            outside.
        execute: Does that.
        content: The message's text.
    """
    statement, parameters = prepared(connection.dialect, EMIT, content)
    if can_pipeline(connection):
        _psycopg().execute_pipelined(cursor, execute, statement, parameters, committed=True)
        return
    run(connection, "BEGIN")
    try:
        run(connection, statement, parameters)
        execute()
    except BaseException:
        # Why it failed is what counts, also if the connection is gone.
        with contextlib.suppress(connection.dialect.loaded_dbapi.Error):
            run(connection, "ROLLBACK")
        raise
    run(connection, "COMMIT")


def _psycopg() -> "ModuleType":
    # The application need not have psycopg: this is only loaded where it is an engine's driver.
    from pgaudit_ctx.emission import psycopg_driver

    return psycopg_driver
