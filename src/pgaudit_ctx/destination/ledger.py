"""What is written beside the changes: checkpoint, epochs, tracked tables, operations."""

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import psycopg

from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.errors import ConnectionFailed, PositionMismatch
from pgaudit_ctx.wal.lsn import format_lsn, parse_lsn


class Checkpoint(NamedTuple):
    """How far a source is captured, and which database it was.

    ``end_lsn`` is what may be acknowledged; ``commit_lsn`` belongs to the last stored transaction.
    """

    slot: str
    epoch: int
    commit_lsn: int
    end_lsn: int
    system_identifier: int
    timeline: int
    database_oid: int


IDENTITIES: Final = {"f": "FULL", "d": "DEFAULT", "n": "NOTHING", "i": "INDEX"}
"""``pg_class.relreplident`` in words."""

_END_MILLISECONDS: Final = 10_000
_TRAIL_LOCK: Final = "hashtext('pgaudit_ctx.capture'), hashtext(%s)"
# pg_locks shows the two numbers of an advisory lock as unsigned.
_END_HOLDER: Final = """
    SELECT pg_terminate_backend(l.pid, %s)
    FROM pg_locks l, (SELECT hashtext('pgaudit_ctx.capture') AS one, hashtext(%s) AS other) k
    WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.pid <> pg_backend_pid()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.classid::bigint = k.one::bigint & 4294967295
        AND l.objid::bigint = k.other::bigint & 4294967295"""


def read_checkpoint(connection: Connection, source: str) -> Checkpoint | None:
    """Read how far a source is captured; ``None`` before its first capture."""
    row = connection.execute(
        "SELECT slot, epoch, commit_lsn::text, end_lsn::text, system_identifier, timeline,"
        " database_oid FROM pgaudit_ctx.checkpoints WHERE source = %s",
        [source],
    ).fetchone()
    if row is None:
        return None
    slot, epoch, commit_lsn, end_lsn, *identity = row
    return Checkpoint(slot, epoch, parse_lsn(commit_lsn), parse_lsn(end_lsn), *identity)


def hold_trail(connection: Connection, source: str) -> None:
    """Be the only session that stores a source's changes, for as long as this one lasts.

    A session that an earlier worker left behind may still be about to commit. Whoever reads the
    slot is the worker, so it is ended: what it did is in the checkpoint then, or will never be.

    Args:
        connection: To the destination, in autocommit mode.
        source: The source's name.

    Raises:
        ConnectionFailed: If it cannot be ended now.
    """
    for turn in range(2):
        row = connection.execute(f"SELECT pg_try_advisory_lock({_TRAIL_LOCK})", [source]).fetchone()
        if row is not None and row[0]:
            return
        if turn == 0:
            with suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute(_END_HOLDER, [_END_MILLISECONDS, source])
    raise ConnectionFailed(
        f"another session of the destination still stores changes of {source!r}. Remedy: if it "
        "does not end by itself, end it: it is the one that holds an advisory lock in pg_locks"
    )


def other_name(
    connection: Connection, source: str, slot: str, system_identifier: int, database_oid: int
) -> str | None:
    """Say under which other name this very database is captured through this slot already."""
    row = connection.execute(
        "SELECT source FROM pgaudit_ctx.checkpoints WHERE source <> %s AND slot = %s"
        " AND system_identifier = %s AND database_oid = %s",
        [source, slot, system_identifier, database_oid],
    ).fetchone()
    return None if row is None else str(row[0])


def open_trail(connection: Connection, source: str, first: Checkpoint, time: dt.datetime) -> None:
    """Begin the first epoch of a source, unless somebody else just did.

    Args:
        connection: To the destination, inside a transaction of the caller's or in autocommit mode.
        source: The source's name.
        first: Where capture begins.
        time: The source's clock now.
    """
    with connection.transaction():
        connection.execute(
            "INSERT INTO pgaudit_ctx.epochs"
            " (source, epoch, system_identifier, timeline, from_lsn, cause, clean)"
            " VALUES (%s, %s, %s, %s, %s, 'first capture', true) ON CONFLICT DO NOTHING",
            [
                source,
                first.epoch,
                first.system_identifier,
                first.timeline,
                format_lsn(first.end_lsn),
            ],
        )
        connection.execute(
            "INSERT INTO pgaudit_ctx.checkpoints (source, slot, epoch, commit_lsn, end_lsn,"
            " complete_at, system_identifier, timeline, database_oid)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [
                source,
                first.slot,
                first.epoch,
                format_lsn(first.commit_lsn),
                format_lsn(first.end_lsn),
                time,
                first.system_identifier,
                first.timeline,
                first.database_oid,
            ],
        )


def follow_timeline(connection: Connection, source: str, timeline: int) -> None:
    """Note that the source goes on under another timeline, with nothing lost."""
    connection.execute(
        "UPDATE pgaudit_ctx.checkpoints SET timeline = %s WHERE source = %s", [timeline, source]
    )


def accept_loss(
    connection: Connection,
    source: str,
    before: Checkpoint,
    after: Checkpoint,
    cause: str,
    time: dt.datetime,
    *,
    fork_lsn: int | None,
    gap_from: int | None,
) -> None:
    """Write down that something is lost, who accepted it, and go on after it.

    All of it or nothing. The arguments are those of :func:`move_on`.
    """
    with connection.transaction():
        move_on(
            connection, source, before, after, cause, time, fork_lsn=fork_lsn, gap_from=gap_from
        )
        arguments = {
            "source": source,
            "from_lsn": format_lsn(before.end_lsn),
            "to_lsn": format_lsn(after.end_lsn),
        }
        record_operation(connection, "worker --accept-gap", arguments, cause)


