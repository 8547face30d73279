"""What the source's catalog says: tables, keys, domains, publication, slot."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pgaudit_ctx.source.keys import KeyHistory, KnownKey
from pgaudit_ctx.wal.lsn import parse_lsn
from pgaudit_ctx.wal.pgoutput import Column, Relation
from pgaudit_ctx.wal.table import TableFacts

Connection: TypeAlias = psycopg.Connection[Any]

_FIRST_USER_OID: Final = 16384
POSTGRES_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""From which the protocol counts microseconds."""
_VERSION_WITH_FILTERS: Final = 15_00_00
VERSION_WITH_FAILOVER: Final = 17_00_00
"""From which on a slot may be kept on standbys too."""
_VERSION_WITH_GENERATED: Final = 18_00_00

_KEY_COLUMNS: Final = """
    coalesce((
        SELECT array_agg(a.attname::text ORDER BY k.place)
        FROM pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = {table} AND i.indisprimary AND k.place <= i.indnkeyatts
    ), '{{}}')"""

_KEY_INDEX: Final = """
    coalesce((
        SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = {table} AND i.indisprimary
    ), 0)"""

_FACTS: Final = f"""
    SELECT root.oid, n.nspname::text, root.relname::text,
        {_KEY_COLUMNS.format(table="root.oid")},
        {_KEY_INDEX.format(table="root.oid")},
        pg_current_wal_insert_lsn()::text
    FROM pg_class c
    JOIN pg_class root ON root.oid = coalesce(pg_partition_root(c.oid)::oid, c.oid)
    JOIN pg_namespace n ON n.oid = root.relnamespace
    WHERE c.oid = %s"""  # noqa: S608 - only our own text goes in

_BASE_TYPES: Final = """
    WITH RECURSIVE domain(oid, base) AS (
        SELECT t.oid, t.typbasetype FROM pg_type t
        WHERE t.oid = ANY(%s::oid[]) AND t.typtype = 'd'
        UNION ALL
        SELECT d.oid, t.typbasetype FROM domain d JOIN pg_type t ON t.oid = d.base
        WHERE t.typtype = 'd'
    )
    SELECT d.oid, d.base FROM domain d JOIN pg_type t ON t.oid = d.base WHERE t.typtype <> 'd'"""

_TABLES: Final = f"""
    SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name,
        coalesce(pg_partition_root(c.oid)::oid, c.oid) AS root,
        c.relkind = 'p' AS partitioned, c.relispartition AS partition,
        c.relpersistence = 'u' AS unlogged, c.relkind = 'f' AS remote,
        c.relreplident::text AS identity,
        {_KEY_COLUMNS.format(table="c.oid")} AS key_columns,
        {_KEY_INDEX.format(table="c.oid")} AS key_index,
        ARRAY(
            SELECT a.attname::text FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        ) AS columns,
        EXISTS (
            SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
            WHERE r.prrelid = c.oid AND p.pubname = %(publication)s
        ) OR EXISTS (
            SELECT FROM pg_publication_tables pt WHERE pt.pubname = %(publication)s
            AND pt.schemaname = n.nspname AND pt.tablename = c.relname
        ) AS published,
        (
            SELECT concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin)
            FROM pg_publication p LEFT JOIN pg_publication_rel r
                ON r.prpubid = p.oid AND r.prrelid = c.oid
            WHERE p.pubname = %(publication)s
        ) AS membership,
        EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attgenerated = 'v' AND NOT a.attisdropped
        ) AS virtual_columns,
        (
            SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
            AND d.refclassid = 'pg_extension'::regclass
        ) AS extension,
        pg_get_userbyid(c.relowner)::text AS owner, pg_has_role(c.relowner, 'USAGE') AS ours
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgaudit_ctx')
        AND n.nspname !~ '^pg_'
    ORDER BY n.nspname, c.relname"""  # noqa: S608 - only our own text goes in


