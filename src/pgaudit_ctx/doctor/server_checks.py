"""Checks of a server as a whole: version, settings, rights, transport."""

from collections.abc import Iterator
from typing import Final

from pgaudit_ctx.doctor.facts import Destination, Facts, Server, Source
from pgaudit_ctx.doctor.finding import Finding, Group, State
from pgaudit_ctx.doctor.wording import command
from pgaudit_ctx.source.service import Service, quoted, recognise

_OLDEST: Final = 14_00_00
_KEEP_SIZE: Final = "--max-slot-wal-keep-size"


def check_source_server(facts: Facts, source: Source) -> Iterator[Finding]:
    """Check what the source's server as a whole must have."""
    server = source.server
    service = recognise(server.settings, server.roles)
    yield _version(Group.SOURCE, server, "a source that sends logical decoding messages")
    yield _primary(server)
    yield _encoding(server)
    yield _wal_level(server, service)
    yield _room(
        service, server, "max_replication_slots", source.slots_used, needed=source.slot is None
    )
    active = source.slot is not None and source.slot.active_pid is not None
    yield _room(service, server, "max_wal_senders", source.senders_used, needed=not active)
    yield _keep_size(facts, server, service)
    yield _rights(server, service)
    yield check_transport(Group.SOURCE, server)


def _version(group: Group, server: Server, need: str) -> Finding:
    shown = f"PostgreSQL {server.settings.get('server_version', server.version // 10000)}"
    if server.version < _OLDEST:
        return Finding(
            "server_version",
            group,
            State.PROBLEM,
            f"{shown}; {need} needs 14 or newer",
            "upgrade the server",
        )
    return Finding("server_version", group, State.OK, shown)


def check_destination_server(server: Server) -> Iterator[Finding]:
    """Check what the destination's server as a whole must have."""
    yield _version(Group.DESTINATION, server, "a destination that holds the trail")
    yield _writable(server)
    yield check_transport(Group.DESTINATION, server)


def _primary(server: Server) -> Finding:
    if server.in_recovery:
        return Finding(
            "primary",
            Group.SOURCE,
            State.PROBLEM,
            "the server is a standby, which nothing can be set up on",
            "use the primary's address in the source's URL",
        )
    return Finding("primary", Group.SOURCE, State.OK, "the server is a primary")


def _writable(server: Server) -> Finding:
    if server.in_recovery:
        return Finding(
            "writable",
            Group.DESTINATION,
            State.PROBLEM,
            "the server is a standby, on which nothing can be stored",
            "use the primary's address in the destination's URL",
        )
    if server.settings.get("default_transaction_read_only") == "on":
        return Finding(
            "writable",
            Group.DESTINATION,
            State.PROBLEM,
            "the server is read-only: default_transaction_read_only is on",
            "see who has set it and why (managed services do when the disk is nearly full), make "
            "room, and set it off",
        )
    return Finding("writable", Group.DESTINATION, State.OK, "the server takes writes")


def _encoding(server: Server) -> Finding:
    encoding = server.settings.get("server_encoding", "?")
    if encoding == "SQL_ASCII":
        return Finding(
            "encoding",
            Group.SOURCE,
            State.PROBLEM,
            "the database's encoding is SQL_ASCII, so nobody knows what its text means",
            "dump the database and restore it into one with ENCODING 'UTF8'",
        )
    return Finding("encoding", Group.SOURCE, State.OK, encoding)


def _wal_level(server: Server, service: Service) -> Finding:
    level = server.settings.get("wal_level", "?")
    if level == "logical":
        return Finding("wal_level", Group.SOURCE, State.OK, "logical")
    return Finding(
        "wal_level",
        Group.SOURCE,
        State.PROBLEM,
        f"wal_level = {level} on {service.name}; the log carries row changes only at logical",
        change_setting(server, service, "wal_level", "logical"),
    )


def change_setting(server: Server, service: Service, name: str, value: str) -> str:
    """Say how a setting is changed where this server runs."""
    if name in server.fixed:
        return (
            f"{name} stands on the server's command line, which wins over every file: change it "
            f"there to {name}={value} and restart the server"
        )
    if not service.managed and not server.superuser:
        return f"ask the server's administrator: {service.change(name, value)}"
    return service.change(name, value)


def _room(service: Service, server: Server, name: str, used: int, *, needed: bool) -> Finding:
    limit = int(server.settings.get(name, "0"))
    evidence = f"{used} of {limit} in use"
    if limit - used > 0 or not needed:
        return Finding(name, Group.SOURCE, State.OK, evidence)
    remedy = change_setting(server, service, name, str(max(2 * limit, 10)))
    return Finding(name, Group.SOURCE, State.PROBLEM, f"{evidence}: none is free for us", remedy)


def _keep_size(facts: Facts, server: Server, service: Service) -> Finding:
    name = "max_slot_wal_keep_size"
    limit = int(server.settings.get(name, "-1"))
    if limit >= 0:
        return Finding(
            name,
            Group.SOURCE,
            State.OK,
            f"{limit} MB: past it the slot is lost, and the application is safe",
        )
    end = facts.destination
    trail = end.trail if isinstance(end, Destination) else None
    if trail is not None and trail.decided.get(name) == "unlimited":
        return Finding(
            name, Group.SOURCE, State.OK, "unlimited, as was decided: the trail comes first"
        )
    return Finding(
        name,
        Group.SOURCE,
        State.WARNING,
        "unlimited, and nobody has decided so: while the worker is away the log grows until the "
        "disk is full, and then the application stops",
        f"to protect the trail run {command(facts.names, 'setup', _KEEP_SIZE, 'unlimited')}; to "
        f"protect the application instead: {change_setting(server, service, name, '50GB')}",
    )


def _rights(server: Server, service: Service) -> Finding:
    who = f"the role {server.user}"
    if server.may_replicate:
        return Finding("role", Group.SOURCE, State.OK, f"{who} may replicate")
    return Finding(
        "role",
        Group.SOURCE,
        State.PROBLEM,
        f"{who} may not replicate",
        service.replicate(quoted(server.user)),
    )


def check_transport(group: Group, server: Server) -> Finding:
    """Check that nobody between the worker and a server can read or pose as it."""
    local, encrypted, sslmode = server.transport
    if local:
        return Finding("tls", group, State.OK, "on this machine (loopback or Unix socket)")
    if not encrypted:
        return Finding(
            "tls",
            group,
            State.PROBLEM,
            "plain text: rows and passwords can be read on their way",
            "let the server speak TLS (ssl = on, with a certificate), and append "
            "sslmode=verify-full to its URL, with sslrootcert=system or the authority's file",
        )
    if sslmode != "verify-full":
        return Finding(
            "tls",
            group,
            State.WARNING,
            f"encrypted, but sslmode={sslmode or 'prefer'} does not check who answers",
            "append sslmode=verify-full to its URL, with sslrootcert=system or the authority's "
            "file",
        )
    return Finding("tls", group, State.OK, "encrypted, and the server's name was checked")
