"""What a list of changes must be read with: how far it is complete, and what it cannot hold; pure.

A history has this of its own record; a list across records has it of its sources and tables.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, select

from pgaudit_ctx.reading.extent import CompleteUpTo, Gap, Table, complete_of, extent_of, gaps_of
from pgaudit_ctx.reading.trail import coverage


class Caveats(NamedTuple):
    """What holds for the changes of one source.

    Attributes:
        source: Its name.
        complete_up_to: Up to where nothing is missing but what ``gaps`` says.
        gaps: What was lost, or in which the table that was asked for was not captured, in order.
        rejected: Whether the destination refused a change that is not stored yet.
    """

    source: str
    complete_up_to: CompleteUpTo
    gaps: Sequence[Gap]
    rejected: bool


def select_covered(source: str | None, table: str | None) -> Select[Any]:
    """Ask which tables were ever captured: source, schema and name.

    Args:
        source: Of this source only.
        table: Of this name only, with or without its schema.
    """
    covered = select(coverage.c.source, coverage.c.schema_name, coverage.c.table_name).distinct()
    if source is not None:
        covered = covered.where(coverage.c.source == source)
    if table is not None:
        schema, _, name = table.rpartition(".")
        covered = covered.where(coverage.c.table_name == name)
        if schema:
            covered = covered.where(coverage.c.schema_name == schema)
    return covered


def caveats_of(
    facts: Iterable[Any],
    covered: Sequence[tuple[str, str, str]],
    *,
    holes: bool,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
) -> list[Caveats]:
    """Read what :func:`pgaudit_ctx.reading.extent_facts.select_extent` found of these tables.

    Args:
        facts: Its rows, in any order.
        covered: Rows of :func:`select_covered`.
        holes: Whether holes in the coverage of the tables count, beside what their source lost.
        since: Leave out what ended before.
        until: Leave out what began at this or after it.

    Returns:
        One for each source, in order of their names.
    """
    rows = list(facts)
    found = []
    for source in sorted({source for source, *_ in covered}):
        own = [row for row in rows if row.source == source]
        if not any(row.fact == "checkpoint" for row in own):
            continue  # nothing was captured yet
        gaps = set(gaps_of(own))
        if holes:
            for _, schema, table in (row for row in covered if row[0] == source):
                one: list[Table] = [(schema, table)]
                gaps.update(extent_of(own, one, source, f"{schema}.{table}").gaps)
        touching = [
            gap
            for gap in gaps
            if (until is None or gap.from_time < until)
            and (since is None or gap.to_time is None or gap.to_time >= since)
        ]
        touching.sort(key=lambda gap: (gap.from_time, gap.epoch, gap.cause))
        rejected = any(row.fact == "rejected" for row in own)
        found.append(Caveats(source, complete_of(own), touching, rejected))
    return found
