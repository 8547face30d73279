"""A random workload, and an independent witness of it: triggers that write down each row.

The witness knows nothing of the log, of messages or of this package. What the trail says of each
transaction must be what the triggers wrote down, row by row, value by value, context by context.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
from psycopg import errors

from pgaudit_ctx.reading.typed import unmark
from support.database import Database

TABLES = ("apple", "pear", "plum")

WITNESS = """
    CREATE TABLE witness (n bigserial PRIMARY KEY, xid bigint, op text, tab text, old jsonb,
        new jsonb, who text);
    CREATE FUNCTION exact(r anyelement) RETURNS jsonb LANGUAGE sql AS
        $$ SELECT to_jsonb(r) || jsonb_build_object('amount', (to_jsonb(r) ->> 'amount')) $$;
    CREATE FUNCTION testify() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO witness (xid, op, tab, old, new, who) VALUES (
            pg_current_xact_id()::text::bigint, TG_OP, TG_TABLE_NAME,
            CASE WHEN TG_LEVEL = 'ROW' AND TG_OP <> 'INSERT' THEN exact(OLD) END,
            CASE WHEN TG_LEVEL = 'ROW' AND TG_OP <> 'DELETE' THEN exact(NEW) END,
            nullif(current_setting('app.who', true), ''));
        RETURN NULL; END $$;"""

TABLE = """
    CREATE TABLE {0} (id int, part int, name text, flag boolean, amount numeric, doc jsonb,
        large text, PRIMARY KEY (id, part));
    ALTER TABLE {0} ALTER COLUMN large SET STORAGE EXTERNAL;
    CREATE TRIGGER testify AFTER INSERT OR UPDATE OR DELETE ON {0}
        FOR EACH ROW EXECUTE FUNCTION testify();
    CREATE TRIGGER testify_all AFTER TRUNCATE ON {0}
        FOR EACH STATEMENT EXECUTE FUNCTION testify();"""


def make_tables(source: Database) -> None:
    source.execute(WITNESS)
    for table in TABLES:
        source.execute(TABLE.format(table))


COLUMNS = "id, part, name, flag, amount, doc, large"
_REFUSED = (errors.DeadlockDetected, errors.LockNotAvailable, errors.UniqueViolation)


class Workload:
    """One client that does random things, with rows of its own so that nobody waits for it.

    Args:
        seed: Of its random choices.
        part: Which rows are its own.
        truncates: Whether it truncates tables, which takes everybody's rows.
        alters: Whether it adds and drops a column now and then.
    """

    def __init__(self, seed: int, part: int, *, truncates: bool, alters: bool = False) -> None:
        self._random = random.Random(seed)
        self._part = part
        self._truncates = truncates
        self._alters = alters
        self._moves = 0

    def run(self, source: Database, transactions: int) -> None:
        """Do so many transactions."""
        with source.connect() as connection:
            for _ in range(transactions):
                self._transaction(connection)

    def run_while(self, source: Database, wanted: Callable[[], bool]) -> None:
        """Go on while it is wanted, whatever becomes of the server."""
        while wanted():
            try:
                with source.connect() as connection:
                    connection.execute("SET lock_timeout = '2s'")
                    while wanted():
                        self._transaction(connection)
            except psycopg.OperationalError:
                pass  # the server has crashed: nobody knows whether the last COMMIT came through

    def _transaction(self, connection) -> None:
        gives_up = self._random.random() < 0.1
        try:
            connection.execute("BEGIN")
            for _ in range(self._random.randint(1, 6)):
                self._act(connection, depth=0)
            connection.execute("ROLLBACK" if gives_up else "COMMIT")
        except _REFUSED:
            connection.execute("ROLLBACK")

    def _act(self, connection, depth: int) -> None:
        chance = self._random.random()
        if chance < 0.15:
            self._say_who(connection)
        elif chance < 0.35 and depth < 3:
            connection.execute(f"SAVEPOINT s{depth}")
            for _ in range(self._random.randint(1, 4)):
                self._act(connection, depth + 1)
            verb = self._random.choice(["RELEASE", "ROLLBACK TO"])
            connection.execute(f"{verb} SAVEPOINT s{depth}")
            if verb == "ROLLBACK TO":
                connection.execute(f"RELEASE SAVEPOINT s{depth}")
        else:
            self._write(connection)

    def _say_who(self, connection) -> None:
        who = self._random.choice(["ann", "bob", "日本", ""])
        # Both are undone by a rollback to a savepoint, and both end with the transaction.
        connection.execute("SELECT set_config('app.who', %s, true)", [who])
        connection.execute(
            "SELECT pg_logical_emit_message(true, 'pgaudit_ctx', %s)",
            [f'{{"user": "{who}"}}' if who else "{}"],
        )

    def _write(self, connection) -> None:
        table, other = self._random.choices(TABLES, k=2)
        low, high = sorted(self._random.choices(range(30), k=2))
        mine = f"part = {self._part} AND mod(id, 1000) BETWEEN {low} AND {high}"
        self._moves += 1
        statements = [
            (
                f"INSERT INTO {table} ({COLUMNS}) SELECT n, {self._part}, %(name)s, %(flag)s,"
                f" %(amount)s, %(doc)s, %(large)s FROM generate_series({low}, {high}) n"
                " ON CONFLICT (id, part) DO UPDATE SET name = excluded.name, doc = excluded.doc"
            ),
            f"UPDATE {table} SET amount = %(amount)s WHERE {mine}",
            f"UPDATE {table} SET doc = %(doc)s, flag = NOT flag WHERE {mine}",
            f"UPDATE {table} SET name = name WHERE {mine}",
            f"UPDATE {table} SET large = %(large)s WHERE {mine}",
            f"UPDATE {table} SET id = id + {1000 * self._moves} WHERE {mine} AND id < 1000",
            f"DELETE FROM {table} WHERE {mine}",
            (
                f"WITH gone AS (DELETE FROM {table} WHERE {mine} RETURNING *)"
                f" INSERT INTO {other} ({COLUMNS}) SELECT {COLUMNS} FROM gone"
                " ON CONFLICT DO NOTHING"
            ),
        ]
        chance = self._random.random()
        if chance < 0.1:
            self._copy(connection, table)
            return
        if self._truncates and chance > 0.95:
            statements = [f"TRUNCATE {table}", f"TRUNCATE {', '.join({table, other})}"]
        if self._alters and chance > 0.98:
            statements = [
                f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS extra text DEFAULT 'new'",
                f"ALTER TABLE {table} DROP COLUMN IF EXISTS extra",
            ]
        connection.execute(
            self._random.choice(statements),
            {
                "name": self._random.choice([None, "", "x", "it's \"\\ 日本", "null"]),
                "flag": self._random.choice([None, True, False]),
                "amount": self._random.choice([None, "1.50", "NaN", "-0.0001", "1e40"]),
                "doc": self._random.choice([None, "null", "{}", '{"a": [1, null]}', "[]", "true"]),
                "large": self._random.choice([None, "y" * 9000, "z" * 5000]),
            },
            prepare=False,
        )

    def _copy(self, connection, table: str) -> None:
        self._moves += 1
        first = 1_000_000 + 1000 * self._moves
        rows = f"COPY {table} (id, part, name) FROM STDIN"
        with connection.cursor().copy(rows) as copy:
            for number in range(self._random.randint(1, 60)):
                copy.write_row([first + number, self._part, f"copied {number}"])


def told(changes: Iterable[Any]) -> dict[int, list[tuple]]:
    """What the trail says of each transaction, in order."""
    by_transaction = defaultdict(list)
    for row in changes:
        if row.table_name in TABLES:
            by_transaction[row.transaction_id].append(
                (
                    row.operation,
                    row.table_name,
                    plain(row.before),
                    plain(row.after),
                    (row.context or {}).get("user"),
                )
            )
    return dict(by_transaction)


def plain(image):
    return None if image is None else {name: unmark(value) for name, value in image.items()}


def witnessed(source: Database) -> dict[int, list[tuple]]:
    """What the triggers wrote down of each transaction, in order."""
    by_transaction = defaultdict(list)
    for row in source.execute("SELECT * FROM witness ORDER BY n"):
        by_transaction[row.xid].append((row.op, row.tab, row.old, row.new, row.who))
    return dict(by_transaction)


def folded(changes: Iterable[Any]) -> dict[str, dict[tuple, dict]]:
    """The rows that are left if every change of the trail is done again, in order."""
    state: dict[str, dict[tuple, dict]] = {table: {} for table in TABLES}
    for row in changes:
        if row.table_name not in TABLES:
            continue
        rows = state[row.table_name]
        if row.operation == "TRUNCATE":
            rows.clear()
        elif row.operation == "DELETE":
            assert rows.pop(tuple(row.primary_key)) == known(row.before)
        else:
            if row.operation == "UPDATE":
                assert rows.pop(tuple(row.previous_key or row.primary_key)) == known(row.before)
            assert tuple(row.primary_key) not in rows
            rows[tuple(row.primary_key)] = known(row.after)
    return {table: {key: plain(row) for key, row in rows.items()} for table, rows in state.items()}


def known(image: dict) -> dict:
    """A row's columns that are there from the beginning to the end."""
    return {name: image[name] for name in COLUMNS.split(", ")}


def live(source: Database) -> dict[str, dict[tuple, dict]]:
    return {
        table: {
            (str(row.id), str(row.part)): known(row.r)
            for row in source.execute(f"SELECT id, part, exact({table}) AS r FROM {table}")
        }
        for table in TABLES
    }
