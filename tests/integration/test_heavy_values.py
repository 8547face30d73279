"""Values and rows so large that each test takes many seconds; ``nox -s heavy`` runs them."""

import hashlib

import pytest

from support.database import Capture

pytestmark = pytest.mark.heavy
MIB = 2**20


def test_a_value_of_64_mib_is_whole_and_one_byte_more_leaves_its_size_and_digest(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute(
        "INSERT INTO t VALUES (1, repeat('x', 64 * 1048576)), (2, repeat('x', 64 * 1048576 + 1))"
    )
    blank.run()
    whole, marked = blank.destination.execute(
        "SELECT md5(after ->> 'a') AS md5, after -> 'a' AS a FROM pgaudit_ctx.changes"
        " WHERE primary_key = '{1}' UNION ALL SELECT NULL, after -> 'a' FROM pgaudit_ctx.changes"
        " WHERE primary_key = '{2}'"
    )
    assert whole.md5 == hashlib.md5(b"x" * 64 * MIB).hexdigest()
    assert marked.a == {
        "$pgaudit_ctx": "too large",
        "bytes": 64 * MIB + 1,
        "sha256": hashlib.sha256(b"x" * (64 * MIB + 1)).hexdigest(),
    }


def test_a_row_larger_than_a_jsonb_gives_up_only_as_many_values_as_it_must(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text, d text)")
    blank.setup()
    blank.source.execute(
        "INSERT INTO t SELECT 1, repeat('a', n), repeat('b', n), repeat('c', n + 1), repeat('d', n)"
        " FROM (SELECT 64 * 1048576 - 1) s(n)"
    )
    blank.run()
    (row,) = blank.destination.execute(
        "SELECT ARRAY(SELECT key FROM jsonb_each(after) WHERE value ? '$pgaudit_ctx') AS marked,"
        " after -> 'c' ->> 'sha256' AS sha256, length(after ->> 'a') AS length"
        " FROM pgaudit_ctx.changes"
    )
    assert (row.marked, row.length) == (["c"], 64 * MIB - 1)
    assert row.sha256 == hashlib.sha256(b"c" * 64 * MIB).hexdigest()


def test_json_that_the_source_holds_and_jsonb_cannot_is_kept_as_text(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, j json)")
    blank.setup()
    many = "'[' || repeat('1,', 16777216) || '1]'"
    blank.source.execute(f"INSERT INTO t VALUES (1, ({many})::json)")
    blank.run()
    (row,) = blank.destination.execute(
        "SELECT md5(after -> 'j' ->> 'text') AS j FROM pgaudit_ctx.changes"
    )
    assert row.j == hashlib.md5(b"[" + b"1," * 16_777_216 + b"1]").hexdigest()


def test_a_context_that_jsonb_cannot_hold_costs_its_row_only_the_context(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    blank.setup()
    many = "'{\"a\": [' || repeat('1,', 16777216) || '1]}'"
    with blank.source.connect() as connection, connection.transaction():
        connection.execute(f"SELECT pg_logical_emit_message(true, 'pgaudit_ctx', {many})")
        connection.execute("INSERT INTO t VALUES (1)")
    (row,) = blank.changes()
    assert row.context["$pgaudit_ctx"] == "invalid"
    assert row.context["text"] == ('{"a": [' + "1," * 1000)[:1024]
