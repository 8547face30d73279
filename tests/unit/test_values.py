"""From the text PostgreSQL prints to JSON without loss."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.wal import values
from pgaudit_ctx.wal.values import (
    BOOL,
    INT2,
    INT4,
    INT8,
    JSON,
    JSONB,
    UNAVAILABLE_JSON,
    encoder_for,
)

TEXT, NUMERIC, FLOAT8, TIMESTAMPTZ, UUID, BYTEA = 25, 1700, 701, 1184, 2950, 17


def encode(type_oid: int, text: str) -> str:
    return encoder_for(type_oid)(text.encode()).decode()


@pytest.mark.parametrize(("text", "expected"), [("t", "true"), ("f", "false")])
def test_a_boolean_is_a_json_boolean(text: str, expected: str) -> None:
    assert encode(BOOL, text) == expected


@pytest.mark.parametrize("type_oid", [INT2, INT4, INT8])
@pytest.mark.parametrize("text", ["0", "-1", "9223372036854775807", "-9223372036854775808"])
def test_an_integer_is_a_json_number_digit_by_digit(type_oid: int, text: str) -> None:
    assert encode(type_oid, text) == text


@pytest.mark.parametrize(
    ("type_oid", "text"),
    [
        (NUMERIC, "12345678901234567890.1234567890"),
        (NUMERIC, "NaN"),
        (FLOAT8, "Infinity"),
        (FLOAT8, "0.1"),
        (TIMESTAMPTZ, "infinity"),
        (TIMESTAMPTZ, "2024-02-29 12:00:00.5+00"),
        (UUID, "7f3a1a5e-1111-4111-8111-111111111111"),
        (BYTEA, "\\x00ff"),
        (1007, "{1,2,NULL}"),
        (3904, "[1,5)"),
        (99999, "whatever"),
    ],
)
def test_everything_else_is_the_exact_text(type_oid: int, text: str) -> None:
    assert json.loads(encode(type_oid, text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text_survives(text: str) -> None:
    assert json.loads(encode(TEXT, text)) == text


@pytest.mark.parametrize("type_oid", [JSON, JSONB])
@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"a": [1, {"b": null}], "c": true}',
        '"text"',
        "12345678901234567890123456789012345678901234567890.10",
        "[1.50, 1e3, -0.0]",
        "1" * 5000,
        '"\\u00e4 \\ud83e\\ude7a"',
        '"$pgaudit"',
    ],
)
def test_json_stays_as_it_was_printed(type_oid: int, text: str) -> None:
    assert encode(type_oid, text) == text


@pytest.mark.parametrize("type_oid", [JSON, JSONB])
def test_a_json_null_is_told_apart_from_an_sql_null(type_oid: int) -> None:
    assert encode(type_oid, "null") == '{"$pgaudit_ctx": "value", "value": null}'


def test_a_json_null_with_blanks_around_it_is_told_apart_too() -> None:
    assert json.loads(encode(JSON, " null ")) == {"$pgaudit_ctx": "value", "value": None}


@pytest.mark.parametrize("type_oid", [JSON, JSONB])
def test_an_applications_own_marker_is_wrapped(type_oid: int) -> None:
    text = '{"$pgaudit_ctx": "unavailable"}'
    assert encode(type_oid, text) == f'{{"$pgaudit_ctx": "value", "value": {text}}}'


@pytest.mark.parametrize("type_oid", [JSON, JSONB])
def test_a_marker_deeper_inside_is_not_wrapped(type_oid: int) -> None:
    text = '{"a": {"$pgaudit_ctx": "unavailable"}, "b": "$pgaudit_ctx"}'
    assert encode(type_oid, text) == text


def test_an_escaped_marker_in_json_is_wrapped_as_well() -> None:
    text = '{"\\u0024pgaudit_ctx": 1}'
    assert json.loads(encode(JSON, text)) == {
        "$pgaudit_ctx": "value",
        "value": {"$pgaudit_ctx": 1},
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '[{"a": {"b": 1, "\\u0062": 1}}]',
        '"\\u0000"',
        '{"\\u0000": 1}',
        '"\\ud800"',
        '["\\ude7a\\ud83e"]',
        "1e400000",
        "[-1e-16384]",
        "[" * 100_000 + "]" * 100_000,
    ],
)
def test_json_that_jsonb_cannot_hold_without_loss_is_kept_as_text(text: str) -> None:
    assert json.loads(encode(JSON, text)) == {"$pgaudit_ctx": "text", "text": text}


@pytest.mark.parametrize("type_oid", [TEXT, NUMERIC, JSON, JSONB])
def test_a_value_over_the_limit_is_replaced_by_its_size_and_digest(type_oid: int, monkeypatch):
    monkeypatch.setattr(values, "MAX_VALUE", 10)
    text = '"äöü56789"'
    assert json.loads(encode(type_oid, text)) == {
        "$pgaudit_ctx": "too large",
        "bytes": 13,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def test_a_value_of_exactly_the_limit_is_kept(monkeypatch) -> None:
    monkeypatch.setattr(values, "MAX_VALUE", 10)
    assert encode(TEXT, "0123456789") == '"0123456789"'


def test_the_limit_is_64_mebibytes() -> None:
    assert values.MAX_VALUE == 67_108_864


def test_what_the_log_did_not_carry_is_marked() -> None:
    assert json.loads(UNAVAILABLE_JSON) == {"$pgaudit_ctx": "unavailable"}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "$pgaudit_ctx"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from([JSON, JSONB]), st.booleans())
def test_any_json_value_can_be_got_back(value: object, type_oid: int, ascii_only: bool) -> None:
    stored = json.loads(encode(type_oid, json.dumps(value, ensure_ascii=ascii_only)))
    if isinstance(stored, dict) and "$pgaudit_ctx" in stored:
        assert stored["$pgaudit_ctx"] == "value"
        stored = stored["value"]
    assert stored == value
