"""Takes old changes out of the trail, in whole partitions, without stopping capture or readers.

A partition is detached concurrently, which waits for whoever reads the trail and keeps nobody else
from it. PostgreSQL documentation: ALTER TABLE, "DETACH PARTITION ... CONCURRENTLY | FINALIZE".
"""

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import psycopg
from psycopg import sql

from pgaudit_ctx.connection import refusal
from pgaudit_ctx.destination import ledger
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.errors import DatabaseError

_PARTITIONS: Final = r"""
    WITH attached AS (
        SELECT c.relname::text AS name, i.inhdetachpending AS going, c.oid,
            regexp_match(pg_get_expr(c.relpartbound, c.oid),
                'FROM \(''(.*)''\) TO \(''(.*)''\)') AS bounds
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'pgaudit_ctx.changes'::regclass
    ), begun AS (
        SELECT p.partition AS name, p.lower_bound, p.upper_bound FROM pgaudit_ctx.pruned p
        WHERE p.dropped_at IS NULL
    )
    SELECT name, lower_bound, upper_bound, coalesce(greatest(c.reltuples, 0), 0)::bigint,
        coalesce(pg_total_relation_size(c.oid), 0)
    FROM (
        SELECT name, lower_bound, upper_bound FROM begun
        UNION
        SELECT name, bounds[1]::timestamptz, bounds[2]::timestamptz FROM attached
        WHERE going OR bounds[2]::timestamptz <= clock_timestamp() - %s * interval '1 second'
    ) due
    LEFT JOIN pg_class c ON c.relname = due.name AND c.relnamespace = 'pgaudit_ctx'::regnamespace
    ORDER BY lower_bound"""
_READERS: Final = """
    SELECT a.pid, extract(epoch FROM clock_timestamp() - a.xact_start)::bigint
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.relation = 'pgaudit_ctx.changes'::regclass AND l.granted AND l.pid <> pg_backend_pid()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    GROUP BY a.pid, a.xact_start ORDER BY a.xact_start"""


class OldPartition(NamedTuple):
    """A partition of ``changes`` that holds nothing but what is old.

    Attributes:
        name: Of the table, in the schema ``pgaudit_ctx``.
        lower: The first moment whose changes are in it; aware.
        upper: The first moment after it.
        rows: About how many changes it holds.
        bytes: What it takes on the disk, indexes included.
    """

    name: str
    lower: dt.datetime
    upper: dt.datetime
    rows: int
    bytes: int


class Reader(NamedTuple):
    """A session of the destination whose transaction has used the trail."""

    pid: int
    seconds: int

    def __str__(self) -> str:
        return f"pid {self.pid} (for {self.seconds} s)"


def old_partitions(connection: Connection, older_than: float) -> Sequence[OldPartition]:
    """Give the partitions all of whose changes are older, by the destination's clock.

    Those that an interrupted :func:`prune` has begun with are among them whatever their age: they
    are out of the trail already.

    Args:
        connection: To the destination.
        older_than: Seconds.

    Returns:
        The oldest first.
    """
    return [OldPartition(*row) for row in connection.execute(_PARTITIONS, [older_than]).fetchall()]


def readers(connection: Connection) -> Sequence[Reader]:
    """Give who has used the trail in a transaction that is open; the oldest first."""
    return [Reader(*row) for row in connection.execute(_READERS).fetchall()]


def prune(
    connection: Connection,
    partitions: Sequence[OldPartition],
    *,
    older_than: float,
    wait: float,
    report: Callable[[OldPartition, Sequence[Reader]], None],
) -> None:
    """Drop partitions, each for good before the next.

    Interrupted anywhere it is taken up by the next one. What is gone is written to ``pruned``
    first, so readers say that they cannot know from then on.

    Args:
        connection: To the destination, in autocommit mode, as the trail's owner.
        partitions: What :func:`old_partitions` gave.
        older_than: Seconds, for ``operations``.
        wait: Seconds that each may wait for readers.
        report: Told of each partition before it goes, and of the readers that it waits for.

    Raises:
        DatabaseError: If readers took too long, or the server refuses.
    """
    done: list[OldPartition] = []
    try:
        for partition in partitions:
            report(partition, readers(connection))
            _drop(connection, partition, wait)
            done.append(partition)
    except psycopg.errors.QueryCanceled:
        who = ", ".join(map(str, readers(connection))) or "somebody who is gone by now"
        raise DatabaseError(
            f"the partition {partitions[len(done)].name} is still read, by {who}: its changes are "
            f"out of the trail, but {wait:g} s were not enough to drop it. Remedy: run the same "
            "again later, or with a longer --wait; SELECT pg_terminate_backend(pid) ends a reader"
        ) from None
    except psycopg.Error as error:
        raise refusal(error, "prune the trail") from None
    finally:
        if done:
            arguments = {"older_than_seconds": older_than, "partitions": [p.name for p in done]}
            result = f"changes committed before {done[-1].upper:%Y-%m-%d %H:%M:%S%z} are gone"
            ledger.record_operation(connection, "prune", arguments, result)


def _drop(connection: Connection, partition: OldPartition, wait: float) -> None:
    connection.execute(
        "INSERT INTO pgaudit_ctx.pruned (partition, lower_bound, upper_bound) SELECT %s, %s, %s"
        " WHERE NOT EXISTS (SELECT FROM pgaudit_ctx.pruned"
        " WHERE partition = %s AND dropped_at IS NULL)",
        [partition.name, partition.lower, partition.upper, partition.name],
    )
    row = connection.execute(
        "SELECT i.inhdetachpending FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'pgaudit_ctx.changes'::regclass AND c.relname = %s",
        [partition.name],
    ).fetchone()
    table = sql.Identifier("pgaudit_ctx", partition.name)
    # 0 would be no limit, and more than the largest is refused.
    limit = min(max(1, int(wait * 1000)), 2**31 - 1)
    connection.execute(sql.SQL("SET statement_timeout = {}").format(limit))
    try:
        if row is not None:
            how = "FINALIZE" if row[0] else "CONCURRENTLY"
            connection.execute(
                sql.SQL("ALTER TABLE pgaudit_ctx.changes DETACH PARTITION {} {}").format(
                    table, sql.SQL(how)
                )
            )
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
    finally:
        connection.execute("SET statement_timeout = 0")
    connection.execute(
        "UPDATE pgaudit_ctx.pruned SET dropped_at = clock_timestamp()"
        " WHERE partition = %s AND dropped_at IS NULL",
        [partition.name],
    )
