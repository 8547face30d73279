"""The module-level functions: one configured, synchronous reader for the whole process."""

import datetime as dt
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar, Unpack, overload

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, Select, create_engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from pgaudit_ctx.errors import MissingExtra, NotConfigured, UsageError
from pgaudit_ctx.reading.changes import ChangeFilters, changes_of
from pgaudit_ctx.reading.history import History, HistoryFilters
from pgaudit_ctx.reading.mapped import mapped_shape, shape_of
from pgaudit_ctx.reading.merged_timeline import Timeline
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.reading.shape import Field, Renamed
from pgaudit_ctx.reading.table_as_of import select_table
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.version import ContextKeys, Version
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
    context_model: type[BaseModel] | None = None,
    statement_timeout: float | None = 60.0,
) -> None:
    """Say where the module-level functions read.

    Without it they read the database that ``PGAUDIT_CTX_DESTINATION_URL`` names.

    Args:
        destination: A URL, in libpq's or SQLAlchemy's form, or what :class:`AuditReader` takes.
        source: Which source to read; needed only where several hold the table.
        schema: The schema of models that name none, or another than theirs.
        user_key: Which context key says who (``"userId"``, ``"actor.id"``).
        reason_key: Which context key says why.
        context_model: A pydantic model that ``Version.context`` is an instance of, where it fits.
        statement_timeout: Seconds after which the server gives a statement up; ``None`` leaves it
            to the server's own setting.

    Raises:
        UsageError: If the destination is none of these, or its URL cannot be read.
        MissingExtra: If the driver that the URL needs is not installed.
    """
    global _configured  # noqa: PLW0603 - the one setting of the process, as logging has its own
    engine = _engine_of(destination) if isinstance(destination, str) else destination
    _configured = AuditReader(
        engine,
        source=source,
        schema=schema,
        user_key=user_key,
        reason_key=reason_key,
        context_model=context_model,
        statement_timeout=statement_timeout,
    )


def _engine_of(url: str) -> Engine:
    try:
        return create_engine(sqlalchemy_url(url))
    except ImportError as error:
        raise MissingExtra(
            "worker", "Reading from a URL", error.name or "psycopg[binary]"
        ) from None
    except (ArgumentError, ValueError):
        raise UsageError(
            "the destination's URL cannot be read: it must look like "
            "postgresql://user:password@host:5432/database, with a number for its port"
        ) from None


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


@overload
def history(
    model: type[M], key: Any, *, include: Sequence[Field], **filters: Unpack[HistoryFilters]
) -> Timeline[M]: ...


