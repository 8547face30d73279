"""A captured pgbench run, the worker killed in the middle: every row, once."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from support.command import binary, environment, run, run_binary, start, urls_of
from support.database import Capture, create_database, drop_database
from support.server import Server
from support.waiting import eventually

SECONDS = 10
CLIENTS = 4
KILL_AT = (500, 1500)
"""How many rows of pgbench_history are in the trail when the worker is killed."""


@pytest.fixture
def bench(server: Server) -> Iterator[Capture]:
    """The empty tables of pgbench, and an empty destination."""
    made = Capture(create_database(server), create_database(server))
    run_binary(server, "pgbench", "-i", "-I", "dtp", "-q", made.source.url)
    yield made
    drop_database(made.source)
    drop_database(made.destination)


def captured(bench: Capture, table: str) -> int:
    ((count,),) = bench.destination.execute(
        "SELECT count(*) AS n FROM pgaudit_ctx.changes"
        " WHERE table_name = %s AND operation = 'INSERT'",
        [table],
    )
    return count


def capture_and_kill(bench: Capture, rows: int) -> None:
    with start("worker", env=urls_of(bench)) as worker:
        try:
            eventually(
                lambda: worker.poll() is not None or captured(bench, "pgbench_history") >= rows,
                f"{rows} rows are in the trail",
            )
            assert worker.poll() is None, worker.communicate()
            worker.send_signal(signal.SIGKILL)
        finally:
            worker.kill()
            worker.communicate()
    eventually(
        lambda: (
            not bench.source.execute(
                "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active",
                [bench.options.slot],
            )
        ),
        "the server notices that the worker is gone",
    )


def folded(bench: Capture, table: str) -> dict[tuple[str, ...], dict]:
    """Do every change of a table again, in order."""
    rows: dict[tuple[str, ...], dict] = {}
    for change in bench.destination.execute(
        "SELECT operation, primary_key, before, after FROM pgaudit_ctx.change_log"
        " WHERE table_name = %s ORDER BY epoch, commit_lsn, ordinal",
        [table],
    ):
        if change.operation == "TRUNCATE":
            rows.clear()
            continue
        key = tuple(change.primary_key)
        assert rows.get(key) == change.before
        if change.operation == "DELETE":
            del rows[key]
        else:
            rows[key] = change.after
    return rows


def live(bench: Capture, table: str, key: str) -> dict[tuple[str, ...], dict]:
    rows = bench.source.execute(f"SELECT {key}::text AS key, to_jsonb({table}) AS r FROM {table}")
    return {(row.key,): row.r for row in rows}


def test_a_worker_killed_twice_during_pgbench_has_every_row_once_in_the_end(
    server: Server, bench: Capture
) -> None:
    assert run("setup", env=urls_of(bench)).returncode == 0
    run_binary(server, "pgbench", "-i", "-I", "g", "-q", bench.source.url)
    load = [
        str(binary(server, "pgbench")),
        *("-n", "-T", str(SECONDS), "-c", str(CLIENTS), bench.source.url),
    ]
    with subprocess.Popen(
        load, env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pgbench:
        for rows in KILL_AT:
            capture_and_kill(bench, rows)
        said, _ = pgbench.communicate()
    assert pgbench.returncode == 0, said
    done = run("worker", "--until-caught-up", env=urls_of(bench))
    assert done.returncode == 0, done.stderr

    ((written,),) = bench.source.execute("SELECT count(*) AS n FROM pgbench_history")
    assert written > KILL_AT[-1]
    assert captured(bench, "pgbench_history") == written
    for table, key in (
        ("pgbench_accounts", "aid"),
        ("pgbench_tellers", "tid"),
        ("pgbench_branches", "bid"),
    ):
        assert folded(bench, table) == live(bench, table, key)
