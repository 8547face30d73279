"""Positions in the write-ahead log, as integers inside and as ``X/X`` text outside."""

import re
from typing import Final

from pgaudit_ctx.errors import ProtocolError

_LSN: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_PAGE: Final = 8192
_LONGEST_PAGE_HEADER: Final = 40


def parse_lsn(text: str) -> int:
    """Read an LSN as PostgreSQL prints it (``pg_lsn`` type).

    Args:
        text: For example ``"16/B374D848"``.

    Returns:
        The byte position as an integer of 64 bits.

    Raises:
        ProtocolError: If the text is no LSN.
    """
    match = _LSN.fullmatch(text)
    if match is None:
        raise ProtocolError(f"{text[:40]!r} is not an LSN: two hexadecimal numbers around a slash")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """Print an LSN as PostgreSQL does."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def last_record_end(insert_lsn: int) -> int:
    """Give where the last record before an insert position ends.

    ``pg_current_wal_insert_lsn()`` skips a page's header when it stands on a page boundary; no
    record ends inside a header, so nothing that is sent ever reaches such a position.

    Args:
        insert_lsn: What ``pg_current_wal_insert_lsn()`` returned.

    Returns:
        The same position, or the page boundary before it.
    """
    offset = insert_lsn % _PAGE
    return insert_lsn - offset if offset <= _LONGEST_PAGE_HEADER else insert_lsn
