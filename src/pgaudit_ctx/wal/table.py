"""One captured table as its tuples see it: how to render them, and where the key is."""

from collections.abc import Iterable, Mapping
from itertools import compress
from json.encoder import encode_basestring
from operator import ne
from typing import NamedTuple, cast

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.wal.pgoutput import Relation, Tuple, Value
from pgaudit_ctx.wal.values import INTEGERS, UNAVAILABLE_JSON, encoder_for

Key = tuple[bytes, ...]


class TableFacts(NamedTuple):
    """What the catalog knows of a table and the Relation message does not say.

    Attributes:
        oid: ``pg_class.oid`` of the root table, for a partition.
        schema: The root's schema.
        name: The root's name.
        key_columns: The primary key's columns in key order; empty without a primary key.
        base_types: For each type OID that is a domain, that of its base type.
    """

    oid: int
    schema: str
    name: str
    key_columns: tuple[str, ...]
    base_types: Mapping[int, int]


class CapturedTable:
    """Renders the tuples that follow one Relation message.

    Args:
        relation: That message.
        facts: What the catalog says, or ``None`` if it no longer knows the table: its own name
            is then used and the key is unknown.
    """

    __slots__ = (
        "_encoders",
        "_identity",
        "_key",
        "_labels",
        "_only_key",
        "_special",
        "_template",
        "name",
        "oid",
        "schema",
        "width",
    )

    def __init__(self, relation: Relation, facts: TableFacts | None) -> None:
        # A table's own message names it as it was then; only a partition is named after its root.
        own = facts is None or facts.oid == relation.oid
        self.oid = relation.oid if facts is None else facts.oid
        self.schema = relation.schema if facts is None or own else facts.schema
        self.name = relation.name if facts is None or own else facts.name
        self.width = len(relation.columns)
        names = [column.name for column in relation.columns]
        base_types = {} if facts is None else facts.base_types
        types = [base_types.get(column.type_oid, column.type_oid) for column in relation.columns]
        self._encoders = [encoder_for(type_oid) for type_oid in types]
        self._special = [
            (index, encoder_for(type_oid))
            for index, type_oid in enumerate(types)
            if type_oid not in INTEGERS
        ]
        self._labels = [f"{encode_basestring(name)}: " for name in names]
        self._template = (
            "{" + ", ".join(label.replace("%", "%%") + "%s" for label in self._labels) + "}"
        )
        self._identity = frozenset(i for i, column in enumerate(relation.columns) if column.key)
        wanted = () if facts is None else facts.key_columns
        self._key: tuple[int, ...] = (
            tuple(names.index(name) for name in wanted) if set(wanted) <= set(names) else ()
        )
        self._only_key = self._key[0] if len(self._key) == 1 else None

    def key(self, values: Tuple) -> Key | None:
        """Give the primary key's values as PostgreSQL prints them, or ``None`` without a key."""
        if self._only_key is not None:
            value = values[self._only_key]
            return (value,) if isinstance(value, bytes) else None
        key = tuple([values[index] for index in self._key])
        if not key or None in key or UNAVAILABLE in key:
            return None
        return cast("Key", key)

    def changed(self, old: Tuple, new: Tuple) -> list[int]:
        """Give the indexes of the columns that differ."""
        return list(compress(range(self.width), map(ne, old, new)))

    def touches_key(self, changed: Iterable[int]) -> bool:
        """Say whether one of these columns belongs to the primary key."""
        return any(index in self._key for index in changed)

    def render(self, values: Tuple) -> str:
        """Render a whole tuple as a JSON object."""
        try:
            texts = ["null" if value is None else value.decode() for value in values]  # type: ignore[union-attr]
        except AttributeError:
            # Only a value that the log did not carry has no decode().
            return self.render_some(range(self.width), values)
        for index, encode in self._special:
            value = values[index]
            if value is not None:
                texts[index] = encode(value)  # type: ignore[arg-type]
        return self._template % tuple(texts)

    def render_some(self, indexes: Iterable[int], values: Tuple) -> str:
        """Render these columns only; ``{}`` if there are none."""
        labels = self._labels
        return "{" + ", ".join([labels[i] + self._fragment(i, values[i]) for i in indexes]) + "}"

    def render_identity(self, values: Tuple) -> str:
        """Render a tuple that only carries the identity's columns; the others are unavailable."""
        return self.render(
            [
                value if index in self._identity else UNAVAILABLE
                for index, value in enumerate(values)
            ]
        )

    def _fragment(self, index: int, value: Value) -> str:
        if value is None:
            return "null"
        if not isinstance(value, bytes):
            return UNAVAILABLE_JSON
        return self._encoders[index](value)
