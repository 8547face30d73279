"""The decoder of pgoutput messages, from bytes that real servers sent."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.wal.frames import PAYLOAD
from pgaudit_ctx.wal.pgoutput import (
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)
from unit.recorded import MESSAGES, POSTGRESQL_15, POSTGRESQL_18

LONG_X, LONG_Y = b"x" * 3000, b"y" * 3000
EXPECTED = {
    "begin": Begin(24117632, 848811667311596, 753),
    "message": Message(
        True, 24113808, "pgaudit_ctx", rb'{"user":"dr.who","reason":"Aufnahme \u00e4"}'
    ),
    "type_of_enum": Type(16385, "public", "mood"),
    # The Type message of a domain bears the name of its base type.
    "type_of_domain": Type(16390, "pg_catalog", "int4"),
    "relation_full": Relation(
        16392,
        "public",
        "full_id",
        "f",
        (
            Column("id", 23, -1, True),
            Column("name", 25, -1, True),
            Column("mood", 16385, -1, True),
            Column("amount", 16390, -1, True),
            Column("doc", 25, -1, True),
        ),
    ),
    "insert_long": Insert(16392, [b"1", "Änn".encode(), b"fine", b"5", LONG_X]),
    "insert_nulls": Insert(16392, [b"2", None, None, None, b""]),
    "commit": Commit(24117632, 24117680, 848811667311596),
    "update_full": Update(
        16392,
        None,
        [b"1", "Änn".encode(), b"fine", b"5", LONG_X],
        [b"1", b"Ann", b"fine", b"5", UNAVAILABLE],
    ),
    "update_full_key": Update(
        16392, None, [b"2", None, None, None, b""], [b"3", None, None, None, b""]
    ),
    "delete_full": Delete(16392, None, [b"3", None, None, None, b""]),
    "relation_default": Relation(
        16400,
        "public",
        "default_id",
        "d",
        (
            Column("id", 23, -1, True),
            Column("name", 1043, 24, False),
            Column("doc", 25, -1, False),
        ),
    ),
    "insert_default": Insert(16400, [b"1", b"a", LONG_Y]),
    "update_default": Update(16400, None, None, [b"1", b"b", UNAVAILABLE]),
    "update_default_key": Update(16400, [b"1", None, None], None, [b"2", b"b", UNAVAILABLE]),
    "delete_default": Delete(16400, [b"2", None, None], None),
    "relation_child": Relation(
        16408,
        "public",
        "child",
        "d",
        (Column("id", 23, -1, True), Column("parent", 23, -1, False)),
    ),
    "truncate_cascade": Truncate(True, True, (16400, 16392, 16408)),
    "truncate": Truncate(False, False, (16408,)),
    "message_free": Message(False, 24135736, "other", b"free"),
    "message_empty": Message(True, 24135800, "pgaudit_ctx", b"{}"),
    "message_a": Message(True, 24135928, "pgaudit_ctx", b'{"user":"a"}'),
    "insert_21": Insert(16408, [b"21", None]),
    "insert_22": Insert(16408, [b"22", None]),
    "insert_23": Insert(16408, [b"23", None]),
    "message_b": Message(True, 24136360, "pgaudit_ctx", b'{"user":"b"}'),
    "copied_31": Insert(16408, [b"31", None]),
    "copied_32": Insert(16408, [b"32", None]),
    "copied_33": Insert(16408, [b"33", None]),
    "begin_replayed": Begin(24137632, 762523200000000, 765),
    "origin": Origin(0xABCDEF, "elsewhere"),
    "insert_replayed": Insert(16408, [b"41", None]),
}
EXPECTED_15 = {
    "begin": Begin(22091120, 848811672354636, 725),
    "commit": Commit(22091120, 22091168, 848811672354636),
    "message": EXPECTED["message"]._replace(lsn=22087320),
    "relation_default": EXPECTED["relation_default"]._replace(oid=16399),
    "update_full": EXPECTED["update_full"],
    "update_default_key": EXPECTED["update_default_key"]._replace(relation_oid=16399),
    "delete_default": EXPECTED["delete_default"]._replace(relation_oid=16399),
    "truncate_cascade": Truncate(True, True, (16399, 16392, 16406)),
    "origin": EXPECTED["origin"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_message_of_postgresql_18_decodes_to_exactly_what_was_done(name: str) -> None:
    decoded = decode(POSTGRESQL_18[name], PAYLOAD)
    assert decoded == EXPECTED[name]
    assert type(decoded) is type(EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED_15)
def test_a_message_of_postgresql_15_decodes_to_exactly_what_was_done(name: str) -> None:
    assert decode(POSTGRESQL_15[name], PAYLOAD) == EXPECTED_15[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_both_versions_send_the_same_but_for_positions_times_and_ids(name: str) -> None:
    old, new = (decode(frames[name], PAYLOAD) for frames in (POSTGRESQL_15, POSTGRESQL_18))
    assert type(old) is type(new)
    assert without_numbers(old) == without_numbers(new)


def without_numbers(message) -> list[object]:
    """The fields that no server assigns."""
    return [
        field for field in message if isinstance(field, bool) or not isinstance(field, int | tuple)
    ]


def test_every_recorded_message_is_looked_at() -> None:
    assert set(EXPECTED) | {"keepalive"} == set(POSTGRESQL_18) == set(POSTGRESQL_15)


@pytest.mark.parametrize("kind", [b"S", b"E", b"c", b"A", b"b", b"\x00", b"\xff"])
def test_a_kind_of_another_protocol_version_is_a_protocol_error(kind: bytes) -> None:
    with pytest.raises(ProtocolError, match="not part of protocol version 1"):
        decode(kind + bytes(20))


def test_an_empty_message_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="cut off or mangled"):
        decode(b"")


def test_a_binary_column_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="only text was asked for"):
        decode(b"I" + struct.pack(">I", 1) + b"N\x00\x01b\x00\x00\x00\x01x")


def test_an_error_never_shows_the_values_of_a_row() -> None:
    whole = POSTGRESQL_18["insert_long"][PAYLOAD:]
    with pytest.raises(ProtocolError) as caught:
        decode(whole[:-1])
    assert "x" * 5 not in str(caught.value)


def test_bytes_after_the_end_of_a_message_are_a_protocol_error() -> None:
    for message in MESSAGES:
        with pytest.raises(ProtocolError):
            decode(message + b"\0")


def test_an_empty_schema_name_stands_for_pg_catalog() -> None:
    relation = decode(b"R" + struct.pack(">I", 1259) + b"\0pg_class\0n\0\0")
    assert relation == Relation(1259, "pg_catalog", "pg_class", "n", ())


values = st.lists(st.none() | st.just(UNAVAILABLE) | st.binary(max_size=50), max_size=20)
oids = st.integers(0, 2**32 - 1)


def encoded(tuple_) -> bytes:
    """Encode a tuple as "Logical Replication Message Formats" says, independently."""
    parts = [len(tuple_).to_bytes(2, "big")]
    for value in tuple_:
        if value is None:
            parts.append(b"n")
        elif value is UNAVAILABLE:
            parts.append(b"u")
        else:
            parts.append(b"t" + len(value).to_bytes(4, "big") + value)
    return b"".join(parts)


@given(oids, values)
def test_any_inserted_tuple_decodes_to_itself(oid: int, new) -> None:
    assert decode(b"I" + oid.to_bytes(4, "big") + b"N" + encoded(new)) == Insert(oid, new)


@given(oids, values, values, st.sampled_from("OK-"))
def test_any_updated_tuple_decodes_to_itself(oid: int, old, new, identity: str) -> None:
    first = b"" if identity == "-" else identity.encode() + encoded(old)
    decoded = decode(b"U" + oid.to_bytes(4, "big") + first + b"N" + encoded(new))
    assert decoded == Update(
        oid, old if identity == "K" else None, old if identity == "O" else None, new
    )


@given(oids, values, st.booleans())
def test_any_deleted_tuple_decodes_to_itself(oid: int, old, full: bool) -> None:
    data = b"D" + oid.to_bytes(4, "big") + (b"O" if full else b"K") + encoded(old)
    assert decode(data) == (Delete(oid, None, old) if full else Delete(oid, old, None))


@given(st.booleans(), st.booleans(), st.lists(oids, max_size=30).map(tuple))
def test_any_truncate_decodes_to_itself(cascade: bool, restart: bool, tables) -> None:
    data = struct.pack(f">cIB{len(tables)}I", b"T", len(tables), cascade + 2 * restart, *tables)
    assert decode(data) == Truncate(cascade, restart, tables)


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(st.booleans(), st.integers(0, 2**64 - 1), names, st.binary(max_size=200))
def test_any_logical_message_decodes_to_itself(
    transactional: bool, lsn: int, prefix: str, content: bytes
) -> None:
    data = struct.pack(">cBQ", b"M", transactional, lsn) + prefix.encode() + b"\0"
    data += len(content).to_bytes(4, "big") + content
    assert decode(data) == Message(transactional, lsn, prefix, content)
