"""What a record looks like: a mapped class with its types, or a bare table name; pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Table, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import set_committed_value

from pgaudit_ctx.errors import KeyMismatch, Unsupported, UsageError
from pgaudit_ctx.reading.typed import converter, key_text, unmark

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)

DEFAULT_SCHEMA = "public"


class Shape(Protocol[M_co]):
    """How rows of one table become attributes, and attributes an object."""

    @property
    def label(self) -> str:
        """The name for messages."""

    @property
    def schema(self) -> str:
        """The schema of the table."""

    @property
    def table(self) -> str:
        """The name of the table."""

    def key(self, key: Any, key_columns: Sequence[str]) -> tuple[str, ...]:
        """Print a key in the order of its columns."""

    def attributes(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a stored image into attribute names and typed values."""

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Turn column names into attribute names."""

    def known(self, fields: Sequence[str]) -> frozenset[str]:
        """Refuse attributes that the record does not have."""

    def instance(self, values: Mapping[str, Any]) -> M_co:
        """Make the object that has these attributes."""


def shape_of(model: Any, schema: str | None) -> Shape[Any]:
    """Describe a model, or a table by its name.

    Args:
        model: A mapped class, or ``"schema.table"``.
        schema: Overrides the model's schema.

    Raises:
        UsageError: If it is neither.
        Unsupported: If this version cannot rebuild the mapping.
    """
    if isinstance(model, str):
        return TableShape(model, schema)
    try:
        mapper = inspect(model)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise UsageError(
            f"history() and as_of() take a mapped class or the name of a table, not "
            f"{getattr(model, '__name__', type(model).__name__)}"
        )
    return ModelShape(mapper, schema)


class ModelShape(Generic[M]):
    """A mapped class of one table.

    Args:
        mapper: Its mapper.
        schema: Overrides the table's schema.
    """

    def __init__(self, mapper: Mapper[M], schema: str | None) -> None:
        table = mapper.local_table
        if len(mapper.tables) != 1 or not isinstance(table, Table):
            raise Unsupported(
                f"{mapper.class_.__name__} is mapped to several tables, which this version cannot "
                "rebuild. Remedy: ask for each table by name, as in history('schema.table', key)"
            )
        self._mapper = mapper
        self._table = table
        self.label = mapper.class_.__name__
        self.schema = schema or table.schema or DEFAULT_SCHEMA
        self.table = table.name
        self._columns = {
            column.name: (prop.key, converter(column.type))
            for prop in mapper.column_attrs
            for column in prop.columns
            if getattr(column, "table", None) is table
        }

    def key(self, key: Any, key_columns: Sequence[str]) -> tuple[str, ...]:
        """Print a key in the order of its columns; see :class:`Shape`."""
        by_attribute = self._by_attribute(key)
        own = {c.name: c for c in self._mapper.primary_key}
        if set(own) != set(key_columns):
            raise KeyMismatch(
                f"the trail knows {self.label} by the key ({', '.join(key_columns) or 'none'}), "
                f"the model by ({', '.join(own)}). Remedy: give the table this primary key, and "
                "run pgaudit-ctx setup"
            )
        printed = []
        for name in key_columns:
            attribute = self._columns[name][0]
            printed.append(key_text(own[name].type, by_attribute[attribute], attribute))
        return tuple(printed)

    def _by_attribute(self, key: Any) -> Mapping[str, Any]:
        attributes = [
            self._mapper.get_property_by_column(column).key for column in self._mapper.primary_key
        ]
        if isinstance(key, self._mapper.class_):
            return {name: getattr(key, name) for name in attributes}
        if isinstance(key, Mapping):
            if set(key) != set(attributes):
                raise KeyMismatch(self._wanted(attributes))
            return key
        values = tuple(key) if isinstance(key, tuple | list) else (key,)
        if len(values) != len(attributes) or any(value is None for value in values):
            raise KeyMismatch(self._wanted(attributes))
        return dict(zip(attributes, values, strict=True))

    def _wanted(self, attributes: Sequence[str]) -> str:
        return f"the key of {self.label} consists of {', '.join(attributes)}: pass " + (
            "its value" if len(attributes) == 1 else "a tuple in this order, or a dict of them"
        )

    def attributes(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a stored image into attributes; columns the model does not have are left out."""
        return {
            attribute: convert(image[column])
            for column, (attribute, convert) in self._columns.items()
            if column in image
        }

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Turn column names into attribute names, in the model's order."""
        wanted = set(columns)
        return tuple(name for column, (name, _) in self._columns.items() if column in wanted)

    def known(self, fields: Sequence[str]) -> frozenset[str]:
        """Refuse attributes that the model does not have."""
        names = {name for name, _ in self._columns.values()}
        unknown = sorted(set(fields) - names)
        if unknown:
            raise UsageError(
                f"{self.label} has no attribute {', '.join(unknown)}: it has "
                f"{', '.join(sorted(names))}"
            )
        return frozenset(fields)

    def instance(self, values: Mapping[str, Any]) -> M:
        """Make a transient object, without calling ``__init__``."""
        made: M = self._mapper.class_manager.new_instance()
        for name, value in values.items():
            set_committed_value(made, name, value)
        return made


class TableShape:
    """A table known by its name only: column names, and values as they are stored.

    Args:
        name: With or without a schema.
        schema: Overrides the name's schema.
    """

    def __init__(self, name: str, schema: str | None) -> None:
        own, _, self.table = name.rpartition(".")
        self.schema = schema or own or DEFAULT_SCHEMA
        self.label = f"{self.schema}.{self.table}"

    def key(self, key: Any, key_columns: Sequence[str]) -> tuple[str, ...]:
        """Print a key in the order of its columns; see :class:`Shape`."""
        if isinstance(key, Mapping):
            if set(key) != set(key_columns):
                raise KeyMismatch(f"the key of {self.label} is {', '.join(key_columns)}")
            values = tuple(key[name] for name in key_columns)
        else:
            values = tuple(key) if isinstance(key, tuple | list) else (key,)
        if not key_columns:
            raise KeyMismatch(
                f"{self.label} has no primary key, so its rows have no history of their own. "
                "Remedy: look at its changes with pgaudit-ctx log"
            )
        if len(values) != len(key_columns):
            raise KeyMismatch(
                f"the key of {self.label} consists of {', '.join(key_columns)}: give "
                f"{len(key_columns)} value(s)"
            )
        return tuple("tf"[not value] if isinstance(value, bool) else str(value) for value in values)

    def attributes(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Give the columns, with markers taken off."""
        return {name: unmark(value) for name, value in image.items()}

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Give the columns as they are."""
        return tuple(columns)

    def known(self, fields: Sequence[str]) -> frozenset[str]:
        """Take any name: which columns there were is not known here."""
        return frozenset(fields)

    def instance(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give the columns as a dict, for there is no class."""
        return dict(values)
