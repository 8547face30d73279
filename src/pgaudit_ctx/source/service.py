"""Which service runs a server, and how one changes its settings there; pure, from what it shows.

Managed services hide configuration files, forbid ALTER SYSTEM and grant replication in ways of
their own. Each leaves settings or roles by which it can be told.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from psycopg import sql

TELLING_SETTINGS: Final = (
    "rds.logical_replication",
    "rds.extensions",
    "cloudsql.logical_decoding",
    "cloudsql.iam_authentication",
    "azure.extensions",
    "supautils.privileged_role",
    "neon.tenant_id",
    "data_directory",
    "config_file",
)
"""Settings by which a service is told; those that a server lacks are left out."""

TELLING_ROLES: Final = (
    "rds_superuser",
    "rds_replication",
    "cloudsqlsuperuser",
    "azure_pg_admin",
    "supabase_admin",
    "neon_superuser",
)
"""Roles by which a service is told."""


class Service(NamedTuple):
    """A way of running PostgreSQL.

    Attributes:
        name: What people call it.
        managed: Whether somebody else runs it, so that nobody is a superuser.
        change: How a server setting is changed: given name and value, a sentence with the
            statements and commands in backticks.
        replicate: How a role is given the right to replicate: given its quoted name.
    """

    name: str
    managed: bool
    change: Callable[[str, str], str]
    replicate: Callable[[str], str]


def recognise(settings: Mapping[str, str], roles: Collection[str]) -> Service:
    """Tell which service a server belongs to.

    Args:
        settings: Those of :data:`TELLING_SETTINGS` that the server has and shows.
        roles: Those of :data:`TELLING_ROLES` that exist in it.

    Returns:
        The service; ``a server of your own`` if nothing tells of another.
    """
    prefixes = {name.partition(".")[0] for name in settings if "." in name}
    if "neon" in prefixes or "neon_superuser" in roles:
        return _NEON
    if "supautils" in prefixes or "supabase_admin" in roles:
        return _SUPABASE
    if "rds" in prefixes or {"rds_superuser", "rds_replication"} & set(roles):
        return _RDS
    if "cloudsql" in prefixes or "cloudsqlsuperuser" in roles:
        return _CLOUD_SQL
    if "azure" in prefixes or "azure_pg_admin" in roles:
        return _AZURE
    return _own_server(settings.get("data_directory", ""), settings.get("config_file", ""))


def _own_server(data_directory: str, config_file: str) -> Service:
    name, restart = "a server of your own", "restart the server"
    parts = config_file.split("/")
    if config_file.startswith("/etc/postgresql/"):
        version, cluster = parts[3:5]
        name = "a server of your own (Debian or Ubuntu)"
        restart = f"restart it with `sudo systemctl restart postgresql@{version}-{cluster}`"
    elif "/homebrew/var/" in data_directory or data_directory.startswith("/usr/local/var/postgres"):
        name = "a server of your own (Homebrew)"
        restart = f"restart it with `brew services restart {data_directory.rpartition('/')[2]}`"
    elif data_directory.startswith("/var/lib/pgsql/"):
        name = "a server of your own (Red Hat)"
        version = data_directory.split("/")[4]
        unit = f"postgresql-{version}" if version.isdigit() else "postgresql"
        restart = f"restart it with `sudo systemctl restart {unit}`"
    elif data_directory.startswith("/var/lib/postgresql/"):
        name = "a server of your own (the Docker image)"
        restart = "restart its container (docker restart and the container's name)"
    elif data_directory:
        restart = f"restart it with `pg_ctl restart -D {data_directory}`"

    def change(setting: str, value: str) -> str:
        then = restart if setting in _AT_START else "`SELECT pg_reload_conf()`"
        return f"as a superuser run `ALTER SYSTEM SET {setting} = '{value}'`, then {then}"

    return Service(name, False, change, _attribute)


def _attribute(role: str) -> str:
    return f"as a superuser run `ALTER ROLE {role} REPLICATION`"


def _rds(setting: str, value: str) -> str:
    if setting == "wal_level":
        setting, value = "rds.logical_replication", "1"
    then = "reboot the writer instance" if setting in _AT_START else "it applies by itself"
    return (
        f"set {setting} = {value} in the DB parameter group (Aurora: the DB cluster parameter "
        f"group) of the instance; {then}"
    )


def _cloud_sql(setting: str, value: str) -> str:
    if setting == "wal_level":
        setting, value = "cloudsql.logical_decoding", "on"
    return (
        f"set the database flag {setting} = {value} (gcloud sql instances patch INSTANCE "
        "--database-flags; it replaces all flags, so name the others too). The instance restarts"
    )


def _azure(setting: str, value: str) -> str:
    return (
        f"set the server parameter {setting} = {value} (az postgres flexible-server parameter "
        "set), then restart the server from the portal"
    )


def _supabase(setting: str, value: str) -> str:
    return (
        f"set {setting} = {value} with the Supabase CLI (supabase postgres-config update "
        f"--config {setting}={value}); it restarts the database where that is needed. Use the "
        "direct connection's URL, not the pooler's"
    )


def _neon(setting: str, value: str) -> str:
    if setting == "wal_level":
        return (
            "enable logical replication in the Neon console (project settings, Logical "
            "Replication); all computes restart. Use the direct connection's URL, not the pooler's"
        )
    return f"ask Neon's support for {setting} = {value}; it cannot be set in the console"


_AT_START: Final = (
    "wal_level",
    "rds.logical_replication",
    "max_replication_slots",
    "max_wal_senders",
)
_RDS: Final = Service(
    "Amazon RDS or Aurora",
    True,
    _rds,
    lambda role: f"as the master user run `GRANT rds_replication TO {role}`",
)
_CLOUD_SQL: Final = Service(
    "Google Cloud SQL",
    True,
    _cloud_sql,
    lambda role: f"as a member of cloudsqlsuperuser run `ALTER ROLE {role} REPLICATION`",
)
_AZURE: Final = Service(
    "Azure Database for PostgreSQL",
    True,
    _azure,
    lambda role: f"as a member of azure_pg_admin run `ALTER ROLE {role} REPLICATION`",
)
_SUPABASE: Final = Service(
    "Supabase",
    True,
    _supabase,
    lambda role: f"as the role postgres run `ALTER ROLE {role} REPLICATION`",
)
_NEON: Final = Service(
    "Neon",
    True,
    _neon,
    lambda role: (
        f"make the role in the Neon console, where roles get REPLICATION (then {role} is theirs)"
    ),
)


def quoted(name: str) -> str:
    """Quote an identifier for a statement that is shown."""
    return sql.Identifier(name).as_string(None)
