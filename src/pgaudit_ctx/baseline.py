"""Stores the rows that exist already: snapshot → render → destination, table after table."""

from collections.abc import Container, Sequence
from contextlib import closing
from typing import Final, NamedTuple, Protocol

import psycopg
from psycopg import errors

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.destination import ledger
from pgaudit_ctx.destination.baseline import BaselineWriter, read_baselines
from pgaudit_ctx.destination.coverage import RecordedFilters, covered_since, filters_in_force
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.preflight import WorkerOptions, require_capture
from pgaudit_ctx.source import catalog
from pgaudit_ctx.source.catalog import SourceTable
from pgaudit_ctx.source.snapshot import OpenTransaction, Snapshot, estimates, files
from pgaudit_ctx.wal.filters import TableRules, captured, parse_redaction

# What the source says about one table: the others go on.
_TABLE_ERRORS: Final = (
    errors.InsufficientPrivilege,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.LockNotAvailable,
)
# A table that was truncated or rewritten while it was read is read again, this often.
_ROUNDS: Final = 3


class Failure(NamedTuple):
    """A table whose rows could not be stored, and why."""

    table: str
    reason: str


class Reporter(Protocol):
    """Is told how it goes."""

    def waiting(self, transactions: Sequence[OpenTransaction]) -> None:
        """These transactions are waited for."""

    def begins(self, table: str, rows: int, *, resumed: bool) -> None:
        """A table of about so many rows is read now."""

    def stored(self, rows: int) -> None:
        """So many more rows are stored."""

    def ends(self, table: str, rows: int) -> None:
        """A table is done, with so many rows in this run."""

    def skips(self, table: str) -> None:
        """A table has a baseline already."""


class _Task(NamedTuple):
    table: SourceTable
    rules: TableRules
    after_key: Sequence[str] | None


