"""From committed changes to the versions that the readers would give; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgaudit_ctx.change import Operation
from pgaudit_ctx.reading.history import History, HistoryFilters, choose
from pgaudit_ctx.reading.shape import Shape, shape_of
from pgaudit_ctx.reading.version import CompleteUpTo, Trail, Version, build_trail
from pgaudit_ctx.source.catalog import Position
from pgaudit_ctx.source.tail import TailedChange
from pgaudit_ctx.wal.lsn import format_lsn


@dataclass(frozen=True)
class Recorded:
    """One change: of which record, by its table's or model's name and its key, and what it made."""

    label: str
    key: tuple[str, ...]
    version: Version[Any]

    @property
    def name(self) -> str:
        """The record's name for messages: ``Patient 42``."""
        return " ".join((self.label, *self.key))


class Records:
    """Committed changes of one table, or of all.

    Args:
        rows: In commit order.
        began: Where they begin.
        user_key: Which context key says who.
        reason_key: Which context key says why.
    """

    def __init__(
        self, rows: Sequence[TailedChange], began: Position, user_key: str, reason_key: str
    ) -> None:
        self._rows = rows
        self._began = began
        self._keys = (user_key, reason_key)

    def of(self, shape: Shape[Any], key: tuple[str, ...] | None = None) -> list[Recorded]:
        """Give the changes of a model's table in commit order, each with its record's history.

        Args:
            shape: Of the model.
            key: Only those of this record, as :meth:`history` would have them.
        """
        rows = self._of_table(shape)
        if key is not None:
            trail = self._trail(shape, key, rows)
            return [Recorded(shape.label, key, version) for version in trail.versions]
        keys = {tuple(row.primary_key) for row in rows if row.primary_key is not None}
        by_row: dict[int, Recorded] = {}
        for each in keys:
            for version in self._trail(shape, each, rows).versions:
                if tuple(version.row.primary_key or ()) == each:
                    by_row[id(version.row)] = Recorded(shape.label, each, version)
        return [by_row.get(id(row)) or self._alone(shape, row) for row in rows]

    def all(self) -> list[Recorded]:
        """Give all changes in commit order, with the columns and values as they are stored."""
        by_row: dict[int, Recorded] = {}
        for schema, table in {(row.schema_name, row.table_name) for row in self._rows}:
            for recorded in self.of(shape_of(f"{schema}.{table}", None)):
                by_row[id(recorded.version.row)] = recorded
        return [by_row[id(row)] for row in self._rows]

    def history(
        self, shape: Shape[Any], key: tuple[str, ...], filters: HistoryFilters
    ) -> History[Any]:
        """Give the history of one record, as far as it is known from these changes."""
        return choose(self._trail(shape, key, self._of_table(shape)), filters)

    def _of_table(self, shape: Shape[Any]) -> list[TailedChange]:
        return [
            row
            for row in self._rows
            if (row.schema_name, row.table_name) == (shape.schema, shape.table)
        ]

    def _trail(
        self, shape: Shape[Any], key: tuple[str, ...], rows: Sequence[TailedChange]
    ) -> Trail[Any]:
        mine = [
            row
            for row in rows
            if row.operation == Operation.TRUNCATE
            or tuple(row.primary_key or ()) == key
            or tuple(row.previous_key or ()) == key
        ]
        return build_trail(self._empty_trail(shape, key), mine)

    def _empty_trail(self, shape: Shape[Any], key: tuple[str, ...]) -> Trail[Any]:
        last = self._rows[-1] if self._rows else None
        lsn = format_lsn(self._began.lsn) if last is None else last.commit_lsn
        time = self._began.time if last is None else last.committed_at
        return Trail(shape, key, self._began.time, CompleteUpTo(lsn, time), (), *self._keys)

    def _alone(self, shape: Shape[Any], row: TailedChange) -> Recorded:
        """Make the version of a change that belongs to no record: TRUNCATE, or without a key."""
        trail = self._empty_trail(shape, ())
        version: Version[Any] = Version(
            1,
            Operation(row.operation),
            row.committed_at,
            None,
            row.transaction_id,
            row.commit_lsn,
            row.epoch,
            row,
            trail,
        )
        trail.versions.append(version)
        return Recorded(shape.label, (), version)
