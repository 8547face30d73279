"""What is known of a connection's transaction without asking the server, driver by driver.

PostgreSQL documentation: "Asynchronous Operations" in the protocol chapter lists the parameters
that the server reports by itself, ``in_hot_standby`` and ``default_transaction_read_only`` among
them from version 14 on.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sqlalchemy.engine.interfaces import Dialect

from pgaudit_ctx.emission.own_statements import run

_Reported: TypeAlias = tuple[bool, bool]
"""Whether ``in_hot_standby`` and ``default_transaction_read_only`` were last reported as on."""

# libpq's numbers: PQTRANS_IDLE, PQTRANS_INERROR, PQ_PIPELINE_OFF.
_IDLE: Final = 0
_FAILED: Final = 3
# psycopg2's STATUS_BEGIN: it has begun a transaction, and begins no other before it has ended it.
_BEGUN: Final = 2
_NO_PIPELINE: Final = 0

ASK_READ_ONLY: Final = "SHOW transaction_read_only"


class DriverConnection:
    """A connection of pg8000, or of a driver that nobody has looked at.

    Args:
        dialect: SQLAlchemy's, of the engine that made it.
        adapted: The connection as SQLAlchemy drives it.

    Attributes:
        own: The driver's own connection, which is the same unless it is asynchronous.
        can_pipeline: Whether several statements can be sent in one trip.
    """

    __slots__ = ("adapted", "can_pipeline", "dialect", "own")

    def __init__(self, dialect: Dialect, adapted: Any) -> None:
        self.dialect = dialect
        self.adapted = adapted
        self.own: Any = dialect.get_driver_connection(adapted)
        self.can_pipeline = False

    def is_autocommit(self) -> bool:
        """Say whether a transaction ends after each statement, unless one is open."""
        return bool(getattr(self.adapted, "autocommit", False))

    def is_open(self) -> bool:
        """Say whether a transaction is open on the server, however it was begun."""
        # Outside AUTOCOMMIT a transaction is begun.
        return bool(getattr(self.adapted, "_in_transaction", not self.is_autocommit()))

    def has_failed(self) -> bool:
        """Say whether the transaction has failed, so that the server takes nothing but its end."""
        return False

    def in_pipeline(self) -> bool:
        """Say whether the application has put the connection into a pipeline."""
        return False

    def commits_many_in(self) -> int | None:
        """Say how many sets of parameters an executemany commits together in AUTOCOMMIT mode.

        Returns:
            ``None`` if all, which succeed or fail together.
        """
        return 1

    def is_read_only(self, said: bool | None) -> bool:  # noqa: FBT001 - a value, no switch
        """Say whether nothing can be written.

        What the server reports by itself reaches a driver only with the next answer, so a
        connection that was idle while its standby was promoted still has the old report. One that
        says that nothing can be written is therefore confirmed with a question, which takes no
        snapshot.

        Args:
            said: What the transaction's own statements said of it, if they did.

        Returns:
            Whether the server is a standby, or the transaction is READ ONLY.
        """
        known = known_read_only(self.reported(), said, self.asked())
        return run(self.adapted, ASK_READ_ONLY)[0][0] == "on" if known is None else known

    def reported(self) -> _Reported:
        """Give what the server last reported by itself."""
        statuses: Any = getattr(self.adapted, "parameter_statuses", {})
        return _are_on(statuses.get)

    def asked(self) -> bool | None:
        """Give what the driver begins its transactions with: READ ONLY, READ WRITE, or neither."""
        asked = getattr(self.adapted, "read_only", getattr(self.adapted, "readonly", None))
        return asked if isinstance(asked, bool) else None


class _Psycopg(DriverConnection):
    __slots__ = ("_libpq_pipelines",)

    def __init__(self, dialect: Dialect, adapted: Any) -> None:
        super().__init__(dialect, adapted)
        # libpq can from version 14 on.
        self._libpq_pipelines: bool = dialect.loaded_dbapi.Pipeline.is_supported()
        self.can_pipeline = self._libpq_pipelines and not dialect.is_async

    def commits_many_in(self) -> int | None:
        return None if self._libpq_pipelines else 1

    def is_open(self) -> bool:
        # Through pgconn and not info, which is an object made anew each time.
        return bool(self.own.pgconn.transaction_status != _IDLE)

    def has_failed(self) -> bool:
        return bool(self.own.pgconn.transaction_status == _FAILED)

    def in_pipeline(self) -> bool:
        return bool(self.own.pgconn.pipeline_status != _NO_PIPELINE)

    def reported(self) -> _Reported:
        return reported_by_psycopg(self.own)

    def asked(self) -> bool | None:
        asked: bool | None = self.own.read_only
        return asked


class _Psycopg2(DriverConnection):
    __slots__ = ()

    def commits_many_in(self) -> int | None:
        dialect: Any = self.dialect
        if dialect.executemany_mode.name != "EXECUTEMANY_VALUES_PLUS_BATCH":
            return 1
        return dialect.executemany_batch_page_size or 100  # which is psycopg2's own default

    def is_autocommit(self) -> bool:
        # Or in effect: after COMMIT sent as text psycopg2 does not begin another transaction.
        return super().is_autocommit() or (self.own.status == _BEGUN and not self.is_open())

    def is_open(self) -> bool:
        return bool(self.own.get_transaction_status() != _IDLE)

    def has_failed(self) -> bool:
        return bool(self.own.get_transaction_status() == _FAILED)

    def reported(self) -> _Reported:
        return _are_on(self.own.get_parameter_status)


class _Asyncpg(DriverConnection):
    __slots__ = ()

    def commits_many_in(self) -> int | None:
        return None

    def is_autocommit(self) -> bool:
        # Or in effect: after COMMIT sent as text SQLAlchemy does not begin another transaction.
        begun = getattr(self.adapted, "_transaction", None) is not None
        return super().is_autocommit() or (begun and not self.is_open())

    def is_open(self) -> bool:
        return bool(self.own.is_in_transaction())

    def reported(self) -> _Reported:
        settings = self.own.get_settings()
        return _are_on(lambda name: getattr(settings, name, None))

    def asked(self) -> bool | None:
        # The dialect's False only means that nobody asked.
        return super().asked() or None


_DRIVERS: Final[dict[str, type[DriverConnection]]] = {
    "psycopg": _Psycopg,
    "psycopg2": _Psycopg2,
    "asyncpg": _Asyncpg,
}


def driver_connection(dialect: Dialect, adapted: Any) -> DriverConnection:
    """Give what is known of a connection, also of one that was detached from its pool.

    Args:
        dialect: SQLAlchemy's, of the engine that made it.
        adapted: The connection as SQLAlchemy drives it.
    """
    return _DRIVERS.get(dialect.driver, DriverConnection)(dialect, adapted)


def known_read_only(
    reported: _Reported,
    said: bool | None,  # noqa: FBT001 - a value, no switch
    asked: bool | None,  # noqa: FBT001 - likewise
) -> bool | None:
    """Say from what is known whether nothing can be written.

    Args:
        reported: Whether the server reported itself as a standby, and read only by default.
        said: What the transaction's own statements said of it, if they did.
        asked: What the driver begins its transactions with, if anything.

    Returns:
        ``None`` if ``ASK_READ_ONLY`` has to be asked.
    """
    standby, read_only_by_default = reported
    if standby:
        return None
    if said is None:
        said = asked
    if said is not None:
        return said
    return None if read_only_by_default else False


def reported_by_psycopg(own: Any) -> _Reported:
    """Give what the server last reported to a connection of psycopg's own."""
    status = own.pgconn.parameter_status
    return status(b"in_hot_standby") == b"on", status(b"default_transaction_read_only") == b"on"


def _are_on(report: Callable[[str], str | None]) -> _Reported:
    return report("in_hot_standby") == "on", report("default_transaction_read_only") == "on"
