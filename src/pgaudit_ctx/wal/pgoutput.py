"""The messages of the ``pgoutput`` plugin, protocol version 1: one frozen event per message.

Stateless: bytes in, one message out. PostgreSQL documentation: "Logical Replication Message
Formats". Times are microseconds since 2000-01-01 00:00:00 UTC, positions are integers.
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from pgaudit_ctx.change import UNAVAILABLE, Unavailable
from pgaudit_ctx.errors import ProtocolError

Value: TypeAlias = bytes | Unavailable | None
"""One column of a tuple: its text, NULL, or unchanged TOAST that was not sent."""

Tuple: TypeAlias = list[Value]


class Begin(NamedTuple):
    """A transaction begins; ``final_lsn`` is where its commit record starts."""

    final_lsn: int
    committed_at: int
    xid: int


class Commit(NamedTuple):
    """A transaction ends; ``end_lsn`` is where its commit record ends."""

    commit_lsn: int
    end_lsn: int
    committed_at: int


class Origin(NamedTuple):
    """The transaction was replayed from another server."""

    commit_lsn: int
    name: str


class Column(NamedTuple):
    """One column of a relation; ``key`` says that it belongs to the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    key: bool


class Relation(NamedTuple):
    """How the tuples that follow are made; ``identity`` is ``pg_class.relreplident``."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]


class Type(NamedTuple):
    """The name of a type that is not built in."""

    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    """A row was inserted."""

    relation_oid: int
    new: Tuple


class Update(NamedTuple):
    """A row was updated; ``old`` under FULL, ``key`` where the identity's key changed."""

    relation_oid: int
    key: Tuple | None
    old: Tuple | None
    new: Tuple


class Delete(NamedTuple):
    """A row was deleted; ``old`` under FULL, else ``key``."""

    relation_oid: int
    key: Tuple | None
    old: Tuple | None


class Truncate(NamedTuple):
    """Tables were emptied."""

    cascade: bool
    restart_identity: bool
    relation_oids: tuple[int, ...]


