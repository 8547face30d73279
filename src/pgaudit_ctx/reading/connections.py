"""The readers' connections: how they are set up, and what it means that they fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import URL, Executable, func, inspect, select
from sqlalchemy.exc import DBAPIError

from pgaudit_ctx.errors import ConnectionFailed, DestinationNotReady
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.unreachable import why_unreachable

_NO_SUCH_TABLE: Final = frozenset({"42P01", "42703", "3F000"})
_NOT_ALLOWED: Final = "42501"

READ_ONLY: Final[dict[str, Any]] = {"postgresql_readonly": True}
"""The options of a connection whose transaction is ours."""
OF_THE_TRAIL: Final[dict[str, Any]] = {"mapper": inspect(Change)}
"""Which of a session's binds is asked for."""


class Plans(StrEnum):
    """How the server is to plan a verb's statements (``plan_cache_mode``).

    What asks for records by their keys is planned once for all keys: to plan it takes the server
    several times as long as to run it, for there are many partitions. Other statements depend on
    their values.
    """

    ANY = "auto"
    ONCE = "force_generic_plan"


@lru_cache(maxsize=64)
def settings_of(milliseconds: int | None, plans: Plans) -> Executable | None:
    """Build the one statement that makes settings for the rest of a transaction.

    Args:
        milliseconds: After which a statement is given up.
        plans: How to plan.
    """
    made = {}
    if milliseconds is not None:
        made["statement_timeout"] = str(milliseconds)
    if plans is not Plans.ANY:
        made["plan_cache_mode"] = str(plans)
    if not made:
        return None
    return select(*(func.set_config(name, value, True) for name, value in made.items()))


@contextmanager
def connecting(url: URL) -> Iterator[None]:
    """Say why no connection can be made, whichever driver it is that cannot make it."""
    try:
        yield
    # asyncpg's own errors, and the system's, come as they are; so does a port past 65535.
    except (DBAPIError, OSError, OverflowError, ValueError) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        raise _unreachable(str(said), url) from None
    except Exception as error:
        if getattr(error, "sqlstate", None) is None:
            raise
        raise _unreachable(str(error), url) from None


def _unreachable(said: str, url: URL) -> ConnectionFailed:
    host = url.host or ", ".join(url.normalized_query.get("host", ()))
    return ConnectionFailed(
        why_unreachable(said, "destination", host=host, database=url.database, user=url.username)
    )


@contextmanager
def explained() -> Iterator[None]:
    """Say what it means that a connection was lost, or the trail's tables may not be read."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated:
            raise ConnectionFailed(
                "the connection to the destination was lost while the trail was read. Remedy: see "
                "that its server runs, and ask again"
            ) from None
        state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
        if state in _NO_SUCH_TABLE:
            raise DestinationNotReady(
                "this database holds no trail: it has no table pgaudit_ctx.changes of this "
                "version. Remedy: check that the destination's URL is meant, or run pgaudit-ctx "
                "setup"
            ) from None
        if state == _NOT_ALLOWED:
            raise DestinationNotReady(
                "this role may not read the trail. Remedy, as its owner: GRANT USAGE ON SCHEMA "
                "pgaudit_ctx, and SELECT ON ALL TABLES IN SCHEMA pgaudit_ctx, to it"
            ) from None
        raise
