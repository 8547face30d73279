"""Every type that PostgreSQL ships goes through the trail and comes back as it was.

Which these are the server says itself (``pg_type``), so a type that a new version adds fails here
until it has a value.
"""

from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql

from pgaudit_ctx.baseline import Baseline
from pgaudit_ctx.connection import connect
from support.database import Capture
from support.reports import Silent

# One value of each type that no other makes, as SQL that gives it.
VALUES = {
    "aclitem": "'=UC/{me}'",
    "bit": "B'1'",
    "bool": "'t'",
    "box": "'(1.5,2),(3,4)'",
    "bpchar": "'ab  '",
    "bytea": r"'\x00ff5c27'",
    "char": "'x'",
    "cid": "'7'",
    "cidr": "'10.0.0.0/8'",
    "circle": "'<(1,2),3.25>'",
    "date": "'0044-03-15 BC'",
    "float4": "'0.1'",
    "float8": "'2.2250738585072014e-308'",
    "inet": "'::ffff:1.2.3.0/120'",
    "int2": "'-32768'",
    "int4": "'-2147483648'",
    "int8": "'9223372036854775807'",
    "interval": "'-1 year 2 mons -3 days 04:05:06.789'",
    "json": """'{"b": 1.00,  "a": [null, "\\u00e9"]}'""",
    "jsonb": """'{"b": 1.00, "a": [null, "é"]}'""",
    "jsonpath": "'$.a[*] ? (@ > 1)'",
    "line": "'{1,2,3}'",
    "lseg": "'[(1,2),(3,4)]'",
    "macaddr": "'08:00:2b:01:02:03'",
    "macaddr8": "'08:00:2b:01:02:03:04:05'",
    "money": "'12.34'",
    "name": "'a name'",
    "numeric": "'-12345678901234567890.000100'",
    "oid": "'4294967295'",
    "path": "'[(1,2),(3,4)]'",
    "pg_dependencies": "(SELECT stxddependencies FROM pg_statistic_ext_data)",
    "pg_lsn": "'16/B374D848'",
    "pg_mcv_list": "(SELECT stxdmcv FROM pg_statistic_ext_data)",
    "pg_ndistinct": "(SELECT stxdndistinct FROM pg_statistic_ext_data)",
    "pg_node_tree": "(SELECT adbin FROM pg_attrdef WHERE adrelid = 'sampled'::regclass)",
    "pg_snapshot": "'10:20:10,14,15'",
    "point": "'(1,2.5)'",
    "polygon": "'((1,2),(3,4),(5,6))'",
    "refcursor": "'a cursor'",
    "regclass": "'pg_catalog.pg_class'",
    "regcollation": """'pg_catalog."C"'""",
    "regconfig": "'pg_catalog.english'",
    "regdatabase": "'template1'",
    "regdictionary": "'pg_catalog.simple'",
    "regnamespace": "'pg_catalog'",
    "regoper": "'pg_catalog.||/'",
    "regoperator": "'pg_catalog.*(integer,integer)'",
    "regproc": "'pg_catalog.now'",
    "regprocedure": "'pg_catalog.abs(numeric)'",
    "regrole": "'{me}'",
    "regtype": "'pg_catalog.timestamptz'",
    "text": "E'tab\\t nl\\n quote\" back\\\\ 日本 🩺 \\x01'",
    "tid": "'(42,7)'",
    "time": "'23:59:59.999999'",
    "timestamp": "'infinity'",
    "timestamptz": "'2024-02-29 12:00:00.5+02'",
    "timetz": "'23:59:59+02'",
    "tsquery": "'''fat'' & ( ''rat'' | !''cat'' )'",
    "tsvector": "'''a'':1A ''it''''s'':2'",
    "txid_snapshot": "'10:20:10,14,15'",
    "uuid": "'7f3a1a5e-1111-4111-8111-111111111111'",
    "varbit": "B'10110'",
    "varchar": "'  abc'",
    "xid": "'4294967295'",
    "xid8": "'18446744073709551615'",
    "xml": "'<a b=\"c\">d &amp; e</a>'",
    "int4range": "'[1,5)'",
    "int8range": "'(,9223372036854775807)'",
    "numrange": "'[1.50,2.0]'",
    "daterange": "'[2024-02-29,infinity)'",
    "tsrange": "'[\"2024-02-29 10:00:00\",)'",
    "tstzrange": "'[\"2024-02-29 12:00:00+02\",)'",
    "int4multirange": "'{[1,3),[5,8)}'",
    "int8multirange": "'{}'",
    "nummultirange": "'{[1.5,2.5)}'",
    "datemultirange": "'{[2024-02-28,2024-02-29)}'",
    "tsmultirange": "'{[\"2024-02-29 10:00:00\",)}'",
    "tstzmultirange": "'{[\"2024-02-29 12:00:00+02\",)}'",
}
# No SQL gives a value of these: they only exist inside of indexes.
ONLY_NULL = {"gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"}
# These have a value, but their input refuses all: they come back as the text that they print.
NO_INPUT = {"pg_dependencies", "pg_mcv_list", "pg_ndistinct", "pg_node_tree"}
TYPES = """
    SELECT t.typname, e.typname AS element
    FROM pg_type t LEFT JOIN pg_type e ON e.typarray = t.oid AND e.typtype NOT IN ('c', 'p')
    WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'd', 'e', 'm', 'r')
        AND (t.typcategory <> 'A' OR e.oid IS NOT NULL OR t.typname IN ('int2vector', 'oidvector'))
    ORDER BY 1"""


