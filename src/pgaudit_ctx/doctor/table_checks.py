"""Checks of the source's tables: whether each is captured, whole, and at what price."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from pgaudit_ctx.doctor.facts import Destination, Facts, Source, TableDetail
from pgaudit_ctx.doctor.finding import Finding, Group, State
from pgaudit_ctx.doctor.wording import command, few, size
from pgaudit_ctx.source.catalog import SourceTable
from pgaudit_ctx.source.plan import cannot_be_captured
from pgaudit_ctx.source.selection import Selection
from pgaudit_ctx.source.service import quoted

_VERSION_WITH_GENERATED: Final = 18_00_00
_LARGE_VALUE: Final = 100 * 2**20
_DEAR: Final = 10.0
_MOST_DEAR: Final = 3


def check_tables(facts: Facts, source: Source) -> Iterator[Finding]:
    """Check the tables that were chosen."""
    end = facts.destination
    trail = end.trail if isinstance(end, Destination) else None
    selection = Selection.from_arguments(trail.selection if trail else {})
    chosen = [table for table in source.tables if selection.takes(table)]
    left_out = len(source.tables) - len(chosen)
    tracked = dict(trail.tracked) if trail else {}
    # What is published is captured, chosen or not.
    published = [table for table in source.tables if table.published and not table.partition]
    sent = {table.root for table in published}
    captured = [table for table in source.tables if table.root in sent]
    yield _published(facts, chosen, left_out)
    yield _identity(captured, tracked)
    yield _partitions(facts, captured, tracked)
    yield _generated(facts, source, captured)
    yield _primary_key(published)
    yield _unlogged(facts, chosen)
    yield _policies(source, captured)
    yield _large_values(source, captured)
    yield _price_of_full(facts, source, captured)
    yield _secrets(facts, source, published, trail.hidden if trail else {})


def _published(facts: Facts, chosen: Sequence[SourceTable], left_out: int) -> Finding:
    check = "tables_published"
    missing = [
        table
        for table in chosen
        if not table.partition and not table.published and cannot_be_captured(table) is None
    ]
    if missing:
        remedy = f"run {command(facts.names, 'setup')}"
        strangers = sorted({table.owner for table in missing if not table.ours})
        if strangers:
            remedy += f"; as a member of {', '.join(map(quoted, strangers))} or a superuser"
        return Finding(
            check,
            Group.COVERAGE,
            State.PROBLEM,
            f"{len(missing)} not captured: {few(table.qualified for table in missing)}",
            remedy,
        )
    count = sum(table.published and not table.partition for table in chosen)
    note = f", {left_out} left out by choice" if left_out else ""
    return Finding(check, Group.COVERAGE, State.OK, f"{count} table(s) are captured{note}")


def _wanted(table: SourceTable, tracked: dict[str, str]) -> str:
    decided = tracked.get(table.qualified)
    if decided in {"DEFAULT", "FULL"}:
        return decided[0].lower()
    return "d" if table.virtual_columns else "f"


def _weaker(table: SourceTable, tracked: dict[str, str]) -> bool:
    return table.identity not in {"f", _wanted(table, tracked)} and not table.virtual_columns


def _identity(captured: Sequence[SourceTable], tracked: dict[str, str]) -> Finding:
    check = "replica_identity"
    wrong = [table for table in captured if not table.partition and _weaker(table, tracked)]
    if not wrong:
        weak = [table.qualified for table in captured if table.identity != "f"]
        note = f" (weaker by choice: {few(weak)})" if weak else ""
        return Finding(check, Group.COVERAGE, State.OK, f"old rows reach the log{note}")
    breaking = [
        table
        for table in wrong
        if table.identity == "n" or (table.identity == "d" and not table.key_columns)
    ]
    return Finding(
        check,
        Group.COVERAGE,
        State.PROBLEM,
        f"old values are missing from {few(table.qualified for table in wrong)}"
        + (
            f"; UPDATE and DELETE of {few(table.qualified for table in breaking)} fail for the "
            "application"
            if breaking
            else ""
        ),
        f"on the source run {', '.join(_identity_statement(table, 'FULL') for table in wrong)}",
    )


def _identity_statement(table: SourceTable, identity: str) -> str:
    return f"`ALTER TABLE {quoted(table.schema)}.{quoted(table.name)} REPLICA IDENTITY {identity}`"


def _partitions(facts: Facts, captured: Sequence[SourceTable], tracked: dict[str, str]) -> Finding:
    check = "partitioned"
    parts = [table for table in captured if table.partition and not table.partitioned]
    wrong = [table for table in parts if _weaker(table, tracked)]
    if wrong:
        return Finding(
            check,
            Group.COVERAGE,
            State.PROBLEM,
            f"old values are missing from the partitions {few(t.qualified for t in wrong)}",
            f"run {command(facts.names, 'setup')}",
        )
    evidence = f"{len(parts)} partition(s), sent as their root" if parts else "no partitions"
    return Finding(check, Group.COVERAGE, State.OK, evidence)


def _generated(facts: Facts, source: Source, captured: Sequence[SourceTable]) -> Finding:
    check = "generated_columns"
    if source.server.version < _VERSION_WITH_GENERATED:
        return Finding(check, Group.COVERAGE, State.OK, "do not matter before PostgreSQL 18")
    broken = [table for table in captured if table.virtual_columns and table.identity == "f"]
    if broken:
        return Finding(
            check,
            Group.COVERAGE,
            State.PROBLEM,
            f"virtual columns together with identity FULL: every UPDATE and DELETE of "
            f"{few(table.qualified for table in broken)} fails for the application",
            "on the source run "
            + ", ".join(_identity_statement(table, "DEFAULT") for table in broken),
        )
    stored = [
        table.qualified
        for table in captured
        if _detail(source, table, lambda detail: detail.stored_generated)
    ]
    if stored and not source.publishes_generated:
        return Finding(
            check,
            Group.COVERAGE,
            State.PROBLEM,
            f"stored generated columns are not published: UPDATE and DELETE of {few(stored)} fail "
            "for the application",
            f"on the source run `ALTER PUBLICATION {quoted(facts.names.publication)} SET "
            "(publish_generated_columns = stored)`",
        )
    virtual = [table.qualified for table in captured if table.virtual_columns]
    note = f"virtual ones keep identity DEFAULT: {few(virtual)}" if virtual else "none in the way"
    return Finding(check, Group.COVERAGE, State.OK, note)


def _detail(source: Source, table: SourceTable, ask: Callable[[TableDetail], bool]) -> bool:
    detail = source.details.get(table.oid)
    return detail is not None and ask(detail)


def _primary_key(published: Sequence[SourceTable]) -> Finding:
    check = "primary_key"
    without = [table for table in published if not table.key_columns]
    if without:
        return Finding(
            check,
            Group.COVERAGE,
            State.WARNING,
            f"no record of {few(table.qualified for table in without)} has a history of its own, "
            "because the table has no primary key",
            f"on the source run `ALTER TABLE {quoted(without[0].schema)}."
            f"{quoted(without[0].name)} ADD PRIMARY KEY (…)` with the columns that identify a row",
        )
    return Finding(check, Group.COVERAGE, State.OK, "each captured table has one")


def _unlogged(facts: Facts, chosen: Sequence[SourceTable]) -> Finding:
    check = "unlogged"
    found = [table for table in chosen if table.unlogged]
    if found:
        statements = ", ".join(
            f"`ALTER TABLE {quoted(t.schema)}.{quoted(t.name)} SET LOGGED`" for t in found
        )
        return Finding(
            check,
            Group.COVERAGE,
            State.WARNING,
            f"changes of {few(table.qualified for table in found)} never reach the log",
            f"on the source run {statements} (it rewrites the table), then run "
            f"{command(facts.names, 'setup')}; or leave it out with setup --exclude",
        )
    return Finding(check, Group.COVERAGE, State.OK, "no table is UNLOGGED")


def _policies(source: Source, captured: Sequence[SourceTable]) -> Finding:
    check = "row_level_security"
    found = [
        table.qualified
        for table in captured
        if _detail(source, table, lambda detail: detail.policies)
    ]
    if not found:
        return Finding(check, Group.COVERAGE, State.OK, "no table hides rows")
    if source.server.bypasses_policies:
        return Finding(check, Group.COVERAGE, State.OK, f"{few(found)}; the role sees all rows")
    return Finding(
        check,
        Group.COVERAGE,
        State.WARNING,
        f"changes of {few(found)} are captured, but a snapshot would not see every row: "
        f"{source.server.user} is subject to its policies",
        f"as a superuser of the source run `ALTER ROLE {quoted(source.server.user)} BYPASSRLS`",
    )


def _large_values(source: Source, captured: Sequence[SourceTable]) -> Finding:
    check = "large_values"
    found = [
        (table, detail.largest_value)
        for table in captured
        if (detail := source.details.get(table.oid)) is not None
        and detail.largest_value is not None
        and detail.largest_value > _LARGE_VALUE
    ]
    if not found:
        return Finding(check, Group.COVERAGE, State.OK, f"none over {size(_LARGE_VALUE)} was found")
    shown = few(f"{table.qualified} ({size(largest)})" for table, largest in found)
    first = found[0][0].qualified
    return Finding(
        check,
        Group.COVERAGE,
        State.WARNING,
        f"{shown}: an UPDATE whose old and new row together exceed 1 GB cannot be decoded and "
        "stops the slot",
        "keep only the key of old rows: `pgaudit-ctx setup --identity "
        f"{first}=default`; or move such values out of the table",
    )


def price_of_full(detail: TableDetail) -> float | None:
    """Estimate by which factor FULL multiplies the log of a small UPDATE; ``None`` if unknown.

    Without FULL an UPDATE writes the new row, and none of the large values it leaves alone. With
    FULL it also writes the old row, with every large value (PostgreSQL documentation: "Replica
    Identity", "TOAST").
    """
    if detail.rows < 1 or not detail.bytes:
        return None
    row, toasted = detail.bytes / detail.rows, detail.toast_bytes / detail.rows
    return (2 * row + toasted) / row


def _price_of_full(facts: Facts, source: Source, captured: Sequence[SourceTable]) -> Finding:
    check = "wal_factor"
    factors = [
        (factor, table)
        for table in captured
        if table.identity == "f"
        and (detail := source.details.get(table.oid)) is not None
        and (factor := price_of_full(detail)) is not None
    ]
    if not factors:
        return Finding(check, Group.COVERAGE, State.OK, "not known: no table has statistics yet")
    factors.sort(key=lambda pair: (-pair[0], pair[1].qualified))
    shown = ", ".join(f"{table.qualified} x{factor:.1f}" for factor, table in factors[:_MOST_DEAR])
    dear = [
        table
        for factor, table in factors
        if factor > _DEAR and not table.partition and table.key_columns
    ]
    evidence = f"identity FULL multiplies the log of a small UPDATE by about: {shown}"
    if not dear:
        return Finding(check, Group.COVERAGE, State.OK, evidence)
    options = [word for table in dear for word in ("--identity", f"{table.qualified}=default")]
    return Finding(
        check,
        Group.COVERAGE,
        State.WARNING,
        evidence,
        f"accept it, or give up the old values: {command(facts.names, 'setup', *options)}",
    )


def _secrets(
    facts: Facts,
    source: Source,
    published: Sequence[SourceTable],
    hidden: Mapping[int, Sequence[str]],
) -> Finding:
    check = "secrets"
    found = [
        (table, column)
        for table in published
        if (detail := source.details.get(table.oid)) is not None
        for column in detail.suspicious
        if column not in hidden.get(table.oid, ())
    ]
    if not found:
        return Finding(check, Group.COVERAGE, State.OK, "no column looks like a secret")
    shown = few(f"{table.qualified}.{column}" for table, column in found)
    table, column = found[0]
    rule = f"{table.qualified}.{column}=mask"
    name = f"{quoted(table.schema)}.{quoted(table.name)}"
    return Finding(
        check,
        Group.COVERAGE,
        State.WARNING,
        f"{shown}: looks like a secret by its name, and is kept in the trail as it is",
        f"let the worker blank it: {command(facts.names, 'worker', '--redact-column', rule)}; or "
        "leave the table out: "
        f"`ALTER PUBLICATION {quoted(facts.names.publication)} DROP TABLE {name}`, then "
        f"{command(facts.names, 'setup', '--exclude', table.qualified)}",
    )
