"""What a new slot leaves out for ever."""

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

from pgaudit_ctx.destination.schema import Connection


class Lost(NamedTuple):
    """What a new slot leaves out for ever: times by the source's clock."""

    since: dt.datetime
    until: dt.datetime
    tables: Sequence[str]

    @property
    def hours(self) -> float:
        """How long that is."""
        return (self.until - self.since).total_seconds() / 3600


def what_is_lost(connection: Connection, source: str, until: dt.datetime) -> Lost | None:
    """Say what lies between the end of a trail and now.

    Args:
        connection: To the destination.
        source: The source's name.
        until: The source's clock now.

    Returns:
        ``None`` if nothing was captured yet.
    """
    row = connection.execute(
        "SELECT complete_at FROM pgaudit_ctx.checkpoints WHERE source = %s", [source]
    ).fetchone()
    if row is None:
        return None
    tables = connection.execute(
        "SELECT DISTINCT schema_name || '.' || table_name FROM pgaudit_ctx.coverage"
        " WHERE source = %s AND to_lsn IS NULL ORDER BY 1",
        [source],
    )
    return Lost(row[0], until, [name for (name,) in tables])
