"""What was lost is refused, or written down and gone on after; the trail never says otherwise."""

from collections.abc import Iterator

import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.errors import AuditError, HistoryUnknown, PositionMismatch, SlotMissing
from pgaudit_ctx.reading.reader import AuditReader
from support.clinic import Patient
from support.continuity import accept, drop_slot, epochs, gaps, ids, make_slot, publish
from support.database import Capture, Database, create_database
from support.positions import checkpoint, insert, run_and_refuse
from support.server import Server, server_of_its_own
from support.standby import Pair, running_pair

MOVED = "the slot was recreated or advanced, or the destination restored"


def recreate(capture: Capture) -> None:
    drop_slot(capture)
    make_slot(capture)


def advance(capture: Capture) -> None:
    capture.source.execute(
        f"SELECT pg_replication_slot_advance('{capture.options.slot}', pg_current_wal_lsn())"
    )


@pytest.mark.parametrize(
    ("lose", "refusal", "cause"),
    [
        (recreate, PositionMismatch, MOVED),
        (advance, PositionMismatch, MOVED),
        (drop_slot, SlotMissing, "the slot was dropped"),
    ],
)
def test_a_slot_that_lost_something_is_refused_or_its_gap_is_written_down(
    capture: Capture, lose, refusal: type[AuditError], cause: str
) -> None:
    insert(capture.source, 1)
    capture.run()
    insert(capture.source, 2)
    lose(capture)
    message = run_and_refuse(capture, refusal)
    assert "--accept-gap" in message
    assert gaps(capture) == []
    accept(capture)
    insert(capture.source, 3)
    capture.run()
    assert ids(capture) == ["1", "3"]
    assert gaps(capture) == [(1, 1, cause)]
    assert epochs(capture) == [(1, False)]
    (operation,) = capture.destination.execute(
        "SELECT result FROM pgaudit_ctx.operations WHERE command = 'worker --accept-gap'"
    )
    assert operation.result == cause


def test_history_knows_of_an_accepted_gap(capture: Capture) -> None:
    insert(capture.source, 1)
    capture.run()
    capture.source.execute("UPDATE patient SET name = 'lost'")
    recreate(capture)
    accept(capture)
    capture.source.execute("UPDATE patient SET name = 'found'")
    capture.run()
    versions = AuditReader(capture.destination.engine()).history(Patient, 1)
    assert [version.operation for version in versions] == ["INSERT", "UPDATE"]
    (gap,) = versions.gaps
    with pytest.raises(HistoryUnknown):
        AuditReader(capture.destination.engine()).as_of(Patient, 1, gap.to_time)


def test_a_gap_is_accepted_at_the_start_only(capture: Capture) -> None:
    accept(capture)
    assert gaps(capture) == []


def test_a_destination_restored_from_a_backup_is_refused_or_its_gap_is_written_down(
    capture: Capture, server: Server
) -> None:
    insert(capture.source, 1)
    capture.run()
    backup = create_database(server, capture.destination.name)
    insert(capture.source, 2)
    capture.run()
    restored = Capture(capture.source, backup)
    restored.options = capture.options._replace(destination=backup.url)
    run_and_refuse(restored, PositionMismatch)
    accept(restored)
    insert(capture.source, 3)
    restored.run()
    assert ids(restored) == ["1", "3"]
    assert len(gaps(restored)) == 1


def test_another_database_behind_the_same_name_begins_a_new_epoch_if_accepted(
    capture: Capture, server: Server, source_template: str
) -> None:
    insert(capture.source, 1)
    capture.run()
    anew = create_database(server, source_template)
    other = Capture(anew, capture.destination)
    other.options = capture.options._replace(source=anew.url, name=capture.source.name)
    drop_slot(capture)
    make_slot(other)
    publish(anew)
    message = run_and_refuse(other, PositionMismatch)
    assert "another database" in message
    accept(other)
    insert(anew, 2)
    other.run()
    assert ids(other) == ["1", "2"]
    assert gaps(other) == [(1, 2, "the source is another database")]
    assert epochs(other) == [(1, False), (2, False)]


def test_a_new_cluster_with_lower_positions_begins_a_new_epoch_if_accepted(
    capture: Capture, server: Server
) -> None:
    insert(capture.source, 1)
    capture.run()
    with server_of_its_own(server, {}) as fresh:
        source = create_database(fresh)
        source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
        other = Capture(source, capture.destination)
        other.options = capture.options._replace(source=source.url, name=capture.source.name)
        publish(source)
        make_slot(other)
        message = run_and_refuse(other, PositionMismatch)
        assert "system identifier" in message
        accept(other)
        insert(source, 2)
        other.run()
    assert ids(other) == ["1", "2"]
    assert gaps(other) == [(1, 2, "the source is another cluster")]


@pytest.fixture
def pair(server: Server) -> Iterator[Pair]:
    with running_pair(server if isinstance(server, EmbeddedPostgres) else None) as running:
        yield running


def promoted(pair: Pair, capture: Capture) -> Capture:
    """The same capture, whose source's address leads to the standby now, which is promoted."""
    pair.promote()
    capture.source = Database(pair.standby, capture.source.name)
    capture.options = capture.options._replace(source=capture.source.url)
    return capture


def captured_on(pair: Pair, destination: Database) -> Capture:
    source = create_database(pair.primary)
    source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
    capture = Capture(source, destination)
    capture.setup()
    return capture


def test_a_promoted_standby_that_lacked_something_undoes_it_if_accepted(
    pair: Pair, destination: Database
) -> None:
    capture = captured_on(pair, destination)
    insert(capture.source, 1)
    capture.run()
    pair.catch_up()
    pair.standby.stop()
    insert(capture.source, 2)
    capture.run()
    pair.primary.stop()
    pair.standby.start()
    promoted(pair, capture)
    insert(capture.source, 3)
    make_slot(capture)
    message = run_and_refuse(capture, PositionMismatch)
    assert "forked off" in message
    accept(capture)
    insert(capture.source, 4)
    capture.run()
    assert ids(capture) == ["1", "2", "4"]
    assert epochs(capture) == [(1, False), (2, True)]
    assert gaps(capture) == [(2, 2, "a standby was promoted that did not have everything")]
    reader = AuditReader(capture.destination.engine())
    assert len(reader.history("public.patient", 1)) == 1
    assert len(reader.history("public.patient", 2)) == 0
    assert len(reader.history("public.patient", 2, include_undone=True)) == 1


def test_a_promoted_standby_that_had_everything_goes_on_in_the_same_epoch(
    pair: Pair, destination: Database
) -> None:
    capture = captured_on(pair, destination)
    insert(capture.source, 1)
    capture.run()
    pair.catch_up()
    held = checkpoint(capture)
    promoted(pair, capture)
    make_slot(capture)
    message = run_and_refuse(capture, PositionMismatch)
    assert "begins at" in message  # the slot is a new one, and that alone is what is lost
    accept(capture)
    insert(capture.source, 2)
    capture.run()
    assert ids(capture) == ["1", "2"]
    assert epochs(capture) == [(1, False)]
    assert checkpoint(capture) > held
