"""Planned moves of a source to another server: the table ``handovers``."""

import datetime as dt
import json
from collections.abc import Sequence
from typing import NamedTuple

from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.wal.lsn import format_lsn, parse_lsn


class TableState(NamedTuple):
    """What one table held when nobody wrote any more."""

    schema: str
    name: str
    columns: Sequence[str]
    rows: int
    digest: str


class Handover(NamedTuple):
    """A move that was begun and is not finished.

    Attributes:
        begun_at: When, by the destination's clock.
        epoch: In which epoch the old server was captured.
        end_lsn: Where the trail ended: everything before it was captured.
        slot_kept: Whether the old server still has the slot.
        tables: What each table held.
    """

    begun_at: dt.datetime
    epoch: int
    end_lsn: int
    slot_kept: bool
    tables: Sequence[TableState]


def pending(connection: Connection, source: str) -> Handover | None:
    """Give the last move of a source if it is not finished."""
    row = connection.execute(
        "SELECT begun_at, epoch, end_lsn::text, slot_kept, tables FROM pgaudit_ctx.handovers h"
        " WHERE source = %(source)s AND finished_at IS NULL AND begun_at = ("
        "SELECT max(begun_at) FROM pgaudit_ctx.handovers WHERE source = %(source)s)",
        {"source": source},
    ).fetchone()
    if row is None:
        return None
    begun_at, epoch, end_lsn, slot_kept, tables = row
    states = [TableState(**table) for table in tables]
    return Handover(begun_at, epoch, parse_lsn(end_lsn), slot_kept, states)


def record_begin(
    connection: Connection,
    source: str,
    epoch: int,
    end_lsn: int,
    tables: Sequence[TableState],
    *,
    slot_kept: bool,
) -> None:
    """Write down that a move has begun; an earlier one that was not finished counts no more."""
    connection.execute(
        "INSERT INTO pgaudit_ctx.handovers (source, epoch, end_lsn, slot_kept, tables)"
        " VALUES (%s, %s, %s, %s, %s)",
        [
            source,
            epoch,
            format_lsn(end_lsn),
            slot_kept,
            json.dumps([table._asdict() for table in tables]),
        ],
    )


def record_finish(
    connection: Connection,
    source: str,
    begun_at: dt.datetime,
    to_epoch: int,
    differing: Sequence[str],
) -> None:
    """Write down how a move ended, in the caller's transaction."""
    connection.execute(
        "UPDATE pgaudit_ctx.handovers SET finished_at = clock_timestamp(), to_epoch = %s,"
        " differing = %s WHERE source = %s AND begun_at = %s",
        [to_epoch, list(differing), source, begun_at],
    )
