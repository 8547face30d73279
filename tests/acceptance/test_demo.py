"""``pgaudit-ctx demo`` shows the whole path, and leaves nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support.command import run, start
from support.waiting import eventually


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for temporary files that the server's unprivileged user may enter as well."""
    made = Path(tempfile.mkdtemp(prefix="demo"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def servers_in(place: Path) -> list[int]:
    """The processes that run from this directory."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if f"{place}/" in line]


def gone(place: Path) -> bool:
    return list(place.iterdir()) == [] and servers_in(place) == []


def test_the_demo_prints_the_trail_with_the_write_that_nobody_explained(place: Path) -> None:
    done = run("demo", env={"TMPDIR": str(place)})
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout
    assert re.search(r"INSERT +patients 42 +by r\.tyler, walk-in registration", told)
    examined = r"by dr\.who, examination\n +"
    assert re.search(rf'UPDATE +visits 1 +{examined}triage: "ROUTINE" → "URGENT"', told)
    assert re.search(rf"UPDATE +patients 42 +{examined}open_prescriptions: 0 → 1", told)
    assert re.search(r"UPDATE +prescriptions 7 +by dr\.who, dose review\n +dose_mg: ", told)
    assert told.count("no context: nobody said who or why") == 2  # in the trail, in the history
    renamed = '\n +name: "Ann Smith" → "Eve Smith"'
    assert re.search(rf"UPDATE +#4 patients 42 +no context.*{renamed}", told)
    assert "#2: Ann Smith, born 1980-02-29, allergies [], 1 open prescription" in told
    assert gone(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_demos_server_runs_leaves_nothing_behind(
    place: Path, number: signal.Signals
) -> None:
    with start("demo", env={"TMPDIR": str(place)}) as process:
        try:
            eventually(lambda: list(place.glob("*/.s.PGSQL.*")), "the server starts")
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert gone(place)


def test_an_interrupt_while_the_demos_server_is_made_leaves_nothing_behind(place: Path) -> None:
    with start("demo", env={"TMPDIR": str(place)}) as process:
        try:
            eventually(lambda: list(place.glob("*/data")), "initdb begins")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    eventually(lambda: gone(place), "directory and processes are gone")


def test_a_demo_that_is_kept_leaves_a_server_whose_urls_work(place: Path) -> None:
    done = run("demo", "--keep", env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    urls = dict(re.findall(r"export (PGAUDIT_CTX_\w+)='([^']+)'", done.stdout))
    pid = int(re.search(r"kill (\d+)", done.stdout)[1])
    try:
        with psycopg.connect(urls["PGAUDIT_CTX_SOURCE_URL"], autocommit=True) as connection:
            connection.execute("UPDATE patients SET name = 'Ann Jones' WHERE id = 42")
        assert run("worker", "--until-caught-up", env=urls).returncode == 0
        history = run("history", "patients", "42", env=urls)
        assert '"Eve Smith" → "Ann Jones"' in history.stdout
    finally:
        os.kill(pid, signal.SIGINT)
        eventually(
            lambda: not list(place.glob("*/data/postmaster.pid")) and servers_in(place) == [],
            "the server has ended",
        )
