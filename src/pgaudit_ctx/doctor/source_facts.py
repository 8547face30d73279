"""Looks at the audited database, without disturbing it."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import errors, sql
from psycopg.rows import class_row

from pgaudit_ctx.doctor.facts import Names, Slot, Source, TableDetail
from pgaudit_ctx.doctor.server_facts import read_server
from pgaudit_ctx.source import catalog
from pgaudit_ctx.source.catalog import VERSION_WITH_FAILOVER, SourceTable
from pgaudit_ctx.wal.lsn import parse_lsn

Connection = psycopg.Connection[Any]

_VERSION_WITH_GENERATED: Final = 18_00_00
# Compression makes at most about a hundredth of a value, so below this none can be so large.
_TOAST_WORTH_A_LOOK: Final = 2**20
_LOOK_SECONDS: Final = 2
# Types whose length is known without fetching and unpacking the value.
_MEASURED: Final = ("text", "varchar", "bpchar", "bytea", "json")
_SECRET: Final = re.compile(
    r"passw(or)?d|passphrase|secret|token|api_?key|private_?key|credential|(^|_)pwd(_|$)"
    r"|(^|_)ssn(_|$)|social_security|credit_?card|card_?number|(^|_)cvv(_|$)|(^|_)pin(_|$)|iban",
    re.IGNORECASE,
)
_SLOT: Final = """
    SELECT s.plugin::text, s.database::text, s.active_pid, r.application_name,
        s.confirmed_flush_lsn::text, s.restart_lsn::text, s.wal_status, age(s.catalog_xmin),
        {failover}
    FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
    WHERE s.slot_name = %s"""
_PUBLICATION: Final = """
    SELECT age(xmin), {} FROM pg_publication WHERE pubname = %s"""
_DETAILS: Final = """
    SELECT c.oid, greatest(c.reltuples, 0) AS rows, pg_relation_size(c.oid) AS bytes,
        coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) AS toast_bytes,
        c.relrowsecurity AS policies,
        EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 's'
            AND NOT a.attisdropped) AS stored_generated,
        has_table_privilege(c.oid, 'SELECT') AS readable,
        ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid
            AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS columns
    FROM pg_class c WHERE c.oid = ANY(%s)"""


class _Look(NamedTuple):
    """One row of the query for details."""

    oid: int
    rows: float
    bytes: int
    toast_bytes: int
    policies: bool
    stored_generated: bool
    readable: bool
    columns: list[str]


def read_source(connection: Connection, names: Names, *, thorough: bool = True) -> Source:
    """Look at the source; without ``thorough`` not into its tables."""
    server = read_server(connection)
    used = connection.execute(
        "SELECT (SELECT count(*) FROM pg_replication_slots),"
        " (SELECT count(*) FROM pg_stat_replication),"
        " (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical'),"
        " ARRAY(SELECT slot_name::text FROM pg_replication_slots"
        " WHERE slot_type = 'physical' AND active)"
    ).fetchone()
    assert used is not None  # noqa: S101 - functions without FROM give one row
    tables = catalog.read_tables(connection, names.publication) if thorough else []
    if server.in_recovery:
        # Its log cannot be asked, and nothing more is checked then.
        position = catalog.Position(0, _now(connection))
        identity = catalog.Identity(0, 0, server.database, 0)
    else:
        position = catalog.read_position(connection)
        identity = catalog.read_identity(connection)
    age, generated = _publication(connection, names.publication)
    return Source(
        server,
        used[0],
        used[1],
        used[2],
        identity,
        position.lsn,
        position.time,
        _slot(connection, names.slot),
        catalog.read_publication(connection, names.publication),
        age,
        generated,
        tables,
        {detail.oid: detail for detail in _details(connection, tables)},
        used[3],
    )


def _now(connection: Connection) -> Any:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None  # noqa: S101 - functions without FROM give one row
    return row[0]


def _slot(connection: Connection, name: str) -> Slot | None:
    failover = "s.failover" if connection.info.server_version >= VERSION_WITH_FAILOVER else "NULL"
    row = connection.execute(sql.SQL(_SLOT).format(failover=sql.SQL(failover)), [name]).fetchone()
    if row is None:
        return None
    plugin, database, pid, reader, confirmed, restart, status, age, has_failover = row
    return Slot(
        plugin or "(physical)",
        database or "",
        pid,
        reader,
        parse_lsn(confirmed or "0/0"),
        parse_lsn(restart or "0/0"),
        status,
        age,
        has_failover,
    )


def _publication(connection: Connection, name: str) -> tuple[int | None, bool]:
    generated = (
        "pubgencols = 's'" if connection.info.server_version >= _VERSION_WITH_GENERATED else "true"
    )
    row = connection.execute(
        sql.SQL("SELECT age(xmin), {} FROM pg_publication WHERE pubname = %s").format(
            sql.SQL(generated)
        ),
        [name],
    ).fetchone()
    return row if row is not None else (None, True)


def _details(connection: Connection, tables: Sequence[SourceTable]) -> Iterator[TableDetail]:
    by_oid = {table.oid: table for table in tables}
    with connection.cursor(row_factory=class_row(_Look)) as cursor:
        looks = cursor.execute(_DETAILS, [list(by_oid)]).fetchall()
    for look in looks:
        largest = None
        if look.readable and look.toast_bytes >= _TOAST_WORTH_A_LOOK:
            largest = _largest_value(connection, by_oid[look.oid])
        yield TableDetail(
            look.oid,
            look.rows,
            look.bytes,
            look.toast_bytes,
            look.policies,
            look.stored_generated,
            [name for name in look.columns if _SECRET.search(name)],
            largest,
        )


def _largest_value(connection: Connection, table: SourceTable) -> int | None:
    """Find the bytes of the largest value; ``None`` if that cannot be had in a short time."""
    columns = connection.execute(
        "SELECT a.attname::text, t.typname = ANY(%s) FROM pg_attribute a"
        " JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attlen = -1",
        [list(_MEASURED), table.oid],
    ).fetchall()
    sizes = [
        sql.SQL("octet_length({})" if measured else "pg_column_size({})").format(
            sql.Identifier(name)
        )
        for name, measured in columns
    ]
    if not sizes:
        return None
    query = sql.SQL("SELECT max(greatest({})) FROM ONLY {}").format(
        sql.SQL(", ").join(sizes), sql.Identifier(table.schema, table.name)
    )
    try:
        with short_look(connection):
            row = connection.execute(query).fetchone()
    except (errors.QueryCanceled, errors.LockNotAvailable, errors.InsufficientPrivilege):
        return None
    return None if row is None else row[0]


@contextmanager
def short_look(connection: Connection) -> Iterator[None]:
    """Let what is asked inside take two seconds at most, and wait for no lock."""
    with connection.transaction():
        connection.execute(
            sql.SQL("SET LOCAL statement_timeout = '{}s'").format(sql.SQL(str(_LOOK_SECONDS)))
        )
        connection.execute("SET LOCAL lock_timeout = '100ms'")
        yield
