"""From the text PostgreSQL prints for a value to a JSON fragment, by type OID, without loss.

Booleans, integers, JSON and NULL become native JSON; everything else stays the exact text.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring
from typing import Final, TypeAlias

from pgaudit_ctx.change import MARKER
from pgaudit_ctx.wal.json_text import MAX_DEPTH, Refused, fits, parse, size_as_jsonb
from pgaudit_ctx.wal.pgoutput import Type

Encoder: TypeAlias = Callable[[bytes], bytes]

MARKER_BYTES: Final = MARKER.encode()
BOOL, INT8, INT2, INT4, JSON, JSONB = 16, 20, 21, 23, 114, 3802
_NATIVE: Final = {
    "bool": BOOL,
    "int8": INT8,
    "int2": INT2,
    "int4": INT4,
    "json": JSON,
    "jsonb": JSONB,
}
# numeric, float4, float8, date, time, timetz, timestamp, timestamptz, interval, uuid
_PLAIN: Final = (1700, 700, 701, 1082, 1083, 1266, 1114, 1184, 1186, 2950)
MAX_VALUE: Final = 64 * 2**20
"""Bytes of UTF-8 text from which on a value is replaced by its size and digest."""

UNAVAILABLE_JSON: Final = json.dumps({MARKER: "unavailable"}).encode()
"""Stands for a value that the write-ahead log did not carry."""
_TEXT_MARKER: Final = b'{"%b": "text", "text": ' % MARKER_BYTES


def encoder_for(type_oid: int) -> Encoder:
    """Choose how values of a type become JSON.

    Args:
        type_oid: ``pg_type.oid``; for a domain, that of its base type.

    Returns:
        A function from the value's text to JSON text, both in UTF-8.
    """
    return _ENCODERS.get(type_oid, encode_text)


def base_type(message: Type) -> int:
    """Give the type below a domain, as it was then.

    Args:
        message: What the server says of a type that is not built in. It names the type that is
            below a domain, and below all domains in between.

    Returns:
        The oid of that type if its values are native JSON, else the message's own.
    """
    if message.schema != "pg_catalog":
        return message.oid
    return _NATIVE.get(message.name, message.oid)


def encode_text(value: bytes) -> bytes:
    """Give a value's exact text as a JSON string, or a marker if it is too large."""
    if len(value) > MAX_VALUE:
        return too_large(value)
    return encode_basestring(value.decode()).encode()


def too_large(value: bytes) -> bytes:
    """Give the marker that stands for a value that is too large."""
    digest = hashlib.sha256(value).hexdigest()
    return json.dumps({MARKER: "too large", "bytes": len(value), "sha256": digest}).encode()


def encode_within(values: Sequence[tuple[Encoder, bytes]], limit: int) -> list[bytes]:
    """Encode values that may together be more than one ``jsonb`` can hold.

    Args:
        values: Each with its encoder.
        limit: What they may need together as ``jsonb``, in bytes.

    Returns:
        Their JSON; the largest are replaced by their size and digest until the rest fits.
    """
    fragments = [encode(value) for encode, value in values]
    sizes = [
        size_as_jsonb(fragment)
        if encode in JSON_ENCODERS and not fragment.startswith(_TEXT_MARKER)
        else len(fragment)
        for (encode, _), fragment in zip(values, fragments, strict=True)
    ]
    while sum(sizes) > limit:
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        fragments[largest] = too_large(values[largest][1])
        sizes[largest] = len(fragments[largest])
    return fragments


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
        return too_large(value)
    if value == b"null":
        return _marked_value(value)
    if not fits(value):
        return _marked_text(value.decode())
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
        return too_large(value)
    text = value.decode()
    try:
        parsed = parse(text)
    except Refused:
        return _marked_text(text)
    if parsed is None or (isinstance(parsed, dict) and MARKER in parsed):
        return _marked_value(value)
    return value


def _marked_text(text: str) -> bytes:
    return _TEXT_MARKER + encode_basestring(text).encode() + b"}"


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

JSON_ENCODERS: Final = (_json, encode_jsonb)
"""Those that may give more than a string or a number."""
SURELY_SHALLOW: Final = 2 * MAX_DEPTH
"""Bytes of JSON that cannot be too deep."""
