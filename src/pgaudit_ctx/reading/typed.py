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
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeEngine

from pgaudit_ctx.change import MARKER, UNAVAILABLE
from pgaudit_ctx.errors import KeyMismatch, UsageError

Convert: TypeAlias = Callable[[Any], Any]

# The dialect without a driver: psycopg's own would expect what psycopg gives.
_DIALECT: Final[Dialect] = PGDialect()  # type: ignore[no-untyped-call]
_DIALECT.supports_native_decimal = True
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
    base = _base(implementation)
    from_text = _from_text(base)
    process = _result_processor(implementation, base)

    def convert(stored: Any) -> Any:
        value = unmark(stored)
        if value is UNAVAILABLE or (isinstance(value, dict) and MARKER in value):
            return value
        try:
            converted = value if value is None else from_text(value)
            return converted if process is None else process(converted)
        except (ValueError, LookupError, ArithmeticError, TypeError):
            return value  # of a type the column no longer has

    return convert


def base_type(type_: TypeEngine[Any]) -> Any:
    """Give the type PostgreSQL knows, without decorators and domains."""
    base = _base(type_.dialect_impl(_DIALECT))
    return base_type(base.data_type) if isinstance(base, postgresql.DOMAIN) else base


def _base(type_: Any) -> Any:
    while isinstance(type_, sqltypes.TypeDecorator):
        type_ = type_.impl_instance
    return type_


def _result_processor(implementation: Any, base: Any) -> Convert | None:
    if not isinstance(base, sqltypes.JSON | sqltypes.ARRAY):
        process: Convert | None = implementation.result_processor(_DIALECT, None)
        return process
    # JSON is parsed already, and the items of an array have been through their own type.
    if not isinstance(implementation, sqltypes.TypeDecorator):
        return None
    decorators = []
    while isinstance(implementation, sqltypes.TypeDecorator):
        decorators.append(implementation)
        implementation = implementation.impl_instance

    def process_decorators(value: Any) -> Any:
        for decorator in reversed(decorators):
            value = decorator.process_result_value(value, _DIALECT)
        return value

    return process_decorators


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
        items = converter(type_.item_type)
        if isinstance(_base(type_.item_type), sqltypes.JSON):
            return _array_of(lambda text: items(json.loads(text)))
        return _array_of(items)
    if isinstance(type_, sqltypes.Uuid) and type_.native_uuid:
        return _or_text(uuid.UUID)
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
    if not _INTERVAL.search(text):
        raise ValueError  # infinity, from PostgreSQL 17 on
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
            items.append(convert("".join(content)))
            pos = end + 1
        else:
            end = pos
            while text[end] not in ",}":
                end += 1
            word = text[pos:end]
            items.append(None if word == "NULL" else convert(word))
            pos = end


_TRUTH: Final = {"t": True, "true": True, "f": False, "false": False}
_FROM_TEXT: Final[tuple[tuple[Any, Convert], ...]] = (
    (sqltypes.Boolean, lambda value: _TRUTH.get(value, value)),
    (sqltypes.Integer, _or_text(int)),
    (sqltypes.Float, _or_text(float)),
    (sqltypes.Numeric, _number),
    (sqltypes.DateTime, _or_text(dt.datetime.fromisoformat)),
    (sqltypes.Date, _or_text(dt.date.fromisoformat)),
    (sqltypes.Time, _or_text(dt.time.fromisoformat)),
    ((sqltypes.Interval, postgresql.INTERVAL), _or_text(_interval)),
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
    base = _base(type_)
    if isinstance(base, sqltypes.Integer) and isinstance(value, str | float | bool):
        raise KeyMismatch(_misfit(name, type_, value))
    try:
        process = type_.dialect_impl(_DIALECT).bind_processor(_DIALECT)
        return _print(value if process is None else process(value), base)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
        raise KeyMismatch(_misfit(name, type_, value)) from None


def stored_text(type_: TypeEngine[Any], value: Any, name: str) -> str:
    """Print a value as ``->>`` gives it from an image.

    Raises:
        UsageError: If the value does not fit the type.
    """
    if isinstance(_base(type_), sqltypes.Boolean):
        return "true" if value else "false"
    try:
        return key_text(type_, value, name)
    except KeyMismatch:
        raise UsageError(
            f"{name!r} has the type {type_!r}, which a value of type {type(value).__name__} does "
            "not fit, or which cannot be compared here"
        ) from None


def is_document(type_: TypeEngine[Any]) -> bool:
    """Whether values of a type are JSON documents."""
    return isinstance(base_type(type_), sqltypes.JSON)


def _misfit(name: str, type_: TypeEngine[Any], value: Any) -> str:
    return (
        f"the key attribute {name!r} has the type {type_!r}, which a value of type "
        f"{type(value).__name__} does not fit: pass the key as Session.get() takes it"
    )


def _print(value: Any, type_: Any) -> str:
    for kinds, to_text in _PRINTED:
        if isinstance(type_, kinds):
            return to_text(value, type_)
    if isinstance(value, str | int | dt.date):
        return str(value)
    raise TypeError


def _print_number(value: Any, type_: Any) -> str:
    if isinstance(value, bool | str):
        raise TypeError
    number = decimal.Decimal(value)
    scale = getattr(type_, "scale", None)
    return f"{number:f}" if scale is None else f"{number:.{scale}f}"


def _print_float(value: Any, _: Any) -> str:
    number = float(value)
    # PostgreSQL prints the shortest text that reads back, and no ".0".
    return str(int(number)) if number.is_integer() and abs(number) < _EXACT else repr(number)


def _print_moment(value: Any, type_: Any) -> str:
    if type_.timezone != (value.tzinfo is not None):
        raise TypeError
    moment = value if value.tzinfo is None else value.astimezone(dt.UTC)
    text = _without_zeros(moment.replace(tzinfo=None).isoformat(sep=" "))
    return f"{text}+00" if type_.timezone else text


def _print_date(value: Any, _: Any) -> str:
    if isinstance(value, dt.datetime):
        raise TypeError
    return str(value.isoformat())


def _without_zeros(text: str) -> str:
    return text.rstrip("0") if "." in text else text


_EXACT: Final = 10**15
_PRINTED: Final[tuple[tuple[Any, Callable[[Any, Any], str]], ...]] = (
    (sqltypes.Boolean, lambda value, _: "t" if value else "f"),
    (sqltypes.Float, _print_float),
    (sqltypes.Numeric, _print_number),
    (sqltypes.DateTime, _print_moment),
    (sqltypes.Date, _print_date),
    (sqltypes.Time, lambda value, _: _without_zeros(value.isoformat())),
    (
        sqltypes.Uuid,
        lambda value, type_: str(uuid.UUID(str(value))) if type_.native_uuid else str(value),
    ),
    (sqltypes.LargeBinary, lambda value, _: f"\\x{bytes(value).hex()}"),
    (sqltypes.CHAR, lambda value, type_: str(value).ljust(type_.length or 1)),
)
