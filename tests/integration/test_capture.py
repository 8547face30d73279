"""Whatever is written to the source arrives in the trail as it was, in order, exactly once."""

import psycopg
import pytest

from support.database import Capture, Database, drop_database

UNAVAILABLE = {"$pgaudit_ctx": "unavailable"}


def shown(row) -> tuple:
    return row.operation, row.primary_key, row.before, row.after


def test_insert_update_and_delete_carry_whole_rows(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b int)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x', 5)")
    blank.source.execute("UPDATE t SET a = 'y'")
    blank.source.execute("DELETE FROM t")
    old, new = {"id": 1, "a": "x", "b": 5}, {"id": 1, "a": "y", "b": 5}
    assert [shown(row) for row in blank.changes()] == [
        ("INSERT", ["1"], None, old),
        ("UPDATE", ["1"], old, new),
        ("DELETE", ["1"], new, None),
    ]


def test_only_the_old_values_of_changed_columns_are_stored(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b int)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x', 5); UPDATE t SET a = NULL")
    blank.run()
    (stored,) = blank.destination.execute(
        "SELECT before, after FROM pgaudit_ctx.changes WHERE operation = 'UPDATE'"
    )
    assert (stored.before, stored.after) == ({"a": "x"}, {"id": 1, "a": None, "b": 5})


def test_a_transaction_gives_each_change_its_time_its_number_and_its_place(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    blank.setup()
    with blank.source.connect() as connection, connection.transaction():
        connection.execute("INSERT INTO t VALUES (1)")
        connection.execute("INSERT INTO t VALUES (2)")
        xid, server_time = connection.execute(
            "SELECT pg_current_xact_id()::text::bigint, clock_timestamp()"
        ).fetchone()
    first, second = blank.changes()
    assert first.transaction_id == second.transaction_id == xid
    assert first.commit_lsn == second.commit_lsn
    assert (first.ordinal, second.ordinal) == (1, 2)
    assert first.committed_at == second.committed_at >= server_time
    assert first.source == blank.source.name
    assert first.epoch == 1


def test_one_truncate_of_several_tables_gives_one_change_for_each(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a)"
    )
    blank.setup()
    blank.source.execute("TRUNCATE a CASCADE")
    rows = blank.changes()
    assert {row.table_name for row in rows} == {"a", "b"}
    assert [(*shown(row), row.ordinal) for row in rows] == [
        ("TRUNCATE", None, None, None, 1),
        ("TRUNCATE", None, None, None, 2),
    ]


