"""What setup does to the source: refuses what cannot be captured, then executes the plan.

Each step is a short transaction of its own, so that a table that cannot be had now keeps nobody
waiting, and running it again goes on where it ended.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import errors, sql

from pgaudit_ctx.connection import refusal
from pgaudit_ctx.errors import ServerReadOnly, SourceNotReady
from pgaudit_ctx.source.catalog import (
    Connection,
    Publication,
    SourceTable,
    count_large_objects,
    read_publication,
    read_slot,
    read_tables,
)
from pgaudit_ctx.source.grants import read_role
from pgaudit_ctx.source.plan import EVERYTHING, SourcePlan, SourceState, Wishes, plan
from pgaudit_ctx.source.step import LOCK_TIMEOUT, Step

OLDEST_VERSION: Final = 14_00_00
_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.2
WAIT_SECONDS: Final = 60.0
"""So long the creation of the slot waits for transactions that are open."""

# Who holds a lock on a table, the oldest first.
_HOLDERS: Final = """
    SELECT a.pid, a.state, coalesce(clock_timestamp() - a.xact_start, '0'), a.application_name
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.relation = %s AND l.granted AND a.pid <> pg_backend_pid()
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY a.xact_start LIMIT 3"""
# Whom the creation of a slot waits for: every transaction of the cluster that has written.
_WRITERS: Final = """
    SELECT pid, state, coalesce(clock_timestamp() - xact_start, '0'), application_name
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT 0, 'prepared as ' || quote_literal(gid), clock_timestamp() - prepared, ''
    FROM pg_prepared_xacts
    ORDER BY 3 DESC"""


class Session(NamedTuple):
    """A session that we wait for, as it is told to people; ``pid`` 0 for a prepared transaction."""

    pid: int
    state: str | None
    age: Any
    application: str | None

    def __str__(self) -> str:
        """Say who it is and for how long."""
        who = f"process {self.pid}" if self.pid else "a transaction"
        name = f", {self.application}" if self.application else ""
        seconds = int(self.age.total_seconds())
        return f"{who} ({self.state or 'state hidden'}{name}, open for {seconds} s)"


def check_source(connection: Connection, slot: str) -> None:
    """Refuse a server that cannot be captured.

    Args:
        connection: To the source.
        slot: The slot that is or will be used.

    Raises:
        SourceNotReady: Naming the setting or the right that is missing, with the remedy.
        ServerReadOnly: If it is a standby.
    """
    version = connection.info.server_version
    if version < OLDEST_VERSION:
        raise SourceNotReady(
            f"the source runs PostgreSQL {version // 10000}; logical decoding messages reach "
            "pgoutput from PostgreSQL 14 on. Remedy: upgrade the server"
        )
    row = connection.execute(
        "SELECT current_setting('wal_level'), pg_is_in_recovery(), r.rolreplication OR r.rolsuper"
        " OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication'"
        " AND pg_has_role(m.oid, 'MEMBER')), current_user::text"
        " FROM pg_roles r WHERE r.rolname = current_user"
    ).fetchone()
    assert row is not None  # noqa: S101 - the current user exists
    wal_level, in_recovery, may_replicate, user = row
    if in_recovery:
        raise ServerReadOnly(
            "the source is a standby, which can neither be set up nor captured. Remedy: use the "
            "primary's address, or promote it"
        )
    if wal_level != "logical":
        raise SourceNotReady(
            f"the source has wal_level = {wal_level}, which does not carry row changes. Remedy: "
            "ALTER SYSTEM SET wal_level = 'logical', then restart the server (on a managed "
            "service: its parameter for logical replication, and a reboot)"
        )
    if not may_replicate:
        raise SourceNotReady(
            f"the role {user} may not replicate. Remedy, as a superuser: "
            f"ALTER ROLE {sql.Identifier(user).as_string(connection)} REPLICATION"
        )
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise SourceNotReady(
            "the source's encoding is SQL_ASCII, so nobody knows what its text means. Remedy: dump "
            "it and restore it into a database with ENCODING 'UTF8'"
        )
    state = read_slot(connection, slot)
    if state is not None and (
        state.plugin != "pgoutput" or state.database != connection.info.dbname
    ):
        raise SourceNotReady(
            f"the slot {slot!r} belongs to database {state.database} and plugin {state.plugin}. "
            "Remedy: choose another name with --slot"
        )


def read_state(
    connection: Connection, slot: str, publication: str, role: str | None = None
) -> SourceState:
    """Read from the catalog what the plan needs.

    Args:
        connection: To the source.
        slot: The slot's name.
        publication: The publication's name.
        role: The role that will replicate, if it shall be made and given what it needs.
    """
    return SourceState(
        connection.info.server_version,
        read_tables(connection, publication),
        read_publication(connection, publication),
        read_slot(connection, slot) is not None,
        count_large_objects(connection),
        None if role is None else read_role(connection, role),
    )


def refuse_filters(publication: Publication, name: str) -> None:
    """Refuse a publication that would leave out changes without a sign.

    Raises:
        SourceNotReady: With the statement that mends it.
    """
    if publication.all_tables:
        raise SourceNotReady(
            f"the publication {name!r} is FOR ALL TABLES: a trail in the same database would "
            "capture itself, and each new table's UPDATE fails until it has an identity. Remedy: "
            f"choose another name with --publication, or DROP PUBLICATION {name} and run "
            "pgaudit-ctx setup, which lists the tables"
        )
    if publication.withheld:
        raise SourceNotReady(
            f"the publication {name!r} does not send {', '.join(publication.withheld)}. Remedy: "
            f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
        )
    if not publication.via_root:
        raise SourceNotReady(
            f"the publication {name!r} sends partitions under their own names. Remedy: "
            f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"
        )
    if publication.filtered:
        raise SourceNotReady(
            f"the publication {name!r} leaves out rows or columns of "
            f"{', '.join(publication.filtered)}. Remedy: ALTER PUBLICATION {name} DROP TABLE "
            "these, then run pgaudit-ctx setup, which adds them whole"
        )


def open_writers(connection: Connection) -> Sequence[Session]:
    """Give the sessions that the creation of a slot would wait for, the oldest first."""
    return [Session(*row) for row in connection.execute(_WRITERS)]


def run(
    connection: Connection,
    slot: str,
    publication: str,
    report: Callable[[Step], None] = lambda _: None,
    *,
    wishes: Wishes = EVERYTHING,
    role: str | None = None,
    wait: float = WAIT_SECONDS,
    waiting: Callable[[Sequence[Session]], None] = lambda _: None,
) -> tuple[SourcePlan, list[tuple[Step, str]]]:
    """Plan and execute, each step in a short transaction of its own.

    A table that cannot be prepared is not published either: publishing a table without a replica
    identity would make the application's UPDATE fail.

    Args:
        connection: To the source, in autocommit mode.
        slot: The slot's name.
        publication: The publication's name.
        report: Called before each step.
        wishes: Which tables, with which identity.
        role: The role that will replicate, if it shall be made and given what it needs.
        wait: Seconds to wait, at most, for transactions that are open when the slot is made.
        waiting: Called with the sessions that the slot waits for, if there are any.

    Returns:
        The plan of what was done, and the steps that could not be done, with the reason: those of
        single tables, and optional ones.

    Raises:
        DatabaseError: If the server refuses something that is not about one table.
        SourceNotReady: If the publication leaves something out or is missing beside a slot, or if
            transactions stay open for too long.
    """
    state = read_state(connection, slot, publication, role)
    if state.publication is not None:
        refuse_filters(state.publication, publication)
    elif state.has_slot:
        raise SourceNotReady(
            f"the slot {slot!r} is there, but no publication {publication!r}: what was written "
            "before a new one is made could not be read through this slot. Remedy: "
            "pgaudit-ctx setup --recreate-slot --yes, which writes down the gap"
        )
    failed: list[tuple[Step, str]] = []
    without: set[int] = set()
    for step in plan(state, slot, publication, wishes=wishes).steps:
        if not step.optional and (step.table is None or step.table.root in without):
            continue
        report(step)
        reason = take_step(connection, step)
        if reason is not None:
            failed.append((step, reason))
            without |= {step.table.root} if step.table is not None else set()
    done = plan(state, slot, publication, without, wishes)
    for step in done.steps:
        if step.table is not None or step.optional:
            continue
        report(step)
        if step.waits:
            _make_slot(connection, step, wait, waiting)
        elif (reason := take_step(connection, step)) is not None:
            raise SourceNotReady(f"cannot run {step.script!r}: {reason}. Remedy: run setup again")
    return done, failed


def take_step(connection: Connection, step: Step) -> str | None:
    """Execute one step in a short transaction, again if it cannot have a lock.

    Args:
        connection: To the source, in autocommit mode.
        step: What to do.

    Returns:
        Why it could not be done, if that is the table's own affair or the step is optional.

    Raises:
        DatabaseError: If the server refuses something else.
    """
    # Waiting for a lock makes everyone behind us wait too, so each wait is short, and between two
    # of them there is time for those who waited.
    for attempt in range(_ATTEMPTS):
        try:
            _execute(connection, step)
        except errors.LockNotAvailable:
            time.sleep(_PAUSE_SECONDS * (attempt + 1))
            continue
        except (
            errors.InsufficientPrivilege,
            errors.UndefinedTable,
            errors.UndefinedObject,
        ) as error:
            if step.table is not None or step.optional:
                return error.diag.message_primary or "the server refuses"
            raise refusal(error, f"run {step.script!r} on the source") from None
        except psycopg.Error as error:
            if step.optional and isinstance(error, errors.DuplicateObject):
                return None  # somebody else was faster
            raise refusal(error, f"run {step.script!r} on the source") from None
        return None
    return _who_holds(connection, step.table)


def _execute(connection: Connection, step: Step) -> None:
    if step.alone:
        for statement in step.statements:
            connection.execute(sql.SQL(statement))
        return
    with connection.transaction():
        connection.execute(sql.SQL(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        for statement in step.statements:
            connection.execute(sql.SQL(statement))


def _who_holds(connection: Connection, table: SourceTable | None) -> str:
    held = "another session holds it locked"
    if table is None:
        return held
    holders = [str(Session(*row)) for row in connection.execute(_HOLDERS, [table.oid])]
    return f"{held}: {', '.join(holders)}" if holders else held


def _make_slot(
    connection: Connection,
    step: Step,
    wait: float,
    waiting: Callable[[Sequence[Session]], None],
) -> None:
    before = open_writers(connection)
    if before:
        waiting(before)
    try:
        with connection.transaction():
            timeout = sql.SQL("SET LOCAL statement_timeout = {}").format(int(wait * 1000))
            connection.execute(timeout)
            for statement in step.statements:
                connection.execute(sql.SQL(statement))
    except errors.QueryCanceled:
        pids = {session.pid for session in before}
        still = [session for session in open_writers(connection) if session.pid in pids]
        raise SourceNotReady(
            f"the slot could not be made within {wait:.0f} s, because transactions that were open "
            f"before are open still: {', '.join(map(str, still or before))}. Remedy: end them "
            "(SELECT pg_terminate_backend(pid)), or wait for longer with --wait; then run setup "
            "again, which goes on where it ended"
        ) from None
    except psycopg.Error as error:
        raise refusal(error, f"run {step.script!r} on the source") from None
