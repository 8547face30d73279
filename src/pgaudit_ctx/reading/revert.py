"""``revert``: bring a record back to a version, through the ORM, as one more change."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, inspect, null
from sqlalchemy import types as sqltypes
from sqlalchemy.orm import ColumnProperty, Mapper, Session

from pgaudit_ctx.change import MARKER, UNAVAILABLE
from pgaudit_ctx.errors import HistoryUnknown, UsageError
from pgaudit_ctx.reading.shape import Field, field_name
from pgaudit_ctx.reading.typed import base_type
from pgaudit_ctx.reading.version import Version

M = TypeVar("M")


def revert(session: Session, version: Version[M], fields: Sequence[Field] | None = None) -> M:
    """Bring a record back to what a version says, inside the caller's session and transaction.

    It writes through the ORM, so it is a change like any other: with the context in force, the
    model's events and its optimistic version column; history is added to and never rewritten. Key,
    version column and computed columns are left as they are. A record that is gone is inserted
    again; for that the version of its DELETE does as well as any before it.

    Args:
        session: A session on the source; for an ``AsyncSession`` see Raises.
        version: Of a mapped class.
        fields: Only these attributes, by name or as ``Patient.name``; ``None`` for all.

    Returns:
        The object in the session, changed but not flushed.

    Raises:
        HistoryUnknown: If the log did not carry one of the values, or the version has no row.
        UsageError: If the version is of a bare table, ``fields`` are given for a record that is
            gone, or the session is asynchronous
            (``await session.run_sync(lambda s: revert(s, version))``).
    """
    if not isinstance(session, Session):
        raise UsageError(
            "revert() needs a Session. For an AsyncSession: "
            "await session.run_sync(lambda s: revert(s, version))"
        )
    wanted = version.instance()
    if isinstance(wanted, dict):
        raise UsageError("revert() writes through the ORM, so it needs a version of a mapped class")
    mapper: Mapper[Any] = inspect(type(wanted))
    values = _values(mapper, version, fields)
    key = mapper.primary_key_from_instance(wanted)
    found: M | None = session.get(mapper, tuple(key))
    if found is None:
        if fields is not None:
            raise UsageError(
                "the record is gone, so single fields cannot be reverted. Remedy: leave fields out"
            )
        found = mapper.class_manager.new_instance()
        names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        values = {**dict(zip(names, key, strict=True)), **values}
        for name, value in values.items():
            setattr(found, name, value)
        session.add(found)
        return found
    for name, value in values.items():
        if getattr(found, name) != value or value is None:
            setattr(found, name, value)
    return found


def _values(
    mapper: Mapper[Any], version: Version[Any], fields: Sequence[Field] | None
) -> dict[str, Any]:
    kept = version.as_dict()
    chosen = None if fields is None else version.fields(fields)
    values: dict[str, Any] = {}
    for prop in mapper.column_attrs:
        if prop.key not in kept or (chosen is not None and prop.key not in chosen):
            continue
        if not _is_written(mapper, prop):
            continue
        value = kept[prop.key]
        if value is UNAVAILABLE or (isinstance(value, Mapping) and MARKER in value):
            raise HistoryUnknown(
                f"the trail does not hold {field_name(prop.key)} of {version!r}. Remedy: name the "
                "fields to revert, without it"
            )
        values[prop.key] = _null_of(prop, version) if value is None else value
    return values


def _is_written(mapper: Mapper[Any], prop: ColumnProperty[Any]) -> bool:
    column = prop.columns[0]
    return (
        isinstance(column, Column)
        and column.computed is None
        and column is not mapper.version_id_col
        and not any(key in prop.columns for key in mapper.primary_key)
    )


def _null_of(prop: ColumnProperty[Any], version: Version[Any]) -> Any:
    """Tell SQL NULL from JSON null, which a model both shows as ``None``."""
    column = prop.columns[0]
    if not isinstance(base_type(column.type), sqltypes.JSON):
        return None
    return null() if version.is_sql_null(prop.key) else sqltypes.JSON.NULL
