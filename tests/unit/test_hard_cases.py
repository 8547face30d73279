"""Cases that once came out wrong, each kept so that it cannot do so again."""

import asyncio
import datetime as dt
import decimal
import enum
import hashlib
import json
import uuid

import pytest
from sqlalchemy import (
    ARRAY,
    CHAR,
    Enum,
    Float,
    Integer,
    Interval,
    Numeric,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects import postgresql

from pgaudit_ctx import ContextInvalid, audit_context, current_context, dump_context
from pgaudit_ctx.emission.statements import Effect, classify
from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.reading.history import choose, version_at
from pgaudit_ctx.reading.mapped import shape_of
from pgaudit_ctx.reading.typed import converter, key_text
from pgaudit_ctx.urls import sqlalchemy_url, without_password
from pgaudit_ctx.wal.lsn import parse_lsn
from pgaudit_ctx.wal.pgoutput import Column, Relation
from pgaudit_ctx.wal.table import CapturedTable
from pgaudit_ctx.wal.values import JSONB, encoder_for
from support.clinic import Dose
from unit.history_rows import at, change, trail_of


class Status(enum.Enum):
    ACTIVE = "a"
    DISCHARGED = "d"


class Twice(TypeDecorator[int]):
    impl = Integer
    cache_ok = True

    def process_result_value(self, value, dialect):
        return None if value is None else value * 2


AN_ID = uuid.UUID("7f3a1a5e-1111-4111-8111-111111111111")
TOO_LARGE = {"$pgaudit_ctx": "too large", "bytes": 1, "sha256": "x"}


def test_a_model_with_a_numeric_column_has_a_shape() -> None:
    assert shape_of(Dose, None).tables == (("public", "dose"),)


@pytest.mark.parametrize(
    ("type_", "stored", "expected"),
    [
        (Numeric(), "1.5", decimal.Decimal("1.5")),
        (
            Numeric(40, 20),
            "12345678901234567.12345678901234567890",
            decimal.Decimal("12345678901234567.12345678901234567890"),
        ),
        (Float(), "1.5", 1.5),
        (Numeric(asdecimal=False), "1.5", 1.5),
        (postgresql.INT4RANGE(), "[1,5)", "[1,5)"),
        (postgresql.HSTORE(), '"a"=>"1"', {"a": "1"}),
        (ARRAY(Enum(Status)), "{ACTIVE}", [Status.ACTIVE]),
        (ARRAY(Twice), "{1}", [2]),
        (ARRAY(postgresql.JSONB), '{"{\\"a\\": 1}"}', [{"a": 1}]),
        (ARRAY(Numeric), "{1.5,NULL}", [decimal.Decimal("1.5"), None]),
        (Uuid(native_uuid=False), AN_ID.hex, AN_ID),
        (Interval(), "infinity", "infinity"),
        (Enum(Status), TOO_LARGE, TOO_LARGE),
        (ARRAY(Text), TOO_LARGE, TOO_LARGE),
    ],
)
def test_a_stored_value_becomes_what_the_model_gives(type_, stored, expected) -> None:
    assert converter(type_)(stored) == expected


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (Numeric(10, 2), 5, "5.00"),
        (Time(), dt.time(12, 0, 0, 500_000), "12:00:00.5"),
        (CHAR(5), "ab", "ab   "),
        (Uuid(native_uuid=False), AN_ID, AN_ID.hex),
        (Float(), 1.5, "1.5"),
    ],
)
def test_a_key_is_printed_as_postgresql_prints_it(type_, value, expected) -> None:
    assert key_text(type_, value, "id") == expected


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ("SELECT comment FROM post", Effect.READS),
        ("SELECT do FROM t", Effect.READS),
        ("SELECT \"it's\"; DELETE FROM t WHERE a = 'x'", Effect.WRITES),
        ('UPDATE job SET "concurrently"=%(concurrently)s', Effect.WRITES),
        ("; DELETE FROM t", Effect.WRITES),
        ("( (WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x))", Effect.WRITES),
        ("PREPARE TRANSACTION 'x'", Effect.ENDS),
        ("REINDEX DATABASE d", Effect.READS),
        ("SELECT * FROM t WHERE a LIKE'\\'; DELETE FROM t WHERE b = 'x'", Effect.WRITES),
        ("DROP SUBSCRIPTION s", Effect.READS),
    ],
)
def test_a_misleading_statement_is_told_by_what_it_does(statement: str, effect: Effect) -> None:
    assert classify(statement).effect is effect


