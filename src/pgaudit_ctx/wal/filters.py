"""What is left out or blanked before anything is written; pure.

A rule names tables and columns by patterns as the shell has them (``*``, ``?``, ``[abc]``), by the
name they had when the change was written. A table without rules is a plain ``CapturedTable``, and
pays nothing for those of others.
"""

import enum
import hashlib
import hmac
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from pgaudit_ctx.change import MARKER, UNAVAILABLE
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.wal.pgoutput import Relation, Tuple
from pgaudit_ctx.wal.table import CapturedTable, TableFacts, name_of
from pgaudit_ctx.wal.values import Encoder

REDACTED_JSON: Final = json.dumps({MARKER: "redacted"}).encode()
"""Stands for a value that was masked."""


class Redaction(enum.StrEnum):
    """What is stored instead of a value; NULL stays NULL."""

    NULL = "null"
    HASH = "hash"
    MASK = "mask"


class TableRules(NamedTuple):
    """What the rules say about one table.

    Attributes:
        excluded: Nothing of it is stored.
        ignored: Columns that are left out.
        redacted: Columns that are blanked, and how.
    """

    excluded: bool
    ignored: Collection[str]
    redacted: Mapping[str, Redaction]

    @property
    def redactions(self) -> Sequence[str]:
        """The redacted columns as ``coverage`` has them: ``column=how``."""
        return [f"{column}={how}" for column, how in sorted(self.redacted.items())]


class NotRecorded(Exception):
    """An UPDATE changed ignored columns only."""


@dataclass(frozen=True)
class Filters:
    """Rules of one worker.

    Attributes:
        include_tables: If given, only these tables, ``table`` or ``schema.table``.
        exclude_tables: Not these.
        include_schemas: If given, only tables of these schemas (or included by name).
        exclude_schemas: Not those of these.
        ignore_columns: Columns that are left out, ``table.column`` or ``schema.table.column``.
        redact_columns: Columns that are blanked, and how, by such patterns.
        hash_key: The key of ``hash``, HMAC-SHA-256; without one it is the plain SHA-256.
    """

    include_tables: Sequence[str] = ()
    exclude_tables: Sequence[str] = ()
    include_schemas: Sequence[str] = ()
    exclude_schemas: Sequence[str] = ()
    ignore_columns: Sequence[str] = ()
    redact_columns: Mapping[str, Redaction] | None = None
    hash_key: bytes = b""

    def rules(self, schema: str, table: str, columns: Collection[str]) -> TableRules:
        """Say what holds for one table.

        Args:
            schema: Its schema.
            table: Its name.
            columns: Its columns.

        Returns:
            Its rules.
        """
        names = (table, f"{schema}.{table}")
        chosen = not (self.include_tables or self.include_schemas) or (
            _matches(self.include_tables, *names) or _matches(self.include_schemas, schema)
        )
        excluded = (
            not chosen
            or _matches(self.exclude_tables, *names)
            or _matches(self.exclude_schemas, schema)
        )
        ignored = []
        redacted = {}
        for column in columns:
            paths = [f"{name}.{column}" for name in names]
            if _matches(self.ignore_columns, *paths):
                ignored.append(column)
                continue
            for pattern, how in (self.redact_columns or {}).items():
                if _matches((pattern,), *paths):
                    redacted[column] = how
        return TableRules(excluded, ignored, redacted)

    def unmatched(self, tables: Sequence[tuple[str, str, Collection[str]]]) -> Sequence[str]:
        """Give the patterns that fit none of these tables: schema, name and columns of each."""
        names = {name for schema, table, _ in tables for name in (table, f"{schema}.{table}")}
        schemas = {schema for schema, _, _ in tables}
        columns = {
            f"{name}.{column}"
            for schema, table, of_table in tables
            for name in (table, f"{schema}.{table}")
            for column in of_table
        }
        return [
            pattern
            for patterns, candidates in (
                ((*self.include_tables, *self.exclude_tables), names),
                ((*self.include_schemas, *self.exclude_schemas), schemas),
                ((*self.ignore_columns, *(self.redact_columns or ())), columns),
            )
            for pattern in patterns
            if not any(fnmatchcase(candidate, pattern) for candidate in candidates)
        ]

    def capture(self, relation: Relation, facts: TableFacts | None) -> CapturedTable | None:
        """Make what renders a table's rows, as its rules say.

        Args:
            relation: The table as the server describes it.
            facts: What the catalog says, or ``None`` if it no longer knows the table.

        Returns:
            ``None`` if the table is excluded.
        """
        _, schema, name = name_of(relation, facts)
        rules = self.rules(schema, name, [column.name for column in relation.columns])
        if rules.excluded:
            return None
        return captured(relation, facts, rules, self.hash_key)


def captured(
    relation: Relation, facts: TableFacts | None, rules: TableRules, hash_key: bytes
) -> CapturedTable:
    """Make what renders a table's rows, as these rules say."""
    if not rules.ignored and not rules.redacted:
        return CapturedTable(relation, facts)
    redactors = {column: _redactor(how, hash_key) for column, how in rules.redacted.items()}
    return FilteredTable(relation, facts, rules.ignored, redactors)


class FilteredTable(CapturedTable):
    """A table with columns that are ignored or redacted."""

    __slots__ = ("_kept_set",)

    def __init__(
        self,
        relation: Relation,
        facts: TableFacts | None,
        ignored: Collection[str],
        redactors: Mapping[str, Encoder],
    ) -> None:
        super().__init__(relation, facts, ignored, redactors)
        self._kept_set = frozenset(self._kept)

    def changed(self, old: Tuple, new: Tuple) -> list[int]:
        """Give the indexes of the stored columns that differ.

        Raises:
            NotRecorded: If only ignored columns do.
            ValueError: If the tuples are not of this table.
        """
        kept = self._kept_set
        # What TOAST did not send again has not changed.
        changed = [i for i in super().changed(old, new) if i in kept or new[i] is not UNAVAILABLE]
        stored = [i for i in changed if i in kept]
        if changed and not stored:
            raise NotRecorded
        return stored


def parse_redaction(text: str) -> tuple[str, Redaction]:
    """Read ``column=how``.

    Raises:
        UsageError: If it is something else.
    """
    column, separator, how = text.rpartition("=")
    if not separator or not column or how not in set(Redaction):
        raise UsageError(
            f"{text!r} does not say how to redact. Remedy: write TABLE.COLUMN=null, =hash or =mask"
        )
    return column, Redaction(how)


def _matches(patterns: Sequence[str], *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _redactor(how: Redaction, key: bytes) -> Encoder:
    if how is Redaction.HASH:
        return lambda value: _hashed(value, key)
    # Slicing refuses what the log did not carry, which is marked as such instead.
    stands = b"null" if how is Redaction.NULL else REDACTED_JSON
    return lambda value: stands + value[:0]


def _hashed(value: bytes, key: bytes) -> bytes:
    digest = hmac.digest(key, value, "sha256") if key else hashlib.sha256(value).digest()
    return json.dumps({MARKER: "redacted", "sha256": digest.hex()}).encode()
