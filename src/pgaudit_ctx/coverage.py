"""A look at the source's catalog: which tables are captured, how, and since when; what was not."""

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pgaudit_ctx.destination.coverage import (
    CoveredTable,
    RecordedFilters,
    filters_in_force,
    record_coverage,
)
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.source import catalog
from pgaudit_ctx.wal.filters import Filters

log = logging.getLogger(__name__)


def look(
    source: Connection,
    destination: Connection,
    name: str,
    epoch: int,
    publication: str,
    filters: Filters,
    *,
    since: catalog.Position | None = None,
    keep_filters: bool = False,
) -> None:
    """Compare the source's catalog with what is known to be covered, and write down the rest.

    A table that is not published any more, or was not for a while, is a hole, and logged as one.

    Args:
        source: An ordinary connection to the audited database.
        destination: To the trail.
        name: The source's.
        epoch: The current one.
        publication: The publication's name.
        filters: The worker's.
        since: From where on what is published has been, if that is known; from now on by default.
        keep_filters: Leave the filters as the worker that ran last had them.

    Raises:
        UsageError: If a filter blanks a column of a primary key; logged under ``keep_filters``.
    """
    before = catalog.read_position(source)
    published = published_tables(source, publication)
    known = filters_in_force(destination, name) if keep_filters else {}
    if not keep_filters:
        _name_unmatched(published, filters)
    try:
        refuse_blanked_keys(published, filters, known)
    except UsageError as error:
        if not keep_filters:
            raise
        log.warning("%s", error)  # of a new table; all others are looked at as ever
    covered, excluded = apply_filters(published, filters, known)
    holes = record_coverage(
        destination,
        name,
        epoch,
        *(since or catalog.read_position(source)),
        publication,
        covered,
        excluded,
        looked_from=before,
    )
    for table in holes:
        log.warning(
            "%s was not published for a while, or not all of it: what was written to it then is a "
            "hole in its coverage. Remedy: see that the publication %r has it, and run pgaudit-ctx "
            "snapshot --again for a new baseline",
            table,
            publication,
        )


def published_tables(source: Connection, publication: str) -> Sequence[catalog.SourceTable]:
    """Give the tables that a publication sends whole; partitions are sent as their table."""
    state = catalog.read_publication(source, publication)
    if state is None or not state.sends_everything:
        return []
    return [
        table
        for table in catalog.read_tables(source, publication)
        if table.published and not table.partition and table.oid not in state.filtered_oids
    ]


def refuse_blanked_keys(
    tables: Sequence[catalog.SourceTable],
    filters: Filters,
    known: Mapping[int, RecordedFilters] = MappingProxyType({}),
) -> None:
    """Refuse rules that leave out or blank a column of a primary key; arguments as below.

    Raises:
        UsageError: With the remedy.
    """
    for table in tables:
        rules = filters.rules(table.schema, table.name, table.columns)
        blanked = {*rules.ignored, *rules.redacted}.intersection(table.key_columns)
        if blanked and not rules.excluded and table.oid not in known:
            raise UsageError(
                f"{', '.join(sorted(blanked))} cannot be ignored or redacted: it belongs to the "
                f"primary key of {table.qualified}, which says whose history a change is. Remedy: "
                "leave it out of --ignore-column and --redact-column, or exclude the table"
            )


def apply_filters(
    tables: Sequence[catalog.SourceTable],
    filters: Filters,
    known: Mapping[int, RecordedFilters] = MappingProxyType({}),
) -> tuple[Sequence[CoveredTable], set[int]]:
    """Say what is covered, and how; pure.

    Args:
        tables: The tables that are published.
        filters: The rules.
        known: Rules that are in force already, by the oids of tables; they come before the others.

    Returns:
        The tables that are captured, and the oids of those that a rule excludes. A table is
        captured without its key if a rule leaves out or blanks a column of it.
    """
    covered = []
    excluded = set()
    for table in tables:
        if table.oid in known:
            out, ignored, redacted = known[table.oid]
        else:
            rules = filters.rules(table.schema, table.name, table.columns)
            out, ignored, redacted = rules.excluded, list(rules.ignored), rules.redactions
        if out:
            excluded.add(table.oid)
        else:
            blanked = {*ignored, *(rule.partition("=")[0] for rule in redacted)}
            whole = blanked.isdisjoint(table.key_columns)
            covered.append(
                CoveredTable(
                    table.schema,
                    table.name,
                    table.oid,
                    table.key if whole else table.key._replace(columns=()),
                    table.identity,
                    ignored,
                    redacted,
                    table.membership,
                )
            )
    return covered, excluded


def _name_unmatched(published: Sequence[catalog.SourceTable], filters: Filters) -> None:
    for pattern in filters.unmatched([(t.schema, t.name, t.columns) for t in published]):
        log.warning("the filter %s fits no table or column that is captured", pattern)