@pytest.mark.parametrize("statement", ["COMMIT; BEGIN", "SAVEPOINT a; SELECT 1"])
def test_after_several_statements_in_one_string_nothing_is_taken_for_granted(
    statement: str,
) -> None:
    assert classify(statement).unclear


@pytest.mark.parametrize(
    "url",
    [
        "host=db password=hunter2",
        "postgresql://u:hun#hunter2@h/db",
        "postgresql://u:a?hunter2@h/db",
        "postgresql://u:[hunter2]x@h/db",
    ],
)
def test_a_password_that_breaks_its_url_is_still_hidden(url: str) -> None:
    assert "hunter2" not in without_password(url)


def test_a_url_of_a_socket_is_shown_as_it_is() -> None:
    assert without_password("postgresql:///db?host=/run") == "postgresql:///db?host=/run"


def test_the_short_scheme_keeps_its_driver() -> None:
    assert sqlalchemy_url("postgres+psycopg2://h/db") == "postgresql+psycopg2://h/db"


def test_a_context_of_astral_characters_counts_with_its_escapes() -> None:
    with pytest.raises(ContextInvalid, match="65536"), audit_context(user="\U0001fa7a" * 6000):
        pass


def test_a_dumped_context_can_be_changed_without_changing_the_scope() -> None:
    with audit_context(a={"b": 1}):
        dump_context()["a"]["b"] = 2
        assert current_context() == {"a": {"b": 1}}


async def test_one_scope_entered_by_two_tasks_leaves_each_where_it_was() -> None:
    shared = audit_context(user="job")
    left = {}
    meet = asyncio.Barrier(2)

    async def work(number: int) -> None:
        with shared:
            await meet.wait()
            if number:
                await asyncio.sleep(0)
        left[number] = current_context()
        await meet.wait()

    await asyncio.gather(work(0), work(1))
    assert left == {0: None, 1: None}


@pytest.mark.parametrize("depth", [501, 100_000])
@pytest.mark.parametrize("inner", ['"$pgaudit_ctx"', '"[", {}, 1'])
def test_a_jsonb_deeper_than_another_server_may_take_is_kept_as_text(depth, inner) -> None:
    text = "[" * depth + inner + "]" * depth
    assert json.loads(encoder_for(JSONB)(text.encode())) == {"$pgaudit_ctx": "text", "text": text}


def test_many_documents_in_one_array_are_not_taken_for_a_deep_one() -> None:
    text = "[" + '{"a": ["[[", {}]}, ' * 2000 + "[]]"
    assert encoder_for(JSONB)(text.encode()) == text.encode()


def test_an_array_of_more_elements_than_jsonb_takes_is_kept_as_text() -> None:
    text = "[" + "1," * 8_000_001 + "1]"
    assert encoder_for(JSONB)(text.encode()).startswith(b'{"$pgaudit_ctx": "text"')


def test_a_row_that_jsonb_could_not_hold_gives_up_its_largest_values_first() -> None:
    relation = Relation(
        1, "public", "t", "f", tuple(Column(name, 25, -1, True) for name in ("a", "b", "c"))
    )
    table = CapturedTable(relation, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgaudit_ctx.wal.table.MAX_ROW", 64 * 2**20)
        row = json.loads(table.render([b"a" * 2**25, b"b" * (2**25 + 1), b"c"]))
    assert row["a"] == "a" * 2**25
    assert row["b"] == {
        "$pgaudit_ctx": "too large",
        "bytes": 2**25 + 1,
        "sha256": hashlib.sha256(b"b" * (2**25 + 1)).hexdigest(),
    }
    assert row["c"] == "c"


def test_a_number_of_5000_digits_beside_our_marker_passes_through() -> None:
    text = '["$pgaudit_ctx", ' + "1" * 5000 + "]"
    assert text in encoder_for(JSONB)(text.encode()).decode()


def test_a_position_with_a_line_break_is_refused() -> None:
    with pytest.raises(ProtocolError):
        parse_lsn("0/1\n")


def test_a_truncate_stays_in_a_history_filtered_by_field() -> None:
    trail = trail_of(change("INSERT", 0, 1), change("TRUNCATE", 1, 2))
    assert len(choose(trail, {"fields": ["name"]})) == 2


def test_a_record_that_got_its_key_by_an_update_was_not_there_before() -> None:
    moved = change("UPDATE", 10, 2, primary_key=["2"], previous_key=["1"], before={"id": 1})
    assert version_at(trail_of(moved, key=("2",)), at(5)) is None
