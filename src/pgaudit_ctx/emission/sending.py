"""How a message reaches the server: with BEGIN, with the write, or in a trip of its own."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pgaudit_ctx.emission.own_statements import EMIT, prepared, run
from pgaudit_ctx.emission.transactions import DriverConnection

if TYPE_CHECKING:
    from types import ModuleType

Execute: TypeAlias = Callable[[], None]
"""Hands the statement that is being executed to the driver."""


class Many(NamedTuple):
    """A statement that is executed with many sets of parameters.

    Attributes:
        execute: Hands it to the driver with some of them.
        parameters: All of them.
    """

    execute: Callable[[Sequence[Any]], None]
    parameters: Sequence[Any]


def send(driver: DriverConnection, content: str, *, is_open: bool) -> None:
    """Send a message ahead of whatever comes next in the transaction, which is begun if need be.

    Args:
        driver: A connection outside of AUTOCOMMIT mode.
        content: The message's text.
        is_open: Whether a transaction is open.

    Raises:
        Exception: The driver's own, if the server refuses.
    """
    if driver.dialect.driver == "psycopg" and not is_open and not driver.in_pipeline():
        _psycopg().begin_with(driver.adapted, driver.own, content)
    else:
        send_apart(driver, content)


def send_apart(driver: DriverConnection, content: str) -> None:
    """Send a message in a trip of its own."""
    statement, parameters = prepared(driver.dialect, EMIT, content)
    run(driver.adapted, statement, parameters)


def can_send_with(driver: DriverConnection) -> bool:
    """Say whether nobody else wants to execute what the dialect hands to the driver.

    One listener that does keeps the others from being asked: theirs would not be heard, or ours.
    """
    dispatch: Any = driver.dialect.dispatch
    return (
        len(dispatch.do_execute) == 1
        and len(dispatch.do_executemany) == 1
        and len(dispatch.do_execute_no_params) == 1
    )


def can_pipeline(driver: DriverConnection) -> bool:
    """Say whether a message can travel in one trip with a statement, in an open transaction."""
    return driver.can_pipeline and can_send_with(driver)


def send_pipelined(driver: DriverConnection, cursor: Any, execute: Execute, content: str) -> None:
    """Send a message and execute a statement, in one trip.

    Args:
        driver: One of which ``can_pipeline`` holds, with a transaction open.
        cursor: What executes a single query or DML statement; a client's cursor.
        execute: Does that.
        content: The message's text.
    """
    statement, parameters = prepared(driver.dialect, EMIT, content)
    _psycopg().execute_pipelined(cursor, execute, statement, parameters)


def send_wrapped(driver: DriverConnection, cursor: Any, execute: Execute, content: str) -> None:
    """Give message and statement a transaction, where AUTOCOMMIT would give each its own.

    Args:
        driver: One of which ``can_send_with`` holds, in AUTOCOMMIT mode without an open
            transaction.
        cursor: What executes a single statement that runs alike inside of a transaction and
            outside.
        execute: Does that.
        content: The message's text.
    """
    statement, parameters = prepared(driver.dialect, EMIT, content)
    if can_pipeline(driver):
        _psycopg().execute_pipelined(cursor, execute, statement, parameters, committed=True)
        return
    run(driver.adapted, "BEGIN")
    try:
        run(driver.adapted, statement, parameters)
        execute()
    except BaseException:
        # Why it failed is what counts, also if the connection is gone.
        with contextlib.suppress(driver.dialect.loaded_dbapi.Error):
            run(driver.adapted, "ROLLBACK")
        raise
    run(driver.adapted, "COMMIT")


def send_portions(
    driver: DriverConnection, cursor: Any, many: Many, size: int, content: str
) -> int:
    """Do the same for many sets of parameters, of which the driver commits so many together.

    What comes before a set that fails stays, as without us.

    Returns:
        How many rows were affected; -1 if the driver does not know.
    """
    affected = []
    for first in range(0, len(many.parameters), size):
        some = many.parameters[first : first + size]
        send_wrapped(driver, cursor, functools.partial(many.execute, some), content)
        affected.append(cursor.rowcount)
    return -1 if -1 in affected else sum(affected)


@functools.cache
def _psycopg() -> "ModuleType":
    # The application need not have psycopg: this is only loaded where it is an engine's driver.
    from pgaudit_ctx.emission import psycopg_driver

    return psycopg_driver