def test_a_copy_whose_rows_share_one_position_keeps_every_row(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute("SELECT pg_create_logical_replication_slot('positions', 'test_decoding')")
    with blank.source.connect() as connection:
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for number in range(3000):
                copy.write_row((number, "x"))
        (positions,) = connection.execute(
            "SELECT count(DISTINCT lsn) FROM pg_logical_slot_peek_changes('positions', NULL, NULL)"
        ).fetchone()
    rows = blank.changes()
    assert positions < 1000  # else this would show nothing
    assert [row.primary_key[0] for row in rows] == [str(number) for number in range(3000)]
    assert [row.ordinal for row in rows] == list(range(1, 3001))


def test_an_upsert_is_what_it_did_and_nothing_if_it_did_nothing(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    upsert = "INSERT INTO t VALUES (1, '{}') ON CONFLICT (id) DO UPDATE SET a = excluded.a"
    blank.source.execute(upsert.format("x"))
    blank.source.execute(upsert.format("y"))
    blank.source.execute("INSERT INTO t VALUES (1, 'z') ON CONFLICT DO NOTHING")
    assert [row.operation for row in blank.changes()] == ["INSERT", "UPDATE"]


def test_an_update_that_changes_nothing_arrives_with_nothing_changed(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x')")
    blank.source.execute("UPDATE t SET a = a")
    _, update = blank.changes()
    assert (update.before, update.after, update.changed) == (update.after, update.before, [])


def test_a_table_without_primary_key_is_captured_without_keys(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (a text)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES ('x'), ('x')")
    blank.source.execute("UPDATE t SET a = 'y'; DELETE FROM t")
    assert [shown(row) for row in blank.changes()] == [
        ("INSERT", None, None, {"a": "x"}),
        ("INSERT", None, None, {"a": "x"}),
        ("UPDATE", None, {"a": "x"}, {"a": "y"}),
        ("UPDATE", None, {"a": "x"}, {"a": "y"}),
        ("DELETE", None, {"a": "y"}, None),
        ("DELETE", None, {"a": "y"}, None),
    ]


def test_a_table_without_columns_is_captured(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t ()")
    blank.setup()
    blank.source.execute("INSERT INTO t DEFAULT VALUES")
    assert [shown(row) for row in blank.changes()] == [("INSERT", None, None, {})]


def test_a_composite_key_comes_in_key_order(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (a int, b text, c int, PRIMARY KEY (c, a))")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x', 3)")
    blank.source.execute("DELETE FROM t")
    assert [row.primary_key for row in blank.changes()] == [["3", "1"], ["3", "1"]]


def test_columns_that_a_primary_key_only_includes_are_no_part_of_the_key(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (a int, b text, PRIMARY KEY (a) INCLUDE (b))")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x')")
    (row,) = blank.changes()
    assert row.primary_key == ["1"]


def test_a_change_of_the_key_carries_both_keys(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (a int, b text, c int, PRIMARY KEY (c, a))")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x', 3)")
    blank.source.execute("UPDATE t SET a = 2")
    blank.source.execute("UPDATE t SET b = 'y'")
    assert [(row.primary_key, row.previous_key) for row in blank.changes()] == [
        (["3", "1"], None),
        (["3", "2"], ["3", "1"]),
        (["3", "2"], None),
    ]


def test_a_large_value_that_an_update_left_alone_is_complete_under_identity_full(
    blank: Capture,
) -> None:
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, large text, a int);"
        "ALTER TABLE t ALTER COLUMN large SET STORAGE EXTERNAL"
    )
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, repeat('0123456789', 5000), 1)")
    blank.source.execute("UPDATE t SET a = 2")
    large = "0123456789" * 5000
    _, update = blank.changes()
    assert update.before == {"id": 1, "large": large, "a": 1}
    assert update.after == {"id": 1, "large": large, "a": 2}
    assert update.changed == ["a"]


def test_under_identity_default_what_the_log_does_not_carry_is_marked(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, large text, a int);"
        "ALTER TABLE t ALTER COLUMN large SET STORAGE EXTERNAL"
    )
    blank.setup()
    blank.source.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT")
    blank.source.execute("INSERT INTO t VALUES (1, repeat('0123456789', 5000), 1)")
    blank.source.execute("UPDATE t SET a = 2")
    blank.source.execute("UPDATE t SET id = 7, large = 'small'")
    blank.source.execute("DELETE FROM t")
    _, first, second, delete = blank.changes()
    assert shown(first) == ("UPDATE", ["1"], None, {"id": 1, "large": UNAVAILABLE, "a": 2})
    assert first.changed is None
    assert shown(second) == ("UPDATE", ["7"], None, {"id": 7, "large": "small", "a": 2})
    assert second.previous_key == ["1"]
    assert shown(delete) == (
        "DELETE",
        ["7"],
        {"id": 7, "large": UNAVAILABLE, "a": UNAVAILABLE},
        None,
    )


def test_under_an_identity_index_the_indexed_columns_of_a_delete_are_kept(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, a int);"
        "CREATE UNIQUE INDEX t_code ON t (code)"
    )
    blank.setup()
    blank.source.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX t_code")
    blank.source.execute("INSERT INTO t VALUES (1, 'x', 1)")
    blank.source.execute("DELETE FROM t")
    _, delete = blank.changes()
    assert delete.before == {"id": UNAVAILABLE, "code": "x", "a": UNAVAILABLE}


PARTITIONED = """
    CREATE TABLE visit (id int, day date, a text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE visit_2023 PARTITION OF visit FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    CREATE TABLE visit_2024 PARTITION OF visit FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')
        PARTITION BY LIST (id);
    CREATE TABLE visit_2024_x PARTITION OF visit_2024 DEFAULT"""


