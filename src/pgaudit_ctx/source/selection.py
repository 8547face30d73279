"""Which tables are captured: all, or those of some schemas or of a list, less exclusions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from pgaudit_ctx.source.catalog import SourceTable


class Selection(NamedTuple):
    """What somebody chose; without any choice, every table.

    Attributes:
        schemas: Take the tables of these schemas only.
        tables: Take these tables only; ``schema.table``, or a table of ``public``.
        exclude: Leave out these tables, or all of a schema (``schema.*``).
    """

    schemas: Sequence[str] = ()
    tables: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def takes(self, table: SourceTable) -> bool:
        """Say whether a table was chosen."""
        if self._names(table, self.exclude):
            return False
        if not self.schemas and not self.tables:
            return True
        return table.schema in self.schemas or self._names(table, self.tables)

    def unknown(self, tables: Sequence[SourceTable]) -> Sequence[str]:
        """Give the names in it that fit no table, so that a slip of the pen is noticed."""
        schemas = {table.schema for table in tables}
        return [
            *(schema for schema in self.schemas if schema not in schemas),
            *(
                name
                for name in (*self.tables, *self.exclude)
                if not any(self._names(table, [name]) for table in tables)
            ),
        ]

    def as_arguments(self) -> Mapping[str, Sequence[str]]:
        """The same for the record of what was done."""
        return {name: list(chosen) for name, chosen in self._asdict().items()}

    @classmethod
    def from_arguments(cls, recorded: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_arguments` gave; what is missing was not chosen."""
        return cls(**{name: tuple(recorded.get(name) or ()) for name in cls._fields})

    @staticmethod
    def _names(table: SourceTable, names: Sequence[str]) -> bool:
        short = [table.name] if table.schema == "public" else []
        return any(name in names for name in (table.qualified, f"{table.schema}.*", *short))
