"""Run SQLAlchemy's own test suite without the hook and with it: the same tests must pass.

    python tests/sqlalchemy_suite/run.py [--driver NAME] [--workers N] [PART ...]

Everything is thrown away at the end except for what ``--results`` names. ``nox -s
sqlalchemy-suite`` makes an environment for it.
"""

# ruff: noqa: T201 - a script that prints

import argparse
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psycopg

from pgaudit_ctx.embedded import EmbeddedPostgres

HERE = Path(__file__).parent
PARTS = (
    "test/dialect/postgresql",
    "test/dialect/test_suite.py",
    "test/engine",
    "test/ext/asyncio",
    "test/orm",
    "test/sql",
)
DRIVERS = ("psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000")
SERVER = {
    "max_prepared_transactions": "20",
    "max_connections": "200",
    # It counts the messages, so that a hook that does nothing cannot pass for a harmless one.
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "all",
    "pg_stat_statements.max": "20000",
    # A test that waits for another connection of itself fails, rather than waiting for ever.
    "lock_timeout": "60s",
}
WANTED = ("SCHEMA test_schema", "SCHEMA test_schema_2", "EXTENSION hstore", "EXTENSION citext")
MESSAGES = """
    SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
    WHERE query LIKE '%pg_logical_emit_message(%' AND query NOT LIKE '%pg_stat_statements%'
"""


class Outcome(NamedTuple):
    """How a test ended, and the end of what it said about it."""

    name: str
    said: str


class Run(NamedTuple):
    """One run of the suite."""

    outcomes: dict[str, Outcome]
    messages: int


class Exclusion(NamedTuple):
    """Tests that may end differently."""

    pattern: re.Pattern[str]
    drivers: tuple[str, ...]
    reason: str


def main() -> int:
    # The server must not outlive this process when that is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    options = _options()
    exclusions = _exclusions()
    with tempfile.TemporaryDirectory(prefix="sqlalchemy-suite-") as scratch:
        results = options.results or Path(scratch)
        results.mkdir(parents=True, exist_ok=True)
        source = _source(options.cache or Path(scratch), Path(scratch))
        differ = False
        for driver in options.driver or [DRIVERS[0]]:
            bare = _run(source, driver, options, results / f"{driver}-bare.jsonl")
            hooked = _run(source, driver, options, results / f"{driver}-hooked.jsonl", hooked=True)
            differ |= not _compare(driver, bare, hooked, exclusions)
    return int(differ)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run SQLAlchemy's test suite without and with the hook, and compare.",
    )
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--driver", action="append", choices=DRIVERS, help="may be repeated")
    parser.add_argument("--workers", default="2", help="processes; 0 for none beside the first")
    parser.add_argument(
        "--backend-only",
        action="store_true",
        help="only what SQLAlchemy itself marks as depending on the database",
    )
    parser.add_argument("-k", dest="keyword", default="", help="an expression, as for pytest")
    parser.add_argument("--cache", type=Path, help="where the source distribution is kept")
    parser.add_argument("--results", type=Path, help="where outcomes and output are kept")
    return parser.parse_args()


