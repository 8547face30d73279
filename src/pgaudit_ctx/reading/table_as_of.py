"""``select_as_of``: a whole table as it stood at a moment, as a ``Select``; pure."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from sqlalchemy import (
    Column,
    ColumnElement,
    Enum,
    Select,
    String,
    Subquery,
    Text,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    not_,
    null,
    select,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.types import TypeEngine

from pgaudit_ctx.change import MARKER, Operation
from pgaudit_ctx.errors import HistoryUnknown, KeyMismatch
from pgaudit_ctx.reading.extent import Extent, Table
from pgaudit_ctx.reading.mapped import ModelShape
from pgaudit_ctx.reading.query import aware, not_undone, of_tables, still_valid
from pgaudit_ctx.reading.trail import Change, coverage
from pgaudit_ctx.reading.typed import base_type

_changes = Change.__table__.c
_POSITION = ("epoch", "commit_lsn", "ordinal")


class SelectAsOf(Select[Any]):
    """A select of a table as it stood, whose clauses take the model's own attributes.

    The attributes belong to the live table; each clause is turned to the columns of the past one.
    """

    inherit_cache = True
    _past: Mapping[Any, ColumnElement[Any]]

    @classmethod
    def of(cls, past: Subquery, columns: Mapping[Any, str]) -> Self:
        """Select everything of a past table.

        Args:
            past: The table.
            columns: For each column of the live tables, the past one's name.
        """
        made = cls(*past.c)
        made._past = {live: past.c[name] for live, name in columns.items()}
        return made

    def where(self, *whereclause: Any) -> Self:
        """Narrow it, by attributes of the model."""
        return super().where(*map(self._turned, whereclause))

    def order_by(self, *clauses: Any) -> Self:
        """Order it, by attributes of the model."""
        return super().order_by(*map(self._turned, clauses))

    def group_by(self, *clauses: Any) -> Self:
        """Group it, by attributes of the model."""
        return super().group_by(*map(self._turned, clauses))

    def having(self, *having: Any) -> Self:
        """Narrow its groups, by attributes of the model."""
        return super().having(*map(self._turned, having))

    def join(
        self, target: Any, onclause: Any = None, *, isouter: bool = False, full: bool = False
    ) -> Self:
        """Join something, on attributes of the model."""
        turned = None if onclause is None else self._turned(onclause)
        return super().join(target, turned, isouter=isouter, full=full)

    def outerjoin(self, target: Any, onclause: Any = None, *, full: bool = False) -> Self:
        """Join something, on attributes of the model, and keep rows that have no match."""
        return self.join(target, onclause, isouter=True, full=full)

    def with_only_columns(self, *entities: Any, **options: Any) -> "Select[Any]":
        """Select something else of it, by attributes of the model."""
        return super().with_only_columns(*map(self._turned, entities), **options)

    def add_columns(self, *entities: Any) -> "Select[Any]":
        """Select something more, by attributes of the model."""
        return super().add_columns(*map(self._turned, entities))

    def _turned(self, clause: Any) -> Any:
        element = clause.__clause_element__() if hasattr(clause, "__clause_element__") else clause
        if not isinstance(element, visitors.Visitable):
            return clause

        def to_past(part: Any, **_: Any) -> Any:
            return self._past.get(part) if isinstance(part, Column) else None

        turned: Any = _replaced(element, {}, to_past)
        return visitors.cloned_traverse(turned, {}, {"bindparam": _without_native_enum})


# Its annotations leave out most of what can be traversed.
_replaced: Callable[..., Any] = visitors.replacement_traverse


def _without_native_enum(parameter: BindParameter[Any]) -> None:
    """Compare an Enum as text: its type exists in the source, and maybe not in the destination."""
    if isinstance(parameter.type, Enum):
        parameter.type = _as_text(parameter.type)


def _as_text(type_: Enum) -> Enum:
    adapt: Any = type_.adapt
    made: Enum = adapt(Enum, native_enum=False, create_constraint=False)
    return made


def select_table(
    shape: ModelShape[Any],
    when: dt.datetime,
    *,
    source: str | None = None,
    extent: Extent | None = None,
) -> SelectAsOf:
    """Build what ``select_as_of`` gives.

    Args:
        shape: Of the model.
        when: An aware datetime.
        source: The source; without one the server refuses if several hold the table.
        extent: What is known of the tables, if somebody asked.
    """
    aware(when, "when")
    own = shape.own_tables()
    states = [_state(table, when, source, extent) for table in own]
    first = states[0]
    joined: Any = first
    for state in states[1:]:
        joined = joined.join(state, state.c.key == first.c.key)
    images = {table: state.c.after for table, state in zip(own, states, strict=True)}
    columns: dict[Any, str] = {}
    shown: dict[str, ColumnElement[Any]] = {}
    for live, table, attribute, names in shape.live_columns():
        columns[live] = attribute
        if attribute not in shown:
            shown[attribute] = _value(images[table], names, live.type).label(attribute)
    statement = select(*shown.values()).select_from(joined)
    narrowed = shape.one_of_several()
    if narrowed is not None:
        (column, table, _, names), values = narrowed
        statement = statement.where(_value(images[table], names, column.type).in_(values))
    return SelectAsOf.of(statement.subquery(f"{own[0][1]}_as_of"), columns)


def check_whole_table(
    shape: ModelShape[Any], extent: Extent, when: dt.datetime, *, despite_gaps: bool
) -> None:
    """Refuse a moment at which the trail cannot know a whole table.

    Raises:
        HistoryUnknown: Before capture began; and after a gap, unless ``despite_gaps``.
        KeyMismatch: If the table has no primary key.
    """
    if not extent.key_columns[shape.tables[0]]:
        raise KeyMismatch(
            f"the table of {shape.label} has no primary key, so its rows cannot be told apart over "
            "time. Remedy: give it one, and run pgaudit-ctx setup"
        )
    if when < extent.began_at:
        raise HistoryUnknown(
            f"the trail knows the table of {shape.label} from "
            f"{extent.began_at:%Y-%m-%d %H:%M:%S%z} on"
        )
    if extent.pruned_before and not any(one.time <= when for one in extent.baselines):
        raise HistoryUnknown(
            f"rows of {shape.label} that have not changed since are in no partition any more "
            f"({extent.beginning}). Remedy: pgaudit-ctx snapshot stores them anew"
        )
    gap = next((gap for gap in extent.gaps if gap.from_time <= when), None)
    if gap is not None and not despite_gaps:
        raise HistoryUnknown(
            f"from {gap.from_time:%Y-%m-%d %H:%M:%S%z} on changes are missing ({gap.cause}), and "
            "each row is unknown until its next change. Remedy: despite_gaps=True gives what was "
            "last known of each"
        )


def _state(table: Table, when: dt.datetime, source: str | None, extent: Extent | None) -> Subquery:
    """Select key and image of each record of one table that was there."""
    schema, name = table
    if extent is not None:
        belongs = [_changes.source == extent.source, of_tables(extent, [table])]
        belongs += still_valid(extent)
    else:
        belongs = [_changes.schema_name == schema, _changes.table_name == name, not_undone()]
        sources = (
            select(coverage.c.source)
            .where(coverage.c.schema_name == schema, coverage.c.table_name == name)
            .distinct()
            .scalar_subquery()
        )
        belongs.append(_changes.source == (sources if source is None else source))
    belongs.append(_changes.committed_at <= when)
    position = [_changes[part] for part in _POSITION]
    stays = select(_changes.primary_key.label("key"), _changes.operation, _changes.after, *position)
    leaves = select(
        _changes.previous_key,
        literal_column("'DELETE'", Text),
        cast(null(), JSONB),
        *position,
    )
    truncate: ColumnElement[str] = literal_column(f"'{Operation.TRUNCATE}'")
    told = union_all(
        stays.where(*belongs, _changes.operation != truncate, _changes.primary_key.is_not(None)),
        leaves.where(*belongs, _changes.previous_key.is_not(None)),
    ).subquery()
    newest = [told.c[part].desc() for part in _POSITION]
    last = _distinct_on(select(told), told.c.key).order_by(told.c.key, *newest).subquery()
    emptied = select(*position).where(*belongs, _changes.operation == truncate).subquery("emptied")
    later = exists().where(
        tuple_(*(emptied.c[part] for part in _POSITION))
        > tuple_(*(last.c[part] for part in _POSITION))
    )
    return (
        select(last.c.key, last.c.after)
        .where(last.c.operation != literal_column("'DELETE'"), not_(later))
        .subquery(f"{name}_images")
    )


def _distinct_on(statement: Select[Any], column: ColumnElement[Any]) -> Select[Any]:
    """Keep the first row of each key; SQLAlchemy 2.1 has another name for it than 2.0."""
    distinct_on = getattr(postgresql, "distinct_on", None)
    return statement.distinct(column) if distinct_on is None else statement.ext(distinct_on(column))


def _value(
    image: ColumnElement[Any], names: Sequence[str], type_: TypeEngine[Any]
) -> ColumnElement[Any]:
    """Take a column out of an image, as a value of its type."""
    base = base_type(type_)
    if isinstance(base, sqltypes.JSON):
        stored = _first([image.op("->")(literal(name, Text)) for name in names], JSONB())
        unmarked = case(
            (stored.op("->>")(literal(MARKER, Text)) == "value", stored.op("->")("value")),
            else_=func.nullif(stored, cast(literal("null", Text), JSONB)),
        )
        return type_coerce(unmarked, type_)
    text = _first([image.op("->>")(literal(name, Text)) for name in names], Text())
    if isinstance(base, Enum):
        return type_coerce(text, _as_text(type_) if isinstance(type_, Enum) else type_)
    if isinstance(base, String):
        return type_coerce(text, type_)
    return type_coerce(cast(text, base), type_)


def _first(found: Sequence[ColumnElement[Any]], type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Take what is stored under the first of several names."""
    return type_coerce(found[0] if len(found) == 1 else func.coalesce(*found), type_)
