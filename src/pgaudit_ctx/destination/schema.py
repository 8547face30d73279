"""Creates and upgrades the schema ``pgaudit_ctx`` of the destination."""

import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import psycopg
from psycopg import sql

from pgaudit_ctx.connection import refusal
from pgaudit_ctx.errors import DestinationNotReady

Connection: TypeAlias = psycopg.Connection[Any]
PartitionUnit: TypeAlias = Literal["month", "quarter", "year"]

OLDEST_VERSION: Final = 14_00_00
_FILE: Final = re.compile(r"^(\d{4})_(\w+)\.sql$")

BOOTSTRAP: Final = """\
CREATE SCHEMA IF NOT EXISTS pgaudit_ctx;
CREATE TABLE IF NOT EXISTS pgaudit_ctx.migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


class Migration(NamedTuple):
    """One numbered file of the folder ``migrations``."""

    number: int
    name: str
    statements: str


def migrations() -> Sequence[Migration]:
    """Read the migrations of this version, in order."""
    found = []
    for entry in (files("pgaudit_ctx.destination") / "migrations").iterdir():
        match = _FILE.match(entry.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found)


def script(unit: PartitionUnit, done: Collection[int] = ()) -> str:
    """Write out what a destination needs, for ``setup --print-sql``.

    Args:
        unit: How long a time one partition covers, if the schema is new.
        done: Numbers of the migrations that it has already.

    Returns:
        SQL for psql.
    """
    parts = [] if done else [BOOTSTRAP]
    for migration in migrations():
        if migration.number not in done:
            parts += [migration.statements, f"{_recorded(migration)};\n"]
    parts.append(
        f"INSERT INTO pgaudit_ctx.partitioning (unit) VALUES ('{unit}')"  # noqa: S608 - a Literal
        " ON CONFLICT DO NOTHING;\n"
        "SELECT pgaudit_ctx.ensure_partition(now());\n"
        f"SELECT pgaudit_ctx.ensure_partition(now() + interval '{_ahead(unit)}');\n"
    )
    return "\n".join(parts)


def applied_migrations(connection: Connection) -> set[int]:
    """Give the numbers of the migrations that a destination has; empty without the schema."""
    exists = connection.execute("SELECT to_regclass('pgaudit_ctx.migrations')").fetchone()
    if exists is None or exists[0] is None:
        return set()
    return {n for (n,) in connection.execute("SELECT number FROM pgaudit_ctx.migrations")}


def check_server(connection: Connection) -> None:
    """Refuse a database that cannot hold the trail, or cannot be given its schema; changes nothing.

    Raises:
        DestinationNotReady: With the remedy.
    """
    version = connection.info.server_version
    if version < OLDEST_VERSION:
        raise DestinationNotReady(
            f"the destination runs PostgreSQL {version // 10000}, and 14 is the oldest that can "
            "hold the trail. Remedy: choose a newer server with --destination"
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise DestinationNotReady(
            f"the destination's encoding is {encoding}, which cannot hold every value of the "
            "source. Remedy: create it with ENCODING 'UTF8' TEMPLATE template0"
        )
    row = connection.execute(
        "SELECT pg_is_in_recovery(), has_database_privilege(current_database(), 'CREATE'),"
        " current_database()::text, current_user::text"
    ).fetchone()
    assert row is not None  # noqa: S101 - it selects from nothing
    in_recovery, may_create, database, user = row
    if in_recovery:
        raise DestinationNotReady(
            "the destination is a standby, which nobody can write to. Remedy: use the primary's "
            "address"
        )
    done = applied_migrations(connection)
    _refuse_newer(done)
    if not done and not may_create:
        grant = sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
            sql.Identifier(database), sql.Identifier(user)
        )
        raise DestinationNotReady(
            f"the role {user} may not create the trail's schema in the destination. Remedy, as its "
            f"owner: {grant.as_string(None)}"
        )


def migrate(connection: Connection, unit: PartitionUnit) -> Sequence[str]:
    """Bring the schema to this version; safe to run twice and by several at once.

    Args:
        connection: To the destination, in autocommit mode.
        unit: How long a time one partition covers, if the schema is new.

    Returns:
        The names of the migrations that were applied.

    Raises:
        DestinationNotReady: If the server cannot hold the trail, or the schema is newer than this
            package.
        DatabaseError: If the server refuses.
    """
    check_server(connection)
    applied = []
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('pgaudit_ctx.migrate'))")
            connection.execute(BOOTSTRAP)
            done = applied_migrations(connection)
            _refuse_newer(done)
            for migration in migrations():
                if migration.number in done:
                    continue
                connection.execute(sql.SQL(migration.statements))
                connection.execute(sql.SQL(_recorded(migration)))
                applied.append(migration.name)
            connection.execute(
                "INSERT INTO pgaudit_ctx.partitioning (unit) VALUES (%s) ON CONFLICT DO NOTHING",
                [unit],
            )
        attach_ahead(connection)
    except psycopg.Error as error:
        raise refusal(error, "create the trail's schema in the destination") from None
    return applied


def check_schema(connection: Connection) -> None:
    """Refuse a destination whose schema is missing or not of this version.

    Raises:
        DestinationNotReady: With the remedy.
    """
    done = applied_migrations(connection)
    if not done:
        raise DestinationNotReady(
            "the destination has no schema pgaudit_ctx. Remedy: run pgaudit-ctx setup "
            "(or setup --only destination)"
        )
    _refuse_newer(done)
    missing = [m.name for m in migrations() if m.number not in done]
    if missing:
        raise DestinationNotReady(
            f"the destination's schema lacks the migrations {', '.join(missing)}. Remedy: run "
            "pgaudit-ctx setup --only destination"
        )


def attach_ahead(connection: Connection) -> None:
    """Attach the partitions of now and of the time after, each in its own transaction."""
    connection.execute("SELECT pgaudit_ctx.ensure_partition(now())")
    connection.execute(
        "SELECT pgaudit_ctx.ensure_partition(now() + %s::interval)",
        [_ahead(partition_unit(connection))],
    )


def partition_unit(connection: Connection) -> str:
    """Say how long a time one partition covers."""
    row = connection.execute("SELECT unit FROM pgaudit_ctx.partitioning").fetchone()
    assert row is not None  # noqa: S101 - migrate() inserts it together with the table
    return str(row[0])


def _ahead(unit: str) -> str:
    return "3 months" if unit == "quarter" else f"1 {unit}"


def _recorded(migration: Migration) -> str:
    return (
        "INSERT INTO pgaudit_ctx.migrations (number, name) "  # noqa: S608 - from our file names
        f"VALUES ({migration.number}, '{migration.name}')"
    )


def _refuse_newer(done: set[int]) -> None:
    newest = max((m.number for m in migrations()), default=0)
    if done and max(done) > newest:
        raise DestinationNotReady(
            f"the destination's schema has migration {max(done)}, this package knows {newest}. "
            "Remedy: upgrade pgaudit-ctx"
        )
