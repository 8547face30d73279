"""One captured table as its tuples see it: how to render them, and where the key is."""

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import NamedTuple

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.wal.pgoutput import Relation, Tuple, Value
from pgaudit_ctx.wal.values import UNAVAILABLE_JSON, encoder_for

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

    def __init__(self, relation: Relation, facts: TableFacts | None) -> None:
        # A table's own message names it as it was then; only a partition is named after its root.
        own = facts is None or facts.oid == relation.oid
        self.oid = relation.oid if facts is None else facts.oid
        self.schema = relation.schema if facts is None or own else facts.schema
        self.name = relation.name if facts is None or own else facts.name
        self.width = len(relation.columns)
        names = [column.name for column in relation.columns]
        base_types = {} if facts is None else facts.base_types
        self._encoders = [
            encoder_for(base_types.get(column.type_oid, column.type_oid))
            for column in relation.columns
        ]
        self._labels = [f"{encode_basestring(name)}: " for name in names]
        self._template = (
            "{" + ", ".join(label.replace("%", "%%") + "%s" for label in self._labels) + "}"
        )
        self._identity = frozenset(i for i, column in enumerate(relation.columns) if column.key)
        wanted = () if facts is None else facts.key_columns
        self._key: tuple[int, ...] | None = (
            tuple(names.index(name) for name in wanted)
            if wanted and set(wanted) <= set(names)
            else None
        )

    def key(self, values: Tuple) -> Key | None:
        """Give the primary key's values as PostgreSQL prints them, or ``None`` without a key."""
        if self._key is None:
            return None
        key = []
        for index in self._key:
            value = values[index]
            if not isinstance(value, bytes):
                return None
            key.append(value)
        return tuple(key)

    def render(self, values: Tuple) -> str:
        """Render a whole tuple as a JSON object."""
        if UNAVAILABLE in values:
            return self._object(range(self.width), values)
        return self._template % tuple(
            [
                "null" if value is None else encode(value)  # type: ignore[arg-type]
                for encode, value in zip(self._encoders, values, strict=True)
            ]
        )

    def render_changed(self, old: Tuple, new: Tuple) -> str:
        """Render the old values of the columns that changed; ``{}`` if none did."""
        return self._object(
            [i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]], old
        )

    def render_identity(self, values: Tuple) -> str:
        """Render a tuple that only carries the identity's columns; the others are unavailable."""
        return self.render(
            [
                value if index in self._identity else UNAVAILABLE
                for index, value in enumerate(values)
            ]
        )

    def _object(self, indexes: Sequence[int], values: Tuple) -> str:
        labels = self._labels
        return "{" + ", ".join([labels[i] + self._fragment(i, values[i]) for i in indexes]) + "}"

    def _fragment(self, index: int, value: Value) -> str:
        if value is None:
            return "null"
        if not isinstance(value, bytes):
            return UNAVAILABLE_JSON
        return self._encoders[index](value)


def fill_unchanged(new: Tuple, old: Tuple | None) -> Tuple:
    """Take the TOAST values that were not sent again from the old tuple, if there is one."""
    if UNAVAILABLE not in new or old is None:
        return new
    return [
        before if value is UNAVAILABLE else value for value, before in zip(new, old, strict=True)
    ]
