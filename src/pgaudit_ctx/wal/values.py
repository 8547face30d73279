"""From the text PostgreSQL prints for a value to a JSON fragment, by type OID, without loss.

Booleans, integers, JSON and NULL become native JSON; everything else stays the exact text.
"""

import hashlib
import json
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Final, TypeAlias

from pgaudit_ctx.change import MARKER
from pgaudit_ctx.wal.json_text import Refused, parse

Encoder: TypeAlias = Callable[[bytes], bytes]

MARKER_BYTES: Final = MARKER.encode()
BOOL, INT8, INT2, INT4, JSON, JSONB = 16, 20, 21, 23, 114, 3802
# numeric, float4, float8, date, time, timetz, timestamp, timestamptz, interval, uuid
_PLAIN: Final = (1700, 700, 701, 1082, 1083, 1266, 1114, 1184, 1186, 2950)
MAX_VALUE: Final = 64 * 2**20
"""Bytes of UTF-8 text from which on a value is replaced by its size and digest."""

UNAVAILABLE_JSON: Final = json.dumps({MARKER: "unavailable"}).encode()
"""Stands for a value that the write-ahead log did not carry."""


def encoder_for(type_oid: int) -> Encoder:
    """Choose how values of a type become JSON.

    Args:
        type_oid: ``pg_type.oid``; for a domain, that of its base type.

    Returns:
        A function from the value's text to JSON text, both in UTF-8.
    """
    return _ENCODERS.get(type_oid, encode_text)


def encode_text(value: bytes) -> bytes:
    """Give a value's exact text as a JSON string, or a marker if it is too large."""
    if len(value) > MAX_VALUE:
        digest = hashlib.sha256(value).hexdigest()
        return json.dumps({MARKER: "too large", "bytes": len(value), "sha256": digest}).encode()
    return encode_basestring(value.decode()).encode()


def encode_plain(value: bytes) -> bytes:
    """Give as a JSON string what a type printed that prints nothing JSON would escape."""
    return b'"%b"' % value if len(value) <= MAX_VALUE else encode_text(value)


def encode_bool(value: bytes) -> bytes:
    """Give a boolean as JSON has it."""
    return b"true" if value == b"t" else b"false"


def encode_integer(value: bytes) -> bytes:
    """Give an integer's text, which is JSON already."""
    return value


def encode_jsonb(value: bytes) -> bytes:
    """Give what jsonb printed, which is JSON, unless it would be mistaken for something else."""
    if len(value) > MAX_VALUE:
        return encode_text(value)
    if value == b"null":
        return _marked_value(value)
    if MARKER_BYTES in value:
        try:
            ours = MARKER in json.loads(value.decode(), parse_int=str, parse_float=str)
        except RecursionError:
            ours = True  # too deep to look at; wrapped, it cannot be mistaken for a marker
        if ours:
            return _marked_value(value)
    return value


def _json(value: bytes) -> bytes:
    if len(value) > MAX_VALUE:
        return encode_text(value)
    text = value.decode()
    try:
        parsed = parse(text)
    except Refused:
        return f'{{"{MARKER}": "text", "text": {encode_basestring(text)}}}'.encode()
    if parsed is None or (isinstance(parsed, dict) and MARKER in parsed):
        return _marked_value(value)
    return value


def _marked_value(value: bytes) -> bytes:
    return b'{"%b": "value", "value": %b}' % (MARKER_BYTES, value)


_ENCODERS: Final[dict[int, Encoder]] = {
    BOOL: encode_bool,
    INT2: encode_integer,
    INT4: encode_integer,
    INT8: encode_integer,
    JSON: _json,
    JSONB: encode_jsonb,
    **dict.fromkeys(_PLAIN, encode_plain),
}
