"""The wire contract between application and worker: prefix, and a context as ASCII JSON.

PostgreSQL documentation: "Logical Decoding Message" in the protocol chapter, and
``pg_logical_emit_message`` under "Replication Management Functions".
"""

import datetime as dt
import decimal
import enum
import ipaddress
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from pgaudit_ctx.change import MARKER
from pgaudit_ctx.errors import ContextInvalid

PREFIX: Final = "pgaudit_ctx"
"""The prefix of our logical decoding messages; others pass unharmed."""

EMPTY: Final = "{}"
"""The text that says: no context from here on."""

MAX_TEXT: Final = 64 * 1024
"""How many bytes of ASCII JSON a merged context may have."""

_PLAIN: Final = frozenset({bool, int, type(None)})
_MAX_DEPTH: Final = 64
_encoder: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
_quoted: Final = json.encoder.encode_basestring_ascii
_WIDEST: Final = 12  # bytes of one character: a pair of escaped surrogates


def plain(value: Any, path: str) -> Any:
    """Turn one context value into plain JSON.

    Args:
        value: What the application gave: JSON types, UUID, datetime, date, time, timedelta,
            Decimal, Enum, Path, IP addresses and networks, pydantic models.
        path: Where it stands (``"user"``, ``"request.ip"``), for the error message.

    Returns:
        ``str``, ``int``, ``float``, ``bool``, ``None``, or a dict or list of these, copied, so
        that later changes to the argument do not reach the context.

    Raises:
        ContextInvalid: If JSON, or PostgreSQL's ``jsonb``, cannot carry the value.
    """
    return _plain(value, path, 0)


def _plain(value: Any, path: str, depth: int) -> Any:  # noqa: C901, PLR0911, PLR0912 - one per kind
    kind = type(value)
    if kind is str:
        return _checked_text(value, path)
    if kind in _PLAIN:
        return value
    if depth > _MAX_DEPTH:
        raise ContextInvalid(
            f"the context value {path!r} is nested more than {_MAX_DEPTH} levels deep, or holds "
            "itself: pass a flatter value"
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ContextInvalid(
                f"the context value {path!r} is not a finite number, which JSON cannot carry: "
                "pass it as text"
            )
        return float(value)
    if isinstance(value, enum.Enum):
        return _plain(value.value, path, depth + 1)
    if isinstance(value, str):
        return _checked_text(str(value), path)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {
            _checked_key(key, path): _plain(item, f"{path}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(), path, depth + 1)
    for kinds, to_text in _AS_TEXT:
        if isinstance(value, kinds):
            return to_text(value)
    raise ContextInvalid(
        f"the context value {path!r} is a {kind.__name__}, which JSON cannot carry: "
        "pass text, a number, a list, a mapping, or a type listed in the documentation of "
        "audit_context"
    )


def _iso_duration(value: dt.timedelta) -> str:
    return f"{'-' if value < dt.timedelta(0) else ''}{_unsigned_duration(abs(value))}"


def _unsigned_duration(value: dt.timedelta) -> str:
    fraction = f".{value.microseconds:06d}" if value.microseconds else ""
    return f"P{value.days}DT{value.seconds}{fraction}S"


def _isoformat(value: Any) -> str:
    return str(value.isoformat())


_AS_TEXT: Final[tuple[tuple[Any, Callable[[Any], str]], ...]] = (
    (uuid.UUID, str),
    ((dt.date, dt.time), _isoformat),
    (dt.timedelta, _iso_duration),
    (decimal.Decimal, str),
    (pathlib.PurePath, str),
    (
        (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
        ),
        str,
    ),
)


def _checked_text(text: str, path: str) -> str:
    if text.isascii():
        if "\0" in text:
            raise ContextInvalid(
                f"the context value {path!r} contains U+0000, which PostgreSQL cannot store: "
                "remove it"
            )
        return text
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ContextInvalid(
            f"the context value {path!r} contains U+0000 or half of a surrogate pair, which "
            "PostgreSQL cannot store: remove it"
        )
    return text


def _checked_key(key: Any, path: str) -> str:
    if type(key) is not str:
        raise ContextInvalid(
            f"a context key must be a str, but under {path!r} there is a {type(key).__name__}"
        )
    return _checked_text(key, path)


def plain_context(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a whole context into plain JSON, checking its keys.

    Args:
        values: The context as the application gave it.

    Returns:
        A new dict of plain JSON values.

    Raises:
        ContextInvalid: If a key is not text or is reserved, or a value cannot be carried.
    """
    return measured_context(values)[0]


def measured_context(values: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Do the same, and say how long the text may be, without building it.

    Returns:
        The new dict, and a number of bytes that ``encode_context`` surely does not exceed for it;
        more than the limit where only the text itself can tell.
    """
    if MARKER in values:
        raise ContextInvalid(
            f"the context key {MARKER!r} is reserved for this package: use another name"
        )
    made = {}
    bound = 2
    for key, value in values.items():
        # Text in ASCII, which most contexts consist of, is told apart without a call.
        if type(key) is not str or not key.isascii() or "\0" in key:
            _checked_key(key, "the context")
        if type(value) is str and value.isascii() and "\0" not in value:
            made[key] = value
            bound += 6 + _WIDEST * (len(key) + len(value))
            continue
        plain_value = made[key] = value if type(value) in _PLAIN else _plain(value, key, 0)
        bound += 6 + _WIDEST * len(key) + _size_bound(plain_value)
    return made, bound


def _size_bound(value: Any) -> int:
    if type(value) is str:
        return _WIDEST * len(value)
    if type(value) is int:
        return 2 + value.bit_length() // 3
    return 32 if value is None or type(value) in {bool, float} else MAX_TEXT


def encode_context(values: Mapping[str, Any]) -> str:
    """Make the text of a message.

    Args:
        values: A context of plain JSON values, as ``plain_context`` gives it.

    Returns:
        One JSON object in ASCII; ``"{}"`` for an empty context.

    Raises:
        ContextInvalid: If the text is longer than 64 KiB.
    """
    members = []
    for key, value in values.items():
        if type(value) is not str:
            text = _encoded(values)
            break
        # Most contexts are nothing but text, and the encoder is slow to start.
        members.append(f"{_quoted(key)}:{_quoted(value)}")
    else:
        text = f"{{{','.join(members)}}}"
    if len(text) > MAX_TEXT:
        raise ContextInvalid(
            f"the context is {len(text)} bytes of JSON, more than the {MAX_TEXT} allowed: "
            "keep large things elsewhere and put their key into the context"
        )
    return text


def _encoded(values: Mapping[str, Any]) -> str:
    try:
        return _encoder.encode(dict(values))
    except ValueError as error:
        raise ContextInvalid(
            f"the context cannot be written as JSON ({error}): pass very large numbers as text"
        ) from None
