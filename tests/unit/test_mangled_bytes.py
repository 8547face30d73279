"""Spoilt bytes never give anything but a message or a ProtocolError."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.wal.frames import PAYLOAD, Keepalive, XLogData, parse_frame
from pgaudit_ctx.wal.pgoutput import decode
from pgaudit_ctx.wal.stitcher import Stitcher
from pgaudit_ctx.wal.table import TableFacts
from unit.mangling import SHORT, mangled
from unit.recorded import POSTGRESQL_15, POSTGRESQL_18

FRAMES = [f for f in (*POSTGRESQL_18.values(), *POSTGRESQL_15.values()) if len(f) < 200]
RELATIONS = [
    decode(POSTGRESQL_18[name], PAYLOAD)
    for name in ("relation_full", "relation_default", "relation_child")
]


@pytest.mark.parametrize("message", SHORT)
def test_a_message_cut_off_anywhere_is_a_protocol_error(message: bytes) -> None:
    for length in range(len(message)):
        with pytest.raises(ProtocolError):
            decode(message[:length])


@pytest.mark.parametrize("message", SHORT)
def test_a_message_with_any_one_byte_changed_decodes_or_is_a_protocol_error(
    message: bytes,
) -> None:
    for position, byte in enumerate(message):
        for other in {0, 1, 0x7F, 0x80, 0xFF, byte ^ 1, byte ^ 0x80}:
            with contextlib.suppress(ProtocolError):
                decode(message[:position] + bytes([other]) + message[position + 1 :])


@given(mangled())
def test_a_mangled_message_decodes_or_is_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(data), tuple)


@given(st.sampled_from(b"BCORYIUDTM"), st.binary(max_size=80))
def test_random_bytes_decode_or_are_a_protocol_error(kind: int, data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(bytes([kind]) + data), tuple)


@given(st.binary(max_size=60) | mangled(FRAMES))
def test_a_mangled_frame_parses_or_is_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(parse_frame(data), XLogData | Keepalive)


@given(st.lists(st.tuples(st.integers(0, 3), mangled()), max_size=12))
def test_mangled_messages_give_the_stitcher_no_other_error_than_a_protocol_error(stream) -> None:
    stitcher = Stitcher(
        lambda relation: TableFacts(
            relation.oid, relation.schema, relation.name, ("id",), {16390: 23, 16385: 114}
        )
    )
    for relation in RELATIONS:
        stitcher.receive(0, relation)
    for position, data in stream:
        with contextlib.suppress(ProtocolError):
            stitcher.receive(position, decode(data))