class Baseline:
    """Stores the rows of tables that are captured.

    Args:
        options: Both URLs, and the names.
        report: Is told how it goes.
        hash_key: The key of the filter ``hash``; that of the worker.
    """

    def __init__(self, options: WorkerOptions, report: Reporter, hash_key: bytes = b"") -> None:
        self._options = options
        self._report = report
        self._hash_key = hash_key
        self._failures: list[Failure] = []

    def run(
        self, names: Sequence[str], *, wait: float | None = None, again: bool = False
    ) -> Sequence[Failure]:
        """Store the rows of tables, and go on where an earlier run was interrupted.

        Args:
            names: The tables, ``table`` or ``schema.table``; all that are captured if empty.
            wait: Seconds to wait at most for transactions that are open; ``None`` without a limit.
            again: Also those that have a baseline.

        Returns:
            The tables that could not be done.

        Raises:
            AuditError: If either end is not ready or refuses.
            UsageError: If a table is not there or not captured.
        """
        try:
            with (
                closing(connect(self._options.source, "source")) as source,
                closing(connect(self._options.destination, "destination")) as destination,
            ):
                name, checkpoint = require_capture(source, destination, self._options)
                tasks = self._plan(
                    source, destination, (name, checkpoint.epoch), names, again=again
                )
                for _ in range(_ROUNDS):
                    if not tasks:
                        break
                    tasks = self._round(source, destination, (name, checkpoint.epoch), tasks, wait)
                self._failures += [
                    Failure(
                        task.table.qualified, "was truncated or rewritten each time it was read"
                    )
                    for task in tasks
                ]
                result = "; ".join(map(": ".join, self._failures)) or "done"
                arguments = {"tables": list(names), "again": again, "name": name}
                ledger.record_operation(destination, "snapshot", arguments, result)
        except psycopg.Error as error:
            raise refusal(error, "store the rows that exist already") from None
        return self._failures

    def _plan(
        self,
        source: Connection,
        destination: Connection,
        trail: tuple[str, int],
        names: Sequence[str],
        *,
        again: bool,
    ) -> list[_Task]:
        since = covered_since(destination, *trail)
        taken = read_baselines(destination, *trail)
        filters = filters_in_force(destination, trail[0])
        tables = catalog.read_tables(source, self._options.publication)
        tasks = []
        for table in _chosen([t for t in tables if not t.partition], names, since):
            last = taken.get(table.oid)
            # One that was taken before the capture had a hole does not connect with what follows.
            connected = last is not None and last.lsn >= since[table.oid]
            if last is not None and connected and last.finished and not again:
                self._report.skips(table.qualified)
                continue
            resumed = last is not None and connected and not last.finished
            after_key = last.last_key if last is not None and resumed else None
            tasks.append(_Task(table, _rules(filters.get(table.oid)), after_key))
        return tasks

    def _round(
        self,
        source: Connection,
        destination: Connection,
        trail: tuple[str, int],
        tasks: Sequence[_Task],
        wait: float | None,
    ) -> list[_Task]:
        """Read tables as they stand at one position; gives those that must be read again."""
        oids = [task.table.oid for task in tasks]
        before = files(source, oids)
        expected = estimates(source, oids)
        url, waiting = self._options.source, self._report.waiting
        with Snapshot(url, wait=wait, on_wait=waiting) as snapshot:
            since = covered_since(destination, *trail)
            writer = BaselineWriter(destination, *trail, snapshot.position)
            left = []
            for task in tasks:
                table = task.table
                if since.get(table.oid, snapshot.position.lsn) >= snapshot.position.lsn:
                    reason = "is no longer captured. Remedy: run pgaudit-ctx setup"
                    self._failures.append(Failure(table.qualified, reason))
                    continue
                try:
                    stored = self._store(source, snapshot, writer, task, expected.get(table.oid, 0))
                except _TABLE_ERRORS as error:
                    self._failures.append(Failure(table.qualified, _reason(error)))
                    continue
                if files(source, [table.oid]) != {table.oid: before.get(table.oid)}:
                    left.append(task)
                    continue
                writer.finish(table.oid)
                self._report.ends(table.qualified, stored)
        if left:
            taken = read_baselines(destination, *trail)
            left = [task._replace(after_key=taken[task.table.oid].last_key) for task in left]
        return left

    def _store(
        self,
        source: Connection,
        snapshot: Snapshot,
        writer: BaselineWriter,
        task: _Task,
        expected: int,
    ) -> int:
        table = task.table
        relation, facts = catalog.read_relation(source, table, self._options.publication)
        renderer = captured(relation, facts, task.rules, self._hash_key)
        self._report.begins(table.qualified, expected, resumed=task.after_key is not None)
        batches = snapshot.rows(table, relation, task.after_key)
        stored = 0
        with closing(batches):
            for rows in writer.store(renderer, batches, task.after_key, resumable=renderer.has_key):
                stored += rows
                self._report.stored(rows)
        return stored


def _chosen(
    tables: Sequence[SourceTable], names: Sequence[str], covered: Container[int]
) -> list[SourceTable]:
    if not names:
        return [table for table in tables if table.oid in covered]
    chosen: dict[int, SourceTable] = {}
    for name in names:
        found = [table for table in tables if name in {table.name, table.qualified}]
        if not found:
            raise UsageError(
                f"the source has no table {name!r}. Remedy: name it as schema.table; a partition "
                "is read with its partitioned table"
            )
        if len(found) > 1:
            raise UsageError(
                f"there are several tables {name!r}: {', '.join(t.qualified for t in found)}. "
                "Remedy: name it with its schema"
            )
        if found[0].oid not in covered:
            raise UsageError(
                f"{found[0].qualified} is not captured, so its rows would have no continuation. "
                "Remedy: run pgaudit-ctx setup, and start the worker without a filter that "
                "excludes it"
            )
        chosen[found[0].oid] = found[0]
    return list(chosen.values())


def _rules(recorded: RecordedFilters | None) -> TableRules:
    if recorded is None:
        return TableRules(excluded=False, ignored=(), redacted={})
    return TableRules(
        recorded.excluded, recorded.ignored, dict(map(parse_redaction, recorded.redacted))
    )


def _reason(error: psycopg.Error) -> str:
    said = error.diag.message_primary or "the source refuses"
    if "row-level security" in said:
        return (
            f"{said}: rows would be hidden. Remedy: read it as a role with BYPASSRLS, or as its "
            "owner if the policies are not forced on him"
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return f"{said}. Remedy: GRANT SELECT on it to the role of --source"
    return f"{said}. Remedy: run pgaudit-ctx snapshot again"
