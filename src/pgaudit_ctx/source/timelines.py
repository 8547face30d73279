"""Where the timelines of a server forked off, asked in the replication protocol.

PostgreSQL documentation: "Streaming Replication Protocol" (``TIMELINE_HISTORY``) and "Timelines".
"""

from collections.abc import Mapping
from contextlib import closing

from psycopg import pq

from pgaudit_ctx.connection import connect
from pgaudit_ctx.errors import SourceNotReady
from pgaudit_ctx.wal.lsn import parse_lsn


def parse_history(content: str) -> Mapping[int, int]:
    """Read a timeline history file; pure.

    Args:
        content: Lines of a timeline, the position where the next one forked off, and why.

    Returns:
        For each timeline that the current one descends from, the position where it was left.
    """
    history = {}
    for line in content.splitlines():
        fields = line.split("\t")
        if fields[0].strip().isdigit():
            history[int(fields[0])] = parse_lsn(fields[1].strip())
    return history


def read_history(url: str, timeline: int) -> Mapping[int, int]:
    """Ask a server where the timelines before one of its own ended.

    Args:
        url: The source's URL.
        timeline: The timeline; the first one descends from none.

    Raises:
        SourceNotReady: If the server has no such history any more.
    """
    if timeline == 1:
        return {}
    with closing(connect(url, "source", replication="database")) as connection:
        result = connection.pgconn.exec_(f"TIMELINE_HISTORY {timeline}".encode())
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise SourceNotReady(
                f"the source cannot say how its timeline {timeline} came about, so nobody can tell "
                "whether something was lost. Remedy: put the file "
                f"{timeline:08X}.history back into its pg_wal"
            )
        return parse_history((result.get_value(0, 1) or b"").decode())
