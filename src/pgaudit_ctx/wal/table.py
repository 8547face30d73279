"""One captured table as its tuples see it: how to render them, and where the key is."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import compress
from json.encoder import encode_basestring
from operator import ne
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.wal.pgoutput import Relation, Tuple, Value
from pgaudit_ctx.wal.values import (
    JSON_ENCODERS,
    MARKER_BYTES,
    MAX_VALUE,
    SURELY_SHALLOW,
    UNAVAILABLE_JSON,
    Encoder,
    encode_bool,
    encode_integer,
    encode_jsonb,
    encode_plain,
    encode_text,
    encode_within,
    encoder_for,
)

Key = tuple[bytes, ...]
MAX_ROW: Final = 250 * 10**6
"""What a row may need as ``jsonb``, in bytes; it can hold little more."""
# So many bytes of JSON never need more than a jsonb can hold, however many scalars they are.
_MAX_JSON: Final = 16 * 2**20


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
        ignored: Columns that are left out.
        redactors: For columns that are blanked, what gives their JSON instead.
    """

    __slots__ = (
        "_encoders",
        "_identity",
        "_kept",
        "_key",
        "_key_set",
        "_labels",
        "_limit",
        "_only_key",
        "name",
        "oid",
        "render",
        "schema",
        "width",
    )

    def __init__(
        self,
        relation: Relation,
        facts: TableFacts | None,
        ignored: Collection[str] = (),
        redactors: Mapping[str, Encoder] = MappingProxyType({}),
    ) -> None:
        self.oid, self.schema, self.name = name_of(relation, facts)
        self.width = len(relation.columns)
        names = [column.name for column in relation.columns]
        base_types = {} if facts is None else facts.base_types
        self._encoders = [
            redactors.get(column.name)
            or encoder_for(base_types.get(column.type_oid, column.type_oid))
            for column in relation.columns
        ]
        self._labels = [f"{encode_basestring(name)}: ".encode() for name in names]
        self._kept = [i for i, name in enumerate(names) if name not in ignored]
        has_json = not set(JSON_ENCODERS).isdisjoint(self._encoders)
        self._limit = _MAX_JSON if has_json else MAX_VALUE
        self.render = _compile(
            self._labels, self._encoders, self._kept, self._limit, self._render_slowly
        )
        """Renders a whole tuple as a JSON object."""
        self._identity = frozenset(i for i, column in enumerate(relation.columns) if column.key)
        wanted = () if facts is None else facts.key_columns
        self._key: tuple[int, ...] = (
            tuple(names.index(name) for name in wanted)
            if set(wanted) <= set(names) - set(ignored) - set(redactors)
            else ()
        )
        self._key_set = frozenset(self._key)
        self._only_key = self._key[0] if len(self._key) == 1 else None

    @property
    def has_key(self) -> bool:
        """Whether rows have a key that is stored."""
        return bool(self._key)

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
        """Give the indexes of the columns that differ.

        Raises:
            ValueError: If the tuples are not of this table.
        """
        if len(old) != len(new):
            raise ValueError
        return list(compress(range(self.width), map(ne, old, new)))

    def touches_key(self, changed: Iterable[int]) -> bool:
        """Say whether one of these columns belongs to the primary key."""
        return not self._key_set.isdisjoint(changed)

    def render_some(self, indexes: Sequence[int], values: Tuple) -> str:
        """Render these columns only; ``{}`` if there are none."""
        labels = self._labels
        encoders = self._encoders
        fragments = [
            labels[i]
            + (encoders[i](value) if type(value := values[i]) is bytes else _absent(value))
            for i in indexes
        ]
        text = b"{%b}" % b", ".join(fragments)
        return (text if len(text) < self._limit else self._render_large(indexes, values)).decode()

    def _render_large(self, indexes: Sequence[int], values: Tuple) -> bytes:
        present = [(i, value) for i in indexes if isinstance(value := values[i], bytes)]
        fragments = encode_within([(self._encoders[i], value) for i, value in present], MAX_ROW)
        encoded = dict(zip([i for i, _ in present], fragments, strict=True))
        return b"{%b}" % b", ".join(
            self._labels[i] + (encoded[i] if i in encoded else _absent(values[i])) for i in indexes
        )

    def render_identity(self, values: Tuple) -> str:
        """Render a tuple that only carries the identity's columns; the others are unavailable."""
        if len(values) != self.width:
            raise ValueError
        return self.render(
            [
                value if index in self._identity else UNAVAILABLE
                for index, value in enumerate(values)
            ]
        )

    def _render_slowly(self, values: Tuple) -> str:
        return self.render_some(self._kept, values)


def name_of(relation: Relation, facts: TableFacts | None) -> tuple[int, str, str]:
    """Give a table's oid, schema and name: a partition has those of its root.

    Any other table's own message names it as it was then; the catalog only knows what it is now.
    """
    if facts is None or facts.oid == relation.oid:
        return relation.oid, relation.schema, relation.name
    return facts.oid, facts.schema, facts.name


def _absent(value: Value) -> bytes:
    return b"null" if value is None else UNAVAILABLE_JSON


def _compile(
    labels: Sequence[bytes],
    encoders: Sequence[Encoder],
    kept: Sequence[int],
    limit: int,
    slowly: Callable[[Tuple], str],
) -> Callable[[Tuple], str]:
    """Write out one expression that renders a whole tuple of a table.

    As namedtuple and dataclasses do, and for the same reason: a loop over the columns takes more
    than twice as long, and this runs once for each change. Nothing from the database becomes code;
    names go in as data. Columns stand as ``jsonb`` keeps them, shorter names first: to sort them is
    a tenth of what a row costs the destination. A tuple with values that the log did not carry,
    which no expression takes, or with one that may be too large goes to ``slowly``.
    """
    arguments: dict[str, Any] = {
        "join": b"".join,
        "quote": encode_basestring,
        "boolean": {None: b"null", b"t": b"true", b"f": b"false"},
        "marker": MARKER_BYTES,
        "limit": limit,
        "shallow": SURELY_SHALLOW,
        "slowly": slowly,
    }
    pieces: list[str] = []
    for index in sorted(kept, key=lambda i: (len(labels[i]), labels[i])):
        encoder = encoders[index]
        value = f"v{index}"
        arguments[f"label{index}"] = (b", " if pieces else b"{") + labels[index]
        if encoder is encode_integer:
            shown = f"b'null' if {value} is None else {value}"
        elif encoder is encode_bool:
            shown = f"boolean[{value}]"
        elif encoder is encode_text:
            shown = f"b'null' if {value} is None else quote({value}.decode()).encode()"
        elif encoder is encode_plain:
            shown = f"b'null' if {value} is None else b'\"' + {value} + b'\"'"
        else:
            arguments[f"encode{index}"] = encoder
            shown = f"b'null' if {value} is None else "
            if encoder is encode_jsonb:
                shown += f"{value} if len({value}) < shallow and marker not in {value} and "
                shown += f"{value} != b'null' else "
            shown += f"encode{index}({value})"
        pieces.append(f"label{index}, {shown}, ")
    names = "".join(f"v{index}, " for index in range(len(encoders)))
    source = f"""
def render(values):
    [{names}] = values
    try:
        text = join(({"".join(pieces) or "b'{', "}b'}}'))
    except (AttributeError, KeyError, TypeError):
        return slowly(values)
    return text.decode() if len(text) < limit else slowly(values)
"""
    exec(source, arguments)  # noqa: S102 - built above from column numbers only
    return cast("Callable[[Tuple], str]", arguments["render"])
