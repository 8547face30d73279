"""The thin shell of the doctor: connects, looks, and hands over plain facts."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final, TypeVar

import psycopg

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.doctor.destination_facts import read_destination
from pgaudit_ctx.doctor.facts import Activity, Destination, Facts, Limits, Names, Slot, Source
from pgaudit_ctx.doctor.lag import stored_up_to
from pgaudit_ctx.doctor.source_facts import read_source
from pgaudit_ctx.errors import DatabaseError
from pgaudit_ctx.source import catalog
from pgaudit_ctx.wal.lsn import parse_lsn

T = TypeVar("T")
Connection = psycopg.Connection[Any]

_LOOKS_APART: Final = 1.0


def gather(
    source: str | None,
    destination: str | None,
    names: Names,
    limits: Limits,
    version: str,
) -> Facts:
    """Look at both ends; what cannot be reached is a fact too.

    Args:
        source: The source's URL, if one was named.
        destination: The destination's.
        names: Slot, publication and source; an empty ``source`` means its database's name.
        limits: From how many bytes on something is a problem.
        version: Of this package.

    Returns:
        What the checks are made from.
    """
    facts = _gather(source, destination, names, limits, version, thorough=True)
    seen = facts.source
    if isinstance(seen, Source) and source is not None and seen.slot is not None:
        end = facts.destination
        trail = end.trail if isinstance(end, Destination) else None
        stored = stored_up_to(seen, None if trail is None else trail.checkpoint)
        late = seen.position - stored > limits.lag
        if seen.slot.active_pid is not None and late:
            return facts._replace(activity=_watch(source, destination, names, seen.slot))
    return facts


def glance(source: str, destination: str, names: Names, limits: Limits, version: str) -> Facts:
    """Look at both ends as :func:`gather` does, but only at positions and counts."""
    return _gather(source, destination, names, limits, version, thorough=False)


def _gather(
    source: str | None,
    destination: str | None,
    names: Names,
    limits: Limits,
    version: str,
    *,
    thorough: bool,
) -> Facts:
    seen = _look(source, "source", lambda c: read_source(c, names, thorough=thorough))
    if not names.source:
        database = seen.server.database if isinstance(seen, Source) else ""
        names = names._replace(source=database)
    trail = _look(
        destination, "destination", lambda c: read_destination(c, names, thorough=thorough)
    )
    return Facts(names, limits, seen, trail, None, version)


def _look(url: str | None, place: str, look: Callable[[Connection], T]) -> T | str | None:
    if url is None:
        return None
    try:
        with closing(connect(url, place)) as connection:
            return look(connection)
    except DatabaseError as error:
        return str(error)
    except psycopg.Error as error:
        return str(refusal(error, f"look at the {place}"))


def _watch(source: str, destination: str | None, names: Names, slot: Slot) -> Activity | None:
    """Look twice at who is busy, a moment apart."""
    try:
        with closing(connect(source, "source")) as connection:
            first, started = _amounts(connection, names), time.monotonic()
            time.sleep(_LOOKS_APART)
            second, seconds = _amounts(connection, names), time.monotonic() - started
            row = connection.execute(
                "SELECT r.sent_lsn::text, a.wait_event FROM pg_stat_replication r"
                " JOIN pg_stat_activity a USING (pid) WHERE r.pid = %s",
                [slot.active_pid],
            ).fetchone()
    except (DatabaseError, psycopg.Error):
        return None
    sent, wait = row if row is not None else (None, None)
    state = _look(destination, "destination", _sink)
    return Activity(
        second[0],
        None if sent is None else parse_lsn(sent),
        (second[0] - first[0]) / seconds,
        (second[1] - first[1]) / seconds,
        wait,
        *(state if isinstance(state, tuple) else (None, None)),
    )


def _amounts(connection: Connection, names: Names) -> tuple[int, int]:
    state = catalog.read_slot(connection, names.slot)
    return catalog.read_position(connection).lsn, 0 if state is None else state.confirmed_flush


def _sink(connection: Connection) -> tuple[str | None, str | None]:
    row = connection.execute(
        "SELECT state, wait_event FROM pg_stat_activity"
        " WHERE application_name = 'pgaudit_ctx destination' AND pid <> pg_backend_pid()"
        " ORDER BY state = 'active' DESC NULLS LAST LIMIT 1"
    ).fetchone()
    return (None, None) if row is None else (row[0], row[1])
