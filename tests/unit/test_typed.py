"""From stored values to the model's types, and keys as PostgreSQL prints them."""

import datetime as dt
import decimal
import enum
import uuid

import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects import postgresql as pg

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.errors import KeyMismatch
from pgaudit_ctx.reading.typed import converter, key_text, unmark

ID = uuid.UUID("7f3a1a5e-1111-4111-8111-111111111111")
UTC = dt.UTC
MOMENT = dt.datetime(2024, 2, 29, 12, tzinfo=UTC)
CEST = dt.timezone(dt.timedelta(hours=2))


class Status(enum.Enum):
    ACTIVE = "a"
    DISCHARGED = "d"


def by_value() -> Enum:
    return Enum(Status, values_callable=lambda members: [member.value for member in members])


class Reversed(TypeDecorator[str]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value[::-1]

    def process_result_value(self, value, dialect):
        return "nothing" if value is None else value[::-1]


class Wrapped(TypeDecorator[object]):
    impl = pg.JSONB
    cache_ok = True

    def process_result_value(self, value, dialect):
        return ("wrapped", value)


@pytest.mark.parametrize(
    ("type_", "stored", "expected"),
    [
        (Boolean(), True, True),
        (Integer(), 5, 5),
        (BigInteger(), 2**62, 2**62),
        (String(20), "a", "a"),
        (Text(), "", ""),
        (Date(), "2024-02-29", dt.date(2024, 2, 29)),
        (
            DateTime(timezone=True),
            "2024-02-29 12:00:00.5+00",
            dt.datetime(2024, 2, 29, 12, 0, 0, 500_000, UTC),
        ),
        (DateTime(), "2024-02-29 12:00:00", dt.datetime(2024, 2, 29, 12)),  # noqa: DTZ001
        (Time(), "12:30:00.25", dt.time(12, 30, 0, 250_000)),
        (Time(timezone=True), "12:30:00+02", dt.time(12, 30, tzinfo=CEST)),
        (Uuid(), str(ID), ID),
        (Uuid(as_uuid=False), str(ID), str(ID)),
        (LargeBinary(), "\\x00ff", b"\x00\xff"),
        (LargeBinary(), "\\x", b""),
        (pg.BYTEA(), "\\x6162", b"ab"),
        (Enum(Status), "ACTIVE", Status.ACTIVE),
        (by_value(), "d", Status.DISCHARGED),
        (Enum("red", "green", name="colour"), "red", "red"),
        (pg.ENUM(Status), "ACTIVE", Status.ACTIVE),
        (Reversed(), "abc", "cba"),
        (JSON(), {"a": [1, None]}, {"a": [1, None]}),
        (pg.JSONB(), "text", "text"),
        (Wrapped(), {"a": 1}, ("wrapped", {"a": 1})),
        (pg.INET(), "10.0.0.1", "10.0.0.1"),
        (pg.TSVECTOR(), "'a':1", "'a':1"),
    ],
)
def test_a_stored_value_becomes_what_the_model_gives(type_, stored, expected) -> None:
    found = converter(type_)(stored)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("00:00:00", dt.timedelta()),
        ("01:02:03.004", dt.timedelta(hours=1, minutes=2, seconds=3, milliseconds=4)),
        ("-00:00:01", dt.timedelta(seconds=-1)),
        ("1 day", dt.timedelta(days=1)),
        ("-3 days", dt.timedelta(days=-3)),
        ("1 day -00:00:01", dt.timedelta(days=1, seconds=-1)),
        ("1 year 2 mons 3 days 04:05:06", dt.timedelta(days=428, seconds=14706)),
        ("-1 years -2 mons +3 days -04:05:06.5", -dt.timedelta(days=422, seconds=14706.5)),
        ("1000:00:00", dt.timedelta(hours=1000)),
    ],
)
@pytest.mark.parametrize("type_", [Interval(), pg.INTERVAL()])
def test_an_interval_becomes_a_timedelta(type_, stored: str, expected: dt.timedelta) -> None:
    assert converter(type_)(stored) == expected


