"""Checks of the destination and of what its trail says about this source."""

import datetime as dt
from collections.abc import Iterator
from typing import Final

from pgaudit_ctx.doctor.facts import Destination, Facts, Recent, Source, Trail
from pgaudit_ctx.doctor.finding import Finding, Group, State
from pgaudit_ctx.doctor.server_checks import check_destination_server
from pgaudit_ctx.doctor.wording import command, few
from pgaudit_ctx.source.selection import Selection
from pgaudit_ctx.source.service import quoted

_AHEAD: Final = dt.timedelta(days=2)
_UNEXPLAINED: Final = 0.1


def check_destination(facts: Facts, end: Destination) -> Iterator[Finding]:
    """Check the destination: server, schema, rights, room for what comes."""
    yield from check_destination_server(end.server)
    setup = command(facts.names, "setup", "--only", "destination")
    encoding = end.server.settings.get("server_encoding", "?")
    if encoding != "UTF8":
        yield Finding(
            "destination_encoding",
            Group.DESTINATION,
            State.PROBLEM,
            f"the database's encoding is {encoding}, which cannot hold every value",
            "choose a database made with ENCODING 'UTF8' TEMPLATE template0",
        )
    yield _schema_version(end, setup)
    if not end.migrations:
        return
    yield _partitions_ahead(end, setup)
    yield _rights(end)
    yield _append_only(end, setup)


def _schema_version(end: Destination, setup: str) -> Finding:
    check = "schema_version"
    missing = sorted(set(end.known_migrations) - set(end.migrations))
    newer = sorted(set(end.migrations) - set(end.known_migrations))
    if not end.migrations:
        return Finding(
            check, Group.DESTINATION, State.PROBLEM, "there is no trail here yet", f"run {setup}"
        )
    if newer:
        return Finding(
            check,
            Group.DESTINATION,
            State.PROBLEM,
            f"the schema has migration {newer[-1]}, this package knows {end.known_migrations[-1]}",
            "upgrade this package: `python -m pip install --upgrade pgaudit-ctx`",
        )
    if missing:
        return Finding(
            check,
            Group.DESTINATION,
            State.PROBLEM,
            f"the schema lacks the migrations {', '.join(map(str, missing))}",
            f"run {setup}",
        )
    return Finding(check, Group.DESTINATION, State.OK, f"migration {end.migrations[-1]}")


def _partitions_ahead(end: Destination, setup: str) -> Finding:
    check = "partitions_ahead"
    if end.covered_until is None or end.covered_until < end.now + _AHEAD:
        until = "no partition" if end.covered_until is None else f"none after {end.covered_until}"
        return Finding(check, Group.DESTINATION, State.WARNING, until, f"run {setup}")
    return Finding(
        check, Group.DESTINATION, State.OK, f"there is room until {end.covered_until:%Y-%m-%d}"
    )


def _rights(end: Destination) -> Finding:
    check, user = "destination_role", end.server.user
    if not end.missing_rights:
        return Finding(check, Group.DESTINATION, State.OK, f"{user} may write what a worker writes")
    statements = [
        f"`GRANT {right} ON pgaudit_ctx.{table} TO {quoted(user)}`"
        for right, _, table in (wanted.partition(" on ") for wanted in end.missing_rights)
    ]
    return Finding(
        check,
        Group.DESTINATION,
        State.PROBLEM,
        f"{user} lacks {few(end.missing_rights)}",
        f"as the owner of the destination's schema run {', '.join(statements)}",
    )


def _append_only(end: Destination, setup: str) -> Finding:
    check = "append_only"
    if not end.unguarded:
        return Finding(
            check, Group.DESTINATION, State.OK, "UPDATE, DELETE and TRUNCATE of changes are refused"
        )
    return Finding(
        check,
        Group.DESTINATION,
        State.PROBLEM,
        f"nothing keeps stored rows from being changed in {few(end.unguarded)}",
        f"run {setup}",
    )


