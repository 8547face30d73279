"""``select_changes``: the changes that answer a question, as a ``Select``; pure."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from pgaudit_ctx.change import MARKER, Operation
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.reading.keywords import refuse_unknown
from pgaudit_ctx.reading.query import aware, has_key, newest_first, not_undone
from pgaudit_ctx.reading.shape import ANY_SCHEMA, Field, Shape, field_name
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.version import ContextKeys

Fields: TypeAlias = Field | Mapping[Any, Mapping[str, Any]]
"""An attribute, or attributes with the values they changed ``from`` and ``to``."""


class ChangeFilters(TypedDict, total=False):
    """The keywords of ``changes`` and ``select_changes``.

    Attributes:
        user: Who, compared as text with the context's ``user_key``.
        reason: Why, compared as text with the context's ``reason_key``.
        context: Any keys of the context, dots leading into objects. Scalars are compared as text,
            objects and arrays by containment; ``None`` finds contexts that do not say, and changes
            without a context.
        operation: One of the five, or several.
        field: An attribute that changed; or ``{"status": {"from": old, "to": new}}`` with one of
            the two or both, in the model's types. Needs a model or a table.
        since: Committed at or after this; aware.
        until: Committed before this; aware.
        transaction: The source's transaction id (xid).
        source: Of this source only.
        schema: Another schema than the model's.
        without_context: Only what nobody has explained.
        include_undone: Also what a failover has undone.
        older_than: A position (epoch, commit_lsn, ordinal); only what stands before it. With that
            of the last change of one page it gives the next, whatever is captured meanwhile.
    """

    user: Any
    reason: Any
    context: Mapping[str, Any] | None
    operation: str | Sequence[str] | None
    field: Fields | None
    since: dt.datetime | None
    until: dt.datetime | None
    transaction: int | None
    source: str | None
    schema: str | None
    without_context: bool
    include_undone: bool
    older_than: tuple[int, str, int] | None


def changes_of(
    shape: Shape[Any] | None,
    key: tuple[str, ...] | None,
    context_keys: ContextKeys,
    filters: ChangeFilters,
) -> Select[Change]:
    """Build the select that ``select_changes`` gives.

    Args:
        shape: The tables, or ``None`` for any.
        key: A printed key.
        context_keys: Which context keys say who and why.
        filters: All others.

    Raises:
        UsageError: If there is no such filter.
    """
    refuse_unknown("changes", filters, ChangeFilters)
    conditions = [] if shape is None else [_of_tables(shape)]
    if key is not None:
        conditions.append(or_(has_key(Change.primary_key, key), has_key(Change.previous_key, key)))
    field = filters.get("field")
    if field is not None:
        if shape is None:
            raise UsageError("field= belongs to a model: pass it, or the name of a table, first")
        conditions.append(_field_condition(shape, field))
    said = {context_keys.user: filters.get("user"), context_keys.reason: filters.get("reason")}
    conditions += [says(path, value) for path, value in said.items() if value is not None]
    conditions += [says(path, value) for path, value in (filters.get("context") or {}).items()]
    conditions += _plain_conditions(filters)
    return select(Change).where(*conditions).order_by(*newest_first())


def _of_tables(shape: Shape[Any]) -> ColumnElement[bool]:
    if len(shape.tables) > 1:
        return tuple_(Change.schema_name, Change.table_name).in_(list(shape.tables))
    ((schema, table),) = shape.tables
    named = Change.table_name == table
    return named if schema == ANY_SCHEMA else and_(Change.schema_name == schema, named)


def _plain_conditions(filters: ChangeFilters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    operation = filters.get("operation")
    if operation is not None:
        conditions.append(Change.operation.in_(_operations(operation)))
    if filters.get("source") is not None:
        conditions.append(Change.source == filters.get("source"))
    if filters.get("transaction") is not None:
        conditions.append(Change.transaction_id == filters.get("transaction"))
    since, until = filters.get("since"), filters.get("until")
    if since is not None:
        conditions.append(Change.committed_at >= aware(since, "since"))
    if until is not None:
        conditions.append(Change.committed_at < aware(until, "until"))
    if filters.get("without_context", False):
        conditions.append(Change.context.is_(None))
    position = filters.get("older_than")
    if position is not None:
        columns = (Change.epoch, Change.commit_lsn, Change.ordinal)
        values = (
            literal(value, column.type) for value, column in zip(position, columns, strict=True)
        )
        conditions.append(tuple_(*columns) < tuple_(*values))
    if not filters.get("include_undone", False):
        conditions.append(not_undone())
    return conditions


def says(path: str, value: Any) -> ColumnElement[bool]:
    """Compare what a context says under a dotted path; a key that itself has dots counts too.

    The path is part of the statement's text and no parameter, so that an index on it is found.
    """
    places = [Change.context.op("->")(_literal(path))]
    texts = [Change.context.op("->>")(_literal(path))]
    if "." in path:
        steps = cast(_literal(_array_literal(path.split("."))), ARRAY(Text))
        places.append(Change.context.op("#>")(steps))
        texts.append(Change.context.op("#>>")(steps))
    if value is None:
        return and_(*(text.is_(None) for text in texts))
    if isinstance(value, Mapping | list | tuple):
        document = cast(value, JSONB)
        return or_(*(place.op("@>", is_comparison=True)(document) for place in places))
    wanted = json.dumps(value) if isinstance(value, bool) else str(value)
    return or_(*(text == wanted for text in texts))


def _literal(text: str) -> ColumnElement[str]:
    return bindparam(None, text, Text, literal_execute=True)


def _array_literal(items: Sequence[str]) -> str:
    """Write an array as PostgreSQL reads it ("Array Value Input")."""
    quoted = (item.replace("\\", r"\\").replace('"', r"\"") for item in items)
    return "{" + ",".join(f'"{item}"' for item in quoted) + "}"


def _operations(wanted: str | Sequence[str]) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    try:
        return [Operation(name.upper()).value for name in names]
    except ValueError:
        raise UsageError(
            f"operation={wanted!r}: it is one of {', '.join(Operation)}, or a list of them"
        ) from None


def _field_condition(shape: Shape[Any], field: Fields) -> ColumnElement[bool]:
    if not isinstance(field, Mapping):
        return or_(*(_changed(column) for column in shape.columns(field_name(field))))
    conditions = []
    for attribute, sides in field.items():
        name = field_name(attribute)
        if not set(sides) <= {"from", "to"}:
            raise UsageError(
                f"field={{{name!r}: …}} takes an object with 'from', 'to' or both, as in "
                f"{{{name!r}: {{'from': old, 'to': new}}}}"
            )
        columns = shape.columns(name)
        conditions.append(
            or_(*(_changed_between(shape, name, column, sides) for column in columns))
        )
    return and_(*conditions) if conditions else true()


def _changed(column: str) -> ColumnElement[bool]:
    """Whether a change set a column: INSERT and DELETE set all, an UPDATE those in ``before``."""
    image = case(
        (Change.operation == Operation.UPDATE.value, Change.before),
        else_=func.coalesce(Change.after, Change.before),
    )
    found: ColumnElement[bool] = cast(image, JSONB).has_key(literal(column, Text))
    return found


def _changed_between(
    shape: Shape[Any], name: str, column: str, sides: Mapping[str, Any]
) -> ColumnElement[bool]:
    conditions = [_changed(column)]
    for side, image in (("from", Change.before), ("to", Change.after)):
        if side not in sides:
            continue
        stored = image[column]
        value = sides[side]
        if value is None:
            # Either JSON null in the image, or no image at all: it was not there.
            conditions.append(image[column].astext.is_(None))
        elif isinstance(value, Mapping | list | tuple) and shape.is_document(name):
            kept = {MARKER: "value", "value": value} if MARKER in value else value
            conditions.append(stored == cast(kept, JSONB))
        else:
            conditions.append(stored.astext == shape.text(name, value))
    return and_(*conditions)
