"""Trails of any size for reading.py, made inside the server: loaded first, indexed after.

Four tables share the changes, and their records have the same keys, as integers from a sequence
do. A record's changes lie evenly over six years, so that each is in another partition.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from pgaudit_ctx.destination.schema import PartitionUnit

TABLES = ("patients", "visits", "prescriptions", "invoices")
USERS = 1_000
VERSIONS = 10
ROWS_PER_TRANSACTION = 10
SOURCE = "clinic"
PARTITIONS: dict[PartitionUnit, int] = {"quarter": 24, "month": 72}
MONTHS: dict[PartitionUnit, int] = {"quarter": 3, "month": 1}
_DONE = "built"


@dataclass(frozen=True)
class Data:
    """So many changes of so many tables, each record with so many versions."""

    rows: int
    tables: Sequence[str] = TABLES
    versions: int = VERSIONS

    @property
    def records(self) -> int:
        """How many each table has."""
        return self.rows // self.versions // len(self.tables)


class Server:
    """Makes databases, each once: those of an earlier run on the same server are taken as they are.

    Args:
        url: Of the server's own database, in libpq's form.
    """

    def __init__(self, url: str) -> None:
        self._admin = psycopg.connect(url, autocommit=True)
        self._url = url
        (self.version,) = self._admin.execute("SHOW server_version").fetchone()

    def url(self, name: str) -> str:
        database, mark, rest = self._url.partition("?")
        return f"{database.rpartition('/')[0]}/{name}{mark}{rest}"

    def database(self, name: str, build: Callable[[str], None]) -> str:
        """Give the URL of a database that was built, now or before."""
        found = self._admin.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            [name],
        ).fetchone()
        if found != (_DONE,):
            started = time.perf_counter()
            self._admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            self._admin.execute(f"CREATE DATABASE {name}")
            build(self.url(name))
            self._admin.execute(f"COMMENT ON DATABASE {name} IS '{_DONE}'")
            print(f"built {name} in {time.perf_counter() - started:.0f} s", flush=True)
        return self.url(name)


def start_of(unit: PartitionUnit, partitions: int) -> str:
    """The SQL of the moment at which the first of so many partitions begins.

    The last of them is the one that is made ahead of time.
    """
    back = (partitions - 2) * MONTHS[unit]
    return f"(date_trunc('{unit}', now() AT TIME ZONE 'UTC') - interval '{back} months')"


def build_trail(data: Data, unit: PartitionUnit) -> Callable[[str], None]:
    """Give what fills an empty database with a trail of our own."""

    def build(url: str) -> None:
        with connect(url, "destination") as destination:
            schema.migrate(destination, unit)
            first = start_of(unit, PARTITIONS[unit])
            destination.execute(
                f"CREATE TABLE public.span AS SELECT {first} AT TIME ZONE 'UTC' AS start"
            )
            destination.execute(
                "SELECT pgaudit_ctx.ensure_partition(start + n * %s::interval)"
                " FROM public.span, generate_series(0, %s) n",
                [f"{MONTHS[unit]} months", PARTITIONS[unit] - 2],
            )
            with _without_indexes(destination):
                _in_parallel(url, [_changes(data, lo, hi) for lo, hi in _shares(data.rows)])
            for table in data.tables:
                destination.execute(_COVERED, {"source": SOURCE, "table": table})
            destination.execute(_EPOCH, [SOURCE])
            destination.execute(_CHECKPOINT, [SOURCE])
            destination.execute("VACUUM (ANALYZE)")

    return build


_COVERED = """
    INSERT INTO pgaudit_ctx.coverage (source, epoch, schema_name, table_name, relation_oid,
        from_lsn, from_time, key_columns, identity, publication)
    SELECT %(source)s, 1, 'public', %(table)s, hashtext(%(table)s)::bigint & 65535, '0/1', start,
        '{id}', 'full', 'pgaudit_ctx' FROM public.span"""
_EPOCH = """
    INSERT INTO pgaudit_ctx.epochs
        (source, epoch, system_identifier, timeline, from_lsn, started_at, cause, clean)
    SELECT %s, 1, 1, 1, '0/1', start, 'first start', true FROM public.span"""
_CHECKPOINT = """
    INSERT INTO pgaudit_ctx.checkpoints (source, slot, epoch, commit_lsn, end_lsn, complete_at,
        system_identifier, timeline, database_oid)
    VALUES (%s, 'pgaudit_ctx', 1, 'FF/0', 'FF/0', now(), 1, 1, 1)"""


def values(data: Data) -> dict[str, str]:
    """What a change is, in SQL, by its number ``i`` from the oldest; ``start`` is given too."""
    records = data.rows // data.versions
    names = ", ".join(f"'{name}'" for name in data.tables)
    share = f"(i / {ROWS_PER_TRANSACTION})::float8 / {max(1, data.rows // ROWS_PER_TRANSACTION)}"
    return {
        "version": f"(i / {records})",
        "id": f"(i % {records} / {len(data.tables)} + 1)",
        "table": f"(ARRAY[{names}])[i % {records} % {len(data.tables)} + 1]",
        "transaction": f"(i / {ROWS_PER_TRANSACTION} + 1)",
        "at": f"(start + (now() - start) * ({share}))",
        "user": f"('user' || (i / {ROWS_PER_TRANSACTION}) * 7919 % {USERS})",
    }


def image(version: str, number: str) -> str:
    """The columns of a row of that version, in SQL."""
    return (
        f"'id', {number}, 'name', 'Patient ' || {number},"
        f" 'address', '12 High Street, Little Whinging, Surrey', 'ward', {version},"
        f" 'visits', {version} * 3, 'admitted_at', '2024-02-29 12:00:00'"
    )


def _changes(data: Data, low: int, high: int) -> str:
    sql = values(data)
    version, number = sql["version"], sql["id"]
    return f"""
        INSERT INTO pgaudit_ctx.changes (source, epoch, commit_lsn, ordinal, transaction_id,
            committed_at, operation, schema_name, table_name, relation_oid, primary_key, before,
            after, context)
        SELECT '{SOURCE}', 1, '0/1000000'::pg_lsn + {sql["transaction"]} * 1000,
            i % {ROWS_PER_TRANSACTION} + 1, {sql["transaction"]}, {sql["at"]},
            CASE WHEN {version} = 0 THEN 'INSERT' ELSE 'UPDATE' END, 'public', {sql["table"]},
            hashtext({sql["table"]})::bigint & 65535, ARRAY[{number}::text],
            CASE WHEN {version} > 0 THEN jsonb_build_object('ward', {version} - 1,
                'visits', ({version} - 1) * 3) END,
            jsonb_build_object({image(version, number)}),
            jsonb_build_object('user', {sql["user"]}, 'reason', 'ward round')
        FROM public.span, generate_series({low}::bigint, {high - 1}) i"""


Build = Callable[[str], None]
"""Fills the database of a URL."""


def build_continuum(data: Data, create: Build) -> Build:
    """Give what fills Continuum's own tables, once these were created.

    It keeps each table's versions apart; the first table's only are made.
    """
    sql = values(data)

    def build(url: str) -> None:
        create(url)
        with psycopg.connect(url, autocommit=True) as database:
            _span(database)
            database.execute("TRUNCATE patients, patients_version, transaction")
            indexes = _drop_indexes(database, ("patients_version", "transaction"))
            # The next version of a record is as many changes later as there are records.
            after = f"{sql['transaction']} + {data.rows // data.versions // ROWS_PER_TRANSACTION}"
            statements = [
                f"""
                INSERT INTO transaction (id, issued_at)
                SELECT {sql["transaction"]}, {sql["at"]} AT TIME ZONE 'UTC'
                FROM public.span,
                    generate_series(0::bigint, {data.rows - 1}, {ROWS_PER_TRANSACTION})
                    i""",
                f"""
                INSERT INTO patients_version (id, name, address, ward, visits, admitted_at,
                    transaction_id, end_transaction_id, operation_type)
                SELECT {sql["id"]}, 'Patient ' || {sql["id"]},
                    '12 High Street, Little Whinging, Surrey', {sql["version"]},
                    {sql["version"]} * 3, '2024-02-29 12:00:00', {sql["transaction"]},
                    CASE WHEN {sql["version"]} < {data.versions - 1} THEN {after} END,
                    CASE WHEN {sql["version"]} = 0 THEN 0 ELSE 1 END
                FROM public.span, generate_series(0::bigint, {data.rows - 1}, {len(data.tables)})
                    i""",
                f"""
                INSERT INTO patients (id, name, address, ward, visits, admitted_at)
                SELECT n, 'Patient ' || n, '12 High Street, Little Whinging, Surrey', 9, 27,
                    '2024-02-29 12:00:00' FROM generate_series(1, {data.records}) n""",
            ]
            _in_parallel(url, statements)
            for statement in indexes:
                database.execute(statement)
            database.execute("VACUUM (ANALYZE)")

    return build


def build_postgresql_audit(data: Data, create: Build) -> Build:
    """Give what fills postgresql-audit's two tables, once these were created."""
    sql = values(data)

    def activity(low: int, high: int) -> str:
        version, number = sql["version"], sql["id"]
        return f"""
            INSERT INTO activity (id, schema_name, table_name, relid, issued_at,
                native_transaction_id, verb, old_data, changed_data, transaction_id)
            SELECT i + 1, 'public', {sql["table"]}, 1, {sql["at"]} AT TIME ZONE 'UTC',
                {sql["transaction"]}::text::xid8,
                CASE WHEN {version} = 0 THEN 'insert' ELSE 'update' END,
                CASE WHEN {version} = 0 THEN '{{}}'
                    ELSE jsonb_build_object({image(f"({version} - 1)", number)}) END,
                CASE WHEN {version} = 0 THEN jsonb_build_object({image(version, number)})
                    ELSE jsonb_build_object('ward', {version}, 'visits', {version} * 3) END,
                {sql["transaction"]}
            FROM public.span, generate_series({low}::bigint, {high - 1}) i"""

    def build(url: str) -> None:
        create(url)
        with psycopg.connect(url, autocommit=True) as database:
            _span(database)
            database.execute("TRUNCATE activity, transaction")
            indexes = _drop_indexes(database, ("activity", "transaction"))
            transactions = f"""
                INSERT INTO transaction (id, native_transaction_id, issued_at, actor_id)
                SELECT {sql["transaction"]}, {sql["transaction"]}::text::xid8,
                    {sql["at"]} AT TIME ZONE 'UTC', {sql["user"]}
                FROM public.span,
                    generate_series(0::bigint, {data.rows - 1}, {ROWS_PER_TRANSACTION})
                    i"""
            _in_parallel(url, [transactions, *(activity(*share) for share in _shares(data.rows))])
            for statement in indexes:
                database.execute(statement)
            database.execute("VACUUM (ANALYZE)")

    return build


