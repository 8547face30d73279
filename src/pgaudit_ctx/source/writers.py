"""Whether anybody writes to the source, or could begin to."""

from collections.abc import Sequence
from contextlib import closing
from typing import Final

import psycopg

from pgaudit_ctx.source.catalog import Connection
from pgaudit_ctx.source.setup import Session
from pgaudit_ctx.urls import libpq_url

# Transactions of this database that have written something and are not over.
_WRITERS: Final = """
    SELECT pid, state, coalesce(clock_timestamp() - xact_start, '0'), application_name
    FROM pg_stat_activity
    WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()
    UNION ALL
    SELECT 0, 'prepared as ' || quote_literal(gid), clock_timestamp() - prepared, ''
    FROM pg_prepared_xacts WHERE database = current_database()
    ORDER BY 3 DESC"""


def writers(connection: Connection) -> Sequence[Session]:
    """Give the sessions of this database that have written and not committed, the oldest first."""
    return [Session(*row) for row in connection.execute(_WRITERS)]


def new_sessions_are_read_only(url: str) -> bool:
    """Say whether a new session begins with ``default_transaction_read_only = on``.

    Args:
        url: The source's URL. Our own connections override that setting, this one does not.
    """
    with closing(psycopg.connect(libpq_url(url), autocommit=True)) as connection:
        row = connection.execute("SHOW default_transaction_read_only").fetchone()
    return row == ("on",)
