"""What a statement does, told from its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.emission.statements import Effect, Statement, classify

READS = [
    "",
    "  \n",
    "-- INSERT INTO t",
    "SELECT 1",
    "select * from patient where name = 'insert into x'",
    "/* /* DELETE */ INSERT INTO t VALUES (1) */ SELECT 1",
    "/* never ended /* */ INSERT INTO t VALUES (1)",
    "SELECT 1 AS a$b$ FROM t",
    "SELECT 1 AS 🩺$b$ FROM t",
    "COPY (SELECT 1) TO STDOUT WITH (FORMAT csv, FORCE_QUOTE (a))",
    'COPY t (a, "from") TO STDOUT',
    'COPY (SELECT 1 AS ")from") TO STDOUT',
    "SELECT 1;",
    "SELECT 1; \n",
    "/* DELETE FROM t */ SELECT 1",
    "-- update t\nSELECT 1",
    "(SELECT 1) UNION (SELECT 2)",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "VALUES (1), (2)",
    "TABLE patient",
    "SELECT $$DELETE FROM t$$",
    "SELECT $a$ DELETE $$ FROM t $a$",
    "SELECT E'it\\'s DELETE FROM t'",
    "SELECT 'it''s DELETE FROM t'",
    'SELECT "delete" FROM "update"',
    "SELECT updated_at, deleted, insert_count FROM t",
    "SELECT * FROM t FOR UPDATE",
    "SELECT * FROM t FOR NO KEY UPDATE OF t SKIP LOCKED",
    "select * from t for\n  update nowait",
    "SELECT * FROM t FOR SHARE",
    "SELECT 1; SELECT 2",
    "EXPLAIN INSERT INTO t VALUES (1)",
    "EXPLAIN (VERBOSE) DELETE FROM t",
    "EXPLAIN ANALYZE SELECT 1",
    "SET search_path = app",
    "SET LOCAL statement_timeout = 1",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SHOW server_version",
    "RESET ALL",
    "LOCK TABLE t IN SHARE MODE",
    "BEGIN",
    "START TRANSACTION READ ONLY",
    "DECLARE c CURSOR FOR SELECT 1",
    "FETCH 10 FROM c",
    "CLOSE c",
    "LISTEN channel",
    "UNLISTEN *",
    "NOTIFY channel, 'delete'",
    "PREPARE p AS INSERT INTO t VALUES (1)",
    "DEALLOCATE p",
    "DISCARD ALL",
    "VACUUM t",
    "VACUUM (FULL) t",
    "CHECKPOINT",
    "CREATE INDEX CONCURRENTLY i ON t (a)",
    "create unique index concurrently if not exists i on t (a)",
    "DROP INDEX CONCURRENTLY i",
    "REINDEX TABLE CONCURRENTLY t",
    "ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
    "CREATE DATABASE d",
    "DROP DATABASE d",
    "CREATE TABLESPACE s LOCATION '/x'",
    "ALTER SYSTEM SET wal_level = logical",
    "ALTER DATABASE d SET TABLESPACE s",
]
WRITES = [
    "INSERT INTO t VALUES (1)",
    "  insert into t values (1)",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
    "TRUNCATE t",
    "COPY t FROM STDIN",
    "CALL p()",
    "DO $$ BEGIN PERFORM 1; END $$",
    "do$$begin end$$",
    "EXECUTE p(1)",
    "/* /* why */ SHOW */ INSERT INTO t VALUES (1)",
    "-- why\rINSERT INTO t VALUES (1)",
    "SELECT E'it''s \\' x'; DELETE FROM t",
    "COPY (WITH x AS (DELETE FROM t RETURNING 1) TABLE x) TO STDOUT",
    'COPY t (a, "to") FROM STDIN',
    "/* why */ INSERT INTO t VALUES (1)",
    "-- why\nINSERT INTO t VALUES (1)",
    "/* SELECT */ -- SELECT\n DELETE FROM t",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
    "with recursive x as (select 1) update t set a = 1",
    "(WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT a FROM x)",
    "SELECT * INTO copied FROM t",
    "SELECT 'a'; DELETE FROM t",
    "SELECT 1; INSERT INTO t VALUES ('x')",
    "SET LOCAL a.b = 'c'; UPDATE t SET a = 1",
    "BEGIN; DELETE FROM t; COMMIT",
    "SAVEPOINT a; DELETE FROM t",
    "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
    "EXPLAIN (ANALYZE, BUFFERS) UPDATE t SET a = 1",
    "explain analyse delete from t",
    "EXPLAIN ANALYZE WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "EXPLAIN ANALYZE EXECUTE p",
    "CREATE TABLE t (a integer)",
    "CREATE TABLE t AS SELECT 1",
    "CREATE INDEX i ON t (a)",
    "ALTER TABLE t ADD COLUMN a integer DEFAULT 1",
    "ALTER DATABASE d SET search_path = app",
    "DROP TABLE t",
    "REFRESH MATERIALIZED VIEW v",
    "GRANT SELECT ON t TO r",
    "COMMENT ON TABLE t IS 'vacuum concurrently'",
    "UPDATE t SET a = 'concurrently'",
    "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d FOR UPDATE",
]
ENDS = [
    "COMMIT",
    "commit work;",
    "COMMIT AND CHAIN",
    "END",
    "ROLLBACK",
    "ROLLBACK WORK",
    "rollback transaction",
    "/* x */ ROLLBACK",
    "ABORT",
]
SAVEPOINTS = [
    ("SAVEPOINT a", Effect.SAVEPOINT, "a"),
    ("savepoint A;", Effect.SAVEPOINT, "a"),
    ('SAVEPOINT "A b"', Effect.SAVEPOINT, "A b"),
    ('SAVEPOINT "say ""x"""', Effect.SAVEPOINT, 'say "x"'),
    ("/* x */ SAVEPOINT sa_savepoint_1", Effect.SAVEPOINT, "sa_savepoint_1"),
    ("-- x\nSAVEPOINT a", Effect.SAVEPOINT, "a"),
    ("SAVEPOINT größe", Effect.SAVEPOINT, "größe"),
    ("ROLLBACK TO a", Effect.ROLLBACK_TO, "a"),
    ("ROLLBACK TO SAVEPOINT A", Effect.ROLLBACK_TO, "a"),
    ('rollback work to "A"', Effect.ROLLBACK_TO, "A"),
    ("ROLLBACK TRANSACTION TO SAVEPOINT a", Effect.ROLLBACK_TO, "a"),
    ("rollback\n to\n savepoint\n a", Effect.ROLLBACK_TO, "a"),
    ("RELEASE a", Effect.RELEASE, "a"),
    ("RELEASE SAVEPOINT A", Effect.RELEASE, "a"),
    ('release "A"', Effect.RELEASE, "A"),
]


