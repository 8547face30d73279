"""Rows as COPY sends them in its text format; pure.

PostgreSQL documentation: "COPY", section "Text Format". Each line is a row, its values are parted
by tabs, and what could be mistaken for either is escaped.
"""

import re
from typing import Final

from pgaudit_ctx.wal.pgoutput import Tuple

_NULL: Final = rb"\N"
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_MEANT: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def parse_rows(data: bytes, width: int) -> list[Tuple]:
    """Take whole lines apart.

    Args:
        data: Lines, each with its line feed.
        width: How many columns there are; of a table without columns a line is empty.

    Returns:
        The values of each row as text, ``None`` for NULL.
    """
    lines = data.split(b"\n")[:-1]
    if width == 0:
        return [[] for _ in lines]
    return [
        [None if value == _NULL else _plain(value) for value in line.split(b"\t")] for line in lines
    ]


def _plain(value: bytes) -> bytes:
    return _ESCAPED.sub(_meant, value) if b"\\" in value else value


def _meant(escaped: re.Match[bytes]) -> bytes:
    return _MEANT.get(escaped[1], escaped[1])
