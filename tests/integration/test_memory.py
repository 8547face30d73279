"""What a worker holds in memory does not depend on how large a transaction is."""

import subprocess
import sys

import pytest

from support.command import environment
from support.database import Capture

_MAX_MEGABYTES = 150

# The peak of its own process, which getrusage would mix up with that of its parent.
_WORKER = """
import re, sys
from pathlib import Path
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.worker import Worker

worker = Worker(WorkerOptions(*sys.argv[1:3], slot=sys.argv[3]))
progress = worker.run(until_caught_up=True)
worker.close()
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(progress.changes, progress.bytes, int(peak[1]) // 1024)
"""


@pytest.mark.parametrize(
    ("rows", "width"),
    [
        pytest.param(20_000, 8500, id="20 thousand wide rows"),
        pytest.param(10_000_000, 1, id="10 million rows", marks=pytest.mark.heavy),
    ],
)
def test_one_transaction_is_stored_in_less_memory_than_it_has(
    blank: Capture, rows: int, width: int
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, content text)")
    blank.setup()
    blank.source.execute(
        f"INSERT INTO t SELECT n, repeat('x', {width}) FROM generate_series(1, {rows}) n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _WORKER,
            blank.source.url,
            blank.destination.url,
            blank.options.slot,
        ],
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    changes, size, peak = map(int, done.stdout.split())
    assert changes == rows
    print(f"{rows:,} rows in one transaction: {size // 2**20} MB sent, peak {peak} MB")  # noqa: T201 - the figure of nox -s heavy
    assert peak < _MAX_MEGABYTES < size // 2**20
    ((stored, commits),) = blank.destination.execute(
        "SELECT count(*), count(DISTINCT commit_lsn) AS commits FROM pgaudit_ctx.changes"
    )
    assert (stored, commits) == (rows, 1)