def test_a_partition_is_captured_under_its_roots_name_and_oid(blank: Capture) -> None:
    blank.source.execute(PARTITIONED)
    blank.setup()
    blank.source.execute("INSERT INTO visit VALUES (1, '2023-05-01', 'x'), (2, '2024-05-01', 'y')")
    blank.source.execute("UPDATE visit_2024_x SET a = 'z'")
    blank.source.execute("TRUNCATE visit_2023")
    ((root,),) = blank.source.execute("SELECT 'visit'::regclass::oid")
    rows = blank.changes()
    assert {(row.schema_name, row.table_name, row.relation_oid) for row in rows} == {
        ("public", "visit", root)
    }
    assert [(row.operation, row.primary_key) for row in rows[:3]] == [
        ("INSERT", ["1", "2023-05-01"]),
        ("INSERT", ["2", "2024-05-01"]),
        ("UPDATE", ["2", "2024-05-01"]),
    ]
    assert rows[2].before["a"] == "y"


def test_a_row_that_moves_between_partitions_is_deleted_and_inserted(blank: Capture) -> None:
    blank.source.execute(PARTITIONED)
    blank.setup()
    blank.source.execute("INSERT INTO visit VALUES (1, '2023-05-01', 'x')")
    blank.source.execute("UPDATE visit SET day = '2024-05-01'")
    _, deleted, inserted = blank.changes()
    assert shown(deleted)[:3] == (
        "DELETE",
        ["1", "2023-05-01"],
        {"id": 1, "day": "2023-05-01", "a": "x"},
    )
    assert shown(inserted) == (
        "INSERT",
        ["1", "2024-05-01"],
        None,
        {"id": 1, "day": "2024-05-01", "a": "x"},
    )


def test_a_partition_made_after_setup_is_captured_too(blank: Capture) -> None:
    blank.source.execute(PARTITIONED)
    blank.setup()
    blank.source.execute(
        "CREATE TABLE visit_2025 PARTITION OF visit"
        " FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')"
    )
    blank.source.execute("INSERT INTO visit VALUES (1, '2025-05-01', 'x')")
    (row,) = blank.changes()
    assert (row.table_name, row.primary_key) == ("visit", ["1", "2025-05-01"])


def test_a_partition_whose_columns_stand_in_another_order_is_captured_right(
    blank: Capture,
) -> None:
    blank.source.execute(
        "CREATE TABLE visit (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);"
        "CREATE TABLE visit_1 (gone int, a text, id int NOT NULL);"
        "ALTER TABLE visit_1 DROP COLUMN gone;"
        "ALTER TABLE visit ATTACH PARTITION visit_1 FOR VALUES FROM (0) TO (10)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO visit VALUES (1, 'x')")
    blank.source.execute("UPDATE visit SET a = 'y'")
    assert [shown(row) for row in blank.changes()] == [
        ("INSERT", ["1"], None, {"id": 1, "a": "x"}),
        ("UPDATE", ["1"], {"id": 1, "a": "x"}, {"id": 1, "a": "y"}),
    ]


def test_names_in_any_spelling_are_kept_exactly(blank: Capture) -> None:
    blank.source.execute(
        'CREATE SCHEMA "My Schema";'
        'CREATE TABLE "My Schema"."Ta.ble ""%s"" 日本" ("Id" int, "a %s b" text, "{x}" int,'
        ' "Order" int, "back\\slash" int, PRIMARY KEY ("Order", "Id"))'
    )
    blank.setup()
    blank.source.execute('INSERT INTO "My Schema"."Ta.ble ""%s"" 日本" VALUES (1, \'x\', 2, 3, 4)')
    (row,) = blank.changes()
    assert (row.schema_name, row.table_name) == ("My Schema", 'Ta.ble "%s" 日本')
    assert row.primary_key == ["3", "1"]
    assert row.after == {"Id": 1, "a %s b": "x", "{x}": 2, "Order": 3, "back\\slash": 4}


def test_tables_of_one_name_in_two_schemas_are_told_apart(blank: Capture) -> None:
    blank.source.execute(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY);"
        "CREATE SCHEMA b; CREATE TABLE b.t (id int, other int PRIMARY KEY)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO a.t VALUES (1)")
    blank.source.execute("INSERT INTO b.t VALUES (1, 2)")
    assert [(row.schema_name, row.table_name, row.primary_key) for row in blank.changes()] == [
        ("a", "t", ["1"]),
        ("b", "t", ["2"]),
    ]


