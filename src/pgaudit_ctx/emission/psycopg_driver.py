"""What only psycopg 3 can do: carry a message with BEGIN, or in one trip with the write.

Loaded only where psycopg is an engine's driver.
"""

from collections.abc import Callable, Generator
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import generators, pq

from pgaudit_ctx.emission.own_statements import claim
from pgaudit_ctx.message import PREFIX

_Connection: TypeAlias = "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]"

_EMIT: Final = f"SELECT pg_catalog.pg_logical_emit_message(true, '{PREFIX}', ".encode()
_FINE: Final = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK})


def begin_with(adapted: Any, driver: Any, content: str) -> None:
    """Begin a transaction with a message, in one simple query.

    psycopg sends its own BEGIN only to a connection that is idle, so it goes on from here.

    Args:
        adapted: The connection as SQLAlchemy drives it; idle, and not in AUTOCOMMIT mode.
        driver: psycopg's own connection, which is the same unless it is asynchronous.
        content: The message's text, in ASCII.

    Raises:
        psycopg.Error: If the server refuses; the transaction has then failed.
    """
    command = begin_command(driver) + b"; " + emit_command(driver.pgconn, content)
    if isinstance(driver, psycopg.AsyncConnection):
        adapted.run_async(lambda connection: _run_async(connection, command))
        return
    with driver.lock:
        driver.wait(simple_query(driver, command))


async def _run_async(connection: "psycopg.AsyncConnection[Any]", command: bytes) -> None:
    async with connection.lock:
        await connection.wait(simple_query(connection, command))


def simple_query(
    connection: _Connection, command: bytes
) -> Generator[Any, Any, list[pq.abc.PGresult]]:
    """Send statements in the simple protocol, for ``connection.wait``; give their results.

    Raises:
        psycopg.Error: If the server refuses.
    """
    connection.pgconn.send_query(command)
    results: list[pq.abc.PGresult] = yield from generators.execute(connection.pgconn)
    for result in results:
        if result.status not in _FINE:
            raise psycopg.errors.error_from_result(result, encoding=connection.info.encoding)
    return results


def emit_command(pgconn: pq.abc.PGconn, content: str) -> bytes:
    """Write the statement that emits a message, with libpq's own quoting.

    Args:
        pgconn: The connection that it will be sent on.
        content: The message's text, in ASCII.
    """
    literal = pq.Escaping(pgconn).escape_literal(content.encode("ascii"))
    return b"%b%b::text)" % (_EMIT, literal)


def begin_command(connection: _Connection) -> bytes:
    """Write the command that psycopg itself would begin a transaction with (a test compares)."""
    command = "BEGIN"
    if connection.isolation_level is not None:
        level = psycopg.IsolationLevel(connection.isolation_level).name.replace("_", " ")
        command += f" ISOLATION LEVEL {level}"
    if connection.read_only is not None:
        command += " READ ONLY" if connection.read_only else " READ WRITE"
    if connection.deferrable is not None:
        command += " DEFERRABLE" if connection.deferrable else " NOT DEFERRABLE"
    return command.encode()


def execute_pipelined(
    cursor: "psycopg.Cursor[Any]",
    execute: Callable[[], None],
    statement: str,
    parameters: Any,
    *,
    committed: bool = False,
) -> None:
    """Send a message and execute a statement in one trip, in psycopg's pipeline.

    Our own statements are never prepared: what follows an error in a pipeline is skipped, and
    psycopg would take for prepared what it has prepared before.

    Not for DDL: psycopg notes in a pipeline that DROP makes its prepared statements invalid, but
    only gives them up with the next one that is executed, and so takes away one just prepared.

    Args:
        cursor: What ``execute`` uses.
        execute: Executes the statement.
        statement: What emits the message.
        parameters: Its parameters.
        committed: Put both into a transaction of their own. What a pipeline holds is one anyway,
            but psycopg does not expect an error from its end, as a deferred constraint gives.
    """
    connection = cursor.connection
    beside = connection.cursor()
    claim(beside)
    try:
        with connection.pipeline():
            if committed:
                beside.execute("BEGIN", prepare=False)
            beside.execute(statement, parameters, prepare=False)
            execute()
            if committed:
                beside.execute("COMMIT", prepare=False)
    except BaseException:
        if committed and not connection.closed:
            beside.execute("ROLLBACK", prepare=False)
        raise
    finally:
        beside.close()
