"""What becomes of a change that the destination refuses."""

import json
import logging

import pytest
from sqlalchemy import create_engine

from pgaudit_ctx import supervisor as module
from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import rejected
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.supervisor import Supervisor
from support.clinic import Patient
from support.command import run, urls_of
from support.database import Capture
from support.positions import acknowledged, checkpoint, insert

REFUSAL = "ALTER TABLE pgaudit_ctx.changes ADD CONSTRAINT no_hunter CHECK (after::text NOT LIKE '%hunter2%')"  # noqa: E501


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)


def capture_all(capture: Capture) -> module.Progress:
    supervisor = Supervisor(capture.options)
    try:
        return supervisor.run(until_caught_up=True)
    finally:
        supervisor.close()


def stored(capture: Capture) -> list[tuple[str, str]]:
    return [
        (row.operation, *row.primary_key)
        for row in capture.destination.execute(
            "SELECT * FROM pgaudit_ctx.changes ORDER BY epoch, commit_lsn, ordinal"
        )
    ]


@pytest.fixture
def refused(capture: Capture) -> Capture:
    """Three transactions, and in the middle of each a row that was refused."""
    capture.destination.execute(REFUSAL)
    for number in range(3):
        capture.source.execute(
            "INSERT INTO patient (id, name, status) SELECT n, CASE WHEN n % 10 = 5"
            f" THEN 'hunter2' ELSE 'x' END, 'ACTIVE' FROM generate_series({number * 10 + 1},"
            f" {number * 10 + 10}) n"
        )
    progress = capture_all(capture)
    assert (progress.changes, progress.rejected) == (27, 3)
    return capture


def test_everything_else_is_stored_and_the_worker_goes_on(refused: Capture) -> None:
    keys = [int(key) for _, key in stored(refused)]
    assert keys == [n for n in range(1, 31) if n % 10 != 5]
    insert(refused.source, 31)
    assert capture_all(refused).rejected == 0
    assert stored(refused)[-1] == ("INSERT", "31")
    assert acknowledged(refused) <= checkpoint(refused)


def test_it_is_written_down_with_its_place_and_the_reason(refused: Capture) -> None:
    rows = refused.destination.execute("SELECT * FROM pgaudit_ctx.rejected ORDER BY commit_lsn")
    assert [(row.operation, row.table_name, row.ordinal, row.sqlstate) for row in rows] == [
        ("INSERT", "patient", 5, "23514")
    ] * 3
    assert "no_hunter" in rows[0].reason
    neighbours = refused.destination.execute(
        "SELECT DISTINCT transaction_id FROM pgaudit_ctx.changes"
    )
    assert {row.transaction_id for row in rows} == {row.transaction_id for row in neighbours}


def test_the_log_names_table_and_reason_and_no_value(
    capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    capture.destination.execute(REFUSAL)
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'hunter2', 'ACTIVE')")
    with caplog.at_level(logging.DEBUG):
        capture_all(capture)
    assert "refused 1 change(s) of public.patient" in caplog.text
    assert "no_hunter" in caplog.text
    assert "hunter2" not in caplog.text


def test_what_is_refused_at_commit_time_is_found_too(capture: Capture) -> None:
    capture.destination.execute(
        "CREATE FUNCTION check_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.primary_key = '{2}' THEN RAISE 'hunter2'; END IF; RETURN NULL; END $$;"
        "DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT inhrelid FROM pg_inherits"
        " WHERE inhparent = 'pgaudit_ctx.changes'::regclass LOOP EXECUTE format("
        "'CREATE CONSTRAINT TRIGGER late AFTER INSERT ON %s DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION check_it()', p); END LOOP; END $$"
    )
    insert(capture.source, 1, 2, 3)
    assert capture_all(capture).rejected == 1
    assert stored(capture) == [("INSERT", "1"), ("INSERT", "3")]


def test_complete_up_to_does_not_pass_it_until_it_is_replayed(refused: Capture) -> None:
    (first, *_) = refused.destination.execute(
        "SELECT commit_lsn::text, committed_at FROM pgaudit_ctx.rejected ORDER BY commit_lsn"
    )
    reader = AuditReader(create_engine(refused.destination.sqlalchemy_url()))
    complete = reader.history(Patient, 1).complete_up_to
    assert complete.lsn == first.commit_lsn
    assert complete.time <= first.committed_at
    refused.destination.execute("ALTER TABLE pgaudit_ctx.changes DROP CONSTRAINT no_hunter")
    with connect(refused.destination.url, "destination") as destination:
        assert [why for _, why in rejected.replay(destination)] == ["", "", ""]
        assert list(rejected.replay(destination)) == []
    complete = reader.history(Patient, 5).complete_up_to
    ((end,),) = refused.destination.execute(
        "SELECT end_lsn::text AS lsn FROM pgaudit_ctx.checkpoints"
    )
    assert complete.lsn == end
    reader.destination.dispose()


def test_replay_stores_it_at_its_place_once_and_says_what_is_still_refused(
    refused: Capture,
) -> None:
    urls = urls_of(refused)
    listed = run("rejected", "list", env=urls)
    assert listed.returncode == 1
    assert "no_hunter" in listed.stdout
    assert "hunter2" not in listed.stdout + listed.stderr
    done = run("rejected", "replay", env=urls)
    assert (done.returncode, done.stderr.count("still refused: CheckViolation")) == (1, 3)
    refused.destination.execute("ALTER TABLE pgaudit_ctx.changes DROP CONSTRAINT no_hunter")
    done = run("rejected", "replay", env=urls)
    assert done.returncode == 0
    assert "3 changes stored" in done.stderr
    assert [int(key) for _, key in stored(refused)] == list(range(1, 31))
    done = run("rejected", "list", "--replayed", "--json", env=urls)
    assert done.returncode == 0
    assert [json.loads(line)["ordinal"] for line in done.stdout.splitlines()] == [5, 5, 5]
