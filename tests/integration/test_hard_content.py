"""Content and DDL at the edge of what a database can write and the trail can hold."""

import psycopg
import pytest

from support.database import Capture, Database, drop_database

UNAVAILABLE = {"$pgaudit_ctx": "unavailable"}


def keys(rows) -> list[tuple]:
    return [(row.primary_key, row.previous_key) for row in rows]


def test_json_deeper_than_another_server_may_take_is_kept_as_text(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, j json, b jsonb)")
    blank.setup()
    deep = "[" * 10_000 + "]" * 10_000
    blank.source.execute("INSERT INTO t VALUES (1, %s, %s)", [deep, deep])
    (row,) = blank.changes()
    kept = {"$pgaudit_ctx": "text", "text": deep}
    assert (row.after["j"], row.after["b"]) == (kept, kept)


def test_keys_of_8_kilobytes_are_found_again(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id text PRIMARY KEY, a int)")
    blank.setup()
    key = "k" * 8192
    blank.source.execute("INSERT INTO t VALUES (%s, 1)", [key])
    blank.source.execute("UPDATE t SET id = id || 'x'")
    assert keys(blank.changes()) == [([key], None), ([key + "x"], [key])]
    found = blank.destination.execute(
        "SELECT 1 FROM pgaudit_ctx.changes WHERE primary_key = ARRAY[%s]"
        " AND hash_array_extended(primary_key, 0) = hash_array_extended(ARRAY[%s], 0)",
        [key, key],
    )
    assert len(found) == 1


def test_a_message_in_a_databases_own_encoding_is_read_in_that_encoding(
    server, destination
) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE euc TEMPLATE template0 ENCODING 'EUC_JP' LOCALE 'C'")
    source = Database(server, "euc")
    try:
        with source.connect() as connection:
            connection.execute("SET client_encoding = 'UTF8'")
            connection.execute("CREATE TABLE 表 (番号 int PRIMARY KEY, a text)")
            capture = Capture(source, destination)
            capture.setup()
            for number, context in enumerate(('{"user": "山田"}', '{"user": "\\u5c71"}', "山")):
                with connection.transaction():
                    connection.execute(
                        "SELECT pg_logical_emit_message(true, 'pgaudit_ctx', %s::text)", [context]
                    )
                    connection.execute("INSERT INTO 表 VALUES (%s, '日本')", [number])
        first, second, third = capture.changes()
        assert (first.table_name, first.after) == ("表", {"番号": 0, "a": "日本"})
        assert (first.context, second.context) == ({"user": "山田"}, {"user": "山"})
        assert third.context == {"$pgaudit_ctx": "invalid", "text": "山"}
    finally:
        drop_database(source)


def test_stored_generated_columns_are_there_where_the_server_sends_them(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 5)")
    blank.source.execute("UPDATE t SET a = 6")
    ((version,),) = blank.source.execute("SELECT current_setting('server_version_num')::int")
    sent = version >= 18_00_00
    old, new = ({"id": 1, "a": a} | ({"twice": a * 2} if sent else {}) for a in (5, 6))
    insert, update = blank.changes()
    assert (insert.after, update.before, update.after) == (old, old, new)
    assert sorted(update.changed) == (["a", "twice"] if sent else ["a"])


def test_beside_a_virtual_generated_column_the_log_has_no_old_values(blank: Capture) -> None:
    ((version,),) = blank.source.execute("SELECT current_setting('server_version_num')::int")
    if version < 18_00_00:
        pytest.skip("virtual generated columns came with PostgreSQL 18")
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2))"
    )
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 5)")
    blank.source.execute("UPDATE t SET a = 6")
    blank.source.execute("DELETE FROM t")
    _, update, delete = blank.changes()
    assert (update.before, update.after) == (None, {"id": 1, "a": 6})
    assert delete.before == {"id": 1, "a": UNAVAILABLE}


