"""Which values a context takes, and the text it becomes."""

import collections
import datetime as dt
import decimal
import enum
import ipaddress
import json
import pathlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from pgaudit_ctx.errors import ContextInvalid
from pgaudit_ctx.message import (
    MAX_TEXT,
    encode_context,
    measured_context,
    plain,
    plain_context,
)


class Colour(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    HIGH = 3


class Kind(enum.StrEnum):
    ROUTINE = "routine"


class Actor(BaseModel):
    id: uuid.UUID
    name: str


class Text(str):
    __slots__ = ()


class Secret:
    def __repr__(self) -> str:
        return "hunter2"


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - the untyped kind exists too
ID = uuid.UUID("7f3a1a5e-1111-4111-8111-111111111111")
IST = dt.timezone(dt.timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (10**30, 10**30),
        (1.5, 1.5),
        ("text", "text"),
        (Text("text"), "text"),
        (ID, str(ID)),
        (dt.datetime(2024, 2, 29, 12, tzinfo=IST), "2024-02-29T12:00:00+05:30"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.time(12, 30), "12:30:00"),
        (dt.timedelta(days=1, seconds=2, microseconds=3), "P1DT2.000003S"),
        (dt.timedelta(seconds=-90), "-P0DT90S"),
        (decimal.Decimal("1.10"), "1.10"),
        (Colour.RED, "r"),
        (Level.HIGH, 3),
        (Kind.ROUTINE, "routine"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (ipaddress.ip_address("10.0.0.1"), "10.0.0.1"),
        (ipaddress.ip_address("::1"), "::1"),
        (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        (ipaddress.ip_interface("10.0.0.1/8"), "10.0.0.1/8"),
        (Actor(id=ID, name="a"), {"id": str(ID), "name": "a"}),
        ((1, ID), [1, str(ID)]),
        (Point(1, 2), [1, 2]),
        ({"a": [{"b": Colour.RED}]}, {"a": [{"b": "r"}]}),
        (collections.OrderedDict(a=1), {"a": 1}),
    ],
)
def test_a_value_becomes_plain_json(value: object, expected: object) -> None:
    found = plain(value, "key")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        b"hunter2",
        bytearray(b"hunter2"),
        {"hunter2"},
        frozenset({"hunter2"}),
        Secret(),
        SecretStr("hunter2"),
        float("nan"),
        float("inf"),
        float("-inf"),
        1 + 2j,
        "hunter2\0",
        "hunter2\ud800",
        "hunter2é\0",
        {1: "hunter2"},
        {"nested": {("a", "b"): "hunter2"}},
        (part for part in ["hunter2"]),
        len,
    ],
)
def test_a_value_that_json_cannot_carry_is_refused_by_its_key_and_not_shown(value: object) -> None:
    with pytest.raises(ContextInvalid) as caught:
        plain_context({"pass_key": value})
    assert "pass_key" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_value_deep_inside_is_named_by_its_path() -> None:
    with pytest.raises(ContextInvalid, match=r"'request\.headers\[1\]\.raw'"):
        plain_context({"request": {"headers": [{}, {"raw": b""}]}})


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ContextInvalid, match="or holds itself"):
        plain_context({"loop": loop})


def test_the_reserved_key_is_refused() -> None:
    with pytest.raises(ContextInvalid, match="reserved"):
        plain_context({"$pgaudit_ctx": 1})


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), Kind.ROUTINE])
def test_a_key_that_is_no_plain_text_is_refused(key: object) -> None:
    with pytest.raises(ContextInvalid, match="must be a str"):
        plain_context({key: 1})  # type: ignore[dict-item]


@pytest.mark.parametrize("key", ["a\0", "\udfff"])
def test_a_key_that_postgresql_cannot_store_is_refused(key: str) -> None:
    with pytest.raises(ContextInvalid, match="cannot store"):
        plain_context({key: 1})


def test_later_changes_to_the_argument_do_not_reach_the_context() -> None:
    given_ = {"list": [1], "map": {"a": 1}}
    found = plain_context(given_)
    given_["list"].append(2)  # type: ignore[attr-defined]
    given_["map"]["b"] = 2  # type: ignore[index]
    assert found == {"list": [1], "map": {"a": 1}}


def test_the_text_is_ascii_with_escapes() -> None:
    assert encode_context({"reason": "ä 🩺"}) == '{"reason":"\\u00e4 \\ud83e\\ude7a"}'


def test_an_empty_context_is_an_empty_object() -> None:
    assert encode_context({}) == "{}"


def test_a_text_of_exactly_64_kib_is_taken_and_one_byte_more_refused() -> None:
    room = MAX_TEXT - len('{"a":""}')
    assert len(encode_context({"a": "x" * room})) == 65_536
    with pytest.raises(ContextInvalid, match="65537 bytes"):
        encode_context({"a": "x" * (room + 1)})


def test_the_limit_counts_the_escapes() -> None:
    with pytest.raises(ContextInvalid, match="more than the 65536 allowed"):
        encode_context({"a": "ä" * 11_000})


def test_a_number_too_long_for_python_to_print_is_refused() -> None:
    with pytest.raises(ContextInvalid, match="pass very large numbers as text"):
        encode_context({"n": 10**5000})


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(text.filter(lambda key: key != "$pgaudit_ctx"), json_values, max_size=5))
def test_any_json_context_comes_out_as_it_went_in(values) -> None:
    encoded = encode_context(plain_context(values))
    assert encoded.isascii()
    assert json.loads(encoded) == values


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=9),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")),
        max_size=5,
    )
)
def test_the_text_of_a_context_is_never_longer_than_its_bound(values: dict[str, object]) -> None:
    plain, bound = measured_context(values)
    assert len(encode_context(plain)) <= bound
