"""What setup decided: for each table in ``tracked``, for all in the arguments of its last run."""

from collections.abc import Mapping
from typing import Any

from pgaudit_ctx.destination.schema import Connection


def read_tracked(connection: Connection, source: str) -> Mapping[str, tuple[str, str]]:
    """Give identity now and before by ``schema.table``, in words (``FULL``)."""
    return {
        f"{schema}.{table}": (identity, before)
        for schema, table, identity, before in connection.execute(
            "SELECT schema_name, table_name, identity, identity_before FROM pgaudit_ctx.tracked"
            " WHERE source = %s ORDER BY schema_name, table_name",
            [source],
        )
    }


def last_setup(connection: Connection, source: str) -> Mapping[str, Any]:
    """Give the arguments of the last setup of a source; empty if there was none."""
    row = connection.execute(
        "SELECT arguments FROM pgaudit_ctx.operations"
        " WHERE command = 'setup' AND arguments ->> 'source' = %s ORDER BY id DESC LIMIT 1",
        [source],
    ).fetchone()
    return {} if row is None else dict(row[0])


def forget_tracked(connection: Connection, source: str) -> None:
    """Forget what was decided for each table of a source that is captured no more."""
    connection.execute("DELETE FROM pgaudit_ctx.tracked WHERE source = %s", [source])