def test_a_partition_that_is_detached_before_the_log_is_read_was_part_of_its_root(
    blank: Capture,
) -> None:
    blank.source.execute(
        "CREATE TABLE visit (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);"
        "CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM (0) TO (10)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO visit VALUES (1, 'x')")
    blank.source.execute("ALTER TABLE visit DETACH PARTITION visit_1; DROP TABLE visit_1")
    (row,) = blank.changes()
    assert (row.table_name, row.primary_key) == ("visit", ["1"])


REKEY = "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY ({})"


def test_a_key_that_changed_while_the_worker_ran_is_known_again_once_it_has_caught_up(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, b int NOT NULL)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 7)")
    blank.source.execute(REKEY.format("b"))
    blank.source.execute("INSERT INTO t VALUES (2, 8)")
    blank.run()
    blank.source.execute("INSERT INTO t VALUES (3, 9)")
    assert keys(blank.changes()) == [(None, None), (None, None), (["9"], None)]


def test_a_worker_that_fails_in_a_backlog_does_not_take_the_new_key_for_the_old_one(
    blank: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, b int NOT NULL)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 7)")
    blank.source.execute(REKEY.format("b"))
    with monkeypatch.context() as broken:
        broken.setattr("pgaudit_ctx.worker.decode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            blank.run()  # starts, and writes down what the catalog says now
    assert keys(blank.changes()) == [(None, None)]


def test_where_two_keys_followed_each_other_neither_stands_for_what_lay_between(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, b int NOT NULL, c int NOT NULL)")
    blank.setup()
    blank.source.execute(REKEY.format("b"))
    blank.source.execute("INSERT INTO t VALUES (1, 2, 3)")
    blank.source.execute(REKEY.format("c"))
    blank.source.execute("ALTER TABLE t DROP COLUMN id")
    blank.source.execute("INSERT INTO t VALUES (5, 6)")
    assert [row.primary_key for row in blank.changes()] == [None, None]


def test_a_key_whose_type_changed_in_the_backlog_is_kept_on_both_sides(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1)")
    blank.source.execute("ALTER TABLE t ALTER COLUMN id TYPE bigint")
    blank.source.execute("INSERT INTO t VALUES (5000000000)")
    assert [row.primary_key for row in blank.changes() if row.operation == "INSERT"] == [
        ["1"],
        ["5000000000"],
    ]


def test_key_columns_whose_names_were_exchanged_give_no_wrong_key(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, b int)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 7)")
    for old, new in (("id", "x"), ("b", "id"), ("x", "b")):
        blank.source.execute(f"ALTER TABLE t RENAME COLUMN {old} TO {new}")
    assert [row.primary_key for row in blank.changes()] == [None]


def test_a_table_that_took_the_name_of_a_dropped_one_has_its_own_key(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, b int)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 7)")
    blank.source.execute("DROP TABLE t; CREATE TABLE t (id int, b int PRIMARY KEY)")
    blank.source.execute(
        "ALTER TABLE t REPLICA IDENTITY FULL; ALTER PUBLICATION pgaudit_ctx ADD TABLE t"
    )
    blank.source.execute("INSERT INTO t VALUES (2, 8)")
    first, second = blank.changes()
    assert (first.primary_key, second.primary_key) == (["1"], ["8"])
    assert first.relation_oid != second.relation_oid


def test_domains_that_were_dropped_before_the_log_is_read_were_what_they_were(
    blank: Capture,
) -> None:
    blank.source.execute(
        "CREATE DOMAIN dose AS int; CREATE DOMAIN small_dose AS dose; CREATE DOMAIN facts AS json;"
        "CREATE TABLE t (id small_dose PRIMARY KEY, f facts, a text)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, '[1.0]', 'x')")
    blank.source.execute("DROP TABLE t; DROP DOMAIN facts, small_dose, dose")
    (row,) = blank.changes()
    assert (row.primary_key, row.after) == (["1"], {"id": 1, "f": [1.0], "a": "x"})
