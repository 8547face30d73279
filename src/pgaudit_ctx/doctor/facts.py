"""What the checks are made from: plain values, so that a test can write them down."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pgaudit_ctx.source.catalog import Identity, Publication, SourceTable


class Names(NamedTuple):
    """How slot, publication and source are called; ``source`` is the name in the trail."""

    slot: str
    publication: str
    source: str
    named: bool = False


class Limits(NamedTuple):
    """From how many bytes on something is a problem."""

    lag: int = 16 * 2**20
    retained_wal: int = 10 * 2**30


class Transport(NamedTuple):
    """How a connection travels: ``local`` is a Unix socket or loopback."""

    local: bool
    encrypted: bool
    sslmode: str


class Server(NamedTuple):
    """A server, and what the role that asks may do there.

    ``settings`` hold the values in the unit of ``pg_settings``; ``fixed`` names those that stand
    on the server's command line, which ALTER SYSTEM does not change.
    """

    version: int
    settings: Mapping[str, str]
    fixed: Sequence[str]
    roles: Sequence[str]
    user: str
    superuser: bool
    may_replicate: bool
    bypasses_policies: bool
    in_recovery: bool
    database: str
    transport: Transport


class Slot(NamedTuple):
    """The replication slot; sizes in bytes, ages in transactions."""

    plugin: str
    database: str
    active_pid: int | None
    reader: str | None
    confirmed_flush: int
    restart: int
    wal_status: str | None
    catalog_xmin_age: int | None
    failover: bool | None


class TableDetail(NamedTuple):
    """What only a thorough look at a table shows: ``bytes`` without, ``toast_bytes`` only TOAST."""

    oid: int
    rows: float
    bytes: int
    toast_bytes: int
    policies: bool
    stored_generated: bool
    suspicious: Sequence[str]
    largest_value: int | None


class Activity(NamedTuple):
    """Two looks at who is busy while the worker is behind, a moment apart.

    Positions are of the second look, rates in bytes a second between the two; the waits are those
    of ``pg_stat_activity``, ``None`` for a process that computes.
    """

    written: int
    sent: int | None
    write_rate: float
    confirm_rate: float
    sender_wait: str | None
    destination_state: str | None
    destination_wait: str | None


class Source(NamedTuple):
    """The audited database; ``following`` are the slots through which standbys read it now."""

    server: Server
    slots_used: int
    senders_used: int
    standbys: int
    identity: Identity
    position: int
    time: dt.datetime
    slot: Slot | None
    publication: Publication | None
    publication_age: int | None
    publishes_generated: bool
    tables: Sequence[SourceTable]
    details: Mapping[int, TableDetail]
    following: Sequence[str] = ()


class CheckpointFacts(NamedTuple):
    """How far the trail is; ``first_lsn`` is where its epoch begins."""

    slot: str
    epoch: int
    first_lsn: int
    commit_lsn: int
    end_lsn: int
    complete_at: dt.datetime
    updated_at: dt.datetime
    system_identifier: int
    timeline: int
    database_oid: int

    @property
    def worker_has_run(self) -> bool:
        """Whether a worker has ever stored anything, if only a position."""
        return self.end_lsn > self.first_lsn or self.commit_lsn > 0


class Hole(NamedTuple):
    """A time during which a table was not captured; ``until`` is ``None`` while it is not."""

    oid: int
    table: str
    since: dt.datetime
    until: dt.datetime | None


class Share(NamedTuple):
    """How many of a table's changes of the last day nobody explained."""

    table: str
    changes: int
    unexplained: int


class Trail(NamedTuple):
    """What the destination holds about this source."""

    checkpoint: CheckpointFacts | None
    gaps: Sequence[tuple[dt.datetime, dt.datetime, str]]
    rejected: int
    holes: Sequence[Hole]
    tracked: Mapping[str, str]
    hidden: Mapping[int, Sequence[str]]
    selection: Mapping[str, object]
    decided: Mapping[str, object]


class Recent(NamedTuple):
    """What the changes of the last day look like; ``None`` where the look took too long."""

    shares: Sequence[Share] | None
    backwards: tuple[int, dt.timedelta] | None


class Destination(NamedTuple):
    """The database that holds the trail; ``covered_until`` is the end of its partitions."""

    server: Server
    migrations: Sequence[int]
    known_migrations: Sequence[int]
    missing_rights: Sequence[str]
    covered_until: dt.datetime | None
    now: dt.datetime
    unguarded: Sequence[str]
    trail: Trail | None
    recent: Recent | None


class Facts(NamedTuple):
    """Everything that was seen; an end that could not be reached is the reason, in words."""

    names: Names
    limits: Limits
    source: Source | str | None
    destination: Destination | str | None
    activity: Activity | None = None
    package_version: str = ""