def test_domains_are_stored_like_their_base_type_and_enums_as_text(blank: Capture) -> None:
    blank.source.execute(
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN dose AS positive;"
        "CREATE DOMAIN settings AS jsonb; CREATE DOMAIN yes AS boolean; CREATE DOMAIN tag AS text;"
        "CREATE TYPE mood AS ENUM ('it''s \"fine\"', 'bad');"
        "CREATE TYPE pair AS (a int, b text);"
        "CREATE TABLE t (id dose PRIMARY KEY, s settings, y yes, g tag, m mood, ms mood[], p pair)"
    )
    blank.setup()
    blank.source.execute(
        "INSERT INTO t VALUES (1, '{\"a\": [1]}', true, 'x', 'it''s \"fine\"', '{bad}',"
        " ROW(1, 'b c'))"
    )
    (row,) = blank.changes()
    assert row.primary_key == ["1"]
    assert row.after == {
        "id": 1,
        "s": {"a": [1]},
        "y": True,
        "g": "x",
        "m": 'it\'s "fine"',
        "ms": "{bad}",
        "p": '(1,"b c")',
    }


VALUES = [
    ("boolean", "true", True),
    ("boolean", "false", False),
    ("smallint", "-32768", -32768),
    ("integer", "2147483647", 2147483647),
    ("bigint", "-9223372036854775808", -9223372036854775808),
    ("oid", "4294967295", "4294967295"),
    ("numeric", "'12345678901234567890123.000100'", "12345678901234567890123.000100"),
    ("numeric(10,2)", "'1'", "1.00"),
    ("numeric", "'NaN'", "NaN"),
    ("numeric", "'-Infinity'", "-Infinity"),
    ("real", "'0.1'", "0.1"),
    ("real", "'1e-30'", "1e-30"),
    ("double precision", "0.1::float8 + 0.2::float8", "0.30000000000000004"),
    ("double precision", "'NaN'", "NaN"),
    ("double precision", "'-Infinity'", "-Infinity"),
    ("double precision", "'-0'", "-0"),
    (
        "text",
        "E'tab\\t nl\\n cr\\r quote\" back\\\\ 日本 🩺 \\x01\\x7f'",
        'tab\t nl\n cr\r quote" back\\ 日本 🩺 \x01\x7f',
    ),
    ("text", "''", ""),
    ("varchar(5)", "'abc'", "abc"),
    ("char(5)", "'ab'", "ab   "),
    ('"char"', "'x'", "x"),
    ("name", "'n'", "n"),
    ("bytea", "'\\x00ff5c27'", "\\x00ff5c27"),
    ("date", "'2024-02-29'", "2024-02-29"),
    ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
    ("date", "'-infinity'", "-infinity"),
    ("timestamp", "'2024-02-29 12:34:56.789'", "2024-02-29 12:34:56.789"),
    ("timestamp", "'infinity'", "infinity"),
    ("timestamptz", "'2024-02-29 12:00:00.5+02'", "2024-02-29 10:00:00.5+00"),
    ("timestamptz", "'infinity'", "infinity"),
    ("time", "'23:59:59.999999'", "23:59:59.999999"),
    ("timetz", "'23:59:59+02'", "23:59:59+02"),
    (
        "interval",
        "'1 year 2 mons -3 days 04:05:06.789'",
        "1 year 2 mons -3 days +04:05:06.789",
    ),
    ("uuid", "'7F3A1A5E-1111-4111-8111-111111111111'", "7f3a1a5e-1111-4111-8111-111111111111"),
    ("inet", "'10.0.0.1/8'", "10.0.0.1/8"),
    ("cidr", "'10.0.0.0/8'", "10.0.0.0/8"),
    ("macaddr", "'08:00:2b:01:02:03'", "08:00:2b:01:02:03"),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'", "08:00:2b:01:02:03:04:05"),
    ("bit(3)", "B'101'", "101"),
    ("varbit", "B'10'", "10"),
    ("point", "'(1,2.5)'", "(1,2.5)"),
    ("lseg", "'[(1,2),(3,4)]'", "[(1,2),(3,4)]"),
    ("box", "'(1,2),(3,4)'", "(3,4),(1,2)"),
    ("path", "'((1,2),(3,4))'", "((1,2),(3,4))"),
    ("polygon", "'((1,2),(3,4))'", "((1,2),(3,4))"),
    ("circle", "'<(1,2),3>'", "<(1,2),3>"),
    ("line", "'{1,2,3}'", "{1,2,3}"),
    ("int4range", "'(1,5]'", "[2,6)"),
    ("numrange", "'empty'", "empty"),
    (
        "tstzrange",
        "'[2024-02-29 12:00+02,)'",
        '["2024-02-29 10:00:00+00",)',
    ),
    ("int4multirange", "'{[1,3),[5,8)}'", "{[1,3),[5,8)}"),
    ("integer[]", "'{{1,NULL},{3,4}}'", "{{1,NULL},{3,4}}"),
    ("integer[]", "'[0:1]={1,2}'", "[0:1]={1,2}"),
    ("text[]", "ARRAY['a,b', 'NULL', NULL, '\"', '']", '{"a,b","NULL",NULL,"\\"",""}'),
    (
        "timestamptz[]",
        "ARRAY['2024-02-29 12:00+02'::timestamptz]",
        '{"2024-02-29 10:00:00+00"}',
    ),
    ("double precision[]", "ARRAY[0.1::float8 + 0.2::float8]", "{0.30000000000000004}"),
    ("interval[]", "ARRAY['1 day'::interval]", '{"1 day"}'),
    ("bytea[]", "ARRAY['\\x00ff'::bytea]", '{"\\\\x00ff"}'),
    ("jsonb[]", "ARRAY['{\"a\": 1}'::jsonb]", '{"{\\"a\\": 1}"}'),
    ("tsvector", "'a:1 b:2'", "'a':1 'b':2"),
    ("tsquery", "'a & b'", "'a' & 'b'"),
    ("pg_lsn", "'16/B374D848'", "16/B374D848"),
    ("jsonpath", "'$.a[*]'", '$."a"[*]'),
    ("xid8", "'18446744073709551615'", "18446744073709551615"),
    ("regclass", "'pg_class'", "pg_class"),
    ("json", "'{\"b\": 1,  \"a\": [1.0, null]}'", {"b": 1, "a": [1.0, None]}),
    ("json", "'null'", {"$pgaudit_ctx": "value", "value": None}),
    ("json", '\'{"a": 1, "a": 2}\'', {"$pgaudit_ctx": "text", "text": '{"a": 1, "a": 2}'}),
    ("json", "'\"\\u0000\"'", {"$pgaudit_ctx": "text", "text": '"\\u0000"'}),
    (
        "json",
        "'{\"$pgaudit_ctx\": \"x\"}'",
        {"$pgaudit_ctx": "value", "value": {"$pgaudit_ctx": "x"}},
    ),
    ("json", "'5'", 5),
    ("jsonb", '\'{"b": 1, "a": "x"}\'', {"b": 1, "a": "x"}),
    ("jsonb", "'null'", {"$pgaudit_ctx": "value", "value": None}),
    ("jsonb", '\'{"a": 1, "a": 2}\'', {"a": 2}),
    (
        "jsonb",
        "'{\"$pgaudit_ctx\": \"unavailable\"}'",
        {"$pgaudit_ctx": "value", "value": {"$pgaudit_ctx": "unavailable"}},
    ),
    ("jsonb", "'[{\"$pgaudit_ctx\": 1}]'", [{"$pgaudit_ctx": 1}]),
    ("jsonb", "'\"text\"'", "text"),
    ("jsonb", "'[]'", []),
    ("jsonb", "NULL", None),
    ("text", "NULL", None),
]  # fmt: skip

