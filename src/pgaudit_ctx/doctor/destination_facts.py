"""Looks at the trail: its schema, and what it holds about one source."""

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from pgaudit_ctx.destination import decisions, schema
from pgaudit_ctx.doctor.facts import (
    CheckpointFacts,
    Destination,
    Hole,
    Names,
    Recent,
    Share,
    Trail,
)
from pgaudit_ctx.doctor.server_facts import read_server
from pgaudit_ctx.doctor.source_facts import short_look
from pgaudit_ctx.wal.lsn import parse_lsn

Connection = psycopg.Connection[Any]

# What the worker needs; a right on a table that this version's schema lacks is left out.
_RIGHTS: Final = """
    SELECT wanted FROM unnest(ARRAY[
        'INSERT on changes', 'SELECT on checkpoints', 'INSERT on checkpoints',
        'UPDATE on checkpoints', 'SELECT on coverage', 'INSERT on coverage', 'UPDATE on coverage',
        'INSERT on epochs', 'SELECT on migrations', 'SELECT on partitioning']) wanted
    WHERE NOT has_table_privilege('pgaudit_ctx.' || split_part(wanted, ' on ', 2),
        split_part(wanted, ' on ', 1))"""
_COVERED_UNTIL: Final = """
    SELECT max((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''(.*)''\\)'))[1]
        ::timestamptz)
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'pgaudit_ctx.changes'::regclass"""
_UNGUARDED: Final = """
    SELECT c.relname::text FROM pg_class c
    WHERE c.relnamespace = 'pgaudit_ctx'::regnamespace AND c.relkind IN ('r', 'p')
        AND (c.relname IN ('changes', 'operations') OR EXISTS (SELECT FROM pg_inherits i
            WHERE i.inhrelid = c.oid AND i.inhparent = 'pgaudit_ctx.changes'::regclass))
        AND (SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            WHERE t.tgrelid = c.oid AND p.proname = 'refuse_change' AND t.tgenabled = 'A') < 2
    ORDER BY 1"""
# A hole lies between two intervals of one table, or after its last; a snapshot that followed
# fills it.
_HOLES: Final = """
    SELECT relation_oid, schema_name || '.' || table_name, to_time, reopened FROM (
        SELECT c.*, lead(from_lsn) OVER following AS next_lsn,
            lead(from_time) OVER following AS reopened
        FROM pgaudit_ctx.coverage c WHERE source = %(source)s AND epoch = %(epoch)s
        WINDOW following AS (PARTITION BY relation_oid ORDER BY from_lsn)
    ) c
    WHERE to_lsn IS NOT NULL AND (next_lsn IS NULL OR next_lsn > to_lsn)
        AND reason IS DISTINCT FROM 'excluded by a filter' {unless_filled}
    UNION ALL
    SELECT c.relation_oid, c.schema_name || '.' || c.table_name, e.started_at, NULL
    FROM pgaudit_ctx.coverage c JOIN pgaudit_ctx.epochs e ON e.source = c.source
    WHERE c.source = %(source)s AND c.epoch = %(epoch)s - 1 AND e.epoch = %(epoch)s
        AND c.to_lsn IS NULL AND c.reason IS DISTINCT FROM 'excluded by a filter'
        AND NOT EXISTS (
            SELECT FROM pgaudit_ctx.coverage n WHERE n.source = c.source AND n.epoch = e.epoch
                AND (n.schema_name, n.table_name) = (c.schema_name, c.table_name))
    ORDER BY 3"""
_UNLESS_FILLED: Final = """
    AND NOT EXISTS (
        SELECT FROM pgaudit_ctx.changes s
        WHERE s.source = c.source AND s.epoch = c.epoch AND s.operation = 'SNAPSHOT'
            AND s.relation_oid = c.relation_oid AND s.commit_lsn >= next_lsn)"""
_SHARES: Final = """
    SELECT schema_name || '.' || table_name, count(*), count(*) FILTER (WHERE context IS NULL)
    FROM pgaudit_ctx.changes
    WHERE source = %s AND committed_at >= now() - interval '1 day' AND operation <> 'SNAPSHOT'
    GROUP BY 1 ORDER BY 1"""
_BACKWARDS: Final = """
    SELECT count(*), coalesce(max(earlier - committed_at), '0') FROM (
        SELECT committed_at, lag(committed_at) OVER (ORDER BY epoch, commit_lsn) AS earlier FROM (
            SELECT DISTINCT epoch, commit_lsn, committed_at FROM pgaudit_ctx.changes
            WHERE source = %s AND committed_at >= now() - interval '1 day'
                AND operation <> 'SNAPSHOT'
        ) commits
    ) pairs
    WHERE earlier - committed_at > interval '1 second'"""


