"""All checks, in the order in which a person would make them; pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from pgaudit_ctx.doctor.facts import Destination, Facts, Source
from pgaudit_ctx.doctor.finding import Finding, Group, State
from pgaudit_ctx.doctor.server_checks import check_source_server
from pgaudit_ctx.doctor.slot_checks import check_publication, check_slot, check_worker
from pgaudit_ctx.doctor.table_checks import check_tables
from pgaudit_ctx.doctor.trail_checks import check_destination, check_recent, check_trail

_ORDER: Final = tuple(Group)


def examine(facts: Facts) -> Sequence[Finding]:
    """Make every check that can be made.

    Args:
        facts: What was seen.

    Returns:
        The findings, group by group.
    """
    return sorted(_all(facts), key=lambda finding: _ORDER.index(finding.group))


def _all(facts: Facts) -> Iterator[Finding]:
    source, end = facts.source, facts.destination
    yield _connection(Group.SOURCE, source)
    yield _connection(Group.DESTINATION, end)
    if isinstance(source, Source):
        yield from check_source_server(facts, source)
        if not source.server.in_recovery:
            yield from check_publication(facts, source)
            yield from check_slot(facts, source)
            yield from check_worker(facts, source)
            yield from check_tables(facts, source)
    if isinstance(end, Destination):
        yield from check_destination(facts, end)
        if end.trail is not None:
            known = source if isinstance(source, Source) else None
            yield from check_trail(facts, end.trail, known)
        if end.recent is not None:
            yield from check_recent(end.recent, facts)
    yield Finding("versions", Group.WORKER, State.OK, f"pgaudit-ctx {facts.package_version}")


def _connection(group: Group, seen: object) -> Finding:
    if seen is None:
        variable = f"PGAUDIT_CTX_{group.value.upper()}_URL"
        return Finding(
            "connection",
            group,
            State.WARNING,
            f"no {group} was named, so nothing of it was looked at",
            f"set {variable}, or pass --{group} postgresql://user@host/database",
        )
    if isinstance(seen, str):
        said, _, remedy = seen.partition(" Remedy: ")
        return Finding("connection", group, State.PROBLEM, said.rstrip(" ."), remedy)
    return Finding("connection", group, State.OK, "reached")
