"""What each index of ``changes`` costs: its size, and the server's CPU for each change stored."""

import os
import re
from pathlib import Path

import psycopg

ROWS = 200_000
REPEATS = 5


def index_sizes(url: str) -> dict[str, int]:
    """Bytes of the heap and of each index of ``changes``, all partitions together."""
    with psycopg.connect(url) as database:
        rows = database.execute(
            "SELECT 'rows', sum(pg_relation_size(inhrelid)) FROM pg_inherits"
            " WHERE inhparent = 'pgaudit_ctx.changes'::regclass UNION ALL"
            " SELECT p.indexrelid::regclass::text, sum(pg_relation_size(h.inhrelid))"
            " FROM pg_index p JOIN pg_inherits h ON h.inhparent = p.indexrelid"
            " WHERE p.indrelid = 'pgaudit_ctx.changes'::regclass GROUP BY 1"
        )
        return {name: int(size) for name, size in rows}


def index_costs(url: str) -> dict[str, list[float]]:
    """Microseconds of the backend's CPU that each index adds to storing a change, several times.

    The same changes are inserted into a table with the primary key alone and, in turns, with one
    index more. CPU rather than time, because others may be using the machine.
    """
    with psycopg.connect(url, autocommit=True) as database:
        (largest,) = database.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits"
            " WHERE inhparent = 'pgaudit_ctx.changes'::regclass"
            " ORDER BY pg_relation_size(inhrelid) DESC LIMIT 1"
        ).fetchone()
        indexes = database.execute(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
            " WHERE indrelid = 'pgaudit_ctx.changes'::regclass AND NOT indisprimary"
        ).fetchall()
        database.execute("DROP TABLE IF EXISTS public.sample")
        database.execute(f"CREATE TABLE public.sample AS SELECT * FROM {largest} LIMIT {ROWS}")
        costs: dict[str, list[float]] = {name: [] for name, _ in indexes}
        for _ in range(REPEATS):
            plain = _cpu_of_a_row(database, None)
            for name, definition in indexes:
                costs[name].append(_cpu_of_a_row(database, definition) - plain)
        database.execute("DROP TABLE public.sample, public.target")
        return costs


def _cpu_of_a_row(database: psycopg.Connection, definition: str | None) -> float:
    database.execute("DROP TABLE IF EXISTS public.target")
    database.execute("CREATE TABLE public.target (LIKE pgaudit_ctx.changes)")
    database.execute(
        "ALTER TABLE public.target"
        " ADD PRIMARY KEY (source, epoch, commit_lsn, ordinal, committed_at)"
    )
    if definition is not None:
        on = " ON ONLY pgaudit_ctx.changes "
        database.execute(
            re.sub(r"INDEX \S+", "INDEX", definition).replace(on, " ON public.target ")
        )
    database.execute("CHECKPOINT")
    before = _cpu(database.info.backend_pid)
    rows = database.execute("INSERT INTO public.target SELECT * FROM public.sample").rowcount
    return (_cpu(database.info.backend_pid) - before) / rows * 1e6


def _cpu(pid: int) -> float:
    """Seconds of user's and system's CPU that a process has used ("proc_pid_stat")."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
