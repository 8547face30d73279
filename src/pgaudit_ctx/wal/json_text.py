r"""Which JSON text ``jsonb`` takes, and takes without loss.

PostgreSQL documentation: "JSON Types" (``\u0000`` and lone surrogates are refused, of duplicate
keys the last one stays) and "Numeric Types" (131072 digits before the point, 16383 after it).
Undocumented, from its source: a container holds less than 256 MiB, and is parsed into at most 1 GB,
which is what 16,777,216 elements or 8,388,608 members need; how deep it may be depends on
``max_stack_depth``, about 13,000 levels by default.
"""

import json
import re
from typing import Any, Final

_NUMBER: Final = re.compile(r"-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?")
_MAX_WHOLE_DIGITS: Final = 131_072
_MAX_FRACTION_DIGITS: Final = 16_383
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
MAX_DEPTH: Final = 500
"""So deep a document may be: less than ``max_stack_depth`` or Python's own limit allows."""
_MAX_COMMAS: Final = 8_000_000
_MAX_SIZE: Final = 200 * 2**20
# What jsonb needs for each scalar or container beside its text: an entry, and a number's header.
_OVERHEAD: Final = 16
_NO_BRACKETS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[^][{}"]+', re.DOTALL)


class Refused(ValueError):
    """``jsonb`` would refuse the text, or lose something of it."""


def parse(text: str, *, allow_duplicates: bool = False) -> Any:
    """Parse JSON as strictly as ``jsonb`` does.

    Args:
        text: What should be JSON.
        allow_duplicates: Take the last of several equal keys, as ``jsonb`` does, instead of
            refusing what would lose the others.

    Returns:
        The value; numbers as their own text, for they are only looked at, never calculated with.

    Raises:
        Refused: If ``jsonb`` would refuse the text or lose something of it.
    """
    try:
        if not fits(text.encode()):
            raise Refused
        value = (_lenient if allow_duplicates else _strict).decode(text)
        if "\\u" in text:
            _check_strings(value)
    except (ValueError, RecursionError):
        raise Refused from None
    return value


def size_as_jsonb(text: bytes) -> int:
    """Give what a JSON document needs as ``jsonb`` at the most, in bytes."""
    return len(text) + _OVERHEAD * sum(map(text.count, (b",", b":", b"[", b"{"))) + _OVERHEAD


def fits(text: bytes) -> bool:
    """Say whether ``jsonb`` certainly can hold a document, by its depth and its size.

    Args:
        text: Valid JSON.

    Returns:
        ``False`` if it is deeper than ``MAX_DEPTH``, or might be too large.
    """
    if len(text) < 2 * MAX_DEPTH:
        return True
    if text.count(b",") > _MAX_COMMAS or size_as_jsonb(text) > _MAX_SIZE:
        return False
    return text.count(b"[") + text.count(b"{") <= MAX_DEPTH or not _is_deep(text)


def _is_deep(text: bytes) -> bool:
    brackets = _NO_BRACKETS.sub(b"", text)
    for _ in range(MAX_DEPTH):
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(brackets) == before:
            break
    return bool(brackets)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Refused
    return value


def _number(text: str) -> str:
    match = _NUMBER.fullmatch(text)
    if match is None or len(match[3] or "") > 7:  # noqa: PLR2004 - no exponent of 7 digits fits
        raise Refused
    exponent = int(match[3] or 0)
    if len(match[1]) + exponent > _MAX_WHOLE_DIGITS:
        raise Refused
    if len(match[2] or "") - exponent > _MAX_FRACTION_DIGITS:
        raise Refused
    return text


def _constant(_: str) -> Any:
    raise Refused


def _check_strings(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value or _SURROGATE.search(value):
            raise Refused
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key)
            _check_strings(item)
    elif isinstance(value, list):
        for item in value:
            _check_strings(item)


def _decoder(**hooks: Any) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_int=_number, parse_float=_number, parse_constant=_constant, **hooks
    )


_strict: Final = _decoder(object_pairs_hook=_unique_keys)
_lenient: Final = _decoder()
