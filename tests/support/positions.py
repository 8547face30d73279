"""Where capture stands, at both ends, and what a worker that must refuse says."""

import pytest

from pgaudit_ctx.errors import AuditError
from pgaudit_ctx.wal.lsn import parse_lsn
from support.database import Capture, Database


def insert(database: Database, *numbers: int) -> None:
    """Write patients as psql would."""
    for number in numbers:
        database.execute(f"INSERT INTO patient (id, name, status) VALUES ({number}, 'x', 'ACTIVE')")


def checkpoint(capture: Capture) -> int:
    """Up to where the destination holds everything."""
    (row,) = capture.destination.execute("SELECT end_lsn FROM pgaudit_ctx.checkpoints")
    return parse_lsn(row.end_lsn)


def acknowledged(capture: Capture) -> int:
    """Up to where the slot has been told so."""
    (row,) = capture.source.execute(
        "SELECT confirmed_flush_lsn AS lsn FROM pg_replication_slots WHERE slot_name = %s",
        [capture.options.slot],
    )
    return parse_lsn(row.lsn)


def run_and_refuse(capture: Capture, error: type[AuditError]) -> str:
    """Run a worker that must end with this error; give its message."""
    with pytest.raises(error) as refused:
        capture.run()
    return str(refused.value)