@pytest.mark.parametrize(
    ("type_", "stored", "expected"),
    [
        (ARRAY(Text), "{}", []),
        (ARRAY(Text), '{a,"b c",NULL,"NULL",""}', ["a", "b c", None, "NULL", ""]),
        (ARRAY(Text), '{"a \\"x\\"","b\\\\c","{}",","}', ['a "x"', "b\\c", "{}", ","]),
        (ARRAY(Integer), "{1,-2,NULL}", [1, -2, None]),
        (ARRAY(Integer), "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
        (ARRAY(Integer), "[0:1]={1,2}", [1, 2]),
        (ARRAY(Boolean), "{t,f}", [True, False]),
        (ARRAY(Date), "{2024-02-29}", [dt.date(2024, 2, 29)]),
        (ARRAY(Uuid), f"{{{ID}}}", [ID]),
        (pg.ARRAY(LargeBinary), '{"\\\\x00ff"}', [b"\x00\xff"]),
        (ARRAY(DateTime(timezone=True)), '{"2024-02-29 12:00:00+00"}', [MOMENT]),
    ],
)  # fmt: skip
def test_an_array_becomes_a_list_of_its_items(type_, stored: str, expected: list[object]) -> None:
    assert converter(type_)(stored) == expected


@pytest.mark.parametrize(
    ("type_", "stored"),
    [
        (Date(), "infinity"),
        (Date(), "-infinity"),
        (Date(), "0044-03-15 BC"),
        (Date(), "12024-01-01"),
        (DateTime(timezone=True), "infinity"),
        (DateTime(timezone=True), "0044-03-15 12:00:00+00 BC"),
        (Time(), "24:00:00"),
    ],
)
def test_what_python_cannot_hold_stays_the_text(type_, stored: str) -> None:
    assert converter(type_)(stored) == stored


@pytest.mark.parametrize(
    "type_",
    [Integer(), Text(), Date(), Uuid(), Enum(Status), LargeBinary(), ARRAY(Text), pg.JSONB()],
)
def test_null_stays_none_and_unavailable_stays_itself(type_) -> None:
    convert = converter(type_)
    assert convert(None) is None
    assert convert({"$pgaudit_ctx": "unavailable"}) is UNAVAILABLE


def test_a_type_decorator_sees_null_but_never_the_unavailable() -> None:
    assert converter(Reversed())(None) == "nothing"
    assert converter(Reversed())({"$pgaudit_ctx": "unavailable"}) is UNAVAILABLE
    assert converter(Wrapped())({"$pgaudit_ctx": "unavailable"}) is UNAVAILABLE


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"$pgaudit_ctx": "value", "value": None}, None),
        ({"$pgaudit_ctx": "value", "value": {"$pgaudit_ctx": "x"}}, {"$pgaudit_ctx": "x"}),
        ({"$pgaudit_ctx": "text", "text": '{"a": 1, "a": 2}'}, {"a": 2}),
        ({"$pgaudit_ctx": "text", "text": "not json"}, "not json"),
        ({"a": {"$pgaudit_ctx": "unavailable"}}, {"a": {"$pgaudit_ctx": "unavailable"}}),
    ],
)
def test_a_marker_is_taken_off(stored, expected) -> None:
    assert unmark(stored) == expected


@pytest.mark.parametrize("type_", [Text(), pg.JSONB(), Integer(), Date()])
def test_a_value_too_large_to_keep_stays_marked(type_) -> None:
    stored = {"$pgaudit_ctx": "too large", "bytes": 70_000_000, "sha256": "00"}
    assert converter(type_)(stored) == stored


def test_the_unavailable_is_false_and_never_equals_null() -> None:
    assert not UNAVAILABLE
    assert UNAVAILABLE is not None
    assert repr(UNAVAILABLE) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("type_", "value", "printed"),
    [
        (Integer(), 42, "42"),
        (BigInteger(), -(2**63), "-9223372036854775808"),
        (Text(), "a b", "a b"),
        (Text(), "", ""),
        (Boolean(), True, "t"),
        (Boolean(), False, "f"),
        (Uuid(), ID, str(ID)),
        (Uuid(), str(ID).upper(), str(ID)),
        (Uuid(as_uuid=False), str(ID), str(ID)),
        (Date(), dt.date(2024, 2, 29), "2024-02-29"),
        (Time(), dt.time(12, 30), "12:30:00"),
        (DateTime(), dt.datetime(2024, 2, 29, 12), "2024-02-29 12:00:00"),  # noqa: DTZ001
        (
            DateTime(timezone=True),
            dt.datetime(2024, 2, 29, 12, 0, 0, 120_000, CEST),
            "2024-02-29 10:00:00.12+00",
        ),
        (Numeric(10, 3), decimal.Decimal("1.5"), "1.500"),
        (Numeric(), decimal.Decimal("1E+3"), "1000"),
        (LargeBinary(), b"\x00\xff", "\\x00ff"),
        (Enum(Status), Status.ACTIVE, "ACTIVE"),
        (by_value(), Status.ACTIVE, "a"),
        (Reversed(), "abc", "cba"),
    ],
)
def test_a_key_is_printed_as_postgresql_prints_it(type_, value, printed: str) -> None:
    assert key_text(type_, value, "id") == printed


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Integer(), "42"),
        (Integer(), 4.2),
        (Integer(), True),
        (Integer(), None),
        (Uuid(), "not a uuid"),
        (Uuid(), 5),
        (Text(), object()),
        (Text(), ["a"]),
    ],
)
def test_a_key_that_does_not_fit_its_type_is_refused_and_not_shown(type_, value) -> None:
    with pytest.raises(KeyMismatch, match="'id'") as caught:
        key_text(type_, value, "id")
    assert "not a uuid" not in str(caught.value)
