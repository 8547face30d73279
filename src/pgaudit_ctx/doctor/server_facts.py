"""Looks at one server: its settings, the role that asks, and how the connection travels."""

import ipaddress
from typing import Any, Final

import psycopg

from pgaudit_ctx.doctor.facts import Server, Transport
from pgaudit_ctx.source.service import TELLING_ROLES, TELLING_SETTINGS

_SETTINGS: Final = (
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "max_slot_wal_keep_size",
    "server_encoding",
    "server_version",
    "synchronized_standby_slots",
    "default_transaction_read_only",
)
_ROLE: Final = """
    SELECT current_user::text, r.rolsuper, r.rolreplication OR r.rolsuper OR EXISTS (
            SELECT FROM pg_roles m WHERE m.rolname = 'rds_replication'
            AND pg_has_role(m.oid, 'MEMBER')),
        r.rolbypassrls OR r.rolsuper, pg_is_in_recovery(), current_database()::text
    FROM pg_roles r WHERE r.rolname = current_user"""


def read_server(connection: psycopg.Connection[Any]) -> Server:
    """Read what every check of a server needs."""
    rows = connection.execute(
        "SELECT name, setting, source = 'command line' FROM pg_settings WHERE name = ANY(%s)",
        [[*_SETTINGS, *TELLING_SETTINGS]],
    ).fetchall()
    settings = {name: value for name, value, _ in rows if value is not None}
    # A service's own settings are not always listed.
    for name in TELLING_SETTINGS:
        if "." not in name:
            continue
        row = connection.execute("SELECT current_setting(%s, true)", [name]).fetchone()
        if row is not None and row[0] is not None:
            settings[name] = row[0]
    roles = [
        name
        for (name,) in connection.execute(
            "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s)", [list(TELLING_ROLES)]
        )
    ]
    role = connection.execute(_ROLE).fetchone()
    assert role is not None  # noqa: S101 - the current user exists
    user, superuser, may_replicate, bypasses, in_recovery, database = role
    return Server(
        connection.info.server_version,
        settings,
        [name for name, _, fixed in rows if fixed],
        roles,
        user,
        superuser,
        may_replicate,
        bypasses,
        in_recovery,
        database,
        _transport(connection),
    )


def _transport(connection: psycopg.Connection[Any]) -> Transport:
    pgconn = connection.pgconn
    given = {
        option.keyword.decode(): (option.val or b"").decode(errors="replace")
        for option in pgconn.info
    }
    host, address = connection.info.host, connection.info.hostaddr
    local = host.startswith(("/", "@")) or not (host or address)
    if address and not local:
        local = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return Transport(local, bool(pgconn.ssl_in_use), given.get("sslmode", ""))