@pytest.mark.parametrize("statement", READS)
def test_a_statement_that_reads_or_must_not_be_preceded_by_a_message(statement: str) -> None:
    assert classify(statement).effect is Effect.READS


@pytest.mark.parametrize("statement", WRITES)
def test_a_statement_that_may_write(statement: str) -> None:
    assert classify(statement).effect is Effect.WRITES


@pytest.mark.parametrize("statement", ENDS)
def test_a_statement_that_ends_the_transaction(statement: str) -> None:
    assert classify(statement) == Statement(Effect.ENDS)


@pytest.mark.parametrize(("statement", "effect", "name"), SAVEPOINTS)
def test_a_statement_about_a_savepoint(statement: str, effect: Effect, name: str) -> None:
    assert classify(statement) == Statement(effect, name)


@given(
    st.sampled_from(["insert", "delete", "update", "into", ";", "x"]).flatmap(
        lambda word: st.sampled_from([f"'{word}'", f"$${word}$$", f'"{word}"', f"/* {word} */"])
    ),
)
def test_a_word_that_is_quoted_never_makes_a_read_a_write(quoted: str) -> None:
    assert classify(f"SELECT 1 {quoted} FROM t").effect is Effect.READS


@given(st.text(st.sampled_from("-/*'\"$;() \nselectdlt"), max_size=40))
def test_any_text_is_told_apart_without_an_error(statement: str) -> None:
    assert isinstance(classify(statement).effect, Effect)
