"""What is known of a connection's transaction without asking the server, driver by driver.

PostgreSQL documentation: "Asynchronous Operations" in the protocol chapter lists the parameters
that the server reports by itself, ``in_hot_standby`` and ``default_transaction_read_only`` among
them from version 14 on.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection

from pgaudit_ctx.emission.own_statements import run

_Report: TypeAlias = Callable[[Any, str], str | None]
_IDLE: Final = 0

ASK_READ_ONLY: Final = "SHOW transaction_read_only"


def driver_connection(connection: Connection) -> Any:
    """Give the driver's own connection, also of one that was detached from its pool."""
    raw = connection.connection.dbapi_connection
    return None if raw is None else connection.dialect.get_driver_connection(raw)


def is_autocommit(connection: Connection) -> bool:
    """Say whether the driver ends a transaction after each statement."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


def is_open(connection: Connection) -> bool:
    """Say whether a transaction is open on the server, however it was begun."""
    driver = connection.dialect.driver
    raw: Any = connection.connection.dbapi_connection
    if driver == "psycopg":
        # Through pgconn and not info, which is an object made anew each time.
        return bool(driver_connection(connection).pgconn.transaction_status != _IDLE)
    if driver == "psycopg2":
        return bool(raw.get_transaction_status() != _IDLE)
    if driver == "asyncpg":
        return bool(driver_connection(connection).is_in_transaction())
    # pg8000 and drivers that nobody has looked at: outside AUTOCOMMIT a transaction is begun.
    return bool(getattr(raw, "_in_transaction", not is_autocommit(connection)))


def is_read_only(connection: Connection, said: bool | None) -> bool:  # noqa: FBT001 - a value, no switch
    """Say whether nothing can be written.

    What the server reports by itself reaches a driver only with the next answer, so a connection
    that was idle while its standby was promoted still has the old report. One that says that
    nothing can be written is therefore confirmed with a question, which takes no snapshot.

    Args:
        connection: An open connection.
        said: What the transaction's own statements said of it, if they did.

    Returns:
        Whether the server is a standby, or the transaction is READ ONLY.
    """
    raw: Any = connection.connection.dbapi_connection
    driver = connection.dialect.driver
    report = _REPORTS.get(driver, _nothing)
    asked = getattr(raw, "read_only", getattr(raw, "readonly", None))
    if not isinstance(asked, bool) or (driver == "asyncpg" and not asked):
        asked = None  # the dialect's False for asyncpg only means that nobody asked
    known = known_read_only(lambda name: report(connection, name), said, asked)
    return run(connection, ASK_READ_ONLY)[0][0] == "on" if known is None else known


def known_read_only(
    report: Callable[[str], str | None],
    said: bool | None,  # noqa: FBT001 - a value, no switch
    asked: bool | None,  # noqa: FBT001 - likewise
) -> bool | None:
    """Say the same from what is known, whatever drives the connection.

    Args:
        report: Gives what the server last reported of a parameter.
        said: What the transaction's own statements said of it, if they did.
        asked: What the driver begins its transactions with, if anything.

    Returns:
        Whether nothing can be written; ``None`` if ``ASK_READ_ONLY`` has to be asked.
    """
    if report("in_hot_standby") == "on":
        return None
    if said is None:
        said = asked
    if said is not None:
        return said
    return None if report("default_transaction_read_only") == "on" else False


def _nothing(_connection: Connection, _name: str) -> str | None:
    return None


def _psycopg(connection: Connection, name: str) -> str | None:
    value: bytes | None = driver_connection(connection).pgconn.parameter_status(name.encode())
    return None if value is None else value.decode()


def _psycopg2(connection: Connection, name: str) -> str | None:
    raw: Any = connection.connection.dbapi_connection
    value = raw.get_parameter_status(name)
    return None if value is None else str(value)


def _asyncpg(connection: Connection, name: str) -> str | None:
    value = getattr(driver_connection(connection).get_settings(), name, None)
    return None if value is None else str(value)


def _pg8000(connection: Connection, name: str) -> str | None:
    raw: Any = connection.connection.dbapi_connection
    value = raw.parameter_statuses.get(name)
    return None if value is None else str(value)


_REPORTS: Final[dict[str, _Report]] = {
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "asyncpg": _asyncpg,
    "pg8000": _pg8000,
}
