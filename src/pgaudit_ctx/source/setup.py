"""What setup does to the source: a plan made from the catalog, pure, and then its execution.

Order matters. REPLICA IDENTITY comes before publishing, because a published table without an
identity makes the application's own UPDATE fail. The publication comes before the slot, because a
slot decodes with the catalog as it was (PostgreSQL documentation: "Publication", "Replication
Slots" and "ALTER TABLE … REPLICA IDENTITY").
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import psycopg
from psycopg import errors, sql

from pgaudit_ctx.connection import refusal
from pgaudit_ctx.errors import SourceNotReady
from pgaudit_ctx.source.catalog import (
    Connection,
    Publication,
    SourceTable,
    count_large_objects,
    read_publication,
    read_slot,
    read_tables,
)

OLDEST_VERSION: Final = 14_00_00
_VERSION_WITH_GENERATED: Final = 18_00_00
_LOCK_TIMEOUT: Final = "2s"
_ATTEMPTS: Final = 5


class Step(NamedTuple):
    """What is executed in one transaction, and what for; ``table`` where it is about only one."""

    statements: tuple[str, ...]
    purpose: str
    table: SourceTable | None = None

    @property
    def script(self) -> str:
        """The same for psql."""
        lines = self.statements
        return f"{'; '.join(lines if len(lines) == 1 else ('BEGIN', *lines, 'COMMIT'))};"


class SourcePlan(NamedTuple):
    """What is to be done, and what cannot be captured, or not as well as the rest, and why."""

    steps: Sequence[Step]
    captured: Sequence[SourceTable]
    left_out: Sequence[tuple[str, str]]
    notes: Sequence[tuple[str, str]]


class SourceState(NamedTuple):
    """What the plan is made from."""

    server_version: int
    tables: Sequence[SourceTable]
    publication: Publication | None
    has_slot: bool
    large_objects: int = 0


def check_source(connection: Connection, slot: str) -> None:
    """Refuse a server that cannot be captured.

    Args:
        connection: To the source.
        slot: The slot that is or will be used.

    Raises:
        SourceNotReady: Naming the setting or the right that is missing, with the remedy.
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
        raise SourceNotReady(
            "the source is a standby, which cannot be set up. Remedy: use the primary's address"
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


def read_state(connection: Connection, slot: str, publication: str) -> SourceState:
    """Read from the catalog what the plan needs."""
    return SourceState(
        connection.info.server_version,
        read_tables(connection, publication),
        read_publication(connection, publication),
        read_slot(connection, slot) is not None,
        count_large_objects(connection),
    )


def plan(
    state: SourceState, slot: str, publication: str, without: Collection[int] = ()
) -> SourcePlan:
    """Decide what has to be done so that every table is captured; pure, and empty when all is.

    Args:
        state: What :func:`read_state` gave.
        slot: The slot's name.
        publication: The publication's name.
        without: Root oids of tables that could not be prepared, and so must not be published.

    Returns:
        The steps in order, the tables that will be captured, and those that cannot be.
    """
    steps: list[Step] = []
    captured: list[SourceTable] = []
    left_out: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    for table in state.tables:
        reason = _cannot_be_captured(table)
        if reason is not None:
            left_out.append((table.qualified, reason))
            continue
        if table.root in without:
            continue
        step = _identity_step(table)
        if step is not None:
            steps.append(step)
        notes += [(table.qualified, note) for note in _notes(table)]
        if not table.partition:
            captured.append(table)
    if state.large_objects:
        left_out.append(
            (
                f"{state.large_objects} large object(s)",
                "cannot be published: only the oid that a row holds is captured, not the content",
            )
        )
    missing = [table for table in captured if not table.published]
    steps += _publishing(state, publication, missing)
    if not state.has_slot:
        create_slot = sql.SQL("SELECT pg_create_logical_replication_slot({}, 'pgoutput')")
        steps.append(
            Step(
                (_text(create_slot.format(sql.Literal(slot))),),
                "the log is kept for us from here on (waits for transactions that are open now)",
            )
        )
    return SourcePlan(steps, captured, left_out, notes)


def _identity_step(table: SourceTable) -> Step | None:
    if table.virtual_columns:
        # FULL would make every UPDATE and DELETE of the application fail, and so does NOTHING.
        if table.identity != "n":
            return None
        identity, purpose = "DEFAULT", f"the key of {table.qualified} reaches the log"
    elif table.identity == "f":
        return None
    else:
        identity, purpose = "FULL", f"old values of {table.qualified} reach the log"
    alter = sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(_name(table), sql.SQL(identity))
    return Step((_text(alter),), purpose, table)


def _notes(table: SourceTable) -> list[str]:
    notes = []
    if table.virtual_columns:
        notes.append(
            "has virtual generated columns, which forbid REPLICA IDENTITY FULL: what an UPDATE or "
            "DELETE replaced is not in the log, only its key"
        )
    if not table.key_columns and not table.partition:
        notes.append(
            "has no primary key: every change is captured, but no record has a history of its own"
        )
    if table.partitioned and not table.partition:
        notes.append(
            "is partitioned: a new partition is captured, but run setup again so that its old "
            "values are (without a primary key its UPDATEs fail until then)"
        )
    return notes


def _publishing(state: SourceState, publication: str, missing: list[SourceTable]) -> list[Step]:
    name = sql.Identifier(publication)
    if state.publication is not None:
        return [_adding(state, name, table) for table in missing]
    options = sql.SQL(
        "publish_via_partition_root = true, publish_generated_columns = stored"
        if state.server_version >= _VERSION_WITH_GENERATED
        else "publish_via_partition_root = true"
    )
    tables = sql.SQL(", ").join([_name(table) for table in missing])
    create = (
        sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(name, tables, options)
        if missing
        else sql.SQL("CREATE PUBLICATION {} WITH ({})").format(name, options)
    )
    sent = f"{len(missing)} {'table is' if len(missing) == 1 else 'tables are'} sent"
    return [Step((_text(create),), sent)]


def _adding(state: SourceState, publication: sql.Identifier, table: SourceTable) -> Step:
    add = _text(sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(publication, _name(table)))
    # Where the slot exists already, what a transaction wrote before this is never sent, even if it
    # commits after it. The lock waits for such transactions.
    lock = _text(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(_name(table)))
    statements = (lock, add) if state.has_slot else (add,)
    return Step(statements, f"{table.qualified} is sent from here on", table)


def refuse_filters(publication: Publication, name: str) -> None:
    """Refuse a publication that would leave out changes without a sign.

    Raises:
        SourceNotReady: With the statement that mends it.
    """
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


def _cannot_be_captured(table: SourceTable) -> str | None:
    if table.unlogged:
        return "is UNLOGGED, so its changes never reach the write-ahead log"
    if table.extension is not None:
        return f"belongs to the extension {table.extension}"
    if table.remote:
        return "is a foreign table, so its changes are in another server's write-ahead log"
    if table.virtual_columns and not table.key_columns:
        return (
            "has virtual generated columns, which forbid REPLICA IDENTITY FULL, and no primary "
            "key: publishing it would make the application's UPDATE fail"
        )
    return None


def run(
    connection: Connection,
    slot: str,
    publication: str,
    report: Callable[[Step], None] = lambda _: None,
) -> tuple[SourcePlan, list[tuple[Step, str]]]:
    """Plan and execute, each step in a short transaction of its own.

    A table that cannot be prepared is not published either: publishing a table without a replica
    identity would make the application's UPDATE fail.

    Args:
        connection: To the source, in autocommit mode.
        slot: The slot's name.
        publication: The publication's name.
        report: Called before each step.

    Returns:
        The plan of what was done, and the steps of tables that could not be done, with the reason.

    Raises:
        DatabaseError: If the server refuses something that is not about one table.
        SourceNotReady: If the publication that exists leaves something out.
    """
    state = read_state(connection, slot, publication)
    if state.publication is not None:
        refuse_filters(state.publication, publication)
    failed: list[tuple[Step, str]] = []
    without: set[int] = set()
    for step in plan(state, slot, publication).steps:
        if step.table is None or step.table.root in without:
            continue
        report(step)
        reason = _run_step(connection, step)
        if reason is not None:
            failed.append((step, reason))
            without.add(step.table.root)
    done = plan(state, slot, publication, without)
    for step in done.steps:
        if step.table is None:
            report(step)
            reason = _run_step(connection, step)
            if reason is not None:
                raise SourceNotReady(
                    f"cannot run {step.script!r}: {reason}. Remedy: run setup again"
                )
    return done, failed


def _run_step(connection: Connection, step: Step) -> str | None:
    """Execute one step; gives the reason if it is this table's own."""
    # Waiting for a lock makes everyone behind us wait too, so each wait is short.
    for _ in range(_ATTEMPTS):
        try:
            with connection.transaction():
                connection.execute(sql.SQL(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
                for statement in step.statements:
                    connection.execute(sql.SQL(statement))
        except errors.LockNotAvailable:
            continue
        except (errors.InsufficientPrivilege, errors.UndefinedTable) as error:
            if step.table is not None:
                return error.diag.message_primary or "the server refuses"
            raise refusal(error, f"run {step.script!r} on the source") from None
        except psycopg.Error as error:
            raise refusal(error, f"run {step.script!r} on the source") from None
        return None
    return "another session holds it locked"


def _name(table: SourceTable) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _text(statement: sql.Composable) -> str:
    return statement.as_string(None)