class SourceTable(NamedTuple):
    """One table of the audited database, as its catalog describes it now.

    ``root`` is the oid of the partitioned table it belongs to, or its own. ``identity`` is
    ``pg_class.relreplident``: ``f`` FULL, ``d`` DEFAULT, ``n`` NOTHING, ``i`` an
    index. ``ours`` says that the role that looks may change the table.
    ``membership`` is another one when the table has left the publication and come back, or
    the publication was altered.
    """

    oid: int
    schema: str
    name: str
    root: int
    partitioned: bool
    partition: bool
    unlogged: bool
    remote: bool
    identity: str
    key_columns: list[str]
    published: bool
    virtual_columns: bool
    extension: str | None
    key_index: int = 0
    columns: Sequence[str] = ()
    owner: str = ""
    ours: bool = True
    membership: str | None = None

    @property
    def qualified(self) -> str:
        """The name to show: ``schema.table``."""
        return f"{self.schema}.{self.name}"

    @property
    def key(self) -> KnownKey:
        """Its primary key."""
        return KnownKey(self.key_index, tuple(self.key_columns))


class SlotState(NamedTuple):
    """A logical replication slot: ``confirmed_flush`` is how far it has been acknowledged."""

    plugin: str
    database: str
    active_pid: int | None
    confirmed_flush: int
    wal_status: str | None


class Publication(NamedTuple):
    """What a publication leaves out: operations, and rows or columns of ``filtered`` tables.

    ``via_root`` says that changes of partitions are sent under the partitioned table's name,
    ``all_tables`` that it is FOR ALL TABLES.
    """

    withheld: list[str]
    via_root: bool
    filtered: list[str]
    oid: int = 0
    all_tables: bool = False
    filtered_oids: Sequence[int] = ()

    @property
    def sends_everything(self) -> bool:
        """Whether it leaves out no kind of operation, and sends partitions as their table."""
        return not self.withheld and self.via_root


class Identity(NamedTuple):
    """Which database this is, and where its log stands."""

    system_identifier: int
    timeline: int
    database: str
    database_oid: int


class Position(NamedTuple):
    """A place in the log, and the source's clock when it was there."""

    lsn: int
    time: dt.datetime

    @property
    def microseconds(self) -> int:
        """The time as the protocol counts: microseconds since 2000-01-01 UTC."""
        return (self.time - POSTGRES_EPOCH) // dt.timedelta(microseconds=1)


def describe(connection: Connection, keys: KeyHistory, relation: Relation) -> TableFacts | None:
    """Look up what a Relation message does not say, with the key as it was then.

    Args:
        connection: To the source.
        keys: What is known of the keys.
        relation: The message.

    Returns:
        ``None`` if the table is gone and nothing was known of it.
    """
    row = connection.execute(_FACTS, [relation.oid]).fetchone()
    if row is None:
        columns = keys.columns(relation, relation.oid, None, 0)
        return TableFacts(relation.oid, relation.schema, relation.name, columns, {})
    oid, schema, name, key_columns, key_index, lsn = row
    now = KnownKey(key_index, tuple(key_columns))
    columns = keys.columns(relation, oid, now, parse_lsn(lsn))
    return TableFacts(oid, schema, name, columns, _base_types(connection, relation))


def read_relation(
    connection: Connection, table: SourceTable, publication: str
) -> tuple[Relation, TableFacts]:
    """Describe a table as the server would in a Relation message, from its catalog of now.

    Generated columns are left out where the publication does not send them.
    """
    generated = "false"
    if connection.info.server_version >= _VERSION_WITH_GENERATED:
        generated = (
            "a.attgenerated = 's' AND EXISTS (SELECT FROM pg_publication"
            " WHERE pubname = %(publication)s AND pubgencols = 's')"
        )
    columns = connection.execute(
        "SELECT a.attname::text, a.atttypid, a.atttypmod FROM pg_attribute a"  # noqa: S608 - ours
        " WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped"
        f" AND (a.attgenerated = '' OR {generated}) ORDER BY a.attnum",
        {"oid": table.oid, "publication": publication},
    ).fetchall()
    relation = Relation(
        table.oid,
        table.schema,
        table.name,
        table.identity,
        tuple(Column(column, type_oid, modifier, True) for column, type_oid, modifier in columns),
    )
    facts = TableFacts(
        table.oid,
        table.schema,
        table.name,
        tuple(table.key_columns),
        _base_types(connection, relation),
    )
    return relation, facts


def _base_types(connection: Connection, relation: Relation) -> dict[int, int]:
    own_types = [c.type_oid for c in relation.columns if c.type_oid >= _FIRST_USER_OID]
    return dict(connection.execute(_BASE_TYPES, [own_types]).fetchall()) if own_types else {}


