"""What setup does, both ends together: prepare, remember what was chosen, open the trail.

The source's part is planned in ``source.plan``, the destination's is its migrations and roles.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from pgaudit_ctx.connection import refusal
from pgaudit_ctx.destination import decisions, ledger, roles, schema
from pgaudit_ctx.destination.roles import TrailRoles
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.errors import SlotBusy, SlotMissing, UsageError
from pgaudit_ctx.preflight import WorkerOptions, refuse_handed_over, refuse_other_database
from pgaudit_ctx.source import catalog
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.source.plan import SourcePlan, Wishes, cannot_be_captured, wanted_identity
from pgaudit_ctx.source.selection import Selection
from pgaudit_ctx.source.setup import Session
from pgaudit_ctx.source.step import Step
from pgaudit_ctx.wal.lsn import format_lsn

KEEP_SIZES: Final = {"unlimited": "-1"}
"""``max_slot_wal_keep_size`` as it is chosen, and as the server takes it, where they differ."""


class Choice(NamedTuple):
    """What somebody chose, beside the names.

    Attributes:
        selection: Which tables; ``None`` for those that were chosen last time.
        identities: Identity by ``schema.table``.
        keep_size: ``max_slot_wal_keep_size``: ``"unlimited"``, a size, or ``None`` for as it is.
        roles: What the names of the roles begin with; ``None`` to make none.
        wait: Seconds, for transactions that are open when the slot is made.
        unit: How long a time one partition covers, if the trail is new.
    """

    selection: Selection | None = None
    identities: Mapping[str, str] = {}
    keep_size: str | None = None
    roles: str | None = "pgaudit_ctx"
    wait: float = source_setup.WAIT_SECONDS
    unit: schema.PartitionUnit = "quarter"

    @property
    def replication_role(self) -> str | None:
        """The role that reads the log."""
        return None if self.roles is None else f"{self.roles}_replication"

    @property
    def trail_roles(self) -> TrailRoles | None:
        """The roles of the destination."""
        return None if self.roles is None else TrailRoles.with_prefix(self.roles)


def wishes_of(
    choice: Choice, destination: Connection | None, name: str, tables: Sequence[catalog.SourceTable]
) -> Wishes:
    """Join what is chosen now with what was chosen before.

    Args:
        choice: What is chosen now.
        destination: Where earlier choices are kept, if it is there and has its schema.
        name: The source's name.
        tables: The source's tables.

    Raises:
        UsageError: If a name fits no table.
    """
    recorded: Mapping[str, Any] = {}
    tracked: Mapping[str, tuple[str, str]] = {}
    if destination is not None and schema.applied_migrations(destination):
        recorded = decisions.last_setup(destination, name)
        tracked = decisions.read_tracked(destination, name)
    selection = choice.selection
    if selection is None:
        selection = Selection.from_arguments(recorded.get("selection") or {})
    known = {table.qualified: table for table in tables}
    strangers = [
        *(selection.unknown(tables) if choice.selection is not None else ()),
        *(table for table in choice.identities if table not in known),
    ]
    if strangers:
        raise UsageError(
            f"the source has no {', '.join(strangers)}. Remedy: name tables as schema.table, as "
            "they are written in the catalog"
        )
    for name_, identity in choice.identities.items():
        if identity == "DEFAULT" and not known[name_].key_columns:
            raise UsageError(
                f"{name_} has no primary key: with identity DEFAULT the application's own UPDATE "
                "would fail. Remedy: leave it FULL, or give it a primary key"
            )
    kept = {table: now for table, (now, _) in tracked.items() if now == "DEFAULT"}
    size = choice.keep_size and KEEP_SIZES.get(choice.keep_size, choice.keep_size)
    return Wishes(selection, {**kept, **choice.identities}, size)


def check_ends(
    source: Connection | None,
    destination: Connection | None,
    options: WorkerOptions,
    *,
    recreate: bool = False,
) -> None:
    """Refuse what could not be finished, before anything is changed at either end.

    Args:
        source: To the audited database, if it is to be prepared.
        destination: To the trail, if it is.
        options: The names.
        recreate: Whether a slot that is gone is made anew.

    Raises:
        SourceNotReady: Naming the setting or right that is missing.
        DestinationNotReady: Likewise.
        SlotMissing: If a trail goes on from a slot that is gone.
    """
    if source is not None:
        source_setup.check_source(source, options.slot)
    if destination is not None:
        schema.check_server(destination)
        if source is not None and not recreate and schema.applied_migrations(destination):
            refuse_lost_slot(source, destination, options)


def prepare_destination(connection: Connection, choice: Choice) -> tuple[Sequence[str], str | None]:
    """Bring the schema to this version and give each role what it needs.

    Returns:
        The migrations that were applied; and why the roles could not be assigned, if so.
    """
    applied = schema.migrate(connection, choice.unit)
    refused = None
    if choice.trail_roles is not None:
        refused = roles.assign(connection, choice.trail_roles)
    return applied, refused


def prepare_source(
    source: Connection,
    destination: Connection | None,
    options: WorkerOptions,
    wishes: Wishes,
    choice: Choice,
    report: Callable[[Step], None],
    waiting: Callable[[Sequence[Session]], None],
) -> tuple[SourcePlan, list[tuple[Step, str]]]:
    """Do to the source what is missing, and remember what each table was like before."""
    name = options.name or source.info.dbname
    tables = {t.oid: t for t in catalog.read_tables(source, options.publication)}

    def remember(chosen: Iterable[catalog.SourceTable]) -> None:
        if destination is not None:
            ledger.record_tracked(
                destination, name, _decided(tables, wishes, {table.oid for table in chosen})
            )

    def before(step: Step) -> None:
        # So it is known what a table was like, even if this is interrupted.
        remember([step.table] if step.table is not None else [])
        report(step)

    plan, failed = source_setup.run(
        source,
        options.slot,
        options.publication,
        before,
        wishes=wishes,
        role=choice.replication_role,
        wait=choice.wait,
        waiting=waiting,
    )
    remember(t for t in catalog.read_tables(source, options.publication) if t.published)
    return plan, failed


def remembered(
    source: Connection,
    destination: Connection | None,
    options: WorkerOptions,
    wishes: Wishes,
    choice: Choice,
) -> dict[str, object]:
    """Give what later runs and the doctor want to know of this one."""
    name = options.name or source.info.dbname
    published = catalog.read_publication(source, options.publication)
    earlier = {} if destination is None else decisions.last_setup(destination, name)
    return {
        "source": name,
        "selection": wishes.selection.as_arguments(),
        "publication_oid": None if published is None else published.oid,
        "max_slot_wal_keep_size": choice.keep_size or earlier.get("max_slot_wal_keep_size"),
    }


def _decided(
    tables: Mapping[int, catalog.SourceTable], wishes: Wishes, oids: Collection[int]
) -> Iterator[tuple[str, str, str, str]]:
    """Give schema, table, identity wanted and identity before of those tables."""
    for oid, table in tables.items():
        if oid in oids:
            root = tables.get(table.root, table)
            wanted = wanted_identity(table, wishes.identities.get(root.qualified))
            yield table.schema, table.name, wanted, table.identity


def refuse_lost_slot(source: Connection, destination: Connection, options: WorkerOptions) -> None:
    """Refuse to make a slot where a trail has gone on from one that is gone.

    Raises:
        SlotMissing: With the way out.
        PositionMismatch: If a hand-over has begun, or the trail is another database's.
    """
    name = options.name or source.info.dbname
    checkpoint = ledger.read_checkpoint(destination, name)
    if checkpoint is not None and catalog.read_slot(source, options.slot) is None:
        refuse_handed_over(source, destination, name, checkpoint)
        refuse_other_database(checkpoint, catalog.read_identity(source), name, options)
        raise SlotMissing(
            f"the trail of {name!r} ends at {format_lsn(checkpoint.end_lsn)}, but the slot "
            f"{options.slot!r} that kept the log from there on is gone: a new one leaves a hole. "
            "Remedy: pgaudit-ctx setup --recreate-slot --yes says what is missing, writes down the "
            "gap and goes on after it"
        )


def drop_slot(source: Connection, slot: str) -> None:
    """Drop the slot if there is one.

    Raises:
        SlotBusy: If somebody reads it.
    """
    state = catalog.read_slot(source, slot)
    if state is None:
        return
    if state.active_pid is not None:
        raise SlotBusy(
            f"the slot {slot!r} is being read by process {state.active_pid}. Remedy: stop that "
            "worker first"
        )
    try:
        source.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    except psycopg.Error as error:
        raise refusal(error, f"drop the slot {slot!r}") from None


def tracked_script(
    name: str, plan: SourcePlan, tables: Sequence[catalog.SourceTable], wishes: Wishes
) -> str:
    """Write out for psql what setup remembers about each table.

    Args:
        name: The source's name.
        plan: What is going to be done.
        tables: The source's tables as they are.
        wishes: What was chosen.
    """
    roots = {table.oid for table in plan.captured}
    insert = sql.SQL(
        "INSERT INTO pgaudit_ctx.tracked"
        " (source, schema_name, table_name, identity, identity_before) VALUES ({})"
        " ON CONFLICT (source, schema_name, table_name) DO UPDATE SET identity = excluded.identity;"
    )
    oids = {
        table.oid for table in tables if table.root in roots and cannot_be_captured(table) is None
    }
    return "\n".join(
        insert.format(
            sql.SQL(", ").join(
                sql.Literal(word)
                for word in (
                    name,
                    schema_name,
                    table,
                    ledger.IDENTITIES[wanted],
                    ledger.IDENTITIES[before],
                )
            )
        ).as_string(None)
        for schema_name, table, wanted, before in _decided(
            {table.oid: table for table in tables}, wishes, oids
        )
    )