def history(
    model: Any,
    key: Any,
    *,
    include: Sequence[Field] | None = None,
    **filters: Unpack[HistoryFilters],
) -> History[Any] | Timeline[Any]:
    """Rebuild the versions of one record.

    Args:
        model: A mapped class; or ``"schema.table"``, for versions whose instances are dicts.
        key: As for ``Session.get``: a scalar, a tuple, a dict of attribute names, or an instance.
        include: Relationships, by name or as ``Patient.visits``: the versions of related records
            are merged in, and ``version.related()`` needs no query for them any more. It takes
            three or four queries for each relationship.
        **filters: ``since`` (inclusive) and ``until`` (exclusive), aware datetimes compared with
            the commit time; ``user``; ``fields``, attributes of which one must have changed;
            ``limit``, which keeps the newest; ``include_unchanged`` for UPDATEs that changed
            nothing; ``include_undone`` for what a failover has undone; ``schema``; ``renamed``.

    Returns:
        A sequence of versions, oldest first, in commit order; times are aware, in UTC as far as the
        driver gives them so. Empty if the key has no trace. With ``include`` a ``Timeline``, whose
        ``history`` are the record's own versions.

    Raises:
        NotCaptured: If the table was never captured.
        ConnectionFailed: If the destination cannot be reached.
        KeyMismatch: If the key does not fit the model.
        SourceAmbiguous: If several sources hold the table and none was named.
        NaiveDatetime: If a time has no zone.
        Unsupported: If an included relationship compares more than columns that are equal.
    """
    if include is not None:
        timeline: Timeline[Any] = _reader().history(model, key, include=include, **filters)
        return timeline
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
        ConnectionFailed: If the destination cannot be reached.
        KeyMismatch: If the key does not fit the model.
        NaiveDatetime: If ``when`` has no time zone.
    """
    return _reader().as_of(model, key, when, schema=schema)


def select_changes(
    model: Any = None, key: Any = None, **filters: Unpack[ChangeFilters]
) -> Select[Change]:
    """Build a select of changes, newest first, that any session of the destination can run.

    Positions of different sources cannot be compared: where the destination holds several, name
    one, or order by ``Change.committed_at``.

    Args:
        model: A mapped class, a ``Table``, ``"schema.table"``, or ``"*.table"``; a model of several
            tables stands for all of them. ``None`` for any table.
        key: As for ``Session.get``; a composite one of a table without model as a tuple in the
            order of its primary key.
        **filters: See :class:`pgaudit_ctx.reading.changes.ChangeFilters`; ``user`` and ``reason``
            by the keys that :func:`configure` was told, ``source`` and ``schema`` likewise.

    Returns:
        A ``Select`` of :class:`Change`, to be narrowed further with ``where()`` and ``limit()``.

    Raises:
        KeyMismatch: If the key does not fit the model.
        NaiveDatetime: If a time has no zone.
        UsageError: If a key or a field is given without a model, or something has no such name.
    """
    given: ChangeFilters = {**filters}
    context_keys = ContextKeys()
    schema = given.get("schema")
    if _configured is not None:
        context_keys = _configured.context_keys
        schema = schema or _configured.schema
        given.setdefault("source", _configured.source)
    if model is None:
        if key is not None:
            raise UsageError("key= belongs to a model: pass it, or the name of a table, first")
        return changes_of(None, None, context_keys, given)
    shape = shape_of(model, schema)
    printed = None if key is None else shape.key(key, shape.key_columns)
    return changes_of(shape, printed, context_keys, given)


def select_as_of(
    model: type[Any],
    when: dt.datetime,
    *,
    source: str | None = None,
    schema: str | None = None,
    renamed: Renamed | None = None,
) -> Select[Any]:
    """Build a select of a whole table as it stood at a moment, for any session of the destination.

    It has one column for each attribute, with the model's types, and gives plain rows: no entities,
    nothing to flush. ``where()``, ``order_by()``, ``join()`` and the like take the model's own
    attributes, ``where(Patient.name == "Ann")``. A row that left no trace by then is not in it, and
    a select cannot say that the trail does not know: ``reader.select_as_of()`` asks first.

    Args:
        model: A mapped class; a polymorphic one gives the attributes it has itself.
        when: An aware datetime.
        source: Which source; needed only where several hold the table (the server then refuses).
        schema: Another schema than the model's.
        renamed: Columns that had another name before: old column → attribute.

    Returns:
        A ``Select`` of the rows whose last change by then, in commit order, left them there.

    Raises:
        NaiveDatetime: If ``when`` has no time zone.
        UsageError: If the model is no mapped class.
        Unsupported: If this version cannot rebuild the mapping.
    """
    if _configured is not None:
        source = source or _configured.source
        schema = schema or _configured.schema
    return select_table(mapped_shape(model, schema, renamed), when, source=source)


@overload
def blame(
    model: type[M], key: Any, *, schema: str | None = None, renamed: Renamed | None = None
) -> Mapping[str, Version[M]]: ...


@overload
def blame(
    model: str, key: Any, *, schema: str | None = None, renamed: Renamed | None = None
) -> Mapping[str, Version[dict[str, Any]]]: ...


def blame(
    model: Any, key: Any, *, schema: str | None = None, renamed: Renamed | None = None
) -> Mapping[str, Version[Any]]:
    """Find which version set each attribute of a record last.

    Args:
        model: A mapped class, a ``Table``, or ``"schema.table"``.
        key: As for ``Session.get``.
        schema: Another schema than the model's.
        renamed: Columns that had another name before: old column → attribute.

    Returns:
        Attribute → version, the key included, in the model's order. For a record that is gone, as
        it was before. Attributes that were set before the trail's first trace are left out.

    Raises:
        NotCaptured: If the table was never captured.
        ConnectionFailed: If the destination cannot be reached.
        KeyMismatch: If the key does not fit the model.
    """
    return _reader().blame(model, key, schema=schema, renamed=renamed)


@overload
def deleted(
    model: type[M],
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    limit: int | None = None,
    schema: str | None = None,
) -> list[Version[M]]: ...


@overload
def deleted(
    model: str,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    limit: int | None = None,
    schema: str | None = None,
) -> list[Version[dict[str, Any]]]: ...


def deleted(
    model: Any,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    limit: int | None = None,
    schema: str | None = None,
) -> list[Version[Any]]:
    """Find the records of a table that are gone now.

    A record whose key changed is not gone: it has another key. The time bounds are about a
    record's last row change, so one that a TRUNCATE took is found by the change before that.

    Args:
        model: A mapped class, a ``Table``, or ``"schema.table"``.
        since: Last changed at or after this; aware.
        until: Last changed before this; aware.
        limit: The newest so many.
        schema: Another schema than the model's.

    Returns:
        The version that ended each, a DELETE or TRUNCATE; the newest first.

    Raises:
        NotCaptured: If the table was never captured.
        ConnectionFailed: If the destination cannot be reached.
        NaiveDatetime: If a time has no zone.
    """
    return _reader().deleted(model, since=since, until=until, limit=limit, schema=schema)