class Shipped(NamedTuple):
    name: str
    value: str


def shipped(capture: Capture) -> list[Shipped]:
    """Each type of the server with SQL that gives a value of it."""
    found = []
    me = capture.source.execute("SELECT current_user AS me")[0].me
    without = only_null(capture)
    for name, element in capture.source.execute(TYPES):
        kind = element or name
        if kind in without:
            value = "NULL"
        elif kind in {"int2vector", "oidvector"}:
            value = "'1 2 3'"
        else:
            value = VALUES[kind].replace("{me}", me)
        if element is not None:
            typed = sql.Identifier("pg_catalog", element).as_string(None)
            value = f"ARRAY[{value}::{typed}, NULL]"
        found.append(Shipped(name, value))
    return found


def only_null(capture: Capture) -> set[str]:
    """The types of which this server has no value; some are built without libxml."""
    try:
        capture.source.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return ONLY_NULL | {"xml"}
    return ONLY_NULL


def printed(expression: str) -> str:
    """What a value's output function prints: a cast to text may take away blanks."""
    return f"CASE WHEN ({expression}) IS NOT NULL THEN format('%s', {expression}) END"


def printed_again(name: str, expression: str) -> str:
    """The same after the text has been that type once more."""
    if name.lstrip("_") in NO_INPUT:
        return expression
    return printed(f"({expression})::{sql.Identifier('pg_catalog', name).as_string(None)}")


def named(types: list[Shipped], values) -> dict[str, str]:
    # A boolean's own text is true, and t in a cast.
    return {
        one.name: {"t": "true"}.get(value, value) if one.name == "bool" else value
        for one, value in zip(types, values, strict=True)
    }


@pytest.fixture
def sampled(blank: Capture) -> Capture:
    """Where statistics and a default exist, of which some types are."""
    blank.source.execute(
        "CREATE TABLE sampled (a int, b int DEFAULT 1 + 1);"
        "INSERT INTO sampled SELECT n / 10, n / 10 FROM generate_series(1, 1000) n;"
        "CREATE STATISTICS all_of_it (ndistinct, dependencies, mcv) ON a, b FROM sampled;"
        "ANALYZE sampled"
    )
    return blank


def test_every_type_comes_back_from_the_stream_and_from_a_baseline(sampled: Capture) -> None:
    capture, types = sampled, shipped(sampled)
    assert len(types) > 150
    columns = ", ".join(
        f"c{i} {sql.Identifier('pg_catalog', one.name).as_string(None)}"
        for i, one in enumerate(types)
    )
    capture.source.execute(f"CREATE TABLE t ({columns})")
    capture.setup()
    # With the fixed settings, and nothing else of ours, the server prints what should be stored.
    with connect(capture.source.url, "source") as source:
        source.execute("SET search_path = public")
        source.execute("INSERT INTO t SELECT " + ", ".join(one.value for one in types))
        source.execute("SET search_path = pg_catalog")
        # A json is the same document, in the spelling of jsonb.
        texts = [
            printed(f"c{i}::jsonb" if one.name == "json" else f"c{i}")
            for i, one in enumerate(types)
        ]
        expected = source.execute(f"SELECT {', '.join(texts)} FROM public.t").fetchone()
    assert Baseline(capture.options, Silent()).run(["t"]) == []
    capture.run()
    stored = [f"after ->> 'c{i}'" for i in range(len(types))]
    again = [
        printed_again(one.name, expression) for one, expression in zip(types, stored, strict=True)
    ]
    with connect(capture.destination.url, "destination") as destination:
        for shown in (stored, again):
            insert, snapshot = destination.execute(
                f"SELECT operation, {', '.join(shown)} FROM pgaudit_ctx.changes"
                " WHERE table_name = 't' ORDER BY commit_lsn"
            ).fetchall()
            assert (insert[0], snapshot[0]) == ("INSERT", "SNAPSHOT")
            assert named(types, insert[1:]) == named(types, snapshot[1:]) == named(types, expected)
    given = [one.name for one, text in zip(types, expected, strict=True) if text is None]
    assert {name.lstrip("_") for name in given} == only_null(capture)
