"""The page on what does not work: each symptom is brought about, and shown as the page says."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from pgaudit_ctx.source.stream import ReplicationStream
from support.command import command as terminal_command
from support.command import environment, urls_of
from support.database import Capture, Database, create_database, drop_database
from support.pages import parts, sessions, steady
from support.server import Server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "troubleshooting.md"
PARTS = {name: text for name, text in parts(PAGE.read_text("utf-8")).items() if "\n$ " in text}
INSERT = "INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')"


def nothing_more(capture: Capture, _end: ExitStack) -> None:
    capture.setup()
    capture.source.execute(INSERT)


def worker_ended(capture: Capture, end: ExitStack) -> None:
    nothing_more(capture, end)
    capture.run()
    capture.source.execute("UPDATE patient SET name = 'Eve'")


def new_table(capture: Capture, end: ExitStack) -> None:
    worker_ended(capture, end)
    capture.source.execute("CREATE TABLE invoices (id int PRIMARY KEY)")


def old_row(capture: Capture, _end: ExitStack) -> None:
    capture.source.execute(INSERT)
    capture.setup()
    capture.source.execute("SELECT pg_logical_emit_message(true, 'other', 'x')")
    capture.run()


def busy(capture: Capture, end: ExitStack) -> None:
    capture.setup()
    options = capture.options
    stream = ReplicationStream(options.source, options.slot, options.publication)
    end.enter_context(stream).start(0)


def latin(capture: Capture, end: ExitStack) -> None:
    server = capture.destination.server
    other = Database(server, f"{capture.destination.name}_latin")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {other.name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        )
    end.callback(drop_database, other)
    capture.destination = other


STATES: dict[str, Callable[[Capture, ExitStack], None]] = {
    "Nothing appears at all": nothing_more,
    "My change does not appear": worker_ended,
    "A whole table does not appear": new_table,
    "A record has no history": old_row,
    "My change has no context": worker_ended,
    "The slot is busy": busy,
    "The destination's encoding": latin,
    "It cannot connect": lambda _capture, _end: None,
    "More disk on the source": worker_ended,
}


@pytest.fixture
def clinic(server: Server, source_template: str) -> Iterator[Capture]:
    made = Capture(create_database(server, source_template), create_database(server))
    made.options = made.options._replace(name="clinic")
    ends = (made.source, made.destination)
    yield made
    for end in ends:
        drop_database(end)


@pytest.mark.parametrize("part", PARTS)
def test_a_symptom_is_shown_as_the_page_says(part: str, clinic: Capture) -> None:
    with ExitStack() as end:
        STATES[part](clinic, end)
        urls = {**urls_of(clinic), "PGAUDIT_CTX_NAME": "clinic", "COLUMNS": "400"}
        for block in re.findall(r"^```console\n(.*?)^```", PARTS[part], re.DOTALL | re.MULTILINE):
            for typed, shown in sessions(block):
                printed = terminal(typed, urls).replace(clinic.options.slot, "pgaudit_ctx")
                for line in shown.splitlines():
                    assert squeezed(line) in squeezed(printed), printed


def terminal(typed: str, urls: dict[str, str]) -> str:
    """What a command prints, on whichever stream."""
    words = shlex.split(typed)
    assert words[0] == "pgaudit-ctx"
    done = subprocess.run(
        terminal_command(*words[1:]),
        env=environment(urls),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def squeezed(text: str) -> str:
    """The text with one space wherever there are some: how wide a column is depends on others."""
    return " ".join(steady(text).split())


def test_each_extra_is_on_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    table = parts(PAGE.read_text("utf-8"))["A package is missing"]
    rows = "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == set(project["optional-dependencies"])
