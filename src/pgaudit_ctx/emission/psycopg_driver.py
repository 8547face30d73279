"""What only psycopg 3 can do: carry a message with BEGIN, or in one trip with the write.

Loaded only where psycopg is an engine's driver.
"""

from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import generators, pq

from pgaudit_ctx.message import PREFIX

_EMIT: Final = f"SELECT pg_catalog.pg_logical_emit_message(true, '{PREFIX}', ".encode()
_FINE: Final = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK})


def begin_with(fairy: Any, content: str) -> None:
    """Begin a transaction with a message, in one simple query.

    psycopg sends its own BEGIN only to a connection that is idle, so it goes on from here.

    Args:
        fairy: SQLAlchemy's pooled connection; idle, and not in AUTOCOMMIT mode.
        content: The message's text, in ASCII.

    Raises:
        psycopg.Error: If the server refuses; the transaction has then failed.
    """
    raw = fairy.driver_connection
    if isinstance(raw, psycopg.AsyncConnection):
        fairy.dbapi_connection.run_async(lambda driver: _begin_async(driver, content))
        return
    with raw.lock:
        raw.wait(_begin_gen(raw, content))


async def _begin_async(connection: "psycopg.AsyncConnection[Any]", content: str) -> None:
    async with connection.lock:
        await connection.wait(_begin_gen(connection, content))


def _begin_gen(
    connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]", content: str
) -> Any:
    pgconn = connection.pgconn
    literal = pq.Escaping(pgconn).escape_literal(content.encode("ascii"))
    pgconn.send_query(b"%b; %b%b::text)" % (_begin_command(connection), _EMIT, literal))
    for result in (yield from generators.execute(pgconn)):
        if result.status not in _FINE:
            raise psycopg.errors.error_from_result(result, encoding=connection.info.encoding)


def _begin_command(
    connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]",
) -> bytes:
    """Write the command that psycopg would begin this transaction with (a test compares them)."""
    command = "BEGIN"
    if connection.isolation_level is not None:
        level = psycopg.IsolationLevel(connection.isolation_level).name.replace("_", " ")
        command += f" ISOLATION LEVEL {level}"
    if connection.read_only is not None:
        command += " READ ONLY" if connection.read_only else " READ WRITE"
    if connection.deferrable is not None:
        command += " DEFERRABLE" if connection.deferrable else " NOT DEFERRABLE"
    return command.encode()


def pipelined(statement: str, parameters: Any) -> Callable[[Any, Callable[[], None]], None]:
    """Make a delivery that sends a message and a statement in one trip, in psycopg's pipeline.

    Args:
        statement: What emits the message.
        parameters: Its parameters.
    """

    def deliver(cursor: "psycopg.Cursor[Any]", execute: Callable[[], None]) -> None:
        connection = cursor.connection
        emitting = connection.cursor()
        try:
            with connection.pipeline():
                emitting.execute(statement, parameters)
                execute()
        finally:
            emitting.close()

    return deliver
