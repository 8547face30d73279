"""status, try and teardown: how far it is, whether it works, and the way back."""

import json
import re
from collections.abc import Iterator

import psycopg
import pytest

from pgaudit_ctx.errors import DatabaseError, SlotBusy, SourceNotReady, UsageError
from support.command import start, urls_of
from support.database import Capture, Database
from support.doctor import ask, command
from support.waiting import eventually


@pytest.fixture
def ready(source: Database, destination: Database) -> Capture:
    made = Capture(source, destination)
    assert command(made, "setup").exit_code == 0
    return made


@pytest.fixture
def running(ready: Capture) -> Iterator[Capture]:
    worker = start("worker", env=urls_of(ready))
    eventually(lambda: status(ready)["slot_active"], "the worker reads the slot")
    yield ready
    worker.terminate()
    worker.communicate(timeout=30)


def status(capture: Capture) -> dict:
    done = command(capture, "status", "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_status_says_how_far_the_trail_is(ready: Capture) -> None:
    # Much more than a server writes by itself meanwhile, with its pages whole after a checkpoint.
    ready.source.execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 10000000))")
    before = status(ready)
    assert before["source"] == ready.source.name
    assert before["slot_active"] is False
    assert before["lag_bytes"] > 10_000_000
    assert before["retained_wal_bytes"] > 10_000_000
    assert (before["gaps"], before["rejected"]) == (0, 0)
    ready.run()
    after = status(ready)
    assert after["lag_bytes"] < 1_000_000
    assert after["lag_seconds"] < 60
    assert after["checkpoint_lsn"] > before["checkpoint_lsn"]


def test_status_as_text_and_of_an_end_that_cannot_be_reached(ready: Capture) -> None:
    done = command(ready, "status")
    assert "nobody reads it" in done.output
    unreachable = {"PGAUDIT_CTX_DESTINATION_URL": "postgresql://no-such-host.invalid/audit"}
    done = command(ready, "status", "--json", more=unreachable)
    assert done.exit_code == 1
    seen = json.loads(done.stdout)
    assert seen["slot_active"] is False
    assert "no-such-host.invalid" in seen["problems"][0]
    assert seen["gaps"] is None


def test_status_can_be_watched(ready: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("pgaudit_ctx.cli.status.time.sleep", sleep)
    done = command(ready, "status", "--watch", "--json")
    assert done.exit_code == 0
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 2


def test_try_shows_three_changes_with_their_context_and_leaves_nothing_in_the_source(
    running: Capture,
) -> None:
    done = command(running, "try")
    assert done.exit_code == 0, done.output
    for operation in ("INSERT", "UPDATE", "DELETE"):
        line = rf"{operation} +pgaudit_ctx_try_\w+.scratch 1  by pgaudit-ctx, try"
        assert re.search(line, done.output)
    assert "it works" in done.output
    assert running.source.execute("SELECT 1 FROM pg_namespace WHERE nspname ~ '_try_'") == []
    found = {name: f.state for name, f in ask(running).items()}
    assert (found["tables_published"], found["coverage_holes"]) == ("ok", "ok")


def test_try_needs_a_source_that_is_set_up_and_a_worker_that_runs(
    ready: Capture, source: Database
) -> None:
    with pytest.raises(SourceNotReady, match="Remedy: start pgaudit-ctx worker"):
        command(ready, "try")
    with pytest.raises(SourceNotReady, match="run pgaudit-ctx setup"):
        command(ready, "try", "--slot", "another")
    assert source.execute("SELECT 1 FROM pg_namespace WHERE nspname ~ '_try_'") == []


def test_try_fails_if_nothing_arrives_in_time(
    ready: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.cli.trial.run_trial", lambda _: [])
    done = command(ready, "try")
    assert done.exit_code == 1
    assert "INSERT, UPDATE, DELETE" in done.output


def identities(database: Database) -> dict[str, str]:
    return {
        row.relname: row.relreplident
        for row in database.execute(
            "SELECT relname::text, relreplident::text FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
    }


def test_teardown_gives_back_what_there_was_and_keeps_the_trail(
    source: Database, destination: Database
) -> None:
    source.execute("ALTER TABLE dose REPLICA IDENTITY NOTHING")
    capture = Capture(source, destination)
    command(capture, "setup")
    source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    capture.run()
    with pytest.raises(UsageError, match="repeat with --yes"):
        command(capture, "teardown")
    assert set(identities(source).values()) == {"f"}
    done = command(capture, "teardown", "--yes")
    assert done.exit_code == 0, done.output
    assert "3 table(s) are captured no more" in done.output
    assert identities(source) == {"dose": "n", "patient": "d", "sample": "d"}
    assert source.execute("SELECT 1 FROM pg_publication") == []
    slots = source.execute(
        "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [capture.options.slot]
    )
    assert slots == []
    assert source.execute("SELECT 1 FROM pg_default_acl") == []
    assert len(destination.execute("SELECT 1 FROM pgaudit_ctx.changes")) == 1
    assert destination.execute("SELECT 1 FROM pgaudit_ctx.tracked") == []
    assert destination.execute("SELECT 1 FROM pgaudit_ctx.coverage WHERE to_lsn IS NULL") == []
    commands = destination.execute("SELECT command FROM pgaudit_ctx.operations ORDER BY id")
    assert [row.command for row in commands][-1] == "teardown"


def test_a_trail_that_was_torn_down_goes_on_with_a_gap(ready: Capture) -> None:
    ready.run()
    command(ready, "teardown", "--yes")
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    with pytest.raises(DatabaseError, match="--recreate-slot"):
        command(ready, "setup")
    done = command(ready, "setup", "--recreate-slot", "--yes")
    assert "will be missing for ever" in done.output
    ready.source.execute("INSERT INTO patient (id, name, status) VALUES (2, 'b', 'ACTIVE')")
    assert [row.after["id"] for row in ready.changes("patient")] == [2]
    assert ask(ready)["gaps"].state == "warning"


def test_teardown_drops_the_trail_only_if_told_to_and_no_other_source_is_in_it(
    ready: Capture,
) -> None:
    ready.destination.execute(
        "INSERT INTO pgaudit_ctx.checkpoints SELECT 'other', 'other', epoch, commit_lsn, end_lsn,"
        " complete_at, system_identifier, timeline, database_oid FROM pgaudit_ctx.checkpoints"
    )
    with pytest.raises(UsageError, match="holds other too"):
        command(ready, "teardown", "--yes", "--drop-trail")
    ready.destination.execute("DELETE FROM pgaudit_ctx.checkpoints WHERE source = 'other'")
    done = command(ready, "teardown", "--yes", "--drop-trail")
    assert done.exit_code == 0, done.output
    gone = ready.destination.execute("SELECT to_regnamespace('pgaudit_ctx') IS NULL AS gone")
    assert gone[0].gone


def test_teardown_does_not_end_a_worker_that_runs(running: Capture) -> None:
    with pytest.raises(SlotBusy, match="stop that worker first"):
        command(running, "teardown", "--yes")
    assert status(running)["slot_active"]


def test_new_slots_follow_a_failover_where_the_server_can(ready: Capture) -> None:
    with psycopg.connect(ready.source.url) as connection:
        if connection.info.server_version < 17_00_00:
            pytest.skip("failover slots came with PostgreSQL 17")
    (slot,) = ready.source.execute(
        "SELECT failover FROM pg_replication_slots WHERE slot_name = %s", [ready.options.slot]
    )
    assert slot.failover
