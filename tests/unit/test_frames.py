"""Frames of the streaming replication protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.wal.frames import PAYLOAD, Keepalive, XLogData, parse_frame, standby_status
from unit.recorded import POSTGRESQL_15, POSTGRESQL_18


def test_the_header_of_a_recorded_frame_is_read() -> None:
    assert parse_frame(POSTGRESQL_18["message"]) == XLogData(0x16FF290, 0x16FF290, 0x303FD5DE9A0F2)


def test_the_message_of_a_frame_begins_behind_its_header() -> None:
    assert POSTGRESQL_18["message"][PAYLOAD : PAYLOAD + 1] == b"M"


def test_a_recorded_keepalive_is_read() -> None:
    assert parse_frame(POSTGRESQL_15["keepalive"]) == Keepalive(22087208, 848811672396059, False)


def test_a_keepalive_that_wants_an_answer_says_so() -> None:
    assert parse_frame(POSTGRESQL_18["keepalive"][:-1] + b"\x01").reply_requested is True


@pytest.mark.parametrize("name", ["keepalive", "begin"])
def test_a_header_cut_off_anywhere_is_a_protocol_error(name: str) -> None:
    header = POSTGRESQL_18[name][:PAYLOAD]
    for length in range(len(header)):
        with pytest.raises(ProtocolError):
            parse_frame(header[:length])


def test_a_frame_of_an_unknown_kind_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="neither XLogData nor a keepalive"):
        parse_frame(b"z" + bytes(30))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.booleans())
def test_an_acknowledgement_says_written_flushed_and_applied_alike(
    flushed: int, sent_at: int, reply: bool
) -> None:
    data = standby_status(flushed, sent_at, reply_requested=reply)
    position = flushed.to_bytes(8, "big")
    assert data == b"r" + position * 3 + sent_at.to_bytes(8, "big") + bytes([reply])