def check_trail(facts: Facts, trail: Trail, source: Source | None) -> Iterator[Finding]:
    """Check what the trail knows that it does not know."""
    if trail.gaps:
        since, until, cause = trail.gaps[-1]
        yield Finding(
            "gaps",
            Group.WORKER,
            State.WARNING,
            f"{len(trail.gaps)} gap(s), the last from {_moment(since)} to {_moment(until)}: "
            f"{cause}",
            "nothing brings it back; reading says so where it matters",
        )
    else:
        yield Finding("gaps", Group.WORKER, State.OK, "none")
    if trail.rejected:
        yield Finding(
            "rejected",
            Group.WORKER,
            State.PROBLEM,
            f"{trail.rejected} change(s) were refused by the destination and wait",
            f"run {command(facts.names, 'rejected', 'list')}, remove the cause, then run "
            f"{command(facts.names, 'rejected', 'replay')}",
        )
    else:
        yield Finding("rejected", Group.WORKER, State.OK, "none")
    yield _holes(facts, trail, source)


def _holes(facts: Facts, trail: Trail, source: Source | None) -> Finding:
    check = "coverage_holes"
    selection = Selection.from_arguments(trail.selection)
    # Nobody misses a table that was dropped, or left out on purpose.
    missed = None if source is None else {t.oid for t in source.tables if selection.takes(t)}
    holes = [
        hole
        for hole in trail.holes
        if hole.until is not None or missed is None or hole.oid in missed
    ]
    if not holes:
        return Finding(check, Group.COVERAGE, State.OK, "none")
    shown = few(
        f"{hole.table} from {_moment(hole.since)} "
        f"{'on' if hole.until is None else f'to {_moment(hole.until)}'}"
        for hole in holes
    )
    still = any(hole.until is None for hole in holes)
    tables = sorted({hole.table for hole in holes})
    return Finding(
        check,
        Group.COVERAGE,
        State.PROBLEM,
        f"not captured: {shown}",
        (f"run {command(facts.names, 'setup')}, then " if still else "run ")
        + f"{command(facts.names, 'snapshot', *tables)}, so that the trail knows their rows again",
    )


def check_recent(recent: Recent, facts: Facts) -> Iterator[Finding]:
    """Check what was captured in the last day."""
    yield _shares(recent, facts)
    check = "commit_times"
    if recent.backwards is None:
        yield Finding(
            check, Group.COVERAGE, State.WARNING, "not looked at: it would have taken too long"
        )
    elif recent.backwards[0]:
        count, most = recent.backwards
        yield Finding(
            check,
            Group.COVERAGE,
            State.WARNING,
            f"{count} time(s) in the last day the source's clock went back by more than a second, "
            f"at most by {most.total_seconds():.1f} s",
            "see that its clock is slewed, not stepped (chrony or ntpd); order in the trail is not "
            "affected",
        )
    else:
        yield Finding(check, Group.COVERAGE, State.OK, "never ran backwards by more than a second")


def _shares(recent: Recent, facts: Facts) -> Finding:
    check = "context_share"
    if recent.shares is None:
        return Finding(
            check, Group.COVERAGE, State.WARNING, "not looked at: it would have taken too long"
        )
    if not recent.shares:
        return Finding(check, Group.COVERAGE, State.OK, "no change in the last day")
    shown = few(
        f"{share.table} {share.unexplained / share.changes:.0%} of {share.changes:,}"
        for share in sorted(recent.shares, key=lambda s: -s.unexplained / s.changes)
    )
    evidence = f"changes of the last day without context: {shown}"
    if any(share.unexplained > _UNEXPLAINED * share.changes for share in recent.shares):
        name = ("--name", facts.names.source)
        return Finding(
            check,
            Group.COVERAGE,
            State.WARNING,
            evidence,
            f"see which they are: `{' '.join(('pgaudit-ctx', 'log', '--without-context', *name))}`",
        )
    return Finding(check, Group.COVERAGE, State.OK, evidence)


def _moment(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
