"""Rows in PostgreSQL's binary COPY format, read back by a parser of the test's own."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.destination.copy_format import COLUMNS, HEADER, TRAILER, RowEncoder
from pgaudit_ctx.wal.pgoutput import Begin, Column, Relation
from pgaudit_ctx.wal.stitcher import CapturedChange
from pgaudit_ctx.wal.table import CapturedTable, TableFacts

RELATION = Relation(4_000_000_000, "public", "größe", "f", (Column("id", 23, -1, True),))
TABLE = CapturedTable(RELATION, TableFacts(RELATION.oid, "public", "größe", ("id",), {}))
BEGIN = Begin(0xFFFF_0000_1234, 848_811_667_311_596, 4_294_967_295)
INSERT = CapturedChange(
    1, "INSERT", TABLE, (b"1", "ä".encode()), None, None, '{"id": 1}', '{"user": "ä"}'
)


def fields(row: bytes) -> list[bytes | None]:
    """Take a row apart as the documentation of COPY says."""
    (count,) = struct.unpack_from(">h", row)
    position, found = 2, []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", row, position)
        position += 4
        if length == -1:
            found.append(None)
        else:
            found.append(row[position : position + length])
            assert len(found[-1]) == length
            position += length
    assert position == len(row)
    return found


def text_array(field: bytes | None) -> list[str] | None:
    if field is None:
        return None
    dimensions, has_null, element_type, size, lower = struct.unpack_from(">iiIii", field)
    assert (dimensions, has_null, element_type, lower) == (1, 0, 25, 1)
    position, found = 20, []
    for _ in range(size):
        (length,) = struct.unpack_from(">i", field, position)
        found.append(field[position + 4 : position + 4 + length].decode())
        position += 4 + length
    assert position == len(field)
    return found


def jsonb(field: bytes | None) -> object:
    if field is None:
        return None
    assert field[0] == 1
    return json.loads(field[1:])


def parsed(row: bytes) -> dict[str, object]:
    number = {4: ">i", 8: ">q"}
    found: dict[str, object] = {}
    for name, field in zip(COLUMNS, fields(row), strict=True):
        match name:
            case "epoch" | "transaction_id" | "committed_at" | "ordinal":
                assert field is not None
                found[name] = struct.unpack(number[len(field)], field)[0]
            case "commit_lsn" | "relation_oid":
                assert field is not None
                found[name] = int.from_bytes(field, "big")
            case "primary_key" | "previous_key":
                found[name] = text_array(field)
            case "before" | "after" | "context":
                found[name] = jsonb(field)
            case _:
                assert field is not None
                found[name] = field.decode()
    return found


def encode(*changes: CapturedChange, begin: Begin = BEGIN) -> list[dict[str, object]]:
    encoder = RowEncoder("db", 3)
    encoder.begin(begin)
    return [parsed(encoder.encode([change])[1]) for change in changes]


def test_a_row_holds_every_column_in_its_binary_form() -> None:
    assert encode(INSERT) == [
        {
            "source": "db",
            "epoch": 3,
            "commit_lsn": 0xFFFF_0000_1234,
            "transaction_id": 4_294_967_295,
            "committed_at": 848_811_667_311_596,
            "ordinal": 1,
            "operation": "INSERT",
            "schema_name": "public",
            "table_name": "größe",
            "relation_oid": 4_000_000_000,
            "primary_key": ["1", "ä"],
            "previous_key": None,
            "before": None,
            "after": {"id": 1},
            "context": {"user": "ä"},
        }
    ]


@pytest.mark.parametrize(
    ("column", "width"),
    [("epoch", 4), ("commit_lsn", 8), ("transaction_id", 8), ("ordinal", 8), ("relation_oid", 4)],
)
def test_a_number_is_as_wide_as_its_columns_type(column: str, width: int) -> None:
    encoder = RowEncoder("db", 3)
    encoder.begin(BEGIN)
    field = fields(encoder.encode([INSERT])[1])[COLUMNS.index(column)]
    assert field is not None
    assert len(field) == width


def test_rows_of_one_transaction_share_what_is_the_transactions() -> None:
    second = INSERT._replace(
        ordinal=2, operation="UPDATE", previous_key=(b"0",), before="{}", context=None
    )
    first, other = encode(INSERT, second)
    assert other == {
        **first,
        "ordinal": 2,
        "operation": "UPDATE",
        "previous_key": ["0"],
        "before": {},
        "context": None,
    }


def test_a_truncate_has_neither_key_nor_images() -> None:
    (row,) = encode(CapturedChange(1, "TRUNCATE", TABLE, None, None, None, None, None))
    assert [row[c] for c in COLUMNS[-5:]] == [None] * 5


def test_a_context_comes_and_goes_from_row_to_row() -> None:
    contexts = ['{"user": "a"}', '{"user": "b"}', None, '{"user": "a"}', None]
    rows = encode(*(INSERT._replace(context=context) for context in contexts))
    assert [row["context"] for row in rows] == [c and json.loads(c) for c in contexts]


def test_the_next_transaction_has_its_own_position_and_time() -> None:
    encoder = RowEncoder("db", 3)
    for begin in (BEGIN, Begin(5, -1, 6)):
        encoder.begin(begin)
        row = parsed(encoder.encode([INSERT])[1])
        assert (row["commit_lsn"], row["committed_at"], row["transaction_id"]) == begin


def test_two_descriptions_of_a_table_are_not_mixed_up() -> None:
    renamed = CapturedTable(RELATION._replace(name="new"), None)
    rows = encode(INSERT, INSERT._replace(table=renamed), INSERT)
    assert [row["table_name"] for row in rows] == ["größe", "new", "größe"]


def test_header_and_trailer_are_those_of_the_documentation() -> None:
    assert HEADER == b"PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    assert struct.unpack(">h", TRAILER) == (-1,)


keys = st.lists(st.binary(max_size=20).map(lambda b: b.hex().encode()), min_size=1, max_size=4).map(
    tuple
)
objects = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.integers(), max_size=3
)


@given(st.integers(1, 2**62), keys | st.none(), keys | st.none(), objects, st.none() | objects)
def test_any_change_is_read_back_as_it_was(ordinal, key, previous_key, after, context) -> None:
    change = CapturedChange(
        ordinal,
        "UPDATE",
        TABLE,
        key,
        previous_key,
        None,
        json.dumps(after, ensure_ascii=False),
        None if context is None else json.dumps(context),
    )
    (row,) = encode(change)
    assert row["ordinal"] == ordinal
    assert row["primary_key"] == (None if key is None else [part.decode() for part in key])
    assert row["previous_key"] == (
        None if previous_key is None else [part.decode() for part in previous_key]
    )
    assert (row["after"], row["context"]) == (after, context)