HOSTILE_DEFAULTS = {
    "DateStyle": "'SQL, DMY'",
    "TimeZone": "'America/St_Johns'",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
    "xmloption": "content",
    "search_path": "nowhere",
    "client_encoding": "LATIN1",
    "default_transaction_read_only": "off",
}


def test_every_built_in_type_is_exact_whatever_the_databases_defaults_are(blank: Capture) -> None:
    source = blank.source
    columns = ", ".join(f"c{number} {kind}" for number, (kind, _, _) in enumerate(VALUES))
    source.execute(f"CREATE TABLE t ({columns})")
    for setting, value in HOSTILE_DEFAULTS.items():
        source.execute(f"ALTER DATABASE {source.name} SET {setting} = {value}")
    blank.setup()
    literals = ", ".join(f"{literal}" for _, literal, _ in VALUES)
    with source.connect() as connection:
        connection.execute("SET client_encoding = 'UTF8'; SET bytea_output = hex")
        connection.execute(f"INSERT INTO public.t VALUES ({literals})")
    (row,) = blank.changes()
    assert {
        f"{name} {kind} {literal}": row.after[name]
        for name, (kind, literal, _) in zip(row.after, VALUES, strict=True)
    } == {
        f"c{number} {kind} {literal}": expected
        for number, (kind, literal, expected) in enumerate(VALUES)
    }


