"""Connections of the worker's side, and what PostgreSQL's refusals mean in plain words."""

from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from pgaudit_ctx.errors import (
    AuditError,
    ConnectionFailed,
    DatabaseError,
    ServerReadOnly,
    UsageError,
)
from pgaudit_ctx.unreachable import why_unreachable
from pgaudit_ctx.urls import libpq_url

_T = TypeVar("_T")

_VERSION_WITH_TRANSACTION_TIMEOUT: Final = 17_00_00
# A peer that has vanished is noticed within a minute, from either end, whatever the kernel's
# defaults are; libpq's names and the server's.
_NOTICE_LOST_PEER: Final = {
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,
}
# SQLSTATE classes whose messages may quote values.
_QUOTING: Final = frozenset({"22", "23", "44", "P0"})
FIXED_SETTINGS: Final = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "search_path": "pg_catalog",
    # A capture may take long, and may have nothing to do for long.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "40000",
}
"""Session settings under which we work and values are printed, whatever the defaults are."""
# A default of one role or database is not about us. One of the whole server is: managed services
# set it when the disk is nearly full, and whoever goes on writing then brings the server down.
_OWN_DEFAULTS: Final = frozenset({"user", "database", "database user"})
_READ_ONLY: Final = "default_transaction_read_only"


def _nothing() -> None:
    pass


class PatientConnection(psycopg.Connection[tuple[Any, ...]]):
    """Calls ``meanwhile`` several times a second while it waits for its server.

    A server may take minutes to answer, for a lock or for its disk; what must go on is done then.
    """

    meanwhile: Callable[[], None] = staticmethod(_nothing)

    def wait(self, gen: Generator[Any, Any, _T], *args: Any, **options: Any) -> _T:
        """Do what psycopg does, and ``meanwhile`` whenever nothing has come for a while."""
        return super().wait(self._noticing(gen), *args, **options)

    def _noticing(self, gen: Generator[Any, Any, _T]) -> Generator[Any, Any, _T]:
        try:
            awaited = next(gen)
            while True:
                ready = yield awaited
                if not ready:
                    self.meanwhile()
                awaited = gen.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # the generator's own result


def connect(url: str, place: str, **extra: Any) -> PatientConnection:
    """Connect in autocommit mode, with UTF-8 and the fixed settings.

    Args:
        url: In libpq's or SQLAlchemy's form.
        place: ``"source"`` or ``"destination"``, for messages and ``application_name``.
        **extra: Further libpq parameters, such as ``replication="database"``.

    Returns:
        An open connection.

    Raises:
        ConnectionFailed: If no connection can be made; the message says what to do.
        UsageError: If the URL cannot be read.
    """
    conninfo = libpq_url(url)
    try:
        given = {
            name: str(value)
            for name, value in conninfo_to_dict(conninfo).items()
            if value is not None
        }
    except psycopg.ProgrammingError:
        raise UsageError(
            f"the {place}'s URL cannot be read: it must look like "
            "postgresql://user:password@host:5432/database, with special characters of the "
            "password percent-encoded"
        ) from None
    options = [given["options"]] if given.get("options") else []
    options += [f"-c {name}={value}" for name, value in FIXED_SETTINGS.items()]
    parameters = {
        "application_name": f"pgaudit_ctx {place}",
        "connect_timeout": 10,
        **_NOTICE_LOST_PEER,
        **given,
        **extra,
        "client_encoding": "UTF8",
        "options": " ".join(options),
    }
    try:
        connection = PatientConnection.connect(autocommit=True, **parameters)
        if connection.info.server_version >= _VERSION_WITH_TRANSACTION_TIMEOUT:
            connection.execute("SET transaction_timeout = 0")
        # A replication connection takes no parameters, and writes nothing.
        if "replication" not in extra and connection.info.parameter_status(_READ_ONLY) == "on":
            _allow_writing(connection)
    except psycopg.OperationalError as error:
        host, database, user = (given.get(name) for name in ("host", "dbname", "user"))
        raise ConnectionFailed(
            why_unreachable(str(error), place, host=host, database=database, user=user)
        ) from None
    return connection


def _allow_writing(connection: PatientConnection) -> None:
    row = connection.execute(
        "SELECT source FROM pg_settings WHERE name = %s", [_READ_ONLY]
    ).fetchone()
    if row is not None and row[0] in _OWN_DEFAULTS:
        connection.execute(f"SET {_READ_ONLY} = off")


def refusal(error: psycopg.Error, doing: str) -> AuditError:
    """Describe what a server refused, without the row values its message may quote.

    Args:
        error: What psycopg raised.
        doing: What was being done, as in "cannot … :".

    Returns:
        An error to raise, with SQLSTATE and, where there is one, constraint and primary message.
    """
    diag = error.diag
    state = diag.sqlstate
    if state is None:
        return ConnectionFailed(f"cannot {doing}: {' '.join(str(error).split())}")
    if isinstance(error, errors.InsufficientPrivilege):
        return DatabaseError(
            f"cannot {doing}: {diag.message_primary} (SQLSTATE {state}). Remedy: run it as the "
            "owner or as a superuser, or have the missing right granted"
        )
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return ServerReadOnly(
            f"cannot {doing}: {diag.message_primary} (SQLSTATE {state}). The server has become a "
            "standby, or read-only for everybody. Remedy: use the primary's address, or see why "
            f"{_READ_ONLY} is on (managed services set it when the disk is nearly full)"
        )
    if state[:2] in _QUOTING:
        named = f", constraint {diag.constraint_name}" if diag.constraint_name else ""
        return DatabaseError(f"cannot {doing}: SQLSTATE {state}{named}")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn | errors.UndefinedFunction):
        return DatabaseError(
            f"cannot {doing}: {diag.message_primary} (SQLSTATE {state}). Remedy: undo what was "
            "changed by hand; pgaudit-ctx doctor looks for what is missing"
        )
    said = diag.message_primary or " ".join(str(error).split())
    hint = f". Remedy: {diag.message_hint.rstrip('.')}" if diag.message_hint else ""
    return DatabaseError(f"cannot {doing}: {said} (SQLSTATE {state}){hint}")
