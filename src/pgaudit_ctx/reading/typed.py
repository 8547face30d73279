"""From what the trail stores to Python values of the model's types, and back for keys; pure.

The trail holds the text PostgreSQL prints. It is first turned into what a driver would give for the
column's type, and then goes through the type's own result processing, so that Enum and
``TypeDecorator`` give what the model gives. What Python cannot hold (``infinity`` as a date, a year
BC) and types this version does not know stay the text.
"""

import datetime as dt
import decimal
import json
import re
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sqlalchemy import types as sqltypes
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeEngine

from pgaudit_ctx.change import MARKER, UNAVAILABLE
from pgaudit_ctx.errors import KeyMismatch

Convert: TypeAlias = Callable[[Any], Any]

_DIALECT: Final[Dialect] = postgresql.dialect()  # type: ignore[no-untyped-call]
_INTERVAL: Final = re.compile(r"(-?\d+) (year|mon|day)s?|(-?)(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_DAYS: Final = {"year": 365, "mon": 30, "day": 1}


def converter(type_: TypeEngine[Any]) -> Convert:
    """Choose how stored values of a column become the model's.

    Args:
        type_: The column's type.

    Returns:
        A function from a JSON value of ``before`` or ``after``.
    """
    implementation = type_.dialect_impl(_DIALECT)
    base: Any = implementation
    while isinstance(base, sqltypes.TypeDecorator):
        base = base.impl_instance
    from_text = _from_text(base)
    process = (
        None if isinstance(base, sqltypes.JSON) else implementation.result_processor(_DIALECT, None)
    )
    if isinstance(base, sqltypes.JSON) and isinstance(implementation, sqltypes.TypeDecorator):
        return _decorated_json(implementation)

    def convert(stored: Any) -> Any:
        value = unmark(stored)
        if value is None or value is UNAVAILABLE:
            return value if value is UNAVAILABLE or process is None else process(None)
        value = from_text(value)
        return value if process is None else process(value)

    return convert


def _decorated_json(decorator: "sqltypes.TypeDecorator[Any]") -> Convert:
    def convert(stored: Any) -> Any:
        value = unmark(stored)
        return value if value is UNAVAILABLE else decorator.process_result_value(value, _DIALECT)

    return convert


def unmark(stored: Any) -> Any:
    """Take a marker off a stored value (``changes.before`` and ``changes.after``)."""
    if not isinstance(stored, dict):
        return stored
    kind = stored.get(MARKER)
    if kind == "unavailable":
        return UNAVAILABLE
    if kind == "value":
        return stored["value"]
    if kind == "text":
        try:
            return json.loads(stored["text"])
        except ValueError:
            return stored["text"]
    return stored


def _from_text(type_: Any) -> Convert:
    for kinds, convert in _FROM_TEXT:
        if isinstance(type_, kinds):
            return convert
    if isinstance(type_, sqltypes.ARRAY):
        return _array_of(converter(type_.item_type))
    return _unchanged


def _unchanged(value: Any) -> Any:
    return value


def _or_text(convert: Callable[[str], Any]) -> Convert:
    def attempt(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return convert(value)
        except (ValueError, ArithmeticError):
            return value

    return attempt


def _interval(text: str) -> dt.timedelta:
    total = dt.timedelta()
    for count, unit, sign, hours, minutes, seconds in _INTERVAL.findall(text):
        if unit:
            total += dt.timedelta(days=int(count) * _DAYS[unit])
        else:
            clock = dt.timedelta(
                hours=int(hours),
                minutes=int(minutes),
                microseconds=int(decimal.Decimal(seconds) * 1_000_000),
            )
            total += -clock if sign else clock
    return total


def _number(value: Any) -> Any:
    return decimal.Decimal(value) if isinstance(value, str | int) else value


def _array_of(convert_item: Convert) -> Convert:
    def convert(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        items, _ = _parse_array(value, value.index("{") + 1, convert_item)
        return items

    return convert


def _parse_array(text: str, pos: int, convert: Convert) -> tuple[list[Any], int]:
    """Read one level of an array as PostgreSQL prints it ("Array Input and Output Syntax")."""
    items: list[Any] = []
    while True:
        character = text[pos]
        if character == "}":
            return items, pos + 1
        if character in ", ":
            pos += 1
        elif character == "{":
            nested, pos = _parse_array(text, pos + 1, convert)
            items.append(nested)
        elif character == '"':
            end = pos + 1
            content = []
            while text[end] != '"':
                end += text[end] == "\\"
                content.append(text[end])
                end += 1
            items.append(_item("".join(content), convert))
            pos = end + 1
        else:
            end = pos
            while text[end] not in ",}":
                end += 1
            word = text[pos:end]
            items.append(None if word == "NULL" else _item(word, convert))
            pos = end


def _item(text: str, convert: Convert) -> Any:
    # Inside an array even integers and booleans are text.
    return convert(text)


_FROM_TEXT: Final[tuple[tuple[Any, Convert], ...]] = (
    (sqltypes.Boolean, lambda value: value == "t" if isinstance(value, str) else value),
    (sqltypes.Integer, _or_text(int)),
    (sqltypes.Float, _or_text(float)),
    (sqltypes.Numeric, _number),
    (sqltypes.DateTime, _or_text(dt.datetime.fromisoformat)),
    (sqltypes.Date, _or_text(dt.date.fromisoformat)),
    (sqltypes.Time, _or_text(dt.time.fromisoformat)),
    ((sqltypes.Interval, postgresql.INTERVAL), _or_text(_interval)),
    (sqltypes.Uuid, _or_text(uuid.UUID)),
    (sqltypes.LargeBinary, _or_text(lambda text: bytes.fromhex(text.removeprefix("\\x")))),
)


def key_text(type_: TypeEngine[Any], value: Any, name: str) -> str:
    """Print one value of a key as PostgreSQL prints it.

    Args:
        type_: The key column's type.
        value: What the caller gave.
        name: The attribute, for the error message.

    Returns:
        The text as it stands in ``changes.primary_key``.

    Raises:
        KeyMismatch: If the value does not fit the type.
    """
    base: Any = type_
    while isinstance(base, sqltypes.TypeDecorator):
        base = base.impl_instance
    if isinstance(base, sqltypes.Integer) and isinstance(value, str | float | bool):
        raise KeyMismatch(_misfit(name, type_, value))
    try:
        process = type_.dialect_impl(_DIALECT).bind_processor(_DIALECT)
        bound = value if process is None else process(value)
        return _print(bound, base)
    except (TypeError, ValueError, LookupError, ArithmeticError):
        raise KeyMismatch(_misfit(name, type_, value)) from None


def _misfit(name: str, type_: TypeEngine[Any], value: Any) -> str:
    return (
        f"the key attribute {name!r} has the type {type_!r}, which a value of type "
        f"{type(value).__name__} does not fit: pass the key as Session.get() takes it"
    )


def _print(value: Any, type_: Any) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(type_, sqltypes.Uuid):
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(str(value)))
    if isinstance(value, dt.datetime):
        moment = value if value.tzinfo is None else value.astimezone(dt.UTC)
        text = moment.replace(tzinfo=None).isoformat(sep=" ")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text if value.tzinfo is None else f"{text}+00"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, decimal.Decimal):
        scale = getattr(type_, "scale", None)
        return f"{value:f}" if scale is None else f"{value:.{scale}f}"
    if isinstance(value, str | int | dt.date | dt.time):
        return str(value)
    raise TypeError
