"""How a message reaches the server: with BEGIN, together with the write, or in a trip of its own.

What must go together with a statement is left here by ``before_cursor_execute`` and picked up by
the ``do_execute`` events, in which SQLAlchemy hands the statement to the driver.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import Dialect, ExecutionContext

from pgaudit_ctx.emission.emitted import emitted_of
from pgaudit_ctx.emission.own_statements import EMIT, prepared, run
from pgaudit_ctx.emission.transactions import driver_connection, is_open
from pgaudit_ctx.emission.volatility import volatility_of

if TYPE_CHECKING:
    from types import ModuleType

Delivery: TypeAlias = Callable[[Any, Callable[[], None]], None]
"""Takes a cursor and what hands the statement to it; does that together with a message."""

_due: "weakref.WeakKeyDictionary[ExecutionContext, Delivery]" = weakref.WeakKeyDictionary()
_attended: "weakref.WeakSet[Dialect]" = weakref.WeakSet()


def send(connection: Connection, content: str) -> None:
    """Send a message ahead of whatever comes next in the transaction, which is begun if need be.

    Raises:
        Exception: The driver's own, if the server refuses.
    """
    psycopg = _psycopg(connection)
    if psycopg is not None and not is_open(connection):
        raw = connection.connection.dbapi_connection
        psycopg.begin_with(raw, driver_connection(connection), content)
    else:
        send_apart(connection, content)
    emitted_of(connection).text = content


def send_apart(connection: Connection, content: str) -> None:
    """Send a message in a trip of its own."""
    statement, parameters = prepared(connection.dialect, EMIT, content)
    run(connection, statement, parameters)


def send_with(connection: Connection, context: ExecutionContext, content: str) -> None:
    """Send a message together with the statement that is being executed.

    With psycopg in one trip, if a transaction is open, or begun together with it if none is; with
    the other drivers in a trip of its own, at once. It counts as told once it is sent: what is due
    may never be, if another listener refuses the statement.

    Args:
        connection: A connection outside of AUTOCOMMIT mode, or with a transaction open.
        context: Of a single query or DML statement, for a client's cursor.
        content: The message's text.
    """
    psycopg = _psycopg(connection)
    alone = psycopg is None or context.dialect.is_async or not is_open(connection)
    if psycopg is None or alone or not can_send_with(connection):
        send(connection, content)
        return
    statement, parameters = prepared(connection.dialect, EMIT, content)
    pipelined = psycopg.pipelined(statement, parameters)

    def deliver(cursor: Any, execute: Callable[[], None]) -> None:
        emitted_of(connection).text = content
        pipelined(cursor, execute)

    _due[context] = deliver


def can_send_with(connection: Connection) -> bool:
    """Say whether nobody else wants to hand statements to the driver.

    One listener keeps the others from being asked: theirs would not be heard, or ours would not.
    """
    dispatch = connection.dialect.dispatch
    return (
        len(dispatch.do_execute) == 1
        and len(dispatch.do_executemany) == 1
        and len(dispatch.do_execute_no_params) == 1
    )


def send_wrapped(connection: Connection, context: ExecutionContext, content: str) -> None:
    """Give message and statement a transaction, where AUTOCOMMIT would give each its own.

    Args:
        connection: A connection in AUTOCOMMIT mode without an open transaction.
        context: Of a single statement that runs alike inside of a transaction and outside.
        content: The message's text.
    """
    statement, parameters = prepared(connection.dialect, EMIT, content)
    psycopg = _psycopg(connection)
    if psycopg is not None and not context.dialect.is_async:
        _due[context] = psycopg.pipelined(statement, parameters, committed=True)
        return

    def deliver(_cursor: Any, execute: Callable[[], None]) -> None:
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

    _due[context] = deliver


def attend(engine: Engine) -> None:
    """Listen to the events in which an engine's statements are handed to the driver; idempotent."""
    if engine.dialect in _attended:
        return
    _attended.add(engine.dialect)
    event.listen(engine, "do_execute", _do_execute)
    event.listen(engine, "do_executemany", _do_executemany)
    event.listen(engine, "do_execute_no_params", _do_execute_no_params)


def _do_execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _deliver(
        cursor, context, lambda: context.dialect.do_execute(cursor, statement, parameters, context)
    )


def _do_executemany(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    return _deliver(
        cursor,
        context,
        lambda: context.dialect.do_executemany(cursor, statement, parameters, context),
    )


def _do_execute_no_params(cursor: Any, statement: str, context: Any) -> bool:
    return _deliver(
        cursor, context, lambda: context.dialect.do_execute_no_params(cursor, statement, context)
    )


def _deliver(cursor: Any, context: ExecutionContext | None, execute: Callable[[], None]) -> bool:
    """Carry out what is due for a statement; ``True`` tells SQLAlchemy that it has been sent."""
    deliver = _due.pop(context, None) if _due and context is not None else None
    if deliver is None:
        return False
    deliver(cursor, execute)
    return True


def _psycopg(connection: Connection) -> "ModuleType | None":
    if connection.dialect.driver != "psycopg":
        return None
    # The application need not have psycopg: this is only loaded where it is the engine's driver.
    from pgaudit_ctx.emission import psycopg_driver

    return psycopg_driver


def take_over_cursors(engine: Engine, hook: Any) -> list[tuple[str, Callable[..., None]]]:
    """Let the driver's own cursors emit by themselves, where the driver can do that.

    Args:
        engine: The engine whose pool hands out the connections.
        hook: The installation that explains their writes.

    Returns:
        The listeners that were attached to the engine.
    """
    if engine.dialect.driver != "psycopg":
        return []
    volatility = volatility_of(engine.dialect)

    def checkout(_connection: Any, record: Any, _fairy: Any) -> None:
        # The application need not have psycopg: this is only loaded where it is the driver.
        from pgaudit_ctx.emission import driver_cursors

        driver_cursors.take_over(record.driver_connection, hook, record.info, volatility)

    event.listen(engine, "checkout", checkout)
    return [("checkout", checkout)]