class Message(NamedTuple):
    """A logical decoding message; ``lsn`` is where its own record ends."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


PgOutputMessage: TypeAlias = (
    Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | Message
)

_BEGIN: Final = struct.Struct(">QqI")
_COMMIT: Final = struct.Struct(">BQQq")
_MESSAGE: Final = struct.Struct(">BQ")
_COLUMN: Final = struct.Struct(">Ii")
_TRUNCATE: Final = struct.Struct(">IB")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_unpack_u32: Final = _U32.unpack_from
_unpack_value: Final = struct.Struct(">BI").unpack_from
# Read past the end of a message that is cut off; where it should have ended is checked afterwards.
_PADDING: Final = bytes(5)
# What NamedTuple's own __new__ calls, without the Python function in between.
_new: Final = tuple.__new__

_TEXT: Final = ord("t")
_NULL: Final = ord("n")
_UNCHANGED: Final = ord("u")
_NEW: Final = ord("N")
_KEY: Final = ord("K")
_OLD: Final = ord("O")


def decode(data: bytes, start: int = 0) -> PgOutputMessage:
    """Decode one message.

    Args:
        data: Bytes that hold one whole message up to their end.
        start: Where the message begins, for a frame whose header has been read already.

    Returns:
        One of the message classes of this module.

    Raises:
        ProtocolError: If the bytes are not exactly one message of protocol version 1.
    """
    size = len(data)
    try:
        kind = data[start]
        decoder = _DECODERS.get(kind)
        if decoder is None:
            raise ProtocolError(
                f"a pgoutput message of kind {kind:#04x} is not part of protocol version 1"
            )
        message, end = decoder(data + _PADDING, start + 1)
    except (struct.error, IndexError, ValueError):
        # Never the bytes themselves: they are row values.
        raise ProtocolError(
            f"a pgoutput message of {size - start} bytes is cut off or mangled"
        ) from None
    if end != size:
        raise ProtocolError(
            f"a pgoutput message of kind {chr(kind)} should have ended at byte {end - start} but "
            f"has {size - start}"
        )
    return message


def _tuple(data: bytes, pos: int) -> tuple[Tuple, int]:
    # The hottest loop of the worker: ten values a change. Kind and length are read at once; the
    # padding lets that work for a last value that has no length.
    count = data[pos] << 8 | data[pos + 1]
    pos += 2
    values: Tuple = []
    append = values.append
    unpack = _unpack_value
    for _ in range(count):
        kind, length = unpack(data, pos)
        if kind == _TEXT:
            pos += 5
            append(data[pos : pos + length])
            pos += length
        elif kind == _NULL:
            append(None)
            pos += 1
        elif kind == _UNCHANGED:
            append(UNAVAILABLE)
            pos += 1
        else:
            raise ProtocolError(f"a column of kind {kind:#04x} in a tuple: only text was asked for")
    return values, pos


def _string(data: bytes, pos: int) -> tuple[str, int]:
    end = data.index(0, pos)
    return data[pos:end].decode(), end + 1


def _begin(data: bytes, pos: int) -> tuple[Begin, int]:
    return Begin._make(_BEGIN.unpack_from(data, pos)), pos + _BEGIN.size


def _commit(data: bytes, pos: int) -> tuple[Commit, int]:
    return Commit._make(_COMMIT.unpack_from(data, pos)[1:]), pos + _COMMIT.size


def _origin(data: bytes, pos: int) -> tuple[Origin, int]:
    (lsn,) = _U64.unpack_from(data, pos)
    name, end = _string(data, pos + 8)
    return Origin(lsn, name), end


def _relation(data: bytes, pos: int) -> tuple[Relation, int]:
    (oid,) = _U32.unpack_from(data, pos)
    schema, pos = _string(data, pos + 4)
    name, pos = _string(data, pos)
    identity = chr(data[pos])
    (count,) = _U16.unpack_from(data, pos + 1)
    pos += 3
    columns = []
    for _ in range(count):
        flags = data[pos]
        column, pos = _string(data, pos + 1)
        type_oid, type_modifier = _COLUMN.unpack_from(data, pos)
        pos += _COLUMN.size
        columns.append(Column(column, type_oid, type_modifier, bool(flags & 1)))
    # The server says pg_catalog with an empty name.
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns)), pos


def _type(data: bytes, pos: int) -> tuple[Type, int]:
    (oid,) = _U32.unpack_from(data, pos)
    schema, pos = _string(data, pos + 4)
    name, pos = _string(data, pos)
    return Type(oid, schema or "pg_catalog", name), pos


def _insert(data: bytes, pos: int) -> tuple[Insert, int]:
    (oid,) = _unpack_u32(data, pos)
    _expect(data[pos + 4], _NEW)
    new, pos = _tuple(data, pos + 5)
    return _new(Insert, (oid, new)), pos


def _update(data: bytes, pos: int) -> tuple[Update, int]:
    (oid,) = _unpack_u32(data, pos)
    kind = data[pos + 4]
    pos += 5
    key = old = None
    if kind == _OLD:
        old, pos = _tuple(data, pos)
    elif kind == _KEY:
        key, pos = _tuple(data, pos)
    else:
        _expect(kind, _NEW)
        new, pos = _tuple(data, pos)
        return _new(Update, (oid, None, None, new)), pos
    _expect(data[pos], _NEW)
    new, pos = _tuple(data, pos + 1)
    return _new(Update, (oid, key, old, new)), pos


def _delete(data: bytes, pos: int) -> tuple[Delete, int]:
    (oid,) = _unpack_u32(data, pos)
    kind = data[pos + 4]
    values, pos = _tuple(data, pos + 5)
    if kind == _OLD:
        return Delete(oid, None, values), pos
    _expect(kind, _KEY)
    return Delete(oid, values, None), pos


def _truncate(data: bytes, pos: int) -> tuple[Truncate, int]:
    count, options = _TRUNCATE.unpack_from(data, pos)
    pos += _TRUNCATE.size
    end = len(data) - len(_PADDING)
    if count * 4 != end - pos:
        raise ProtocolError(f"a Truncate message names {count} relations but does not list them")
    oids = struct.unpack_from(f">{count}I", data, pos)
    return Truncate(bool(options & 1), bool(options & 2), oids), end


def _message(data: bytes, pos: int) -> tuple[Message, int]:
    flags, lsn = _MESSAGE.unpack_from(data, pos)
    prefix, pos = _string(data, pos + _MESSAGE.size)
    (length,) = _U32.unpack_from(data, pos)
    start = pos + 4
    end = start + length
    return Message(bool(flags & 1), lsn, prefix, data[start:end]), end


def _expect(kind: int, wanted: int) -> None:
    if kind != wanted:
        raise ProtocolError(f"a tuple of kind {kind:#04x} where {chr(wanted)} was due")


_DECODERS: Final[dict[int, Callable[[bytes, int], tuple[PgOutputMessage, int]]]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("M"): _message,
}
