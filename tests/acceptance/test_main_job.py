"""From a fresh database to its history, each step a process of its own."""

import datetime as dt
import json
import re
import signal
import subprocess
import sys

import pytest

from support.command import environment, lines_of, run, run_binary, start, urls_of
from support.database import Capture
from support.server import Server
from support.waiting import eventually

APPLICATION = """
import sys
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from pgaudit_ctx import audit_context, install
sys.path.insert(0, sys.argv[2])
from support.clinic import Patient

engine = create_engine(sys.argv[1])
install(engine)
with Session(engine) as session:
    with audit_context(user="r.tyler", reason="walk-in"):
        session.add(Patient(id=42, name="Ann"))
        session.commit()
    with audit_context(user="dr.who", reason="marriage"):
        session.get_one(Patient, 42).name = "Ann Smith"
        session.commit()
    session.execute(text("DELETE FROM patient"))
    session.commit()
"""


def run_application(capture: Capture) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            APPLICATION,
            capture.source.sqlalchemy_url(),
            "tests",
        ],
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def insert(capture: Capture, number: int) -> None:
    capture.source.execute(
        f"INSERT INTO patient (id, name, status) VALUES ({number}, 'x', 'ACTIVE')"
    )


def stored(capture: Capture) -> int:
    ((count,),) = capture.destination.execute("SELECT count(*) AS n FROM pgaudit_ctx.changes")
    return count


def test_setup_application_worker_and_history_give_the_whole_story(bare: Capture) -> None:
    urls = urls_of(bare)
    done = run("setup", env=urls)
    assert (done.returncode, done.stderr) == (0, "")
    assert "captured     3 table(s)" in done.stdout
    run_application(bare)
    done = run("worker", "--until-caught-up", env=urls)
    assert done.returncode == 0
    assert "stored 3 changes of 3 transactions" in done.stderr

    done = run("history", "patient", "42", env=urls)
    assert done.returncode == 0
    told = lines_of(done.stdout)
    assert "INSERT   #1 patient 42  by r.tyler, walk-in" in told[1]
    assert "UPDATE   #2 patient 42  by dr.who, marriage" in told[3]
    assert told[4].strip() == 'name: "Ann" → "Ann Smith"'
    assert "DELETE   #3 patient 42  no context" in told[5]
    assert told[-1].startswith("complete up to ")


def test_log_as_json_has_the_pinned_members(ready: Capture) -> None:
    urls = urls_of(ready)
    run_application(ready)
    run("worker", "--until-caught-up", env=urls)
    done = run("log", "--json", env=urls)
    assert done.returncode == 0
    assert re.fullmatch(r"\S+ is complete up to .*\n", done.stderr)
    delete, update, insertion = (json.loads(line) for line in done.stdout.splitlines())
    ann = {"id": 42, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None}
    smith = {**ann, "name": "Ann Smith"}
    pinned = ("operation", "table", "before", "after", "context")
    assert [[row[name] for name in pinned] for row in (insertion, update, delete)] == [
        ["INSERT", "public.patient", None, ann, {"user": "r.tyler", "reason": "walk-in"}],
        ["UPDATE", "public.patient", ann, smith, {"user": "dr.who", "reason": "marriage"}],
        ["DELETE", "public.patient", smith, None, None],
    ]
    for row in (insertion, update, delete):
        assert dt.datetime.fromisoformat(row["timestamp"]).utcoffset() is not None


def test_history_as_json_has_the_pinned_members_and_the_number(ready: Capture) -> None:
    urls = urls_of(ready)
    run_application(ready)
    run("worker", "--until-caught-up", env=urls)
    done = run("history", "--json", "public.patient", "42", "--user", "dr.who", env=urls)
    (row,) = (json.loads(line) for line in done.stdout.splitlines())
    assert row.keys() >= {"operation", "table", "before", "after", "context", "timestamp"}
    assert (row["version"], row["changed"]) == (2, ["name"])