def test_a_number_in_jsonb_keeps_every_digit(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, d jsonb, j json)")
    blank.setup()
    exact = "12345678901234567890.12345678901234567890"
    blank.source.execute(f"INSERT INTO t VALUES (1, '[{exact}]', '[{exact}, 1.10]')")
    blank.run()
    ((stored, other),) = blank.destination.execute(
        "SELECT after #>> '{d,0}' AS d, after ->> 'j' AS j FROM pgaudit_ctx.changes"
    )
    assert (stored, other) == (exact, f"[{exact}, 1.10]")


def test_columns_added_renamed_and_dropped_before_the_log_is_read_appear_as_they_were(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b int)")
    blank.setup()
    for statement in (
        "INSERT INTO t VALUES (1, 'x', 5)",
        "ALTER TABLE t ADD COLUMN c int DEFAULT 7",
        "UPDATE t SET b = 6",
        "ALTER TABLE t RENAME COLUMN a TO z",
        "UPDATE t SET z = 'y'",
        "ALTER TABLE t DROP COLUMN b",
        "DELETE FROM t",
    ):
        blank.source.execute(statement)
    assert [shown(row) for row in blank.changes()] == [
        ("INSERT", ["1"], None, {"id": 1, "a": "x", "b": 5}),
        (
            "UPDATE",
            ["1"],
            {"id": 1, "a": "x", "b": 5, "c": 7},
            {"id": 1, "a": "x", "b": 6, "c": 7},
        ),
        (
            "UPDATE",
            ["1"],
            {"id": 1, "z": "x", "b": 6, "c": 7},
            {"id": 1, "z": "y", "b": 6, "c": 7},
        ),
        ("DELETE", ["1"], {"id": 1, "z": "y", "c": 7}, None),
    ]