def _source(cache: Path, scratch: Path) -> Path:
    """Give the source tree of the very version of SQLAlchemy that is installed."""
    release = f"sqlalchemy-{version('sqlalchemy')}"
    archive = cache / f"{release}.tar.gz"
    if not archive.exists():
        pinned = release.replace("-", "==")
        fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", cache]
        subprocess.run([sys.executable, "-m", "pip", *fetch, pinned], check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(scratch, filter="data")
    return scratch / release


def _run(
    source: Path, driver: str, options: argparse.Namespace, record: Path, *, hooked: bool = False
) -> Run:
    output = record.with_suffix(".log")
    print(f"{driver}, {'with' if hooked else 'without'} the hook ...", flush=True)
    with _server() as (connection, address), output.open("w") as log:
        # Not an argument, because other users of this machine could read the password there.
        database = f"[db]\nsuite = postgresql+{driver}://{address}\n"
        (source / "test.cfg").write_text(database, encoding="utf-8")
        command = [
            *(sys.executable, "-m", "pytest", "-p", "recorded", f"--record={record.absolute()}"),
            *(("-p", "hooked") if hooked else ()),
            *("-p", "no:cacheprovider", "-q", "--maxfail=1000000", "-n", options.workers),
            *(("--backend-only",) if options.backend_only else ()),
            *("-k", options.keyword, "--db=suite", *options.parts),
        ]
        ended = subprocess.run(
            command,
            cwd=source,
            env={
                **os.environ,
                "PYTHONPATH": str(HERE),
                # Without it the suite would test the tree that it lies in, not what is installed.
                "PYTHONNOUSERSITE": "1",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
        (messages,) = connection.execute(MESSAGES).fetchone()
    if ended.returncode not in (0, 1):
        sys.exit(f"pytest ended with {ended.returncode}:\n{output.read_text()[-4000:]}")
    lines = map(json.loads, record.read_text(encoding="utf-8").splitlines())
    outcomes = {line["test"]: Outcome(line["outcome"], line["said"]) for line in lines}
    return Run(outcomes, messages)


@contextmanager
def _server() -> Iterator[tuple[psycopg.Connection, str]]:
    """Start a server that has what SQLAlchemy's README.unittests.rst asks for.

    Gives a connection to it, and what a URL says behind ``//``.
    """
    password, port = secrets.token_hex(16), str(_free_port())
    settings = {**SERVER, "listen_addresses": "127.0.0.1", "port": port}
    with EmbeddedPostgres(settings=settings) as server:
        local = f"host={server.directory} port={port} user=postgres dbname="
        with psycopg.connect(f"{local}postgres", autocommit=True) as connection:
            _ask_for_passwords(connection)
            connection.execute("CREATE EXTENSION pg_stat_statements")
            connection.execute(f"CREATE ROLE scott SUPERUSER LOGIN PASSWORD '{password}'")
            connection.execute("CREATE DATABASE test OWNER scott")
            connection.execute(
                "ALTER DATABASE test SET default_text_search_config = 'pg_catalog.english'"
            )
            with psycopg.connect(f"{local}test", autocommit=True) as inside:
                inside.execute("SET ROLE scott")
                for made in WANTED:
                    inside.execute(f"CREATE {made}")
            yield connection, f"scott:{password}@127.0.0.1:{port}/test"


def _ask_for_passwords(connection: psycopg.Connection[tuple[str]]) -> None:
    """Keep other users of this machine out: some tests need a port, which everybody can reach."""
    (path,) = connection.execute("SHOW hba_file").fetchone()
    rules = ("local all all trust", "host all all 127.0.0.1/32 scram-sha-256")
    Path(path).write_text("\n".join(rules) + "\n")
    connection.execute("SELECT pg_reload_conf()")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _exclusions() -> list[Exclusion]:
    table = tomllib.loads((HERE / "exclusions.toml").read_text(encoding="utf-8"))
    return [
        Exclusion(
            re.compile("|".join(map(_pattern, one["tests"]))),
            tuple(one.get("drivers", DRIVERS)),
            one["reason"],
        )
        for one in table.get("exclusion", [])
    ]


def _pattern(test: str) -> str:
    return re.escape(test).replace(r"\*", ".*")


def _compare(driver: str, bare: Run, hooked: Run, exclusions: list[Exclusion]) -> bool:
    """Print what came out of both runs; say whether nothing differs that must not."""
    print(f"\n{driver}: {hooked.messages} messages were sent by the run with the hook")
    _print_counts(bare, hooked)
    applying = [one for one in exclusions if driver in one.drivers]
    nothing = Outcome("not run", "")
    unexplained = 0
    explained: Counter[str] = Counter()
    for test in sorted(bare.outcomes.keys() | hooked.outcomes.keys()):
        before, after = bare.outcomes.get(test, nothing), hooked.outcomes.get(test, nothing)
        if before.name == after.name:
            continue
        reasons = [one.reason for one in applying if one.pattern.fullmatch(test)]
        print(f"  {test}\n    {before.name} without the hook, {after.name} with it")
        if reasons:
            print(f"    excluded: {reasons[0]}")
            explained[reasons[0]] += 1
            continue
        unexplained += 1
        for line in (after.said or before.said).splitlines()[-3:]:
            print(f"    | {line}")
    for one in applying:
        if not explained[one.reason] and any(map(one.pattern.fullmatch, bare.outcomes)):
            print(f"  No test differs that is excluded because: {one.reason}")
    if bare.messages or not hooked.messages:
        print("The hook was not what the runs differ in: see the numbers of messages.")
        return False
    print(f"{sum(explained.values())} excluded and {unexplained} other differences.\n", flush=True)
    return not unexplained


def _print_counts(bare: Run, hooked: Run) -> None:
    counts = [Counter(one.name for one in run.outcomes.values()) for run in (bare, hooked)]
    print(f"  {'':10} {'without':>9} {'with':>9}")
    for name in sorted(counts[0].keys() | counts[1].keys()):
        print(f"  {name:10} {counts[0][name]:9} {counts[1][name]:9}")


if __name__ == "__main__":
    sys.exit(main())
