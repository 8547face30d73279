"""What a worker refuses at its start, and how it says so."""

import pytest

from pgaudit_ctx.errors import (
    DestinationNotReady,
    PositionMismatch,
    SlotMissing,
    SourceNotReady,
)
from pgaudit_ctx.wal.lsn import format_lsn
from pgaudit_ctx.worker import Worker
from support.continuity import accept, gaps, ids
from support.database import Capture, Database, create_database
from support.positions import acknowledged, checkpoint, insert, run_and_refuse
from support.server import Server, server_of_its_own


def test_a_slot_that_moved_past_the_checkpoint_is_refused_naming_both(capture: Capture) -> None:
    held = checkpoint(capture)
    insert(capture.source, 1)
    capture.source.execute(
        f"SELECT pg_replication_slot_advance('{capture.options.slot}', pg_current_wal_lsn())"
    )
    message = run_and_refuse(capture, PositionMismatch)
    assert format_lsn(held) in message
    assert format_lsn(acknowledged(capture)) in message


def test_a_slot_made_anew_is_refused(capture: Capture) -> None:
    slot = capture.options.slot
    insert(capture.source, 1)
    capture.source.execute(f"SELECT pg_drop_replication_slot('{slot}')")
    capture.source.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    run_and_refuse(capture, PositionMismatch)


def test_a_slot_that_never_was_is_missed_with_the_remedy(capture: Capture) -> None:
    capture.options = capture.options._replace(slot="nowhere", name="other")
    message = run_and_refuse(capture, SlotMissing)
    assert "'nowhere'" in message
    assert "pgaudit-ctx setup" in message


def test_a_slot_that_is_gone_is_missed_naming_where_the_trail_ends(capture: Capture) -> None:
    capture.source.execute(f"SELECT pg_drop_replication_slot('{capture.options.slot}')")
    message = run_and_refuse(capture, SlotMissing)
    assert format_lsn(checkpoint(capture)) in message


def test_a_slot_that_the_server_invalidated_is_refused_or_its_gap_is_written_down(
    server: Server, destination: Database
) -> None:
    settings = {
        "max_slot_wal_keep_size": "16MB",
        "min_wal_size": "32MB",
        "max_wal_size": "32MB",
    }
    with server_of_its_own(server, settings) as small:
        source = create_database(small)
        source.execute("CREATE TABLE t (id int PRIMARY KEY)")
        lost = Capture(source, destination)
        lost.setup()
        for number in range(6):
            source.execute(f"INSERT INTO t VALUES ({number})")
            source.execute("SELECT pg_switch_wal()")
        source.execute("CHECKPOINT")
        assert "max_slot_wal_keep_size" in run_and_refuse(lost, SlotMissing)
        assert gaps(lost) == []
        accept(lost)
        source.execute("INSERT INTO t VALUES (6)")
        lost.run()
    assert ids(lost) == ["6"]
    assert gaps(lost) == [(1, 1, "the slot lost its log")]


def test_a_slot_of_another_database_is_refused(capture: Capture, empty_database: Database) -> None:
    capture.options = capture.options._replace(source=empty_database.url)
    message = run_and_refuse(capture, SourceNotReady)
    assert capture.source.name in message


def test_a_missing_publication_is_refused_with_the_remedy(capture: Capture) -> None:
    capture.source.execute("DROP PUBLICATION pgaudit_ctx")
    message = run_and_refuse(capture, SourceNotReady)
    assert "'pgaudit_ctx'" in message
    assert "pgaudit-ctx setup" in message


def test_another_slot_for_the_same_source_is_refused(capture: Capture) -> None:
    capture.source.execute("SELECT pg_create_logical_replication_slot('second', 'pgoutput')")
    capture.options = capture.options._replace(slot="second")
    message = run_and_refuse(capture, PositionMismatch)
    assert "'second'" in message


def test_a_destination_without_schema_is_refused_with_the_remedy(
    capture: Capture, empty_database: Database
) -> None:
    capture.options = capture.options._replace(destination=empty_database.url)
    assert "pgaudit-ctx setup" in run_and_refuse(capture, DestinationNotReady)


def test_a_destination_of_a_newer_version_is_refused(capture: Capture) -> None:
    capture.destination.execute("INSERT INTO pgaudit_ctx.migrations VALUES (9999, 'future')")
    assert "upgrade" in run_and_refuse(capture, DestinationNotReady)


def test_a_second_name_for_the_same_database_and_slot_is_refused_naming_the_first(
    capture: Capture,
) -> None:
    capture.options = capture.options._replace(name="typo")
    assert f"--name {capture.source.name}" in run_and_refuse(capture, PositionMismatch)


def test_nothing_is_acknowledged_when_the_checkpoint_has_gone(capture: Capture) -> None:
    before = acknowledged(capture)
    worker = Worker(capture.options)
    capture.destination.execute("DELETE FROM pgaudit_ctx.checkpoints")
    insert(capture.source, 1)
    with pytest.raises(PositionMismatch, match="one worker runs"):
        worker.run(until_caught_up=True)
    worker.close()
    assert acknowledged(capture) == before
    assert capture.destination.execute("SELECT 1 FROM pgaudit_ctx.changes") == []


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("ALTER PUBLICATION pgaudit_ctx SET (publish = 'insert, delete')", "update, truncate"),
        ("ALTER PUBLICATION pgaudit_ctx SET (publish_via_partition_root = false)", "partitions"),
        ("ALTER PUBLICATION pgaudit_ctx SET TABLE patient WHERE (id > 10)", "patient"),
    ],
)
def test_a_publication_that_leaves_something_out_is_refused(
    capture: Capture, statement: str, named: str
) -> None:
    capture.source.execute(statement)
    message = run_and_refuse(capture, SourceNotReady)
    assert named in message
    assert "ALTER PUBLICATION" in message
