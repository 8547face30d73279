"""A trail written by hand, as the tables' reference says it is."""

import datetime as dt
import json
from typing import Any

from support.database import Database

NOON = dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)
SYSTEM, DATABASE = 7_000_000_000_000_000_001, 16_384


def at(minutes: float) -> dt.datetime:
    return NOON + dt.timedelta(minutes=minutes)


class HandmadeTrail:
    """Rows of one source, ``clinic`` unless named otherwise; minutes count from noon."""

    def __init__(self, destination: Database, source: str = "clinic", number: int = 0) -> None:
        self.destination = destination
        self.source = source
        self.number = number
        self.oids: dict[str, int] = {}
        destination.execute("SELECT pgaudit_ctx.ensure_partition(%s)", [NOON])
        self.epoch(1, 0, "first capture")
        destination.execute(
            "INSERT INTO pgaudit_ctx.checkpoints (source, slot, epoch, commit_lsn, end_lsn,"
            " complete_at, system_identifier, timeline, database_oid)"
            " VALUES (%s, 's', 1, '0/FFFF', '0/FFFF', %s, %s, 1, %s)",
            [source, at(1000), SYSTEM, DATABASE + number],
        )

    def epoch(
        self, number: int, lsn: int, cause: str, *, fork: int | None = None, clean: bool = True
    ) -> None:
        self.destination.execute(
            "INSERT INTO pgaudit_ctx.epochs (source, epoch, system_identifier, timeline, from_lsn,"
            " fork_lsn, started_at, cause, clean) VALUES (%s, %s, %s, 1, %s, %s, %s, %s, %s)",
            [self.source, number, SYSTEM, _lsn(lsn), _lsn(fork), at(lsn), cause, clean],
        )

    def cover(
        self,
        table: str,
        *keys: str,
        oid: int | None = None,
        epoch: int = 1,
        since: float = -60,
        until: float | None = None,
    ) -> None:
        """Write an interval of coverage; positions are its minutes, from 0 on."""
        schema, _, name = table.rpartition(".")
        self.oids[name] = oid or self.oids.get(name) or 20_000 + len(self.oids)
        self.destination.execute(
            "INSERT INTO pgaudit_ctx.coverage (source, epoch, schema_name, table_name,"
            " relation_oid, from_lsn, to_lsn, from_time, to_time, key_columns, identity,"
            " publication) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'FULL', 'pgaudit_ctx')",
            [
                self.source,
                epoch,
                schema or "public",
                name,
                self.oids[name],
                _lsn(max(0, int(since))),
                None if until is None else _lsn(int(until)),
                at(since),
                None if until is None else at(until),
                list(keys) or ["id"],
            ],
        )

    def change(
        self,
        operation: str,
        table: str,
        lsn: int,
        *,
        key: tuple[str, ...] | None = ("1",),
        minute: float | None = None,
        epoch: int = 1,
        ordinal: int = 1,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
        context: Any = None,
        previous_key: tuple[str, ...] | None = None,
        oid: int | None = None,
        xid: int | None = None,
    ) -> None:
        """Write a change; its commit time is its position in minutes, unless given."""
        schema, _, name = table.rpartition(".")
        self.destination.execute(
            "INSERT INTO pgaudit_ctx.changes (source, epoch, commit_lsn, ordinal, transaction_id,"
            " committed_at, operation, schema_name, table_name, relation_oid, primary_key,"
            " previous_key, before, after, context)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                self.source,
                epoch,
                _lsn(lsn),
                ordinal,
                xid or 700 + lsn,
                at(lsn if minute is None else minute),
                operation,
                schema or "public",
                name,
                oid or self.oids.get(name, 0),
                None if operation == "TRUNCATE" or key is None else list(key),
                None if previous_key is None else list(previous_key),
                _json(before),
                _json(after),
                _json(context),
            ],
        )

    def snapshot(self, table: str, lsn: int, *, epoch: int = 1, after: str | None = None) -> None:
        """Write down that all rows of a table were stored, or those after a key."""
        self.destination.execute(
            "INSERT INTO pgaudit_ctx.snapshots (source, epoch, relation_oid, lsn, schema_name,"
            " table_name, taken_at, after_key, finished_at)"
            " VALUES (%s, %s, %s, %s, 'public', %s, %s, %s, now())",
            [
                self.source,
                epoch,
                self.oids[table],
                _lsn(lsn),
                table,
                at(lsn),
                None if after is None else [after],
            ],
        )

    def gap(self, lsn: int, to: int, *, epoch: int = 1, to_epoch: int | None = None) -> None:
        self.destination.execute(
            "INSERT INTO pgaudit_ctx.gaps (source, epoch, from_lsn, to_epoch, to_lsn, from_time,"
            " to_time, cause) VALUES (%s, %s, %s, %s, %s, %s, %s, 'slot lost')",
            [self.source, epoch, _lsn(lsn), to_epoch or epoch, _lsn(to), at(lsn), at(to)],
        )

    def reject(self, lsn: int, *, replayed: bool = False, epoch: int = 1) -> None:
        self.destination.execute(
            "INSERT INTO pgaudit_ctx.rejected (source, epoch, commit_lsn, ordinal, committed_at,"
            " transaction_id, operation, schema_name, table_name, reason, change, sqlstate,"
            " replayed_at) VALUES (%s, %s, %s, 1, %s, 7, 'INSERT', 'public', 'patient', 'x', '',"
            " '23514', %s)",
            [self.source, epoch, _lsn(lsn), at(lsn), at(lsn + 1) if replayed else None],
        )


def _lsn(position: int | None) -> str | None:
    return None if position is None else f"0/{position:X}"


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)