def read_tables(connection: Connection, publication: str) -> Sequence[SourceTable]:
    """List every ordinary and partitioned table outside of system schemas and extensions."""
    with connection.cursor(row_factory=class_row(SourceTable)) as cursor:
        return cursor.execute(_TABLES, {"publication": publication}).fetchall()


def read_slot(connection: Connection, slot: str) -> SlotState | None:
    """Look up a replication slot; ``None`` if there is none of that name."""
    row = connection.execute(
        "SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn::text, wal_status"
        " FROM pg_replication_slots WHERE slot_name = %s",
        [slot],
    ).fetchone()
    if row is None:
        return None
    plugin, database, active_pid, confirmed_flush, wal_status = row
    return SlotState(plugin, database, active_pid, parse_lsn(confirmed_flush or "0/0"), wal_status)


def remake_slot(connection: Connection, slot: str) -> int:
    """Make a slot in place of one that is gone or has lost its log; give where it begins.

    Waits for every transaction that is writing now, anywhere in the cluster.
    """
    connection.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
        [slot],
    )
    failover = ", false, false, failover => true"
    if connection.info.server_version < VERSION_WITH_FAILOVER:
        failover = ""
    row = connection.execute(
        sql.SQL(
            "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput'{})"
        ).format(sql.SQL(failover)),
        [slot],
    ).fetchone()
    assert row is not None  # noqa: S101 - a function in FROM gives a row, or an error
    return parse_lsn(row[0])


def read_retained(connection: Connection, slot: str) -> tuple[int, int]:
    """Say from which position on the slot keeps the log, and how many bytes that is by now."""
    row = connection.execute(
        "SELECT restart_lsn::text, (pg_current_wal_insert_lsn() - restart_lsn)::bigint"
        " FROM pg_replication_slots WHERE slot_name = %s AND restart_lsn IS NOT NULL",
        [slot],
    ).fetchone()
    return (0, 0) if row is None else (parse_lsn(row[0]), row[1])


def emit_heartbeat(connection: Connection) -> None:
    """Commit a transaction that changes nothing, for the slot to move past what came before it."""
    connection.execute("SELECT pg_logical_emit_message(true, 'pgaudit_ctx.heartbeat', '')")


def count_large_objects(connection: Connection) -> int:
    """Count the large objects, whose changes no publication can carry."""
    row = connection.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone()
    return 0 if row is None else int(row[0])


def read_publication(connection: Connection, publication: str) -> Publication | None:
    """Look up a publication and what it leaves out; ``None`` if there is none of that name."""
    row = connection.execute(
        "SELECT array_remove(ARRAY[CASE WHEN NOT pubinsert THEN 'insert' END,"
        " CASE WHEN NOT pubupdate THEN 'update' END, CASE WHEN NOT pubdelete THEN 'delete' END,"
        " CASE WHEN NOT pubtruncate THEN 'truncate' END], NULL), pubviaroot, oid, puballtables"
        " FROM pg_publication WHERE pubname = %s",
        [publication],
    ).fetchone()
    if row is None:
        return None
    filtered: list[tuple[str, int]] = []
    if connection.info.server_version >= _VERSION_WITH_FILTERS:
        filtered = connection.execute(
            "SELECT r.prrelid::regclass::text, r.prrelid FROM pg_publication_rel r"
            " JOIN pg_publication p ON p.oid = r.prpubid"
            " WHERE p.pubname = %s AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)"
            " ORDER BY 1",
            [publication],
        ).fetchall()
    return Publication(
        row[0],
        row[1],
        [name for name, _ in filtered],
        row[2],
        row[3],
        [oid for _, oid in filtered],
    )


def read_identity(connection: Connection) -> Identity:
    """Say which database this is, and which timeline it writes to.

    Not the timeline of the control file, which is that of the last checkpoint: right after a
    promotion it is the old one. The name of a file of the log begins with the current one.
    """
    row = connection.execute(
        "SELECT s.system_identifier,"
        " ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int,"
        " d.datname::text, d.oid FROM pg_control_system() s, pg_database d"
        " WHERE d.datname = current_database()"
    ).fetchone()
    assert row is not None  # noqa: S101 - the current database exists
    return Identity(*row)


def read_position(connection: Connection) -> Position:
    """Say up to where something has been written to the log by now."""
    row = connection.execute(
        "SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()"
    ).fetchone()
    assert row is not None  # noqa: S101 - functions without FROM give one row
    return Position(parse_lsn(row[0]), row[1])
