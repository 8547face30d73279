"""From committed changes to the versions that the readers would give; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgaudit_ctx.change import Operation
from pgaudit_ctx.reading.extent import CompleteUpTo, Extent, Table
from pgaudit_ctx.reading.history import History, HistoryFilters, choose
from pgaudit_ctx.reading.mapped import shape_of
from pgaudit_ctx.reading.shape import Shape
from pgaudit_ctx.reading.timeline import build_trail
from pgaudit_ctx.reading.version import ContextKeys, Trail, Version
from pgaudit_ctx.source.catalog import Position
from pgaudit_ctx.source.tail import TailedChange
from pgaudit_ctx.wal.lsn import format_lsn

Key = tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """One change: of which record, by its table's or model's name and its key, and what it made."""

    label: str
    key: Key
    version: Version[Any]

    @property
    def name(self) -> str:
        """The record's name for messages: ``Patient 42``."""
        return " ".join((self.label, *self.key))


class Records:
    """Committed changes as versions of records.

    Args:
        rows: In commit order.
        began: Where they begin.
        key_columns: The primary key of each table.
        context_keys: Which keys of a context say who and why.
    """

    def __init__(
        self,
        rows: Sequence[TailedChange],
        began: Position,
        key_columns: Mapping[Table, Sequence[str]],
        context_keys: ContextKeys,
    ) -> None:
        self._rows = rows
        self._context_keys = context_keys
        lsn = rows[-1].commit_lsn if rows else format_lsn(began.lsn)
        time = rows[-1].committed_at if rows else began.time
        self._extent = Extent(
            "",
            {table: tuple(columns) for table, columns in key_columns.items()},
            began.time,
            CompleteUpTo(lsn, time),
            (),
            {},
            {},
        )

    def key(self, shape: Shape[Any], key: Any) -> Key:
        """Print a key that was given as for ``Session.get``."""
        return shape.key(key, self._extent.key_columns[shape.tables[0]])

    def of(self, shape: Shape[Any], key: Key | None = None) -> list[Recorded]:
        """Give the changes of a model's tables in commit order, each in its record's history.

        Args:
            shape: Of the model.
            key: Only those of this record, as :meth:`history` would have them.
        """
        if key is not None:
            return [Recorded(shape.label, key, each) for each in self._trail(shape, key).versions]
        rows = self._of_tables(shape)
        found = [
            Recorded(shape.label, each, version)
            for each in {tuple(row.primary_key) for row in rows if row.primary_key is not None}
            for version in self._trail(shape, each).versions
            if tuple(version.row.primary_key or ()) == each
        ]
        found += [self._alone(shape, row) for row in rows if row.primary_key is None]
        return sorted(found, key=lambda recorded: recorded.version.position)

    def all(self) -> list[Recorded]:
        """Give all changes in commit order, with the columns and values as they are stored."""
        tables = {(row.schema_name, row.table_name) for row in self._rows}
        shapes = [shape_of(f"{schema}.{table}", None) for schema, table in tables]
        found = [recorded for shape in shapes for recorded in self.of(shape)]
        return sorted(found, key=lambda recorded: recorded.version.position)

    def history(self, shape: Shape[Any], key: Key, filters: HistoryFilters) -> History[Any]:
        """Give the history of one record, as far as it is known from these changes."""
        return choose(self._trail(shape, key), filters)

    def _of_tables(self, shape: Shape[Any]) -> list[TailedChange]:
        tables = set(shape.tables)
        return [row for row in self._rows if (row.schema_name, row.table_name) in tables]

    def _trail(self, shape: Shape[Any], key: Key) -> Trail[Any]:
        keys = shape.keys(key, self._extent.key_columns)
        mine = [
            row
            for row in self._of_tables(shape)
            if row.operation == Operation.TRUNCATE
            or keys[row.schema_name, row.table_name]
            in {tuple(row.primary_key or ()), tuple(row.previous_key or ())}
        ]
        return build_trail(Trail(shape, keys, self._extent, self._context_keys), mine)

    def _alone(self, shape: Shape[Any], row: TailedChange) -> Recorded:
        """Make the version of a change that belongs to no record: TRUNCATE, or without a key."""
        trail: Trail[Any] = Trail(
            shape, dict.fromkeys(shape.tables, ()), self._extent, self._context_keys
        )
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
            {},
        )
        return Recorded(shape.label, (), version)