def _span(database: psycopg.Connection) -> None:
    database.execute(
        "CREATE TABLE public.span AS"
        f" SELECT {start_of('quarter', PARTITIONS['quarter'])} AT TIME ZONE 'UTC' AS start"
    )


def _shares(rows: int) -> list[tuple[int, int]]:
    """Two connections build at once, each a half in time."""
    return [(0, rows // 2), (rows // 2, rows)]


def _in_parallel(url: str, statements: Sequence[str]) -> None:
    failed: list[psycopg.Error] = []

    def run(statement: str) -> None:
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(statement)
        except psycopg.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=[statement]) for statement in statements]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@contextmanager
def _without_indexes(destination: psycopg.Connection) -> Iterator[None]:
    """Take the indexes of ``changes`` away, and make the very same ones again."""
    statements = _drop_indexes(destination, ("pgaudit_ctx.changes",))
    yield
    destination.execute("SET maintenance_work_mem = '512MB'")
    for statement in statements:
        destination.execute(statement)


def _drop_indexes(database: psycopg.Connection, tables: Sequence[str]) -> list[str]:
    again = []
    for table in tables:
        found = database.execute(
            "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), c.conname,"
            " pg_get_constraintdef(c.oid) FROM pg_index i"
            " LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u')"
            " WHERE i.indrelid = %s::regclass ORDER BY i.indexrelid",
            [table],
        ).fetchall()
        for index, definition, constraint, said in found:
            if constraint is None:
                database.execute(f"DROP INDEX {index}")
                # ON ONLY would leave the partitions without.
                again.append(definition.replace(" ON ONLY ", " ON "))
            else:
                database.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint} CASCADE")
                again.append(f"ALTER TABLE {table} ADD CONSTRAINT {constraint} {said}")
    return again
