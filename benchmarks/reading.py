"""How fast questions are answered, by a trail of ten million changes and by other libraries.

    nox -s bench-reading -- [--rows 10000000] [--rounds 3] [--calls 40] [--server URL]

The trail is made inside the server, with the real schema, in 24 quarterly and in 72 monthly
partitions, and a hundredth of it the same way; the other libraries get their tables, filled with
the same changes, and an environment of their own whose Python is named by --peers. Every figure is
a median over all calls with the 95 % interval by a bootstrap over rounds; in a round, the same
question goes to each side in turn. With --server, a URL in libpq's form, databases that an earlier
run has finished are taken as they are; else a server is made for the run. Ten million changes want
25 GB in TMPDIR.
"""

import argparse
import datetime as dt
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from emission import Runner
from emission_figures import Figure, table
from reading_data import (
    USERS,
    VERSIONS,
    Data,
    Server,
    build_continuum,
    build_postgresql_audit,
    build_trail,
)
from reading_indexes import index_costs, index_sizes
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgaudit_ctx import AuditReader
from pgaudit_ctx.embedded import EmbeddedPostgres

SETTINGS = {
    # So that it is made fast; reading does not depend on these.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_replication_slots": "0",
    "synchronous_commit": "off",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",  # or it would run in some rounds and not in others
    "shared_buffers": "1GB",
    "max_connections": "120",  # for a hundred readers beside ourselves; locks are as by default
}
READ = Path(__file__).parent / "peers" / "read.py"
SMALL = 100  # the small trail is the large one divided by this
KEYS = 200
READERS = 100
SLOW = 300.0  # milliseconds after which a question is asked once in a round
TABLE_ROWS, TABLE_VERSIONS = 500_000, 5
QUESTIONS = {
    "history": f"history of {VERSIONS} versions",
    "first": "the same, first query of a connection",
    "as_of": "as_of",
    "user": "one user, last 30 days, first 50",
    "table": "a table as of a moment",
    "half": "the same, half the rows and versions",
}
GOALS = {"history": 3.0, "first": 30.0, "as_of": 3.0, "user": 50.0, "table": 3000.0}


ENGINES: list[Engine] = []


class Base(DeclarativeBase): ...


class Patient(Base):
    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    address: Mapped[str]
    ward: Mapped[int]
    visits: Mapped[int]
    admitted_at: Mapped[dt.datetime]


@dataclass
class Side:
    """Who is asked: a label, and for each question what asks it for some things."""

    label: str
    ask: dict[str, Callable[[Sequence[Any]], list[float]]]
    found: dict[str, list[list[float]]] = field(default_factory=dict)


