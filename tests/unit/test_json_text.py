"""Which JSON text jsonb takes, and takes without loss."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.wal.json_text import Refused, parse


@pytest.mark.parametrize(
    "text",
    ["", " ", "nul", "{", "[1,]", "{'a': 1}", "01", "1.", ".5", "+1", '"\t"', "1 2", "\ufeff1"],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse(text)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[NaN]", '{"a": -Infinity}'])
def test_what_only_python_calls_json_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse(text)


@pytest.mark.parametrize("text", ["1" * 131_072, "-0." + "1" * 16_383, "1e131071", "1E-16383"])
def test_the_largest_numbers_that_numeric_holds_are_taken(text: str) -> None:
    assert parse(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "1" * 131_073,
        "0." + "1" * 16_384,
        "1e131072",
        "1E-16384",
        "12e131071",
        "0.1e-16383",
        "1e400000",
        "1e-400000",
        "1e99999999999999999999",
        "[1e400000]",
    ],
)
def test_larger_numbers_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse(text)


def test_numbers_are_given_as_their_own_text() -> None:
    assert parse("[1.10, 1e2, 123456789012345678901234567890]") == [
        "1.10",
        "1e2",
        "123456789012345678901234567890",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '"\\u0000"',
        '["a\\u0000b"]',
        '{"\\u0000": 1}',
        '"\\ud800"',
        '"\\udc00"',
        '"\\udc00\\ud800"',
        '"\\ud800x\\udc00"',
        '{"a": [{"\\uDBFF": 1}]}',
    ],
)
def test_escapes_that_jsonb_refuses_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse(text)


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert parse('"\\ud83e\\ude7a"') == "\U0001fa7a"


def test_an_escaped_backslash_before_u_is_no_escape() -> None:
    assert parse('"\\\\u0000"') == "\\u0000"


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', '{"a": 1, "\\u0061": 2}']
)
def test_duplicate_keys_are_refused_because_jsonb_would_lose_one(text: str) -> None:
    with pytest.raises(Refused):
        parse(text)


def test_of_duplicate_keys_the_last_one_counts_where_they_are_allowed() -> None:
    assert parse('{"a": 1, "a": "x"}', allow_duplicates=True) == {"a": "x"}


@pytest.mark.parametrize("inside", ["1", '"\\u0041"'])
def test_deep_nesting_is_refused_and_does_not_break_anything(inside: str) -> None:
    with pytest.raises(Refused):
        parse("[" * 100_000 + inside + "]" * 100_000)


@pytest.mark.parametrize("depth", range(900, 1010, 5))
def test_nesting_near_the_limit_is_taken_or_refused(depth: int) -> None:
    text = "[" * depth + '"\\u0041"' + "]" * depth
    try:
        value = parse(text)
    except Refused:
        return
    for _ in range(depth):
        (value,) = value
    assert value == "A"


@given(st.text(max_size=30) | st.text(st.sampled_from('{}[]",:\\ue019-+. dnul'), max_size=30))
def test_any_text_is_parsed_as_the_standard_library_does_or_refused(text: str) -> None:
    try:
        value = parse(text, allow_duplicates=True)
    except Refused:
        return
    assert value == json.loads(text, parse_int=str, parse_float=str)
