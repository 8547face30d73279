"""Which table was captured, from where to where, and how: the table ``coverage``."""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from pgaudit_ctx.destination.ledger import IDENTITIES
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.source.keys import KnownKey
from pgaudit_ctx.wal.lsn import format_lsn, parse_lsn

_EXCLUDED: Final = "excluded by a filter"
_FILTER_CHANGED: Final = "another filter"
_UNPUBLISHED: Final = "not published, or not all of it"


class CoveredTable(NamedTuple):
    """One table that is captured from now on.

    Attributes:
        schema: Its schema.
        name: Its name.
        oid: ``pg_class.oid``.
        key: Its primary key.
        identity: As in ``pg_class.relreplident``.
        ignored: Columns that are left out.
        redacted: Columns that are blanked, each as ``column=how``.
        membership: What publishes it; another one if that was ever interrupted.
    """

    schema: str
    name: str
    oid: int
    key: KnownKey
    identity: str
    ignored: Sequence[str] = ()
    redacted: Sequence[str] = ()
    membership: str | None = None


class RecordedFilters(NamedTuple):
    """What a filter did to one table, as ``coverage`` has it."""

    excluded: bool
    ignored: Sequence[str]
    redacted: Sequence[str]


class _Interval(NamedTuple):
    """An interval that is open, or to be opened; two that are equal are one."""

    oid: int
    identity: str
    key_columns: tuple[str, ...]
    schema: str
    name: str
    ignored: tuple[str, ...]
    redacted: tuple[str, ...]
    key_index: int
    membership: str

    @property
    def filters(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.ignored, self.redacted


def keys_at_checkpoint(connection: Connection, source: str) -> dict[int, KnownKey]:
    """Give each table's primary key as it was where the capture goes on.

    Not as the catalog has it now, nor as it was when a worker was started last: between the
    checkpoint and both there may be a backlog that is older than a change of the key.
    """
    return {
        oid: KnownKey(index or 0, tuple(columns))
        for oid, index, columns in connection.execute(
            "SELECT DISTINCT ON (c.relation_oid) c.relation_oid, c.key_index, c.key_columns"
            " FROM pgaudit_ctx.coverage c JOIN pgaudit_ctx.checkpoints p USING (source, epoch)"
            " WHERE c.source = %s AND (c.to_lsn IS NULL OR c.to_lsn > p.end_lsn)"
            " ORDER BY c.relation_oid, c.from_lsn",
            [source],
        )
    }


def filters_in_force(connection: Connection, source: str) -> dict[int, RecordedFilters]:
    """Give what the worker that ran last left out and blanked, by the oids of its tables."""
    return {
        oid: RecordedFilters(closed and reason == _EXCLUDED, ignored, redacted)
        for oid, closed, reason, ignored, redacted in connection.execute(
            "SELECT DISTINCT ON (relation_oid) relation_oid, to_lsn IS NOT NULL, reason, ignored,"
            " redacted FROM pgaudit_ctx.coverage JOIN pgaudit_ctx.checkpoints"
            " USING (source, epoch) WHERE source = %s ORDER BY relation_oid, from_lsn DESC",
            [source],
        )
    }


def filters_by_name(connection: Connection, source: str) -> dict[tuple[str, str], RecordedFilters]:
    """Give the same by schema and name, for a server where tables have other oids."""
    return {
        (schema, table): RecordedFilters(closed and reason == _EXCLUDED, ignored, redacted)
        for schema, table, closed, reason, ignored, redacted in connection.execute(
            "SELECT DISTINCT ON (schema_name, table_name) schema_name, table_name,"
            " to_lsn IS NOT NULL, reason, ignored, redacted"
            " FROM pgaudit_ctx.coverage JOIN pgaudit_ctx.checkpoints USING (source, epoch)"
            " WHERE source = %s ORDER BY schema_name, table_name, from_lsn DESC",
            [source],
        )
    }


def covered_since(connection: Connection, source: str, epoch: int) -> dict[int, int]:
    """Give from which position on each table is captured, for those that are captured now."""
    return {
        oid: parse_lsn(lsn)
        for oid, lsn in connection.execute(
            "SELECT relation_oid, from_lsn::text FROM pgaudit_ctx.coverage"
            " WHERE source = %s AND epoch = %s AND to_lsn IS NULL",
            [source, epoch],
        )
    }


def record_coverage(
    connection: Connection,
    source: str,
    epoch: int,
    lsn: int,
    time: dt.datetime,
    publication: str,
    tables: Collection[CoveredTable],
    excluded: Collection[int] = (),
    *,
    looked_from: tuple[int, dt.datetime],
) -> Sequence[str]:
    """Open an interval for each table that has none, and close those that ended.

    What the catalog says counts from now on. A filter counts from the checkpoint on, because that
    is where this worker begins to apply it. A table that is not published any more, or was not for
    a while, may have left right after the last look: its interval ends there.

    Args:
        connection: To the destination.
        source: The source's name.
        epoch: The current epoch.
        lsn: Where the source's log stood after its catalog was read.
        time: The source's clock there.
        publication: The publication that sends the tables.
        tables: Every table that is captured now.
        excluded: The oids of tables that a filter leaves out.
        looked_from: Where the log stood before the catalog was read, and the clock.

    Returns:
        The tables that have a hole now, with their schemas.
    """
    now = (format_lsn(lsn), time)
    with connection.transaction():
        row = connection.execute(
            "SELECT end_lsn::text, complete_at, catalog_lsn::text, catalog_at"
            " FROM pgaudit_ctx.checkpoints WHERE source = %s",
            [source],
        ).fetchone()
        resumed = now if row is None else (row[0], row[1])
        looked = now if row is None or row[2] is None else (row[2], row[3])
        current = {table.oid: _interval(table) for table in tables}
        known = {i.oid: i for i in _open_intervals(connection, source, epoch)}
        where = (source, epoch)
        for interval in sorted(known.values()):
            new = current.get(interval.oid)
            if interval.oid in excluded:
                _close(connection, where, interval.oid, resumed, _EXCLUDED)
                del known[interval.oid]
            elif new is not None and new.filters != interval.filters:
                _close(connection, where, interval.oid, resumed, _FILTER_CHANGED)
                filtered = interval._replace(ignored=new.ignored, redacted=new.redacted)
                _open(connection, where, filtered, resumed, publication)
                known[interval.oid] = filtered
        holes = []
        for interval in sorted(set(known.values()) - set(current.values())):
            new = current.get(interval.oid)
            if new is None or new.membership != interval.membership:
                _close(connection, where, interval.oid, looked, _UNPUBLISHED)
                holes.append(f"{interval.schema}.{interval.name}")
            else:
                _close(connection, where, interval.oid, now, None)
        for interval in sorted(set(current.values()) - set(known.values())):
            _open(connection, where, interval, now, publication)
        connection.execute(
            # What an earlier worker left behind may hold the row until it is ended. The look before
            # then counts on, and a hole is taken for longer than it was.
            "UPDATE pgaudit_ctx.checkpoints SET catalog_lsn = %s, catalog_at = %s WHERE source = ("
            "SELECT source FROM pgaudit_ctx.checkpoints WHERE source = %s FOR UPDATE SKIP LOCKED)",
            [format_lsn(looked_from[0]), looked_from[1], source],
        )
    return holes


def _interval(table: CoveredTable) -> _Interval:
    return _Interval(
        table.oid,
        IDENTITIES[table.identity],
        table.key.columns,
        table.schema,
        table.name,
        tuple(sorted(table.ignored)),
        tuple(sorted(table.redacted)),
        table.key.index_oid,
        table.membership or "",
    )


def _open_intervals(connection: Connection, source: str, epoch: int) -> Sequence[_Interval]:
    return [
        _Interval(
            oid,
            identity,
            tuple(keys),
            schema,
            name,
            tuple(ignored),
            tuple(redacted),
            index or 0,
            membership or "",
        )
        for (
            oid,
            identity,
            keys,
            schema,
            name,
            ignored,
            redacted,
            index,
            membership,
        ) in connection.execute(
            "SELECT relation_oid, identity, key_columns, schema_name, table_name, ignored,"
            " redacted, key_index, membership FROM pgaudit_ctx.coverage"
            " WHERE source = %s AND epoch = %s AND to_lsn IS NULL",
            [source, epoch],
        )
    ]


def _close(
    connection: Connection,
    where: tuple[str, int],
    oid: int,
    at: tuple[str, dt.datetime],
    reason: str | None,
) -> None:
    connection.execute(
        "UPDATE pgaudit_ctx.coverage SET to_lsn = greatest(%s::pg_lsn, from_lsn),"
        " to_time = greatest(%s, from_time), reason = %s WHERE source = %s AND epoch = %s"
        " AND relation_oid = %s AND to_lsn IS NULL",
        [*at, reason, *where, oid],
    )


def _open(
    connection: Connection,
    where: tuple[str, int],
    interval: _Interval,
    at: tuple[str, dt.datetime],
    publication: str,
) -> None:
    values: list[Any] = [
        *where,
        interval.schema,
        interval.name,
        interval.oid,
        *at,
        list(interval.key_columns),
        interval.key_index or None,
        interval.identity,
        publication,
        list(interval.ignored),
        list(interval.redacted),
        interval.membership,
    ]
    connection.execute(
        "INSERT INTO pgaudit_ctx.coverage (source, epoch, schema_name, table_name, relation_oid,"
        " from_lsn, from_time, key_columns, key_index, identity, publication, ignored, redacted,"
        " membership) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (source, epoch, relation_oid, from_lsn) DO UPDATE SET"
        " schema_name = excluded.schema_name, table_name = excluded.table_name,"
        " key_columns = excluded.key_columns, key_index = excluded.key_index,"
        " identity = excluded.identity, ignored = excluded.ignored,"
        " redacted = excluded.redacted, membership = excluded.membership,"
        " to_lsn = NULL, to_time = NULL, reason = NULL",
        values,
    )
