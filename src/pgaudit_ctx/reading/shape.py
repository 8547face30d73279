"""What a record looks like: stored columns, attributes, and the object they make; pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.types import TypeEngine

from pgaudit_ctx.errors import KeyMismatch, UsageError
from pgaudit_ctx.reading.extent import Table
from pgaudit_ctx.reading.typed import Convert, converter, is_document, stored_text, unmark

M_co = TypeVar("M_co", covariant=True)

Field: TypeAlias = str | QueryableAttribute[Any]
"""An attribute by its name, or as ``Patient.name``."""
Renamed: TypeAlias = Mapping[str, str]
"""Old column name → attribute (for a table without a model: column) it is called now."""

DEFAULT_SCHEMA: Final = "public"
ANY_SCHEMA: Final = "*"
"""The schema of ``"*.patients"``: that table in whichever schema; for changes only."""


class Shape(Protocol[M_co]):
    """How rows of some tables become attributes, and attributes an object."""

    @property
    def label(self) -> str:
        """The name for messages."""

    @property
    def model(self) -> type[M_co] | None:
        """The mapped class, if there is one."""

    @property
    def tables(self) -> Sequence[Table]:
        """The tables that make up a record, the one that each record has a row of first."""

    @property
    def typed(self) -> bool:
        """Whether columns and their types are known without the trail."""

    @property
    def key_columns(self) -> Sequence[str] | None:
        """The primary key's columns, as far as they are known without the trail."""

    def key(self, key: Any, key_columns: Sequence[str] | None) -> tuple[str, ...]:
        """Print a key in the order of the first table's columns."""

    def keys(
        self, key: tuple[str, ...], key_columns: Mapping[Table, tuple[str, ...]]
    ) -> Mapping[Table, tuple[str, ...]]:
        """Put a printed key in the order that each table's key columns have."""

    def image(self, table: Table, image: Mapping[str, Any]) -> Mapping[str, Any]:
        """Name a stored image's columns so that those of several tables can be merged."""

    def attributes(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Turn an image into attribute names and typed values."""

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Turn an image's columns into attribute names."""

    def columns(self, field: str) -> Sequence[str]:
        """Give the columns that hold an attribute, or held it before they were renamed."""

    def image_columns(self, field: str) -> Sequence[str]:
        """Give what an image calls these columns."""

    def known(self, fields: Sequence[Field]) -> frozenset[str]:
        """Refuse attributes that the record does not have."""

    def text(self, field: str, value: Any) -> str:
        """Print a value of an attribute as ``->>`` gives it from an image."""

    def is_document(self, field: str) -> bool:
        """Whether an attribute is JSON."""

    def instance(self, image: Mapping[str, Any]) -> M_co:
        """Make the object that an image describes."""


def field_name(field: Field) -> str:
    """Give the name of an attribute that was passed by name or as ``Patient.name``."""
    return field if isinstance(field, str) else field.key


class TableShape:
    """A table without a mapped class: column names; typed only if a ``Table`` tells the types.

    Args:
        name: The table's name.
        schema: Its schema.
        types: The columns' types as far as they are known.
        renamed: Columns that had another name before.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        types: Mapping[str, TypeEngine[Any]],
        renamed: Renamed | None = None,
    ) -> None:
        self.tables: Sequence[Table] = ((schema, name),)
        self.label = f"{schema}.{name}"
        self.key_columns: Sequence[str] | None = None
        self.model: type[dict[str, Any]] | None = None
        self.typed = bool(types)
        self._types = types
        self._renamed = renamed or {}
        self._converters: dict[str, Convert] = {
            column: converter(type_) for column, type_ in types.items()
        }

    def key(self, key: Any, key_columns: Sequence[str] | None) -> tuple[str, ...]:
        """Print a key in the order of its columns; see :class:`Shape`."""
        if key_columns is not None and not key_columns:
            raise KeyMismatch(
                f"{self.label} has no primary key, so its rows have no history of their own. "
                "Remedy: look at its changes with pgaudit-ctx log, or select_changes()"
            )
        if isinstance(key, Mapping):
            if key_columns is None or set(key) != set(key_columns):
                raise KeyMismatch(
                    f"the key of {self.label} is {', '.join(key_columns or ())}"
                    if key_columns
                    else f"the order of the key columns of {self.label} is not known here: pass "
                    "the key as a tuple"
                )
            values = tuple(key[name] for name in key_columns)
        else:
            values = tuple(key) if isinstance(key, tuple | list) else (key,)
        if key_columns is not None and len(values) != len(key_columns):
            raise KeyMismatch(
                f"the key of {self.label} consists of {', '.join(key_columns)}: give "
                f"{len(key_columns)} value(s)"
            )
        return tuple("tf"[not value] if isinstance(value, bool) else str(value) for value in values)

    def keys(
        self,
        key: tuple[str, ...],
        key_columns: Mapping[Table, tuple[str, ...]],  # noqa: ARG002 - there is one table
    ) -> Mapping[Table, tuple[str, ...]]:
        """Give the key as it is."""
        return {self.tables[0]: key}

    def image(self, table: Table, image: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Give the image as it is, for there is one table."""
        return image

    def attributes(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Give the columns under their present names, with markers taken off."""
        return {
            name: self._converters.get(name, unmark)(value)
            for name, value in ((self._renamed.get(old, old), v) for old, v in image.items())
        }

    def names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Give the columns under their present names."""
        return tuple(self._renamed.get(column, column) for column in columns)

    def columns(self, field: str) -> Sequence[str]:
        """Give the column and its earlier names."""
        return [field, *(old for old, new in self._renamed.items() if new == field)]

    def image_columns(self, field: str) -> Sequence[str]:
        """Give the same, for there is one table."""
        return self.columns(field)

    def known(self, fields: Sequence[Field]) -> frozenset[str]:
        """Take any name, unless a ``Table`` tells the columns."""
        names = {field_name(field) for field in fields}
        refuse_unknown(self.label, names, self._types or names)
        return frozenset(names)

    def text(self, field: str, value: Any) -> str:
        """Print a value by its type, if it is known."""
        if field in self._types:
            return stored_text(self._types[field], value, field)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def is_document(self, field: str) -> bool:
        """Whether the column is JSON, as far as it is known."""
        return field not in self._types or is_document(self._types[field])

    def instance(self, image: Mapping[str, Any]) -> dict[str, Any]:
        """Give the columns as a dict, for there is no class."""
        return self.attributes(image)


def refuse_unknown(label: str, fields: set[str], known: Any) -> None:
    """Raise ``UsageError`` for attributes that a record does not have."""
    unknown = sorted(fields - set(known))
    if unknown:
        raise UsageError(
            f"{label} has no attribute {', '.join(unknown)}: it has {', '.join(sorted(known))}"
        )
