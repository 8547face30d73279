"""Positions in the log, as text and as integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.wal.lsn import format_lsn, last_record_end, parse_lsn


@given(st.integers(0, 2**64 - 1))
def test_an_lsn_survives_printing_and_reading(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_an_lsn_prints_as_postgresql_prints_it() -> None:
    assert format_lsn(0x16_B374_D848) == "16/B374D848"
    assert format_lsn(0x1_0000_000A) == "1/A"
    assert format_lsn(0) == "0/0"


def test_lower_case_and_leading_zeros_are_read() -> None:
    assert parse_lsn("00000016/b374d848") == 0x16_B374_D848


@pytest.mark.parametrize(
    "text", ["", "0", "0/", "/0", "0/0/0", "x/0", "123456789/0", "0/123456789", " 0/0", "-1/0"]
)
def test_text_that_is_no_lsn_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError, match="is not an LSN"):
        parse_lsn(text)


@pytest.mark.parametrize(
    ("insert", "end"),
    [
        (0x16FFFE8, 0x16FFFE8),
        (0x1700000 + 24, 0x1700000),
        (0x1700000 + 40, 0x1700000),
        (0x1700000 + 48, 0x1700000 + 48),
    ],
)
def test_an_insert_position_behind_a_page_header_counts_as_the_page_boundary(
    insert: int, end: int
) -> None:
    assert last_record_end(insert) == end
