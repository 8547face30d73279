"""A relationship of a mapped class as the trail sees it: the columns that must agree; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, ColumnElement
from sqlalchemy import Table as SQLTable
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, UnaryExpression

from pgaudit_ctx.errors import Unsupported, UsageError
from pgaudit_ctx.reading.extent import Table
from pgaudit_ctx.reading.mapped import ModelShape, shape_of
from pgaudit_ctx.reading.shape import Shape

Values: TypeAlias = tuple[str, ...]
"""What some columns hold, as text."""


@dataclass(frozen=True)
class Columns:
    """Columns of one side of a relationship, compared in this order with those of the other.

    Attributes:
        table: Where they are.
        names: What each is called there, and was called before.
        places: What an image of the record calls each.
    """

    table: Table
    names: Sequence[Sequence[str]]
    places: Sequence[Sequence[str]]

    def values(self, image: Mapping[str, Any] | None) -> Values | None:
        """Take them out of a stored image; ``None`` if one is NULL or not there."""
        if image is None:
            return None
        found = []
        for places in self.places:
            stored = next((image[place] for place in places if place in image), None)
            if stored is None or isinstance(stored, dict | list):
                return None
            found.append("ft"[stored] if isinstance(stored, bool) else str(stored))
        return tuple(found)


@dataclass(frozen=True)
class Association:
    """The table between two others: its columns of this side, and of that."""

    shape: Shape[dict[str, Any]]
    near: Columns
    far: Columns


@dataclass(frozen=True)
class Relationship:
    """Which records belong to a record.

    Attributes:
        name: The attribute.
        target: Describes the related records.
        local: The record's own columns.
        remote: The related records' columns that hold the same values, or those that the
            association's far side holds.
        association: Of a many-to-many relationship.
        order_by: Attributes of the related records, and whether backwards.
    """

    name: str
    target: ModelShape[Any]
    local: Columns
    remote: Columns
    association: Association | None
    order_by: Sequence[tuple[str, bool]] = ()


def relationship_of(shape: Shape[Any], name: str) -> Relationship:
    """Describe a relationship of a model.

    Raises:
        UsageError: If it is none.
        Unsupported: If it compares more than columns that are equal.
    """
    if not isinstance(shape, ModelShape):
        raise UsageError(f"{shape.label} is a bare table, which has no relationships")
    found = _find(shape, name)
    target = shape_of(found.mapper.class_, shape.schema)
    assert isinstance(target, ModelShape)  # noqa: S101 - of a mapped class
    if not isinstance(found.secondary, SQLTable):
        if found.secondary is not None or not _only_equal(found.primaryjoin, found.remote_side):
            raise _unsupported(shape, name)
        pairs: Any = found.local_remote_pairs
        local, remote = zip(*pairs, strict=True)
        return Relationship(
            name, target, _columns(shape, local), _columns(target, remote), None, _order(found)
        )
    sides: Any = found.synchronize_pairs, found.secondary_synchronize_pairs
    if not all(
        _only_equal(join, {column for _, column in pairs})
        for join, pairs in zip((found.primaryjoin, found.secondaryjoin), sides, strict=True)
    ):
        raise _unsupported(shape, name)
    (local, near), (remote, far) = (zip(*pairs, strict=True) for pairs in sides if pairs)
    between = shape_of(found.secondary, shape.schema)
    table = between.tables[0]
    return Relationship(
        name,
        target,
        _columns(shape, local),
        _columns(target, remote),
        Association(between, _bare(table, near), _bare(table, far)),
        _order(found),
    )


def _find(shape: ModelShape[Any], name: str) -> RelationshipProperty[Any]:
    for mapper in shape.mapper.self_and_descendants:
        if name in mapper.relationships:
            found: RelationshipProperty[Any] = mapper.relationships[name]
            return found
    known = ", ".join(sorted(shape.mapper.relationships.keys())) or "none"
    raise UsageError(f"{shape.label} has no relationship {name}: it has {known}")


def _only_equal(join: ColumnElement[bool] | None, remote: Any) -> bool:
    """Whether a join consists of nothing but equal columns, one of each pair a remote one."""
    parts = join.clauses if isinstance(join, BooleanClauseList) else [join]
    if isinstance(join, BooleanClauseList) and join.operator is not operators.and_:
        return False
    return len(parts) == len(remote) and all(
        isinstance(part, BinaryExpression)
        and part.operator is operators.eq
        and isinstance(part.left, Column)
        and isinstance(part.right, Column)
        for part in parts
    )


def _unsupported(shape: Shape[Any], name: str) -> Unsupported:
    return Unsupported(
        f"the relationship {shape.label}.{name} compares more than columns that are equal, which "
        "this version cannot follow into the past. Remedy: select_as_of() of the related model, "
        "with a where() that says the same"
    )


def _columns(shape: ModelShape[Any], columns: Sequence[Any]) -> Columns:
    names, places = [], []
    for column in columns:
        attribute = _attribute(shape.mapper, column)
        names.append(shape.columns(attribute))
        places.append(shape.image_columns(attribute))
    ((schema, table),) = {(column.table.schema, column.table.name) for column in columns}
    return Columns((shape.schema or schema or "public", table), names, places)


def _attribute(mapper: Mapper[Any], column: Any) -> str:
    for candidate in mapper.self_and_descendants:
        try:
            return candidate.get_property_by_column(column).key
        except UnmappedColumnError:
            continue
    raise Unsupported(
        f"{mapper.class_.__name__} does not map the column {column.name}, on which a relationship "
        "stands. Remedy: map it"
    )


def _bare(table: Table, columns: Sequence[Any]) -> Columns:
    names = [[column.name] for column in columns]
    return Columns(table, names, names)


def _order(relationship: RelationshipProperty[Any]) -> Sequence[tuple[str, bool]]:
    found = []
    for clause in relationship.order_by or ():
        backwards = isinstance(clause, UnaryExpression) and clause.modifier is operators.desc_op
        column: Any = clause.element if isinstance(clause, UnaryExpression) else clause
        if isinstance(column, Column):
            found.append((_attribute(relationship.mapper, column), backwards))
    return found
