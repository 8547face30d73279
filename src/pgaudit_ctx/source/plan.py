"""What setup will do to the source: a plan made from the catalog; pure.

Order matters. REPLICA IDENTITY comes before publishing, because a published table without an
identity makes the application's own UPDATE fail. The publication comes before the slot, because a
slot decodes with the catalog as it was (PostgreSQL documentation: "Publication", "Replication
Slots" and "ALTER TABLE … REPLICA IDENTITY").
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from psycopg import sql

from pgaudit_ctx.source.catalog import VERSION_WITH_FAILOVER, Publication, SourceTable
from pgaudit_ctx.source.grants import RoleState, granting
from pgaudit_ctx.source.selection import Selection
from pgaudit_ctx.source.step import Step, Who

_VERSION_WITH_GENERATED: Final = 18_00_00


class SourcePlan(NamedTuple):
    """What is to be done, and what cannot be captured, or not as well as the rest, and why."""

    steps: Sequence[Step]
    captured: Sequence[SourceTable]
    left_out: Sequence[tuple[str, str]]
    notes: Sequence[tuple[str, str]]


class SourceState(NamedTuple):
    """What the plan is made from; ``role`` is the one that will replicate, if there shall be."""

    server_version: int
    tables: Sequence[SourceTable]
    publication: Publication | None
    has_slot: bool
    large_objects: int = 0
    role: RoleState | None = None


class Wishes(NamedTuple):
    """What somebody chose.

    Attributes:
        selection: Which tables.
        identities: Identity by ``schema.table``: ``DEFAULT`` for a table whose old values are not
            worth their price in the log, ``FULL`` to take that back.
        keep_size: A new value of ``max_slot_wal_keep_size``, if it shall be set.
    """

    selection: Selection = Selection()
    identities: Mapping[str, str] = {}
    keep_size: str | None = None


EVERYTHING: Final = Wishes()
"""Every table, with identity FULL."""


def plan(
    state: SourceState,
    slot: str,
    publication: str,
    without: Collection[int] = (),
    wishes: Wishes = EVERYTHING,
) -> SourcePlan:
    """Decide what has to be done so that each chosen table is captured; empty when all is.

    Args:
        state: What the catalog says.
        slot: The slot's name.
        publication: The publication's name.
        without: Root oids of tables that could not be prepared, and so must not be published.
        wishes: What was chosen.

    Returns:
        The steps in order, the tables that will be captured, and those that cannot be.
    """
    roots = {table.oid: table for table in state.tables}
    taken: list[tuple[SourceTable, str | None]] = []
    left_out: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    for table in state.tables:
        root = roots.get(table.root, table)
        reason = cannot_be_captured(table)
        if not wishes.selection.takes(root):
            if table.published and not table.partition:
                notes.append((table.qualified, _still_published(table, publication)))
        elif reason is not None:
            left_out.append((table.qualified, reason))
        elif table.root not in without:
            taken.append((table, wishes.identities.get(root.qualified)))
            notes += [(table.qualified, note) for note in _notes(table)]
    if state.large_objects:
        left_out.append(
            (
                f"{state.large_objects} large object(s)",
                "cannot be published: only the oid that a row holds is captured, not the content",
            )
        )
    captured = [table for table, _ in taken if not table.partition]
    steps = [] if wishes.keep_size is None else [_keep_size_step(wishes.keep_size)]
    if state.role is not None:
        steps += granting(state.role, captured)
    steps += filter(None, (_identity_step(table, chosen) for table, chosen in taken))
    steps += _publishing(state, publication, [table for table in captured if not table.published])
    if not state.has_slot:
        steps.append(_slot_step(state, slot))
    return SourcePlan(steps, captured, left_out, notes)


def _keep_size_step(keep_size: str) -> Step:
    alter = sql.SQL("ALTER SYSTEM SET max_slot_wal_keep_size = {}").format(sql.Literal(keep_size))
    purpose = "the application comes first: past this much log the slot is lost, and a gap recorded"
    if keep_size == "-1":
        purpose = "the trail comes first: the log is kept for it without a limit"
    return Step(
        (_text(alter), "SELECT pg_reload_conf()"), purpose, who=Who.ADMINISTRATOR, alone=True
    )


def _slot_step(state: SourceState, slot: str) -> Step:
    create = sql.SQL("SELECT pg_create_logical_replication_slot({}, 'pgoutput'{})")
    failover = state.server_version >= VERSION_WITH_FAILOVER
    more = sql.SQL(", false, false, failover => true") if failover else sql.SQL("")
    return Step(
        (_text(create.format(sql.Literal(slot), more)),),
        "the log is kept for us from here on (waits for transactions that are open now)",
        who=Who.ADMINISTRATOR,
        waits=True,
    )


def _still_published(table: SourceTable, publication: str) -> str:
    drop = sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(
        sql.Identifier(publication), _name(table)
    )
    return f"was not chosen but is captured still; to end that: {_text(drop)}"


def wanted_identity(table: SourceTable, chosen: str | None) -> str:
    """Say which identity a table shall have, as in ``pg_class.relreplident``.

    Args:
        table: The table.
        chosen: ``DEFAULT`` if only the key of its old rows is wanted.
    """
    if table.virtual_columns:
        # FULL would make every UPDATE and DELETE of the application fail, and so does NOTHING.
        return "d" if table.identity in {"n", "f"} else table.identity
    return "d" if chosen == "DEFAULT" and table.key_columns else "f"


def _identity_step(table: SourceTable, chosen: str | None) -> Step | None:
    wanted = wanted_identity(table, chosen)
    if wanted == table.identity:
        return None
    identity = "FULL" if wanted == "f" else "DEFAULT"
    alter = sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(_name(table), sql.SQL(identity))
    reach = "old values" if wanted == "f" else "only the keys of old rows"
    return Step((_text(alter),), f"{reach} of {table.qualified} reach the log", table)


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


def by_hand(step: Step, publication: str) -> str:
    """Write out everything that is left to do for a table whose step could not be taken."""
    assert step.table is not None  # noqa: S101 - only the steps of a table are asked for
    if "ALTER PUBLICATION" in step.script:
        return step.script
    add = sql.SQL("ALTER PUBLICATION {} ADD TABLE {};").format(
        sql.Identifier(publication), _name(step.table)
    )
    return step.script if step.table.partition else f"{step.script} {_text(add)}"


def cannot_be_captured(table: SourceTable) -> str | None:
    """Give the reason why a table can never be captured, if there is one."""
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


def script(steps: Sequence[Step]) -> str:
    """Write steps out for psql, under a heading for each person who has to run a part.

    Args:
        steps: In order.

    Returns:
        Lines of SQL.
    """
    lines: list[str] = []
    who: Who | None = None
    for step in steps:
        if step.who is not who:
            who = step.who
            lines.append(f"-- run by {who.value}:")
        lines.append(step.script)
    return "\n".join(lines)


def _name(table: SourceTable) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _text(statement: sql.Composable) -> str:
    return statement.as_string(None)
