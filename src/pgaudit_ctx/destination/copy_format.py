"""Rows of ``changes`` in PostgreSQL's binary COPY format; pure.

PostgreSQL documentation: "COPY", section "Binary Format". Binary, because then times and positions
need no text on either side, and JSON needs no second escaping.
"""

import struct
from collections.abc import Iterable
from typing import Final

from pgaudit_ctx.wal.pgoutput import Begin
from pgaudit_ctx.wal.stitcher import CapturedChange
from pgaudit_ctx.wal.table import CapturedTable, Key

COLUMNS: Final = (
    "source",
    "epoch",
    "commit_lsn",
    "transaction_id",
    "committed_at",
    "ordinal",
    "operation",
    "schema_name",
    "table_name",
    "relation_oid",
    "primary_key",
    "previous_key",
    "before",
    "after",
    "context",
)
"""The columns that are sent, in the order in which they are; the rest have defaults."""

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

_NULL: Final = b"\xff\xff\xff\xff"
_TEXT_OID: Final = 25
_COUNT: Final = struct.Struct(">h")
_pack_length: Final = struct.Struct(">i").pack
_TRANSACTION: Final = struct.Struct(">iiiQiqiq")
_pack_ordinal: Final = struct.Struct(">iq").pack
_OID: Final = struct.Struct(">iI")
_pack_jsonb: Final = struct.Struct(">iB").pack
_pack_array: Final = struct.Struct(">iiiIii").pack
_MAX_REMEMBERED: Final = 4096
_JSONB_VERSION: Final = 1


class RowEncoder:
    """Encodes changes of one source and epoch, one transaction after the other.

    Args:
        source: The source's name.
        epoch: The epoch.
    """

    def __init__(self, source: str, epoch: int) -> None:
        self._lead = _COUNT.pack(len(COLUMNS)) + _field(source.encode())
        self._epoch = epoch
        self._head = b""
        self._about: dict[tuple[CapturedTable, str], bytes] = {}
        self._context: str | None = None
        self._encoded_context = _NULL

    def begin(self, transaction: Begin) -> None:
        """Take over what all rows of a transaction share."""
        self._head = self._lead + _TRANSACTION.pack(
            4,
            self._epoch,
            8,
            transaction.final_lsn,
            8,
            transaction.xid,
            8,
            transaction.committed_at,
        )

    def encode(self, changes: Iterable[CapturedChange]) -> tuple[int, bytes]:
        """Encode rows of the current transaction.

        Args:
            changes: Some of its changes, in order.

        Returns:
            How many they are, and their bytes.
        """
        head, known = self._head, self._about
        parts: list[bytes] = []
        count = 0
        for ordinal, operation, table, key, previous_key, before, after, context in changes:
            count += 1
            if context is not self._context:
                self._context = context
                self._encoded_context = _NULL if context is None else _jsonb(context)
            parts += (
                head,
                _pack_ordinal(8, ordinal),
                known.get((table, operation)) or self._describe(table, operation),
                _NULL if key is None else _text_array(key),
                _NULL if previous_key is None else _text_array(previous_key),
                _NULL if before is None else _jsonb(before),
                _NULL if after is None else _jsonb(after),
                self._encoded_context,
            )
        return count, b"".join(parts)

    def _describe(self, table: CapturedTable, operation: str) -> bytes:
        if len(self._about) >= _MAX_REMEMBERED:
            self._about.clear()
        about = self._about[table, operation] = b"".join(
            (
                _field(operation.encode()),
                _field(table.schema.encode()),
                _field(table.name.encode()),
                _OID.pack(4, table.oid),
            )
        )
        return about


def _field(value: bytes) -> bytes:
    return _pack_length(len(value)) + value


def _jsonb(text: str) -> bytes:
    data = text.encode()
    return _pack_jsonb(len(data) + 1, _JSONB_VERSION) + data


def _text_array(values: Key) -> bytes:
    # Length of the field, one dimension, no NULLs, element type, number of elements, lower bound.
    if len(values) == 1:
        size = len(values[0])
        return _pack_array(24 + size, 1, 0, _TEXT_OID, 1, 1) + _pack_length(size) + values[0]
    content = b"".join(map(_field, values))
    return _pack_array(20 + len(content), 1, 0, _TEXT_OID, len(values), 1) + content
