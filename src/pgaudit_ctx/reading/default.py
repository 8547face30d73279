"""The module-level functions: one configured, synchronous reader for the whole process."""

import datetime as dt
import os
from typing import Any, Final, TypeVar, Unpack, overload

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from pgaudit_ctx.errors import MissingExtra, NotConfigured
from pgaudit_ctx.reading.history import History, HistoryFilters
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.reading.version import Version
from pgaudit_ctx.urls import sqlalchemy_url

M = TypeVar("M")

ENVIRONMENT: Final = "PGAUDIT_CTX_DESTINATION_URL"

_configured: AuditReader | None = None


def configure(
    destination: str | Engine | Connection | Session | sessionmaker[Any],
    *,
    source: str | None = None,
    schema: str | None = None,
    user_key: str = "user",
    reason_key: str = "reason",
) -> None:
    """Say where the module-level functions read.

    Without it they read the database that ``PGAUDIT_CTX_DESTINATION_URL`` names.

    Args:
        destination: A URL, in libpq's or SQLAlchemy's form, or what :class:`AuditReader` takes.
        source: Which source to read; needed only where several hold the table.
        schema: The schema of models that name none, or another than theirs.
        user_key: Which context key says who (``"userId"``, ``"actor.id"``).
        reason_key: Which context key says why.

    Raises:
        UsageError: If the destination is none of these.
    """
    global _configured  # noqa: PLW0603 - the one setting of the process, as logging has its own
    try:
        engine = (
            create_engine(sqlalchemy_url(destination))
            if isinstance(destination, str)
            else destination
        )
    except ImportError as error:
        raise MissingExtra(
            "worker", "Reading from a URL", error.name or "psycopg[binary]"
        ) from None
    _configured = AuditReader(
        engine, source=source, schema=schema, user_key=user_key, reason_key=reason_key
    )


def _reader() -> AuditReader:
    if _configured is None:
        url = os.environ.get(ENVIRONMENT)
        if not url:
            raise NotConfigured(
                "no destination is known to read from. Remedy: call "
                f"pgaudit_ctx.configure(destination=...) once, or set {ENVIRONMENT}"
            )
        configure(url)
    assert _configured is not None  # noqa: S101 - configure() sets it
    return _configured


@overload
def history(model: type[M], key: Any, **filters: Unpack[HistoryFilters]) -> History[M]: ...


@overload
def history(model: str, key: Any, **filters: Unpack[HistoryFilters]) -> History[dict[str, Any]]: ...


def history(model: Any, key: Any, **filters: Unpack[HistoryFilters]) -> History[Any]:
    """Rebuild the versions of one record.

    Args:
        model: A mapped class; or ``"schema.table"``, for versions whose instances are dicts.
        key: As for ``Session.get``: a scalar, a tuple, a dict of attribute names, or an instance.
        **filters: ``since`` (inclusive) and ``until`` (exclusive), aware datetimes compared with
            the commit time; ``user``; ``fields``, attributes of which one must have changed;
            ``limit``, which keeps the newest; ``include_unchanged`` for UPDATEs that changed
            nothing; ``schema``.

    Returns:
        A sequence of versions, oldest first, in commit order; times are aware, in UTC as far as the
        driver gives them so. Empty if the key has no trace.

    Raises:
        NotCaptured: If the table was never captured.
        KeyMismatch: If the key does not fit the model.
        SourceAmbiguous: If several sources hold the table and none was named.
        NaiveDatetime: If a time has no zone.
    """
    return _reader().history(model, key, **filters)


@overload
def as_of(
    model: type[M], key: Any, when: dt.datetime, *, schema: str | None = None
) -> Version[M] | None: ...


@overload
def as_of(
    model: str, key: Any, when: dt.datetime, *, schema: str | None = None
) -> Version[dict[str, Any]] | None: ...


def as_of(
    model: Any, key: Any, when: dt.datetime, *, schema: str | None = None
) -> Version[Any] | None:
    """Give the version of a record that was valid at a moment.

    Args:
        model: A mapped class, or ``"schema.table"``.
        key: As for ``Session.get``.
        when: An aware datetime.
        schema: Another schema than the model's.

    Returns:
        The last version in commit order that was committed at or before ``when``; ``None`` if the
        record is known not to have existed then.

    Raises:
        HistoryUnknown: If the trail cannot know: no trace, before the trail began, after a gap.
        NotCaptured: If the table was never captured.
        KeyMismatch: If the key does not fit the model.
        NaiveDatetime: If ``when`` has no time zone.
    """
    return _reader().as_of(model, key, when, schema=schema)
