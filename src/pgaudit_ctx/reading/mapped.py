"""Records of a mapped class: of one table, or of those that joined inheritance uses; pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import Column, inspect
from sqlalchemy import Table as SQLTable
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.orm.attributes import set_committed_value

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.errors import KeyMismatch, Unsupported, UsageError
from pgaudit_ctx.reading.extent import Table
from pgaudit_ctx.reading.shape import (
    DEFAULT_SCHEMA,
    Field,
    Renamed,
    Shape,
    TableShape,
    field_name,
    refuse_unknown,
)
from pgaudit_ctx.reading.typed import Convert, converter, is_document, key_text, stored_text

M = TypeVar("M")

RENAMED_FROM: Final = "pgaudit_ctx_renamed_from"
"""The key of ``Column.info`` that names what a column was called before, as a string or a list."""


class _Place(NamedTuple):
    """Where an attribute is stored: a column of an image, under its present or an earlier name."""

    column: str
    attribute: str
    convert: Convert


class LiveColumn(NamedTuple):
    """A column of the live table, the attribute it has, and the names it is stored under."""

    column: Column[Any]
    table: Table
    attribute: str
    names: Sequence[str]


class ModelShape(Generic[M]):
    """A mapped class; a record of a polymorphic one is an instance of the class its row says.

    Args:
        mapper: Its mapper.
        schema: Overrides the schema of its tables.
        renamed: Columns that had another name before: old column → attribute.
    """

    def __init__(
        self, mapper: Mapper[M], schema: str | None, renamed: Renamed | None = None
    ) -> None:
        self.label = mapper.class_.__name__
        self.model: type[M] | None = mapper.class_
        self.mapper = mapper
        self.schema = schema
        self.typed = True
        self._renamed = renamed or {}
        self._mappers = list(_of_one_identity(mapper))
        self._sql_tables = self._find_tables()
        self.tables: Sequence[Table] = tuple(self._named(table) for table in self._sql_tables)
        self._places = {m: tuple(self._places_of(m)) for m in self._mappers}
        self._check_renamed()
        discriminator = mapper.polymorphic_on
        self._discriminator = (
            (self._image_column(discriminator), converter(discriminator.type))
            if isinstance(discriminator, Column) and isinstance(discriminator.table, SQLTable)
            else None
        )

    @property
    def key_columns(self) -> Sequence[str] | None:
        """The primary key's columns in the order of the table's own."""
        return [column.name for column in self._sql_tables[0].primary_key] or [
            column.name for column in self.mapper.primary_key
        ]

    def _find_tables(self) -> list[SQLTable]:
        """Give the base class's table first, then those of the classes below it."""
        above = []
        for mapper in self.mapper.iterate_to_root():
            above.append(mapper)
            if mapper.concrete:
                break
        found: dict[SQLTable, None] = {}
        for mapper in (*reversed(above), *self._mappers):
            table = mapper.local_table
            if not isinstance(table, SQLTable):
                raise Unsupported(
                    f"{mapper.class_.__name__} is mapped to several tables or to a select, which "
                    "this version cannot rebuild. Remedy: ask for each table by name, as in "
                    "history('schema.table', key), or for each concrete subclass"
                )
            found[table] = None
        return list(found)

    def _named(self, table: SQLTable) -> Table:
        return self.schema or table.schema or DEFAULT_SCHEMA, table.name

    def _image_column(self, column: Column[Any], name: str | None = None) -> str:
        own = name or column.name
        if len(self._sql_tables) == 1:
            return own
        assert isinstance(column.table, SQLTable)  # noqa: S101 - only such columns are asked for
        return self._qualified(self._named(column.table), own)

    @staticmethod
    def _qualified(table: Table, column: str) -> str:
        return ".".join((*table, column))

    def _places_of(self, mapper: Mapper[Any]) -> Iterator[_Place]:
        earlier: list[_Place] = []
        for prop in mapper.column_attrs:
            if prop.key.startswith("_sa_"):
                continue  # the discriminator, where the model does not map it
            for column in prop.columns:
                if not (isinstance(column, Column) and column.table in self._sql_tables):
                    continue
                convert = converter(column.type)
                now, *before = self._stored_names(column, prop)
                yield _Place(self._image_column(column, now), prop.key, convert)
                earlier += [
                    _Place(self._image_column(column, old), prop.key, convert) for old in before
                ]
        yield from earlier

    def _stored_names(self, column: Column[Any], prop: ColumnProperty[Any]) -> Sequence[str]:
        """Give the names a column has and had."""
        told = [old for old, new in self._renamed.items() if new in {prop.key, column.name}]
        noted = column.info.get(RENAMED_FROM, ())
        return [column.name, *told, *([noted] if isinstance(noted, str) else noted)]

    def _check_renamed(self) -> None:
        columns = {column.name for table in self._sql_tables for column in table.columns}
        refuse_unknown(self.label, set(self._renamed.values()), self._attributes() | columns)

    def _attributes(self) -> set[str]:
        return {place.attribute for places in self._places.values() for place in places}

    def key(self, key: Any, key_columns: Sequence[str] | None) -> tuple[str, ...]:
        """Print a key in the order of its columns; see :class:`pgaudit_ctx.reading.shape.Shape`."""
        by_attribute = self._by_attribute(key)
        own = {column.name: column for column in self._base_key(self._sql_tables[0])}
        if key_columns is None or set(own) != set(key_columns):
            raise KeyMismatch(
                f"the trail knows {self.label} by the key ({', '.join(key_columns or ['none'])}), "
                f"the model by ({', '.join(own)}). Remedy: give the table this primary key, and "
                "run pgaudit-ctx setup"
            )
        printed = []
        for name in key_columns:
            attribute = self.mapper.get_property_by_column(own[name]).key
            printed.append(key_text(own[name].type, by_attribute[attribute], attribute))
        return tuple(printed)

    def keys(
        self, key: tuple[str, ...], key_columns: Mapping[Table, tuple[str, ...]]
    ) -> Mapping[Table, tuple[str, ...]]:
        """Follow the foreign keys that joined inheritance consists of."""
        first = self.tables[0]
        values = dict(zip(key_columns[first], key, strict=True))
        printed = {first: key}
        for table, named in zip(self._sql_tables[1:], self.tables[1:], strict=True):
            if named not in key_columns:
                continue
            printed[named] = tuple(
                values[self._base_column(table.columns[name]).name] for name in key_columns[named]
            )
        return printed

    def _base_key(self, table: SQLTable) -> Sequence[Column[Any]]:
        return [c for c in self.mapper.primary_key if isinstance(c, Column) and c.table is table]

    def _base_column(self, column: Column[Any]) -> Column[Any]:
        base = self._sql_tables[0]
        while column.table is not base:
            targets = [
                key.column
                for key in column.foreign_keys
                if key.column.table in self._sql_tables and key.column.table is not column.table
            ]
            if not targets:
                return base.columns[column.name]
            column = targets[0]
        return column

    def _by_attribute(self, key: Any) -> Mapping[str, Any]:
        attributes = [
            self.mapper.get_property_by_column(column).key for column in self.mapper.primary_key
        ]
        if isinstance(key, self.mapper.class_):
            return {name: getattr(key, name) for name in attributes}
        if isinstance(key, Mapping):
            given = {self._attribute(name): value for name, value in key.items()}
            if set(given) != set(attributes):
                raise KeyMismatch(self._wanted(attributes))
            return given
        values = tuple(key) if isinstance(key, tuple | list) else (key,)
        if len(values) != len(attributes) or any(value is None for value in values):
            raise KeyMismatch(self._wanted(attributes))
        return dict(zip(attributes, values, strict=True))

    def _wanted(self, attributes: Sequence[str]) -> str:
        return f"the key of {self.label} consists of {', '.join(attributes)}: pass " + (
            "its value" if len(attributes) == 1 else "a tuple in this order, or a dict of them"
        )

    def _attribute(self, name: str) -> str:
        """Give the attribute that a synonym stands for."""
        synonym = self.mapper.synonyms.get(name)
        return name if synonym is None else synonym.name

    def image(self, table: Table, image: Mapping[str, Any]) -> Mapping[str, Any]:
        """Qualify a stored image's columns, if there are several tables."""
        if len(self._sql_tables) == 1:
            return image
        return {self._qualified(table, column): value for column, value in image.items()}

    def mapper_of(self, image: Mapping[str, Any]) -> Mapper[Any]:
        """Give the mapper of the class that an image is an instance of."""
        if self._discriminator is None:
            return self.mapper
        column, convert = self._discriminator
        value = convert(image.get(column))
        found = None if value is UNAVAILABLE else self.mapper.polymorphic_map.get(value)
        return found if found in self._places else self.mapper

    def attributes(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Turn an image into attributes; columns the model does not have are left out.

        Attributes of a table of which the trail has not seen a row are ``UNAVAILABLE``.
        """
        mapper = self.mapper_of(image)
        found: dict[str, Any] = {}
        for column, attribute, convert in self._places[mapper]:
            if attribute not in found and column in image:
                found[attribute] = convert(image[column])
        if len(self._sql_tables) > 1:
            for prop in self._unseen(mapper, image):
                found.setdefault(prop, UNAVAILABLE)
        return found

    def _unseen(self, mapper: Mapper[Any], image: Mapping[str, Any]) -> Iterator[str]:
        seen = {column.rpartition(".")[0] for column in image}
        for column, attribute, _ in self._places[mapper]:
            if column.rpartition(".")[0] not in seen:
                yield attribute

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Turn an image's columns into attribute names, in the model's order."""
        wanted = set(columns)
        found = (
            place.attribute
            for places in self._places.values()
            for place in places
            if place.column in wanted
        )
        return tuple(dict.fromkeys(found))

    def columns(self, field: str) -> Sequence[str]:
        """Give the bare names of the columns that hold an attribute, or held it before."""
        found = self.image_columns(field)
        if len(self._sql_tables) > 1:
            found = [column.rpartition(".")[2] for column in found]
        return list(dict.fromkeys(found))

    def image_columns(self, field: str) -> Sequence[str]:
        """Give what an image calls these columns; qualified, if there are several tables."""
        (name,) = self.known([field])
        found = (
            place.column
            for places in self._places.values()
            for place in places
            if place.attribute == name
        )
        return list(dict.fromkeys(found))

    def own_tables(self) -> Sequence[Table]:
        """Give the tables that each record of this very class has a row in."""
        own = {mapper.local_table for mapper in self.mapper.iterate_to_root()}
        pairs = zip(self._sql_tables, self.tables, strict=True)
        return [named for table, named in pairs if table in own]

    def live_columns(self) -> Iterator[LiveColumn]:
        """Give the columns of the class's own attributes."""
        own = self.own_tables()
        for prop in self.mapper.column_attrs:
            if prop.key.startswith("_sa_"):
                continue
            for column in prop.columns:
                if isinstance(column, Column) and column.table in self._sql_tables:
                    table = self._named(column.table)
                    if table in own:
                        yield LiveColumn(column, table, prop.key, self._stored_names(column, prop))

    def one_of_several(self) -> tuple[LiveColumn, Sequence[Any]] | None:
        """Give the discriminator and its values, if the tables hold other classes too."""
        column = self.mapper.polymorphic_on
        if (
            self.mapper.inherits is None
            or self.mapper.concrete
            or not (isinstance(column, Column) and column.table in self._sql_tables)
        ):
            return None
        values = [
            mapper.polymorphic_identity
            for mapper in self._mappers
            if mapper.polymorphic_identity is not None
        ]
        return LiveColumn(column, self._named(column.table), "", [column.name]), values

    def known(self, fields: Sequence[Field]) -> frozenset[str]:
        """Refuse attributes that the model does not have."""
        names = {self._attribute(field_name(field)) for field in fields}
        refuse_unknown(self.label, names, self._attributes())
        return frozenset(names)

    def _type(self, field: str) -> Any:
        name = self._attribute(field)
        for mapper in self._mappers:
            prop = mapper.attrs.get(name)
            if isinstance(prop, ColumnProperty):
                return prop.columns[0].type
        raise UsageError(f"{self.label} has no attribute {field}")

    def text(self, field: str, value: Any) -> str:
        """Print a value of an attribute as ``->>`` gives it from an image."""
        return stored_text(self._type(field), value, field)

    def is_document(self, field: str) -> bool:
        """Whether an attribute is JSON."""
        return is_document(self._type(field))

    def instance(self, image: Mapping[str, Any]) -> M:
        """Make a transient object of the image's own class, without calling ``__init__``."""
        made: M = self.mapper_of(image).class_manager.new_instance()
        for name, value in self.attributes(image).items():
            set_committed_value(made, name, value)
        return made


def shape_of(model: Any, schema: str | None, renamed: Renamed | None = None) -> Shape[Any]:
    """Describe a model, or a table.

    Args:
        model: A mapped class, a ``Table``, or ``"schema.table"``.
        schema: Overrides the model's schema.
        renamed: Columns that had another name before.

    Raises:
        UsageError: If it is none of these.
        Unsupported: If this version cannot rebuild the mapping.
    """
    if isinstance(model, str):
        own, _, name = model.rpartition(".")
        return TableShape(name, schema or own or DEFAULT_SCHEMA, {}, renamed)
    if isinstance(model, SQLTable):
        types = {column.name: column.type for column in model.columns}
        return TableShape(model.name, schema or model.schema or DEFAULT_SCHEMA, types, renamed)
    try:
        mapper = inspect(model)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise UsageError(
            f"history() and its like take a mapped class, a Table, or the name of a table, not "
            f"{getattr(model, '__name__', type(model).__name__)}"
        )
    return ModelShape(mapper, schema, renamed)


def mapped_shape(model: Any, schema: str | None, renamed: Renamed | None = None) -> ModelShape[Any]:
    """Describe a mapped class, for what a bare table cannot do.

    Raises:
        UsageError: If it is none.
        Unsupported: If this version cannot rebuild the mapping.
    """
    shape = shape_of(model, schema, renamed)
    if not isinstance(shape, ModelShape):
        raise UsageError(f"this needs a mapped class, whose types it takes, not {shape.label}")
    return shape


def _of_one_identity(mapper: Mapper[Any]) -> Iterator[Mapper[Any]]:
    """Give a mapper and those below it whose rows are the same records; concrete ones are not."""
    for candidate in mapper.self_and_descendants:
        step: Mapper[Any] | None = candidate
        while step is not None and step is not mapper and not step.concrete:
            step = step.inherits
        if step is mapper:
            yield candidate
