"""How long after its commit a change can be read in the trail.

    nox -s bench-latency -- [--rate 500] [--seconds 20] [--rounds 5] [--clients 4]

pgbench writes one row with a context in each transaction, so many transactions a second (their
times are random, as with real clients), while a worker captures in a process of its own. An
observer asks the destination all the time how far the trail is complete. A transaction counts as
visible when the first answer that includes it has arrived; its commit counts from the time in its
commit record, which is before the source's own flush. So what is measured is rather too long:
by the flush, and by up to one question.

Goals at 500 transactions a second: half of them within 15 ms, 99 % within 80 ms.
"""

import argparse
import bisect
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import psycopg

from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.preflight import WorkerOptions, begin_capture
from pgaudit_ctx.source import setup as source_setup

DURABLE = {"fsync": "on", "full_page_writes": "on", "max_wal_size": "4GB"}
TABLE = "CREATE TABLE visits (id bigserial PRIMARY KEY, ward int, name text, at timestamptz)"
# A backslash before the semicolon sends what follows with it, as the hook does.
SCRIPT = r"""
\set ward random(1, 40)
BEGIN\; SELECT pg_catalog.pg_logical_emit_message(true, 'pgaudit_ctx',
    '{"user":"user:client_id","reason":"ward round"}')\;
INSERT INTO visits (ward, name, at) VALUES (:ward, 'Anneliese Smith-Winterbottom', now())\; COMMIT;
"""
PAUSE_SECONDS = 0.001
CAUGHT_UP_SECONDS = 60


class Answer(NamedTuple):
    """When an answer had arrived, and up to where the trail was complete."""

    at: float
    end_lsn: int


class Observer:
    """Asks the destination again and again how far the trail is."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answers: list[Answer] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            is_over = False
            while not is_over:
                is_over = self._over.wait(PAUSE_SECONDS)  # and one question more
                (end_lsn,) = connection.execute(
                    "SELECT (end_lsn - '0/0')::bigint FROM pgaudit_ctx.checkpoints", prepare=True
                ).fetchone()
                if not self.answers or end_lsn > self.answers[-1].end_lsn:
                    self.answers.append(Answer(time.time(), end_lsn))


@contextmanager
def captured(chosen: WorkerOptions) -> Iterator[None]:
    urls = {
        "PGAUDIT_CTX_SOURCE_URL": chosen.source,
        "PGAUDIT_CTX_DESTINATION_URL": chosen.destination,
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "pgaudit_ctx", "worker", "--log-level", "warning"],
        env={**os.environ, **urls},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=60)
    if worker.returncode != 0:
        raise SystemExit(f"the worker ended with {worker.returncode}: {said[-800:]}")


def write(server: EmbeddedPostgres, options: argparse.Namespace, seconds: int) -> float:
    """Let pgbench write; give how many transactions a second it came to."""
    done = subprocess.run(
        [
            str(server.binaries / "pgbench"),
            f"--host={server.directory}",
            "--username=postgres",
            "--no-vacuum",
            f"--client={options.clients}",
            f"--rate={options.rate}",
            f"--time={seconds}",
            "--file=-",
            "postgres",
        ],
        input=SCRIPT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"pgbench: {done.stderr[-800:]}")
    return float(re.search(r"tps = ([\d.]+)", done.stdout)[1])


def wait_until_captured(source: psycopg.Connection, destination: psycopg.Connection) -> None:
    count = "SELECT count(*) FROM "
    (wanted,) = source.execute(f"{count} visits").fetchone()
    deadline = time.monotonic() + CAUGHT_UP_SECONDS
    while destination.execute(f"{count} pgaudit_ctx.changes").fetchone() != (wanted,):
        if time.monotonic() > deadline:
            raise SystemExit("the worker does not catch up")
        time.sleep(0.1)


def milliseconds(commits: Sequence[tuple[int, float]], answers: Sequence[Answer]) -> list[float]:
    """Give for each commit how long it took until the first answer that includes it.

    Args:
        commits: Where each commit record begins, and its time.
        answers: In order.
    """
    ends = [answer.end_lsn for answer in answers]
    return [
        (answers[bisect.bisect_right(ends, lsn)].at - committed_at) * 1000
        for lsn, committed_at in commits
    ]


class Round(NamedTuple):
    """What one round came to."""

    speed: float
    waits: Sequence[float]

    def percentile(self, share: float) -> float:
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(
    server: EmbeddedPostgres, chosen: WorkerOptions, options: argparse.Namespace
) -> list[Round]:
    rounds = []
    with (
        psycopg.connect(chosen.source, autocommit=True) as source,
        psycopg.connect(chosen.destination, autocommit=True) as destination,
        captured(chosen),
    ):
        write(server, options, 2)  # until everything runs
        wait_until_captured(source, destination)
        for _ in range(options.rounds):
            (before,) = destination.execute(
                "SELECT (max(commit_lsn) - '0/0')::bigint FROM pgaudit_ctx.changes"
            ).fetchone()
            with Observer(chosen.destination) as observer:
                speed = write(server, options, options.seconds)
                wait_until_captured(source, destination)
            commits = destination.execute(
                "SELECT (commit_lsn - '0/0')::bigint, extract(epoch FROM committed_at)::float8"
                " FROM pgaudit_ctx.changes WHERE commit_lsn > '0/0'::pg_lsn + %s::numeric",
                [before],
            ).fetchall()
            rounds.append(Round(speed, milliseconds(commits, observer.answers)))
    return rounds


def spread(values: Sequence[float], form: str) -> str:
    shown = [f"{value:{form}}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]}  (from {shown[1]} to {shown[2]})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    # Two servers, or the source would have to read the destination's log as well.
    with EmbeddedPostgres(settings=DURABLE) as one, EmbeddedPostgres(settings=DURABLE) as other:
        chosen = WorkerOptions(one.url("postgres"), other.url("postgres"))
        with (
            connect(chosen.source, "source") as source,
            connect(chosen.destination, "destination") as destination,
        ):
            source.execute(f"SET search_path = public; {TABLE}")
            source_setup.run(source, chosen.slot, chosen.publication)
            schema.migrate(destination, "quarter")
            begin_capture(source, destination, chosen)
        rounds = measure(one, chosen, options)
    total = sum(len(one.waits) for one in rounds)
    print(f"{total:,} transactions, {len(rounds)} rounds of {options.seconds} s; median and spread")
    print("transactions a second".ljust(34), spread([one.speed for one in rounds], ",.0f"))
    print("from commit to visible, ms")
    for label, share in (("half of them", 0.5), ("95 %", 0.95), ("99 %", 0.99), ("all", 1.0)):
        print(f"  {label}".ljust(34), spread([one.percentile(share) for one in rounds], ",.1f"))


if __name__ == "__main__":
    main()