def move_on(
    connection: Connection,
    source: str,
    before: Checkpoint,
    after: Checkpoint,
    cause: str,
    time: dt.datetime,
    *,
    fork_lsn: int | None,
    gap_from: int | None,
    clean: bool = False,
) -> None:
    """Go on somewhere else than where the trail ends; all of it or nothing.

    Args:
        connection: To the destination, inside a transaction of the caller's or in autocommit mode.
        source: The source's name.
        before: Where the trail ends.
        after: Where it goes on; in a new epoch if positions are not comparable any more.
        cause: Why.
        time: The source's clock now: until then something may be missing.
        fork_lsn: Where a failover forked off that has undone what came after.
        gap_from: Where the gap begins, in the epoch where it ends if there was a fork; ``None`` if
            there is none.
        clean: Whether both ends were proven equal.

    Raises:
        PositionMismatch: If the checkpoint is not what it was any more.
    """
    with connection.transaction():
        if after.epoch != before.epoch:
            connection.execute(
                "INSERT INTO pgaudit_ctx.epochs (source, epoch, system_identifier, timeline,"
                " from_lsn, fork_lsn, cause, clean) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    source,
                    after.epoch,
                    after.system_identifier,
                    after.timeline,
                    format_lsn(after.end_lsn if fork_lsn is None else fork_lsn),
                    None if fork_lsn is None else format_lsn(fork_lsn),
                    cause,
                    clean,
                ],
            )
        if gap_from is not None:
            connection.execute(
                "INSERT INTO pgaudit_ctx.gaps"
                " (source, epoch, from_lsn, to_epoch, to_lsn, from_time, to_time, cause)"
                " SELECT source, %s, %s, %s, %s, complete_at, greatest(complete_at, %s), %s"
                " FROM pgaudit_ctx.checkpoints WHERE source = %s",
                [
                    before.epoch if fork_lsn is None else after.epoch,
                    format_lsn(gap_from),
                    after.epoch,
                    format_lsn(after.end_lsn),
                    time,
                    cause,
                    source,
                ],
            )
        moved = connection.execute(
            "UPDATE pgaudit_ctx.checkpoints SET epoch = %s, commit_lsn = %s, end_lsn = %s,"
            " system_identifier = %s, timeline = %s, database_oid = %s,"
            " updated_at = clock_timestamp()"
            " WHERE source = %s AND epoch = %s AND end_lsn = %s",
            [
                after.epoch,
                format_lsn(after.commit_lsn),
                format_lsn(after.end_lsn),
                after.system_identifier,
                after.timeline,
                after.database_oid,
                source,
                before.epoch,
                format_lsn(before.end_lsn),
            ],
        )
        if moved.rowcount != 1:
            raise PositionMismatch(
                f"the checkpoint of {source!r} has moved while a gap was to be written down: "
                "another worker runs for this source. Remedy: stop it, and start this one again"
            )


def advance_checkpoint(
    connection: Connection,
    source: str,
    epoch: int,
    *,
    end_lsn: int,
    time: int | None,
    commit_lsn: int | None = None,
) -> None:
    """Move a source's checkpoint forward, in the caller's transaction.

    Args:
        connection: To the destination.
        source: The source's name.
        epoch: The epoch that is being captured.
        end_lsn: What may be acknowledged once this is committed.
        time: The source's clock there, in microseconds since 2000-01-01 UTC; ``None`` if unknown.
        commit_lsn: The last stored transaction, if there is a new one.

    Raises:
        PositionMismatch: If there is no such checkpoint, or it is further already.
    """
    moved = connection.execute(
        "UPDATE pgaudit_ctx.checkpoints SET commit_lsn = coalesce(%s::pg_lsn, commit_lsn),"
        " end_lsn = %s, complete_at = greatest(complete_at,"
        " timestamptz '2000-01-01 00:00:00+00' + %s * interval '1 microsecond'),"
        " updated_at = clock_timestamp() WHERE source = %s AND epoch = %s AND end_lsn <= %s",
        [
            None if commit_lsn is None else format_lsn(commit_lsn),
            format_lsn(end_lsn),
            time,
            source,
            epoch,
            format_lsn(end_lsn),
        ],
    )
    if moved.rowcount != 1:
        raise PositionMismatch(
            f"the checkpoint of {source!r} in the destination is gone, or further than "
            f"{format_lsn(end_lsn)}: somebody else has changed it, so nothing is stored or "
            "acknowledged. Remedy: see that one worker runs for this source, and start it again"
        )


def record_tracked(
    connection: Connection, source: str, decisions: Iterable[tuple[str, str, str, str]]
) -> None:
    """Remember what setup decided for each table; the first ``identity_before`` stays.

    Args:
        connection: To the destination.
        source: The source's name.
        decisions: Schema, table, identity now and before, as in ``pg_class.relreplident``.
    """
    with connection.cursor() as cursor:
        for schema, table, identity, before in decisions:
            cursor.execute(
                "INSERT INTO pgaudit_ctx.tracked"
                " (source, schema_name, table_name, identity, identity_before)"
                " VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT (source, schema_name, table_name)"
                " DO UPDATE SET identity = excluded.identity",
                [source, schema, table, IDENTITIES[identity], IDENTITIES[before]],
            )


def record_operation(
    connection: Connection, command: str, arguments: Mapping[str, object], result: str
) -> None:
    """Write down what a person did to the trail.

    Args:
        connection: To the destination; its role is the actor.
        command: The command's name.
        arguments: Without passwords: never a URL.
        result: What came of it, in words.
    """
    connection.execute(
        "INSERT INTO pgaudit_ctx.operations (actor, command, arguments, result)"
        " VALUES (current_user, %s, %s, %s)",
        [command, json.dumps(dict(arguments)), result],
    )
