"""COPY's text format is taken apart into the values that went in."""

from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.wal.copy_text import parse_rows

ESCAPES = {8: rb"\b", 9: rb"\t", 10: rb"\n", 11: rb"\v", 12: rb"\f", 13: rb"\r", 92: rb"\\"}


def printed(value: bytes | None) -> bytes:
    """A value as the server's documentation says that it prints it."""
    if value is None:
        return rb"\N"
    return b"".join(ESCAPES.get(byte, bytes([byte])) for byte in value)


values = st.none() | st.binary(max_size=8) | st.sampled_from([rb"\N", b"\\", b"\t\n", b"N", b""])


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(values, min_size=n, max_size=n))))
def test_any_values_come_back_as_they_were(rows) -> None:
    data = b"".join(b"\t".join(map(printed, row)) + b"\n" for row in rows)
    assert parse_rows(data, len(rows[0]) if rows else 1) == rows


def test_rows_without_columns_are_counted() -> None:
    assert parse_rows(b"\n\n", 0) == [[], []]
