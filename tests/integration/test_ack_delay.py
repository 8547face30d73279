"""A slot that is kept back lets a destination that was restored from a backup lose nothing."""

import pytest

from pgaudit_ctx.destination.captured_positions import note_position
from support.command import run_binary
from support.database import Capture, create_database, drop_database
from support.positions import acknowledged, checkpoint, insert
from support.server import Server, server_of_its_own
from support.supervised import supervised
from support.waiting import eventually

HOUR = 3600.0


@pytest.fixture
def delayed(capture: Capture) -> Capture:
    capture.options = capture.options._replace(ack_delay=HOUR)
    return capture


def ids(capture: Capture) -> list[str]:
    rows = capture.destination.execute(
        "SELECT primary_key[1] AS id FROM pgaudit_ctx.changes ORDER BY epoch, commit_lsn, ordinal"
    )
    return [row.id for row in rows]


def let_pass(capture: Capture, hours: int) -> None:
    """As if what was noted had been noted earlier."""
    capture.destination.execute(
        "UPDATE pgaudit_ctx.captured_positions SET at = at - %s * interval '1 hour'", [hours]
    )


def test_a_destination_restored_from_a_backup_gets_what_it_lacks_once_and_without_a_gap(
    delayed: Capture, server: Server
) -> None:
    insert(delayed.source, 1)
    delayed.run()
    backup = run_binary(server, "pg_dump", delayed.destination.url).stdout
    insert(delayed.source, 2)
    delayed.run()
    insert(delayed.source, 3)
    restored = create_database(server)
    run_binary(server, "psql", "--quiet", restored.url, script=backup)
    again = Capture(delayed.source, restored)
    again.options = delayed.options._replace(destination=restored.url)
    assert ids(again) == ["1"]
    again.run()
    assert ids(again) == ["1", "2", "3"]
    assert restored.execute("SELECT 1 AS one FROM pgaudit_ctx.gaps") == []
    assert [row.epoch for row in restored.execute("SELECT epoch FROM pgaudit_ctx.epochs")] == [1]
    drop_database(restored)


def test_the_slot_is_told_only_what_was_captured_longer_ago(delayed: Capture) -> None:
    before = acknowledged(delayed)
    insert(delayed.source, 1)
    delayed.run()
    first = checkpoint(delayed)
    with delayed.connections() as (_, destination):
        note_position(destination, delayed.source.name, 1)
    assert acknowledged(delayed) == before
    let_pass(delayed, 2)
    insert(delayed.source, 2)
    delayed.run()
    eventually(lambda: acknowledged(delayed) == first, "the slot is told")
    assert first < checkpoint(delayed)
    assert ids(delayed) == ["1", "2"]


def test_a_running_worker_tells_the_slot_as_time_goes_by(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.worker._IDLE_SECONDS", 0.05)
    insert(capture.source, 1)
    with supervised(capture.options._replace(ack_delay=0.5)):
        eventually(lambda: ids(capture) == ["1"], "it is captured")
        stored = checkpoint(capture)
        eventually(lambda: acknowledged(capture) >= stored, "the slot is told")
    kept = capture.destination.execute("SELECT 1 AS one FROM pgaudit_ctx.captured_positions")
    assert len(kept) < 50  # what the slot was told is forgotten


def test_without_the_option_the_slot_is_told_at_once_again(delayed: Capture) -> None:
    insert(delayed.source, 1)
    delayed.run()
    assert acknowledged(delayed) < checkpoint(delayed)
    delayed.options = delayed.options._replace(ack_delay=0.0)
    insert(delayed.source, 2)
    delayed.run()
    eventually(lambda: acknowledged(delayed) == checkpoint(delayed), "the slot is told")
    assert ids(delayed) == ["1", "2"]


def test_a_source_that_is_shut_down_does_not_wait_for_a_slot_that_is_kept_back(
    destination_template: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the worker would notice on its other connection, and let go.
    monkeypatch.setattr("pgaudit_ctx.worker._IDLE_SECONDS", 1000)
    monkeypatch.setattr("pgaudit_ctx.upkeep._LOOK_PAUSE_SECONDS", 1000)
    with server_of_its_own(server, {}) as fresh:
        source = create_database(fresh)
        source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
        destination = create_database(server, destination_template)
        capture = Capture(source, destination)
        capture.setup()
        capture.options = capture.options._replace(ack_delay=HOUR)
        with supervised(capture.options):
            insert(source, 1)
            eventually(lambda: ids(capture) == ["1"], "it is captured")
            fresh.stop()
            assert "immediate shutdown" not in fresh._log.read_text()  # what ends one that hangs
            fresh.start()
            insert(source, 2)
            eventually(lambda: ids(capture) == ["1", "2"], "it goes on")
        drop_database(destination)
