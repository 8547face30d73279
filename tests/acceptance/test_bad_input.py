"""What cannot work says in one line what is wrong and what to do, without a traceback."""

import subprocess
from urllib.parse import urlsplit

import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.source.stream import ReplicationStream
from support.command import lines_of, run, urls_of
from support.database import Capture, Database, create_database
from support.server import Server, server_of_its_own
from support.waiting import eventually


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = lines_of(done.stderr)
    assert line.startswith("pgaudit-ctx: ")
    for word in words:
        assert word in line


def with_user(database: Database, user: str) -> str:
    return database.url.replace("postgres@", f"{user}@").replace("postgres:", f"{user}:")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:hunter2@no-such-host.invalid/db", ["no-such-host.invalid", "the host"]),
        ("postgresql://u:hunter2@127.0.0.1:1/db", ["127.0.0.1", "port in its URL"]),
    ],
)
def test_a_server_that_cannot_be_reached_is_named_without_the_password(
    url: str, words: list[str]
) -> None:
    done = run("setup", "--source", url, "--destination", url)
    refused(done, 1, "cannot connect to the destination", "Remedy", *words)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:hunter2@h/db", ["postgresql://", "not with mysql://"]),
        ("postgresql://u:hunter2@[h/db", ["postgresql://"]),
        ("postgresql://u:some@hunter2@h/db", ["@ is %40"]),
        ("postgresql://u:some/hunter2@h/db", ["/ is %2F"]),
        ("clinic", ["postgresql://"]),
    ],
)
def test_what_is_no_url_of_postgresql_is_wrong_usage(url: str, words: list[str]) -> None:
    done = run("log", "--destination", url)
    refused(done, 2, *words)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (["worker"], "PGAUDIT_CTX_SOURCE_URL"),
        (["setup"], "PGAUDIT_CTX_DESTINATION_URL"),
        (["log"], "PGAUDIT_CTX_DESTINATION_URL"),
        (["history", "t", "1"], "PGAUDIT_CTX_DESTINATION_URL"),
    ],
)
def test_a_url_that_was_not_given_is_asked_for(arguments: list[str], variable: str) -> None:
    refused(run(*arguments), 2, "Remedy", variable)


def test_a_moment_without_time_zone_is_wrong_usage() -> None:
    done = run("log", "--since", "2026-11-24T10:00", "--destination", "postgresql://h/db")
    refused(done, 2, "time zone")


def test_what_is_no_moment_is_wrong_usage() -> None:
    done = run("log", "--until", "yesterday", "--destination", "postgresql://h/db")
    refused(done, 2, "'yesterday'", "2026-11-24T10:00:00+00:00")


def test_an_unknown_option_is_wrong_usage() -> None:
    done = run("worker", "--frobnicate")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_database_and_a_role_that_do_not_exist_are_named(bare: Capture) -> None:
    url = bare.source.url.replace(f"/{bare.source.name}", "/nowhere")
    refused(run("log", "--destination", url), 1, "nowhere", "createdb")
    url = with_user(bare.source, "nobody_here")
    refused(run("log", "--destination", url), 1, "nobody_here", "Remedy")


def test_a_wrong_or_missing_password_is_told_without_showing_it(
    server: Server, bare: Capture
) -> None:
    if not isinstance(server, EmbeddedPostgres):
        pytest.skip("only a server of our own lets us ask for passwords")
    rules = server.data_directory / "pg_hba.conf"
    before = rules.read_text()
    bare.source.execute("CREATE ROLE secured LOGIN SUPERUSER PASSWORD 'right'")
    rules.write_text("local all secured scram-sha-256\n" + before)
    try:
        bare.source.execute("SELECT pg_reload_conf()")
        eventually(
            lambda: bare.source.execute(
                "SELECT 1 FROM pg_hba_file_rules WHERE auth_method = 'scram-sha-256'"
            ),
            "the rule is in force",
        )
        wrong = with_user(bare.source, "secured:hunter2")
        eventually(lambda: run("log", "--destination", wrong).returncode == 1, "it is asked for")
        done = run("log", "--destination", wrong)
        refused(done, 1, "password authentication failed", "user and password in its URL")
        assert "hunter2" not in done.stderr
        missing = run("log", "--destination", with_user(bare.source, "secured"))
        refused(missing, 1, "password", "user and password in its URL")
    finally:
        rules.write_text(before)
        bare.source.execute("SELECT pg_reload_conf()")
        bare.source.execute("DROP ROLE secured")


