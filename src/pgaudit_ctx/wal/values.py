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

Encoder: TypeAlias = Callable[[bytes], str]

BOOL, INT8, INT2, INT4, JSON, JSONB = 16, 20, 21, 23, 114, 3802
MAX_VALUE: Final = 64 * 2**20
"""Bytes of UTF-8 text from which on a value is replaced by its size and digest."""

UNAVAILABLE_JSON: Final = json.dumps({MARKER: "unavailable"})
"""Stands for a value that the write-ahead log did not carry."""


def encoder_for(type_oid: int) -> Encoder:
    """Choose how values of a type become JSON.

    Args:
        type_oid: ``pg_type.oid``; for a domain, that of its base type.

    Returns:
        A function from the value's text in UTF-8 to JSON text.
    """
    return _ENCODERS.get(type_oid, encode_text)


def encode_text(value: bytes) -> str:
    """Give a value's exact text as a JSON string, or a marker if it is too large."""
    if len(value) > MAX_VALUE:
        digest = hashlib.sha256(value).hexdigest()
        return json.dumps({MARKER: "too large", "bytes": len(value), "sha256": digest})
    return encode_basestring(value.decode())


def _bool(value: bytes) -> str:
    return "true" if value == b"t" else "false"


def encode_integer(value: bytes) -> str:
    """Give an integer's text, which is JSON already."""
    return value.decode("ascii")


def _jsonb(value: bytes) -> str:
    # What jsonb printed, jsonb takes; only what would be mistaken for something else is looked at.
    if len(value) > MAX_VALUE:
        return encode_text(value)
    text = value.decode()
    if text == "null":
        return _marked_value(text)
    if MARKER in text:
        try:
            ours = MARKER in json.loads(text, parse_int=str, parse_float=str)
        except RecursionError:
            ours = True  # too deep to look at; wrapped, it cannot be mistaken for a marker
        if ours:
            return _marked_value(text)
    return text


def _json(value: bytes) -> str:
    if len(value) > MAX_VALUE:
        return encode_text(value)
    text = value.decode()
    try:
        parsed = parse(text)
    except Refused:
        return f'{{"{MARKER}": "text", "text": {encode_basestring(text)}}}'
    if parsed is None or (isinstance(parsed, dict) and MARKER in parsed):
        return _marked_value(text)
    return text


def _marked_value(text: str) -> str:
    return f'{{"{MARKER}": "value", "value": {text}}}'


_ENCODERS: Final[dict[int, Encoder]] = {
    BOOL: _bool,
    INT2: encode_integer,
    INT4: encode_integer,
    INT8: encode_integer,
    JSON: _json,
    JSONB: _jsonb,
}
