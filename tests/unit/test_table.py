"""A whole tuple is rendered by one compiled expression: as the columns are one by one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.wal import table as module
from pgaudit_ctx.wal.pgoutput import Column, Relation
from pgaudit_ctx.wal.table import CapturedTable
from pgaudit_ctx.wal.values import BOOL, INT8, JSON, JSONB

TEXT, NUMERIC, TIMESTAMPTZ = 25, 1700, 1184
VALUES = {
    INT8: [b"0", b"-9223372036854775808"],
    BOOL: [b"t", b"f"],
    TEXT: [b"", b"null", b'"\\\n\x01%s', "äöü 🩺".encode()],
    NUMERIC: [b"1.50", b"NaN"],
    TIMESTAMPTZ: [b"2024-02-29 12:00:00.5+00", b"infinity"],
    JSON: [b"null", b"[1.0]", b'{"a": 1, "a": 2}', b'{"$pgaudit_ctx": 1}'],
    JSONB: [b"null", b'{"a": "\xc3\xa4"}', b'{"$pgaudit_ctx": 1}', b'["$pgaudit_ctx"]'],
}
TYPES = list(VALUES)


def table(types: list[int], names: list[str] | None = None) -> CapturedTable:
    names = [f"c{index}" for index in range(len(types))] if names is None else names
    columns = zip(names, types, strict=True)
    return CapturedTable(
        Relation(1, "public", "t", "f", tuple(Column(n, t, -1, False) for n, t in columns)), None
    )


def one_by_one(of: CapturedTable, values: list) -> dict[str, object]:
    found: dict[str, object] = {}
    for index in range(len(values)):
        found |= json.loads(of.render_some([index], values))
    return found


@given(st.data())
def test_a_whole_tuple_is_rendered_as_its_columns_are(data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(TYPES), max_size=6))
    values = [data.draw(st.sampled_from([*VALUES[t], None, UNAVAILABLE])) for t in types]
    of = table(types)
    assert json.loads(of.render(values)) == one_by_one(of, values)


@pytest.mark.parametrize("type_oid", TYPES)
def test_no_column_is_taken_for_available_that_is_not(type_oid: int) -> None:
    rendered = table([type_oid]).render([UNAVAILABLE])
    assert json.loads(rendered) == {"c0": {"$pgaudit_ctx": "unavailable"}}


def test_columns_stand_in_the_order_in_which_jsonb_keeps_them() -> None:
    names = ["long_name", "b", "ä", "a", "zz"]
    rendered = table([INT8] * 5, names).render([b"1", b"2", b"3", b"4", b"5"])
    assert list(json.loads(rendered)) == ["a", "b", "zz", "ä", "long_name"]


def test_a_value_over_the_limit_is_replaced_in_a_whole_tuple_as_well(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUE", 20)
    monkeypatch.setattr("pgaudit_ctx.wal.values.MAX_VALUE", 20)
    of = table([TEXT, INT8])
    assert json.loads(of.render([b"x" * 21, b"1"]))["c0"]["$pgaudit_ctx"] == "too large"
    assert json.loads(of.render([b"x" * 20, b"1"])) == {"c0": "x" * 20, "c1": 1}


def test_text_that_is_not_utf_8_is_refused_whatever_its_type() -> None:
    for type_oid in (TEXT, NUMERIC, JSON, JSONB, INT8):
        with pytest.raises(ValueError, match="utf-8"):
            table([type_oid]).render([b'"\xff"'])