def test_a_role_without_the_right_to_replicate_is_told_the_statement(bare: Capture) -> None:
    password = urlsplit(bare.source.url).password or ""  # the URL with its name has the same
    bare.source.execute(f"CREATE ROLE \"Plain\" LOGIN PASSWORD '{password}'")
    try:
        urls = {**urls_of(bare), "PGAUDIT_CTX_SOURCE_URL": with_user(bare.source, "Plain")}
        refused(run("setup", env=urls), 1, 'ALTER ROLE "Plain" REPLICATION')
    finally:
        bare.source.execute('DROP ROLE "Plain"')


def test_a_server_whose_log_carries_no_rows_is_told_the_setting(
    server: Server, bare: Capture
) -> None:
    with server_of_its_own(server, {"wal_level": "replica"}) as other:
        source = create_database(other)
        urls = {**urls_of(bare), "PGAUDIT_CTX_SOURCE_URL": source.url}
        refused(run("setup", env=urls), 1, "wal_level = replica", "ALTER SYSTEM SET wal_level")


def test_a_worker_before_setup_is_sent_to_setup(bare: Capture) -> None:
    urls = urls_of(bare)
    refused(run("worker", env=urls), 1, "pgaudit-ctx setup")
    assert run("setup", "--only", "destination", env=urls).returncode == 0
    refused(run("worker", env=urls), 1, "no publication 'pgaudit_ctx'", "pgaudit-ctx setup")


def test_reading_before_setup_is_sent_to_setup(bare: Capture) -> None:
    refused(run("log", env=urls_of(bare)), 1, "holds no trail", "pgaudit-ctx setup")
    refused(run("history", "patient", "1", env=urls_of(bare)), 1, "holds no trail")


def test_a_busy_slot_is_told_with_the_pid_that_reads_it(ready: Capture) -> None:
    options = ready.options
    with ReplicationStream(options.source, options.slot, options.publication) as other:
        other.start(0)
        ((pid,),) = ready.source.execute(
            f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{options.slot}'"
        )
        done = run("worker", "--log-level", "error", env=urls_of(ready))
    refused(done, 1, str(pid), "Remedy")


def test_setup_after_the_slot_was_lost_refuses_and_makes_no_new_one(ready: Capture) -> None:
    slot = ready.options.slot
    ready.source.execute(f"SELECT pg_drop_replication_slot('{slot}')")
    refused(run("setup", env=urls_of(ready)), 1, slot, "hole")
    slots = ready.source.execute("SELECT slot_name FROM pg_replication_slots")
    assert slot not in [row.slot_name for row in slots]


def test_questions_that_the_trail_cannot_answer_exit_1(ready: Capture) -> None:
    urls = urls_of(ready)
    refused(run("history", "nowhere", "1", env=urls), 1, "public.nowhere", "never captured")
    refused(run("history", "dose", "1", env=urls), 1, "patient_id, given_on")
    refused(run("history", "patient", "1", "--name", "other", env=urls), 1, "'other'")
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')")
    for command in (["log"], ["history", "patient", "1"]):
        refused(run(*command, env=urls), 1, ready.source.name, "start pgaudit-ctx worker")
    ready.run()
    done = run("history", "patient", "2", env=urls)
    assert done.returncode == 1
    assert lines_of(done.stderr) == ["no version of this record in patient matches"]
    for command in (
        ["history", "patient", "1", "--field", "nme"],
        ["log", "--table", "patient", "--field", "nme"],
    ):
        refused(run(*command, env=urls), 2, "has no attribute nme", "name")
    for command in (["history", "patient", "x"], ["log", "--table", "patient", "--key", "x"]):
        refused(run(*command, env=urls), 1, "key column id", "an integer")
    refused(run("log", "--table", "nowhere", env=urls), 1, "nowhere", "never captured")
