"""Which functions a statement may call, told from its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.emission.calls import called_functions
from pgaudit_ctx.emission.statements import Effect, Statement, classify

CALLS = [
    ("SELECT f()", ("f",)),
    ("SELECT F (1), f(2)", ("f",)),
    ("SELECT clinic.admit(1)", ("clinic.admit",)),
    ("SELECT clinic . admit ( 1 )", ("clinic.admit",)),
    ('SELECT "My""Fn"(1), "Clinic"."Admit"(2)', ("Clinic.Admit", 'My"Fn')),
    ("SELECT count(*) FILTER (WHERE a > 0) OVER (ORDER BY b) FROM t", ("count",)),
    ("SELECT filter(1), over(2)", ("filter", "over")),
    ("SELECT coalesce(a, 1), greatest(b, 2) FROM t WHERE c IN (1) AND EXISTS (SELECT 1)", ()),
    ("SELECT CAST(a AS numeric(10, 2)), b::varchar(3), c::vector(3) FROM t", ()),
    ("WITH RECURSIVE tree(id, parent) AS (SELECT 1, 2) SELECT * FROM tree", ()),
    ("WITH a AS (SELECT 1), b(x) AS NOT MATERIALIZED (SELECT g(2)) SELECT 1", ("g",)),
    ("SELECT * FROM generate_series(1, 2) AS g(n)", ("generate_series",)),
    ("SELECT pg_catalog.lower('x'), information_schema.f(1)", ()),
    ("SELECT größe(1)", ("größe",)),
    ("SELECT * FROM a JOIN b USING (id) WHERE (a.x, a.y) = (1, 2)", ()),
    ("VALUES (f(1)), (g(2))", ("f", "g")),
    ("SELECT 🩺(1), f🩺 (2)", ("f🩺", "🩺")),
    ("SELECT a . b . c . f()", ("c.f",)),
    ("SELECT $1 (2), %(x)s (3)", ("s",)),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "names"), CALLS)
def test_the_functions_of_a_statement_are_found(statement: str, names: tuple[str, ...]) -> None:
    assert called_functions(statement) == names


@pytest.mark.parametrize(
    "statement",
    ["SELECT 'f()'", "SELECT $$f()$$ -- g()", "SELECT 1 /* f() */", "SELECT E'\\' f()'"],
)
def test_what_is_quoted_or_a_comment_calls_nothing(statement: str) -> None:
    assert classify(statement).functions == ()


def test_each_part_of_a_string_of_several_statements_counts() -> None:
    assert classify("SELECT f(); SELECT g()").functions == ("f", "g")


@given(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True))
def test_any_name_that_is_no_word_of_sql_is_found_wherever_it_is_called(name: str) -> None:
    found = called_functions(f"SELECT a, {name}(1) FROM t WHERE b = {name}(2)")
    assert found in {(name,), ()}
    assert found or called_functions(f"SELECT zz_{name}(1)") == (f"zz_{name}",)


SAID = [
    ("SET TRANSACTION READ ONLY", True),
    ("set transaction isolation level serializable, read only", True),
    ("SET TRANSACTION READ WRITE", False),
    ("SET LOCAL transaction_read_only = on", True),
    ("SET transaction_read_only TO off", False),
    ("SET transaction_read_only = 'on'", False),
    ("BEGIN READ ONLY", True),
    ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ WRITE", False),
    ("BEGIN", None),
    ("SET search_path = app", None),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", None),
    ("SET default_transaction_read_only = on", None),
    ("BEGIN READ ONLY; SELECT 1", True),
    ("SELECT 'SET TRANSACTION READ ONLY'", None),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "read_only"), SAID)
def test_what_a_statement_says_of_its_transaction(statement: str, read_only: bool | None) -> None:
    assert classify(statement).read_only is read_only


def test_what_changes_the_default_says_so() -> None:
    assert classify("SET default_transaction_read_only = on").sets_default
    assert classify("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").sets_default
    assert not classify("SET TRANSACTION READ ONLY").sets_default


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ("COPY t FROM STDIN", Effect.WRITES),
        ("copy t (a, b) from program 'x'", Effect.WRITES),
        ("COPY t TO STDOUT", Effect.READS),
        ("COPY (SELECT a FROM t WHERE (b = 1)) TO STDOUT", Effect.READS),
        ("COPY (DELETE FROM t RETURNING a) TO STDOUT", Effect.WRITES),
    ],
)
def test_a_copy_writes_if_it_copies_from_something(statement: str, effect: Effect) -> None:
    assert classify(statement).effect is effect


def test_a_query_that_is_copied_calls_functions_and_the_columns_of_a_table_do_not() -> None:
    options = "TO STDOUT WITH (FORMAT csv, FORCE_QUOTE (a))"
    assert classify(f"COPY (SELECT f(a), (g()) FROM t) {options}").functions == ("f", "g")
    assert classify(f"COPY t (a, b) {options}").functions == ()


@pytest.mark.parametrize(
    ("statement", "wrappable"),
    [
        ("INSERT INTO t VALUES (1)", True),
        ("WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", True),
        ("SELECT f()", True),
        ("TRUNCATE t", True),
        ("CALL p()", False),
        ("DO $$ BEGIN END $$", False),
        ("CREATE TABLE t (a int)", False),
        ("INSERT INTO t VALUES (1); DELETE FROM t", False),
        ("COPY t FROM '/x'", False),
    ],
)
def test_only_what_runs_alike_in_a_transaction_is_wrapped_in_one(
    statement: str, wrappable: bool
) -> None:
    found: Statement = classify(statement)
    assert found.wrappable is wrappable
