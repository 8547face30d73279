"""From the rows of one record to its versions, in order, numbered, and valid from and to; pure."""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from pgaudit_ctx.change import Operation
from pgaudit_ctx.reading.extent import Relation, Table, is_undone
from pgaudit_ctx.reading.version import GONE, Trail, Version

M = TypeVar("M")


def build_trail(trail: Trail[M], rows: Iterable[Any]) -> Trail[M]:
    """Fill a trail with the versions that a record's rows make.

    Args:
        trail: Without versions.
        rows: Rows of ``changes`` in order, and every TRUNCATE of its tables.

    Returns:
        The same trail.
    """
    undone = trail.extent.undone
    lost: list[Any] = []
    kept: list[Any] = []
    for row in rows:
        (lost if is_undone(undone, row.epoch, str(row.commit_lsn)) else kept).append(row)
    siblings: dict[int, Version[M]] = {}
    for version in _versions(trail, kept, siblings):
        trail.versions.append(version)
    for epoch, of_epoch in groupby(lost, key=lambda row: int(row.epoch)):
        before = [row for row in kept if row.epoch <= epoch]
        own: dict[int, Version[M]] = {}
        for version in _versions(trail, [*before, *of_epoch], own, undone=True):
            if is_undone(undone, version.epoch, version.commit_lsn):
                trail.undone.append(version)
            else:
                own[version.number] = siblings[version.number]
    return trail


def _versions(
    trail: Trail[M], rows: Sequence[Any], siblings: dict[int, Version[M]], *, undone: bool = False
) -> Iterator[Version[M]]:
    merged = rows if len(trail.shape.tables) == 1 else list(_merged(trail, rows))
    relevant = list(_relevant(trail, merged))
    ends = _ends(relevant)
    for number, row in enumerate(relevant, start=1):
        yield _version(trail, row, number, ends[number - 1], siblings, undone=undone)


def _version(
    trail: Trail[M],
    row: Any,
    number: int,
    ends: dt.datetime | None,
    siblings: dict[int, Version[M]],
    *,
    undone: bool = False,
) -> Version[M]:
    made = Version(
        number,
        Operation(row.operation),
        row.committed_at,
        ends,
        row.transaction_id,
        str(row.commit_lsn),
        row.epoch,
        row,
        trail,
        siblings,
        undone,
    )
    siblings[number] = made
    return made


def _relevant(trail: Trail[Any], rows: Iterable[Any]) -> Iterator[Any]:
    """Leave out each TRUNCATE that found the record gone, or before its first trace."""
    alive = False
    for row in rows:
        if row.operation == Operation.TRUNCATE:
            if not alive:
                continue
            alive = False
        else:
            alive = row.operation != Operation.DELETE and tuple(row.primary_key) == trail.key
        yield row


def _ends(rows: Sequence[Any]) -> list[dt.datetime | None]:
    """Give ``valid_to`` of each row: the least commit time after it, never before its own.

    Commit times run backwards now and then, and order is not by time.
    """
    ends: list[dt.datetime | None] = []
    least: dt.datetime | None = None
    for row in reversed(rows):
        ends.append(None if least is None else max(least, row.committed_at))
        least = row.committed_at if least is None else min(least, row.committed_at)
    ends.reverse()
    return ends


@dataclass(frozen=True)
class MergedRow:
    """Stands for the rows of several tables that one flush changed; named like ``changes``."""

    source: str
    epoch: int
    commit_lsn: str
    ordinal: int
    transaction_id: int
    committed_at: dt.datetime
    captured_at: dt.datetime | None
    operation: str
    schema_name: str
    table_name: str
    primary_key: list[str] | None
    previous_key: list[str] | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    context: Mapping[str, Any] | None


def _merged(trail: Trail[Any], rows: Sequence[Any]) -> Iterator[MergedRow]:
    """Merge the changes of one flush, and carry the other tables' last images along."""
    images: dict[Table, Mapping[str, Any]] = {}
    for flush in _flushes(trail, rows):
        yield _merge(trail, flush, images)


def _flushes(trail: Trail[Any], rows: Sequence[Any]) -> Iterator[dict[Table, Any]]:
    """Group what belongs together: one transaction and context, each table once."""
    flush: dict[Table, Any] = {}
    last: tuple[Any, ...] | None = None
    for row in rows:
        table = _table_now(trail, row)
        now = (row.epoch, str(row.commit_lsn), row.context)
        if flush and (now != last or table in flush):
            yield flush
            flush = {}
        flush[table] = row
        last = now
    if flush:
        yield flush


def _table_now(trail: Trail[Any], row: Any) -> Table:
    table = (row.schema_name, row.table_name)
    if table in trail.shape.tables:
        return table
    return trail.extent.renamed.get(Relation(row.epoch, row.relation_oid), table)


def _merge(
    trail: Trail[Any], flush: Mapping[Table, Any], images: dict[Table, Mapping[str, Any]]
) -> MergedRow:
    base = trail.shape.tables[0]
    first = next(iter(flush.values()))
    lead = flush.get(base)
    operation = str(lead.operation) if lead is not None else Operation.UPDATE.value
    if any(row.operation == Operation.TRUNCATE for row in flush.values()):
        operation = Operation.TRUNCATE.value
    old: dict[str, Any] | None = {}
    for table, row in flush.items():
        before = _old_values(row)
        if before is None:
            old = None
        elif old is not None:
            old |= trail.shape.image(table, before)
    was = _whole(trail, images)
    for table, row in flush.items():
        if row.after is None:
            images.pop(table, None)
        else:
            images[table] = row.after
    gone = operation in GONE
    if operation == Operation.DELETE:
        old = {**was, **(old or {})}
    elif operation != Operation.UPDATE:
        old = None
    moved = next((row for row in flush.values() if row.previous_key is not None), None)
    key = moved.primary_key if moved is not None else list(trail.key)
    if gone:
        images.clear()
    return MergedRow(
        first.source,
        first.epoch,
        str(first.commit_lsn),
        first.ordinal,
        first.transaction_id,
        first.committed_at,
        getattr(first, "captured_at", None),
        operation,
        *base,
        None if operation == Operation.TRUNCATE else key,
        None if moved is None else moved.previous_key,
        old,
        None if gone else _whole(trail, images),
        first.context,
    )


def _old_values(row: Any) -> Mapping[str, Any] | None:
    if row.operation in {Operation.UPDATE, Operation.DELETE}:
        before: Mapping[str, Any] | None = row.before
        return before
    return dict.fromkeys(row.after or ())


def _whole(trail: Trail[Any], images: Mapping[Table, Mapping[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for table, image in images.items():
        whole |= trail.shape.image(table, image)
    return whole