def read_destination(connection: Connection, names: Names, *, thorough: bool = True) -> Destination:
    """Look at the destination; without ``thorough`` not at its changes."""
    server = read_server(connection)
    done = schema.applied_migrations(connection)
    now = _one(connection, "SELECT clock_timestamp()")[0]
    known = [migration.number for migration in schema.migrations()]
    if not done:
        return Destination(server, [], known, [], None, now, [], None, None)
    return Destination(
        server,
        sorted(done),
        known,
        [wanted for (wanted,) in connection.execute(_RIGHTS)],
        _one(connection, _COVERED_UNTIL)[0],
        now,
        [name for (name,) in connection.execute(_UNGUARDED)],
        read_trail(connection, names.source),
        _recent(connection, names.source) if thorough else None,
    )


def read_trail(connection: Connection, source: str) -> Trail:
    """Look at what the destination says about one source."""
    checkpoint = _checkpoint(connection, source)
    epoch = 0 if checkpoint is None else checkpoint.epoch
    arguments = decisions.last_setup(connection, source)
    return Trail(
        checkpoint,
        [
            (since, until, cause)
            for since, until, cause in connection.execute(
                "SELECT from_time, to_time, cause FROM pgaudit_ctx.gaps WHERE source = %s"
                " ORDER BY from_time",
                [source],
            )
        ],
        _one(
            connection,
            "SELECT count(*) FROM pgaudit_ctx.rejected WHERE source = %s AND replayed_at IS NULL",
            [source],
        )[0],
        _holes(connection, source, epoch),
        {table: now for table, (now, _) in decisions.read_tracked(connection, source).items()},
        {
            oid: [*ignored, *(rule.partition("=")[0] for rule in redacted)]
            for oid, ignored, redacted in connection.execute(
                "SELECT relation_oid, ignored, redacted FROM pgaudit_ctx.coverage"
                " WHERE source = %s AND to_lsn IS NULL",
                [source],
            )
        },
        arguments.get("selection") or {},
        arguments,
    )


def _may_read_changes(connection: Connection) -> bool:
    # A worker's role may only add to them.
    may = _one(connection, "SELECT has_table_privilege('pgaudit_ctx.changes', 'SELECT')")[0]
    return bool(may)


def _holes(connection: Connection, source: str, epoch: int) -> Sequence[Hole]:
    unless_filled = _UNLESS_FILLED if _may_read_changes(connection) else ""
    query = sql.SQL(_HOLES).format(unless_filled=sql.SQL(unless_filled))
    rows = connection.execute(query, {"source": source, "epoch": epoch})
    return [Hole(*row) for row in rows]


def _checkpoint(connection: Connection, source: str) -> CheckpointFacts | None:
    row = connection.execute(
        "SELECT c.slot, c.epoch, e.from_lsn::text, c.commit_lsn::text, c.end_lsn::text,"
        " c.complete_at, c.updated_at, c.system_identifier, c.timeline, c.database_oid"
        " FROM pgaudit_ctx.checkpoints c"
        " LEFT JOIN pgaudit_ctx.epochs e ON (e.source, e.epoch) = (c.source, c.epoch)"
        " WHERE c.source = %s",
        [source],
    ).fetchone()
    if row is None:
        return None
    slot, epoch, first, commit, end, *rest = row
    return CheckpointFacts(
        slot, epoch, parse_lsn(first or "0/0"), parse_lsn(commit), parse_lsn(end), *rest
    )


def _recent(connection: Connection, source: str) -> Recent | None:
    if not _may_read_changes(connection):
        return None
    shares = _within_time(connection, _SHARES, source)
    backwards = _within_time(connection, _BACKWARDS, source)
    return Recent(
        None if shares is None else [Share(*row) for row in shares],
        None if backwards is None else backwards[0],
    )


def _within_time(connection: Connection, query: str, source: str) -> Sequence[Any] | None:
    try:
        with short_look(connection):
            return connection.execute(query, [source]).fetchall()
    except (errors.QueryCanceled, errors.LockNotAvailable):
        return None


def _one(connection: Connection, query: str, parameters: Sequence[object] = ()) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None  # noqa: S101 - each of them aggregates, or selects from nothing
    return row
