"""Which position the trail had reached at which time: the table ``captured_positions``."""

from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.wal.lsn import parse_lsn


def note_position(connection: Connection, source: str, epoch: int) -> None:
    """Write down where the checkpoint is now, by the destination's clock."""
    connection.execute(
        "INSERT INTO pgaudit_ctx.captured_positions (source, epoch, end_lsn, at)"
        " SELECT source, epoch, end_lsn, clock_timestamp() FROM pgaudit_ctx.checkpoints"
        " WHERE source = %s AND epoch = %s ON CONFLICT DO NOTHING",
        [source, epoch],
    )


def position_before(connection: Connection, source: str, epoch: int, seconds: float) -> int:
    """Give the last position that was noted longer ago than that; 0 if there is none.

    Every backup of the destination that is younger holds a checkpoint at it or after it.
    """
    row = connection.execute(
        "SELECT coalesce(max(end_lsn), '0/0')::text FROM pgaudit_ctx.captured_positions"
        " WHERE source = %s AND epoch = %s AND at <= clock_timestamp() - %s * interval '1 second'",
        [source, epoch, seconds],
    ).fetchone()
    return 0 if row is None else parse_lsn(row[0])


def forget_before(connection: Connection, source: str, epoch: int, lsn: str) -> None:
    """Forget what comes before a position, and earlier epochs."""
    connection.execute(
        "DELETE FROM pgaudit_ctx.captured_positions WHERE source = %s"
        " AND (epoch < %s OR epoch = %s AND end_lsn < %s)",
        [source, epoch, epoch, lsn],
    )