def test_a_column_whose_type_changed_in_mid_transaction_is_read_as_it_was(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    with blank.source.connect() as connection, connection.transaction():
        connection.execute("INSERT INTO t VALUES (1, '5')")
        connection.execute("ALTER TABLE t ALTER COLUMN a TYPE int USING a::int")
        connection.execute("INSERT INTO t VALUES (2, 6)")
    inserts = [row for row in blank.changes() if row.operation == "INSERT"]
    assert inserts[0].after == {"id": 1, "a": "5"}
    assert inserts[-1].after == {"id": 2, "a": 6}


def test_a_renamed_table_has_the_name_it_had_and_the_same_oid(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE old (id int PRIMARY KEY)")
    blank.setup()
    blank.source.execute("INSERT INTO old VALUES (1)")
    blank.source.execute("ALTER TABLE old RENAME TO new")
    blank.source.execute("INSERT INTO new VALUES (2)")
    first, second = blank.changes()
    assert (first.table_name, second.table_name) == ("old", "new")
    assert first.relation_oid == second.relation_oid


def test_a_table_dropped_before_the_log_is_read_is_still_captured(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x')")
    blank.source.execute("DROP TABLE t")
    (row,) = blank.changes()
    assert (row.operation, row.schema_name, row.table_name) == ("INSERT", "public", "t")
    assert row.after == {"id": 1, "a": "x"}


def test_a_row_of_a_transaction_that_rolls_back_never_appears(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    blank.setup()
    blank.source.execute("BEGIN; INSERT INTO t VALUES (1); ROLLBACK")
    blank.source.execute("INSERT INTO t VALUES (2)")
    assert [row.primary_key for row in blank.changes()] == [["2"]]


def test_transactions_appear_in_the_order_in_which_they_committed(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    blank.setup()
    with blank.source.connect() as slow, blank.source.connect() as fast:
        slow.execute("BEGIN; INSERT INTO t VALUES (1)")
        fast.execute("INSERT INTO t VALUES (2)")
        slow.execute("INSERT INTO t VALUES (3); COMMIT")
    assert [row.primary_key[0] for row in blank.changes()] == ["2", "1", "3"]


def test_a_transaction_larger_than_a_batch_arrives_whole_under_one_position(
    blank: Capture,
) -> None:
    blank.options = blank.options._replace(batch_bytes=1000)
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute("INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 2000) n")
    blank.source.execute("INSERT INTO t VALUES (0, 'y')")
    rows = blank.changes()
    assert [row.ordinal for row in rows] == [*range(1, 2001), 1]
    assert len({row.commit_lsn for row in rows}) == 2


def test_writes_of_cascades_and_triggers_are_captured(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE a (id int PRIMARY KEY);"
        "CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (10, 1), (11, 1)")
    blank.source.execute("DELETE FROM a")
    assert [(row.operation, row.table_name) for row in blank.changes()][3:] == [
        ("DELETE", "a"),
        ("DELETE", "b"),
        ("DELETE", "b"),
    ]


def test_a_prepared_transaction_is_captured_when_it_is_committed(blank: Capture) -> None:
    ((allowed,),) = blank.source.execute("SHOW max_prepared_transactions")
    if allowed == "0":
        pytest.skip("this server allows no prepared transactions")
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    blank.setup()
    blank.source.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'two'")
    assert blank.changes() == []
    blank.source.execute("COMMIT PREPARED 'two'")
    assert [row.primary_key for row in blank.changes()] == [["1"]]


def test_a_value_of_a_megabyte_arrives_whole(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b bytea)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, repeat('äb', 500000), repeat('x', 1000)::bytea)")
    (row,) = blank.changes()
    assert row.after["a"] == "äb" * 500_000
    assert row.after["b"] == "\\x" + "78" * 1000


def test_a_database_in_another_encoding_is_captured_in_unicode(server, destination) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    source = Database(server, "latin")
    try:
        source.execute("SET client_encoding = 'UTF8'; CREATE TABLE t (id int PRIMARY KEY, a text)")
        capture = Capture(source, destination)
        capture.setup()
        with source.connect() as connection:
            connection.execute("SET client_encoding = 'UTF8'")
            with connection.transaction():
                connection.execute(
                    "SELECT pg_logical_emit_message(true, 'pgaudit_ctx', %s)",
                    ['{"user": "J\\u00e9r\\u00f4me"}'],
                )
                connection.execute("INSERT INTO t VALUES (1, 'é ß')")
        (row,) = capture.changes()
        assert (row.after["a"], row.context) == ("é ß", {"user": "Jérôme"})
    finally:
        drop_database(source)


HOSTILE = [
    '{"a":"\\u0000"}',
    '{"a": "\\ud800"}',
    '{"a":1E9999999}',
    '{"a": 1e-20000}',
    '{"a":NaN}',
    '{"a": -Infinity}',
    '{"a": 01}',
    '{"a": "\t"}',
    '{"a": 1} x',
    "{'a': 1}",
    "\ufeff{}",
    "[1]",
    '"x"',
    "null",
    "",
    "{",
    '{"a":' * 5000 + "1" + "}" * 5000,
    f'{{"a": {"1" * 200_000}}}',
    f'{{"a": 1.{"1" * 20_000}}}',
]


def test_no_text_of_a_message_stops_the_worker(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    blank.setup()
    with blank.source.connect() as connection:
        for number, content in enumerate(HOSTILE):
            with connection.transaction():
                connection.execute(
                    "SELECT pg_logical_emit_message(true, 'pgaudit_ctx', %s::text)", [content]
                )
                connection.execute("INSERT INTO t VALUES (%s)", [number])
    assert [row.context for row in blank.changes()] == [
        {"$pgaudit_ctx": "invalid", "text": content[:1024]} for content in HOSTILE
    ]


def test_no_json_that_the_source_takes_stops_the_worker_or_loses_a_character(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, j json)")
    blank.setup()
    taken = []
    with blank.source.connect() as connection:
        for number, content in enumerate(HOSTILE):
            try:
                connection.execute("INSERT INTO t VALUES (%s, %s)", [number, content])
            except psycopg.errors.InvalidTextRepresentation:
                continue
            taken.append(content)
    assert len(taken) > 5
    for row, content in zip(blank.changes(), taken, strict=True):
        if content in {"[1]", '"x"'}:
            continue  # jsonb holds these without loss
        kind = "value" if content == "null" else "text"
        assert row.after["j"]["$pgaudit_ctx"] == kind
        assert row.after["j"][kind] == (None if content == "null" else content)