def opened(url: str) -> Engine:
    """Make an engine; without a pool's idle connections when the hundred readers come."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    ENGINES.append(engine)
    return engine


def ours(label: str, url: str) -> Side:
    engine = opened(url)
    reader = AuditReader(engine)

    # Or the other questions would go to connections that have prepared nothing yet.
    fresh = opened(url)
    beginner = AuditReader(fresh)

    def history(key: int) -> None:
        expect(len(reader.history(Patient, key)), VERSIONS)

    def first(key: int) -> None:
        expect(len(beginner.history(Patient, key)), VERSIONS)

    def as_of(asked: tuple[int, dt.datetime]) -> None:
        reader.as_of(Patient, *asked)

    def user(asked: tuple[str, dt.datetime]) -> None:
        reader.changes(user=asked[0], since=asked[1], limit=50)

    def firsts(things: Sequence[Any]) -> list[float]:
        taken = []
        for key in things:
            fresh.dispose()
            fresh.connect().close()
            taken += timed(first)([key])
        return taken

    return Side(
        label,
        {"history": timed(history), "first": firsts, "as_of": timed(as_of), "user": timed(user)},
    )


def table_of(url: str, records: int) -> Callable[[Sequence[Any]], list[float]]:
    engine = opened(url)
    reader = AuditReader(engine)

    def ask(when: dt.datetime) -> None:
        statement = reader.select_as_of(Patient, when)
        with engine.connect() as connection:
            expect(len(connection.execute(statement).all()), records)

    return timed(ask)


def timed(ask: Callable[[Any], None]) -> Callable[[Sequence[Any]], list[float]]:
    def run(things: Sequence[Any]) -> list[float]:
        taken = []
        for thing in things:
            started = time.perf_counter()
            ask(thing)
            taken.append((time.perf_counter() - started) * 1000)
        return taken

    return run


def expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise SystemExit(f"{found} found, not {wanted}: nothing is measured that is wrong")


class Peers:
    """The other libraries' processes, and the sides they are."""

    def __init__(self, server: Server, python: str, rows: int, stack: ExitStack) -> None:
        self._server = server
        self._rows = rows
        self.sides = [
            self._side(library, stack.enter_context(Runner(python, READ)), builder)
            for library, builder in (
                ("continuum", build_continuum),
                ("postgresql-audit", build_postgresql_audit),
            )
        ]

    def _side(self, library: str, runner: Runner, builder: Any) -> Side:
        data = {
            "": Data(self._rows),
            "table": Data(TABLE_ROWS, ("patients",), TABLE_VERSIONS),
            "half": Data(TABLE_ROWS // 2, ("patients",), TABLE_VERSIONS),
        }
        urls = {}
        made: dict[str, Any] = {}

        def create(url: str) -> None:
            made.update(runner.ask("create", library=library, url=url))

        for name, held in data.items():
            database = f"{library.replace('-', '_')}_{name or 'all'}_{held.rows}"
            urls[name] = self._server.database(database, builder(held, create))
            able = runner.ask("look", library=library, url=urls[name])["questions"]

        def asks(do: str, url: str, **more: Any) -> Callable[[Sequence[Any]], list[float]]:
            def run(things: Sequence[Any]) -> list[float]:
                asked = [to_json(thing) for thing in things]
                answer = runner.ask(do, library=library, url=url, asked=asked, **more)
                if more.get("name") == "history":
                    for rows in answer["rows"]:
                        expect(rows, VERSIONS)
                if more.get("name") == "table":
                    for rows in answer["rows"]:
                        records = data["table" if url == urls["table"] else "half"].records
                        expect(rows, records)
                return answer["milliseconds"]

            return run

        ask = {name: asks("question", urls[""], name=name) for name in able if name != "table"}
        ask["first"] = asks("first", urls[""])
        ask["table"] = asks("question", urls["table"], name="table")
        ask["half"] = asks("question", urls["half"], name="table")
        return Side(library, ask)


def to_json(thing: Any) -> Any:
    if isinstance(thing, tuple):
        return [to_json(part) for part in thing]
    return thing.isoformat() if isinstance(thing, dt.datetime) else thing


def measure(sides: Sequence[Side], rows: int, rounds: int, calls: int) -> None:
    """Ask each side in turn, the same things; a first round warms up and is not counted."""
    chance = random.Random(1)
    now = dt.datetime.now(dt.UTC)
    keys = [chance.randrange(1, Data(rows // SMALL).records + 1) for _ in range(KEYS)]
    things: dict[str, Callable[[], Any]] = {
        "history": lambda: chance.choice(keys),
        "first": lambda: chance.choice(keys),
        "as_of": lambda: (chance.choice(keys), now - dt.timedelta(days=chance.randrange(30, 1000))),
        "user": lambda: (f"user{chance.randrange(USERS)}", now - dt.timedelta(days=30)),
        "table": lambda: now,
        "half": lambda: now,
    }
    often = {"history": calls, "as_of": calls, "user": max(1, calls // 4), "first": 3}
    for number in range(rounds + 1):
        for question in QUESTIONS:
            asked = [things[question]() for _ in range(often.get(question, 1))]
            for side in sides:
                if question not in side.ask:
                    continue
                taken = side.ask[question](asked[:1])
                if max(taken) < SLOW and len(asked) > 1:
                    taken += side.ask[question](asked[1:])
                if number:
                    side.found.setdefault(question, []).append(taken)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)


@contextmanager
def counted_locks(engine: Engine, admin: psycopg.Connection[Any]) -> Iterator[list[int]]:
    """Count what a reader's transaction has locked after each of its statements."""
    counts: list[int] = []

    def count(connection: Any, *_: Any) -> None:
        pid = connection.connection.driver_connection.info.backend_pid
        (found,) = admin.execute(
            "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'relation'", [pid]
        ).fetchone()
        counts.append(found)

    event.listen(engine, "after_cursor_execute", count)
    yield counts
    event.remove(engine, "after_cursor_execute", count)


def locks(url: str) -> tuple[int, int]:
    """How many relations a history locks, the first time and once its plan is kept."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    reader = AuditReader(engine)
    with psycopg.connect(url, autocommit=True) as admin, counted_locks(engine, admin) as counts:
        reader.history(Patient, 1)
        first = max(counts)
        for _ in range(10):
            counts.clear()
            reader.history(Patient, 1)
    kept = max(counts)
    engine.dispose()
    return first, kept


def readers(url: str, each: int) -> tuple[int, int, list[float]]:
    """A hundred readers with a connection each, all at once: passed, failed, and milliseconds."""
    url = url.replace("postgresql://", "postgresql+psycopg://")
    engines = [create_engine(url) for _ in range(READERS)]
    for engine in engines:
        engine.connect().close()
    start = threading.Barrier(READERS)
    taken: list[float] = []
    failed: list[Exception] = []

    def run(key: int, engine: Engine) -> None:
        reader = AuditReader(engine)
        start.wait()
        try:
            for _ in range(each):
                began = time.perf_counter()
                reader.history(Patient, key)
                taken.append((time.perf_counter() - began) * 1000)
        except SQLAlchemyError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(n + 1, engines[n])) for n in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    return READERS - len(failed), len(failed), taken


def held_open(url: str) -> int:
    """How many transactions of callers that keep theirs open hold a history, up to a hundred."""
    url = url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url, poolclass=NullPool)
    with ExitStack() as stack:
        for number in range(READERS):
            connection = stack.enter_context(engine.connect())
            try:
                AuditReader(connection).history(Patient, number + 1)
            except SQLAlchemyError:
                return number
    return READERS


def report(sides: Sequence[Side]) -> None:
    head = ["milliseconds", *(side.label for side in sides)]
    lines = []
    for question, label in QUESTIONS.items():
        shown = []
        for side in sides:
            rounds = side.found.get(question)
            shown.append(Figure.of(rounds).show(",.1f") if rounds else "")
        lines.append([label, *shown])
    print("\n" + table(head, lines))


def report_goals(large: Side, months: Side, small: Side, tables: Side) -> None:
    lines = []
    for side in (large, months):
        for question in ("history", "first", "as_of", "user"):
            figure = Figure.of(side.found[question])
            goal = GOALS[question]
            shown = [figure.show(".1f"), figure.verdict(goal)]
            lines.append([side.label, QUESTIONS[question], f"at most {goal:g} ms", *shown])
    pairs = zip(large.found["history"], small.found["history"], strict=True)
    ratio = Figure.of([[a / b for a, b in zip(*pair, strict=False)] for pair in pairs])
    said = f"{SMALL} times as many changes"
    lines.append([large.label, said, "at most 1.5", ratio.show(".2f"), ratio.verdict(1.5)])
    figure = Figure.of(tables.found["table"])
    shown = [figure.show(",.0f"), figure.verdict(GOALS["table"])]
    lines.append([tables.label, QUESTIONS["table"], f"at most {GOALS['table']:g} ms", *shown])
    print("\n" + table(["", "", "goal", "found", ""], lines))


def report_locks(urls: dict[str, str]) -> None:
    lines = []
    for label, url in urls.items():
        first, kept = locks(url)
        passed, failed, taken = readers(url, 5)
        slowest = f"{sorted(taken)[len(taken) // 2]:,.0f}, at the most {max(taken):,.0f}"
        verdict = f"{passed} passed, {failed} failed"
        lines.append([label, str(first), str(kept), verdict, slowest, str(held_open(url))])
    head = ["", "locks, first", "locks, planned already", "100 readers at once", "ms each"]
    print("\n" + table([*head, "callers that keep theirs open"], lines))


def report_indexes(url: str, rows: int) -> None:
    costs = index_costs(url)
    lines = []
    for name, size in sorted(index_sizes(url).items(), key=lambda item: -item[1]):
        cost = Figure.of([costs[name]]).show(".1f") if name in costs else ""
        shown = [f"{size / 2**20:,.0f}", f"{size / rows:.1f}", cost]
        lines.append([name.removeprefix("pgaudit_ctx."), *shown])
    print("\n" + table(["quarters", "MB", "bytes a change", "µs of CPU a change"], lines))


def run(server: Server, options: argparse.Namespace, stack: ExitStack) -> None:
    rows = options.rows
    urls, sides = {}, []
    for count in (rows, rows // SMALL):
        for unit, label in (("quarter", "24 quarters"), ("month", "72 months")):
            name = f"{unit}s_{count}"
            urls[name] = server.database(name, build_trail(Data(count), unit))
            sides.append(ours(f"{label}, {count:,}", urls[name]))
    whole = Data(TABLE_ROWS, ("patients",), TABLE_VERSIONS)
    half = Data(TABLE_ROWS // 2, ("patients",), TABLE_VERSIONS)
    tables = Side(f"24 quarters, {TABLE_ROWS:,}", {})
    for question, data in (("table", whole), ("half", half)):
        url = server.database(f"table_{data.rows}", build_trail(data, "quarter"))
        tables.ask[question] = table_of(url, data.records)
    everyone = [*sides, tables]
    if options.peers:
        everyone += Peers(server, options.peers, rows, stack).sides
    measure(everyone, rows, options.rounds, options.calls)
    print(f"PostgreSQL {server.version}, {rows:,} changes, {options.rounds} rounds")
    report(everyone)
    report_goals(sides[0], sides[1], sides[2], tables)
    for engine in ENGINES:
        engine.dispose()
    report_locks({side.label: urls[name] for side, name in zip(sides, urls, strict=True)})
    report_indexes(urls[f"quarters_{rows}"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="a multiple of 40,000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--server", help="URL of a server to keep the databases in")
    parser.add_argument("--peers", default="", help="Python of the other libraries")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.server
        if url is None:
            url = stack.enter_context(EmbeddedPostgres(settings=SETTINGS)).url("postgres")
        run(Server(url), options, stack)


if __name__ == "__main__":
    main()