def test_log_filters_by_table_user_operation_key_and_missing_context(ready: Capture) -> None:
    urls = urls_of(ready)
    run_application(ready)
    run("worker", "--until-caught-up", env=urls)

    def operations(*arguments: str) -> list[str]:
        done = run("log", "--json", *arguments, env=urls)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["operation"] for line in done.stdout.splitlines()]

    assert operations("--user", "dr.who") == ["UPDATE"]
    assert operations("--without-context") == ["DELETE"]
    assert operations("--operation", "insert") == ["INSERT"]
    assert operations("--limit", "2") == ["DELETE", "UPDATE"]
    assert operations("--table", "dose") == []
    assert operations("--table", "public.patient", "--key", "42", "--limit", "1") == ["DELETE"]
    assert operations("--until", "2020-01-01T00:00Z") == []


def test_setup_run_again_takes_the_tables_that_are_new(ready: Capture) -> None:
    urls = urls_of(ready)
    ready.source.execute("CREATE TABLE later (id int PRIMARY KEY)")
    done = run("setup", env=urls)
    assert "captured     4 table(s)" in done.stdout
    ready.source.execute("INSERT INTO later VALUES (1)")
    run("worker", "--until-caught-up", env=urls)
    assert run("history", "later", "1", env=urls).returncode == 0
    assert "nothing to do" in run("setup", env=urls).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_worker_with_everything_stored_and_exit_code_0(
    ready: Capture, number: signal.Signals
) -> None:
    insert(ready, 1)
    with start("worker", env=urls_of(ready)) as process:
        try:
            eventually(lambda: stored(ready) == 1, "the change is stored")
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert "stored 1 changes" in said
    assert "Traceback" not in said


def test_a_signal_while_nothing_happens_ends_the_worker_at_once(ready: Capture) -> None:
    with start("worker", env=urls_of(ready)) as process:
        try:
            eventually(
                lambda: ready.source.execute(
                    "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active",
                    [ready.options.slot],
                ),
                "the worker reads the slot",
            )
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0


def dumped(server: Server, url: str) -> list[str]:
    """A database's schema as SQL, without what differs each time."""
    done = run_binary(server, "pg_dump", "--schema-only", "--dbname", url)
    return [line for line in lines_of(done.stdout) if "restrict" not in line]


def test_the_printed_sql_run_by_psql_does_what_setup_does(
    server: Server, bare: Capture, capture: Capture
) -> None:
    urls = urls_of(bare)
    for end, url in (("source", bare.source.url), ("destination", bare.destination.url)):
        printed = run("setup", "--print-sql", "--no-roles", "--only", end, env=urls)
        assert (printed.returncode, printed.stderr) == (0, "")
        assert printed.stdout.startswith(f"-- {end}\n")
        run_binary(server, "psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", url, script=printed.stdout)
    assert dumped(server, bare.source.url) == dumped(server, capture.source.url)
    assert dumped(server, bare.destination.url) == dumped(server, capture.destination.url)
    done = run("setup", "--no-roles", env=urls)
    assert "nothing to do" in done.stdout
    assert "schema is up to date" in done.stdout


def test_printing_the_sql_changes_nothing(bare: Capture) -> None:
    done = run("setup", "--print-sql", env=urls_of(bare))
    assert done.stdout.index("-- source") < done.stdout.index("-- destination")
    assert bare.source.execute("SELECT 1 FROM pg_publication") == []
    assert (
        bare.destination.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'pgaudit_ctx'") == []
    )


def test_each_end_can_be_set_up_by_itself(bare: Capture) -> None:
    urls = urls_of(bare)
    only_destination = {"PGAUDIT_CTX_DESTINATION_URL": urls["PGAUDIT_CTX_DESTINATION_URL"]}
    only_source = {k: v for k, v in urls.items() if k not in only_destination}
    assert run("setup", "--only", "destination", env=only_destination).returncode == 0
    assert run("setup", "--only", "source", env=only_source).returncode == 0
    insert(bare, 1)
    assert run("worker", "--until-caught-up", env=urls).returncode == 0
    assert stored(bare) == 1


def test_urls_in_sqlalchemys_form_are_accepted_everywhere(bare: Capture) -> None:
    urls = {
        **urls_of(bare),
        "PGAUDIT_CTX_SOURCE_URL": bare.source.sqlalchemy_url("asyncpg"),
        "PGAUDIT_CTX_DESTINATION_URL": bare.destination.sqlalchemy_url(),
    }
    assert run("setup", env=urls).returncode == 0
    insert(bare, 1)
    assert run("worker", "--until-caught-up", env=urls).returncode == 0
    assert run("history", "patient", "1", env=urls).returncode == 0
    assert run("log", env=urls).returncode == 0
