"""Reading honours what is written down about the trail itself: epochs, gaps, rejected changes."""

import pytest
from sqlalchemy import event

from pgaudit_ctx import AuditReader, HistoryUnknown, NotCaptured
from support.clinic import Patient
from support.database import Database
from support.handmade import HandmadeTrail, at

ANN = {"id": 1, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None}


def named(name: str) -> dict[str, object]:
    return {**ANN, "name": name}


@pytest.fixture
def trail(destination: Database) -> HandmadeTrail:
    """Ann is inserted at 10 and called Bea at 20, Cay at 30."""
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.change("INSERT", "patient", 10, after=ANN)
    trail.change("UPDATE", "patient", 20, before={"name": "Ann"}, after=named("Bea"))
    trail.change("UPDATE", "patient", 30, before={"name": "Bea"}, after=named("Cay"))
    return trail


@pytest.fixture
def reader(trail: HandmadeTrail) -> AuditReader:
    return AuditReader(trail.destination.engine())


def test_complete_up_to_never_passes_a_rejected_change_that_was_not_replayed(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.reject(15, replayed=True)
    assert reader.history(Patient, 1).complete_up_to == ("0/FFFF", at(1000), 1)
    trail.reject(40)
    trail.reject(25)
    complete = reader.history(Patient, 1).complete_up_to
    assert (complete.lsn, complete.time) == ("0/19", at(25))


def test_what_a_failover_has_undone_is_shown_only_if_asked_for_and_counts_in_nothing(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.epoch(2, 25, "failover", fork=25)
    trail.cover("patient", epoch=2, since=25)
    trail.change("UPDATE", "patient", 26, epoch=2, before={"name": "Bea"}, after=named("Dee"))
    versions = reader.history(Patient, 1)
    assert [(v.number, v.epoch, v.after["name"]) for v in versions] == [
        (1, 1, "Ann"),
        (2, 1, "Bea"),
        (3, 2, "Dee"),
    ]
    assert versions[1].next is versions[2]
    assert versions[1].valid_to == at(26)
    everything = reader.history(Patient, 1, include_undone=True)
    assert [(v.number, v.undone) for v in everything] == [
        (1, False),
        (2, False),
        (3, True),
        (3, False),
    ]
    lost = everything[2]
    assert (lost.after["name"], lost.previous.number, lost.previous.undone) == ("Cay", 2, False)
    assert everything.as_of(at(35)).after["name"] == "Dee"
    assert everything.gaps == []


def test_a_second_failover_can_undo_what_the_first_had_kept(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.epoch(2, 25, "failover", fork=25)
    trail.change("UPDATE", "patient", 26, epoch=2, before={"name": "Bea"}, after=named("Dee"))
    trail.epoch(3, 15, "failover", fork=15)
    assert [v.after["name"] for v in reader.history(Patient, 1)] == ["Ann"]
    assert [c.after["name"] for c in reader.changes(Patient)] == ["Ann"]
    assert len(reader.changes(Patient, include_undone=True)) == 4


def test_positions_of_a_restored_source_start_again_and_undo_nothing(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.epoch(2, 5, "restore")
    trail.epoch(3, 6, "failover", fork=6)
    trail.change("UPDATE", "patient", 5, epoch=3, minute=50, before={"name": "Cay"}, after=ANN)
    assert len(reader.history(Patient, 1)) == 4
    assert len(reader.changes(Patient)) == 4


def test_a_clean_epoch_goes_on_where_the_last_one_ended(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.epoch(2, 40, "hand-over")
    trail.cover("patient", epoch=2, since=40)
    assert reader.history(Patient, 1).gaps == []
    assert reader.as_of(Patient, 1, at(50)).number == 3


def test_an_epoch_that_is_not_clean_leaves_the_state_unknown_until_the_next_change(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.epoch(2, 40, "restore", clean=False)
    trail.cover("patient", epoch=2, since=40)
    trail.change("SNAPSHOT", "patient", 41, epoch=2, minute=60, after=named("Eve"))
    (gap,) = reader.history(Patient, 1).gaps
    assert (gap.epoch, gap.to_epoch, gap.to_lsn, gap.cause) == (
        1,
        2,
        "0/28",
        "epoch 2 began: restore",
    )
    assert reader.as_of(Patient, 1, at(39)).number == 3
    with pytest.raises(HistoryUnknown, match="restore"):
        reader.as_of(Patient, 1, at(50))
    assert reader.as_of(Patient, 1, at(61)).after["name"] == "Eve"


def test_a_gap_that_was_written_down_is_not_told_twice(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.epoch(2, 40, "restore", clean=False)
    trail.cover("patient", epoch=2, since=40)
    trail.gap(35, 40, to_epoch=2)
    (gap,) = reader.history(Patient, 1).gaps
    assert (gap.from_lsn, gap.from_time, gap.cause) == ("0/23", at(35), "slot lost")
    with pytest.raises(HistoryUnknown):
        reader.as_of(Patient, 1, at(37))


def test_a_hole_in_the_coverage_is_a_gap_of_that_table_only(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.destination.execute("DELETE FROM pgaudit_ctx.coverage")
    trail.cover("patient", since=-60, until=22)
    trail.cover("patient", since=28)
    trail.cover("dose", "given_on", "patient_id")
    (gap,) = reader.history(Patient, 1).gaps
    assert (gap.from_time, gap.to_time) == (at(22), at(28))
    assert reader.as_of(Patient, 1, at(21)).number == 2
    with pytest.raises(HistoryUnknown, match="not captured"):
        reader.as_of(Patient, 1, at(25))
    assert reader.as_of(Patient, 1, at(31)).number == 3


def test_intervals_that_overlap_leave_no_hole(trail: HandmadeTrail, reader: AuditReader) -> None:
    trail.destination.execute("DELETE FROM pgaudit_ctx.coverage")
    trail.cover("patient", since=0, until=50)
    trail.cover("patient", since=5, until=20)
    trail.cover("patient", since=45)
    assert reader.history(Patient, 1).gaps == []


def test_a_renamed_table_takes_its_history_along(trail: HandmadeTrail, reader: AuditReader) -> None:
    trail.destination.execute("DELETE FROM pgaudit_ctx.coverage")
    trail.cover("patient", oid=20_000, until=40)
    trail.cover("person", oid=20_000, since=40)
    trail.change("UPDATE", "person", 50, before={"name": "Cay"}, after=ANN)
    versions = reader.history("person", 1)
    assert [v.row.table_name for v in versions] == ["patient", "patient", "patient", "person"]
    assert versions.gaps == []
    assert [v.number for v in reader.history("patient", 1)] == [1, 2, 3]


def test_a_table_that_took_anothers_name_has_both_parts_under_it(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.destination.execute("DELETE FROM pgaudit_ctx.coverage")
    trail.cover("patient", oid=20_000, until=40)
    trail.cover("patient_old", oid=20_000, since=40)
    trail.cover("patient", oid=20_001, since=40)
    trail.change("INSERT", "patient", 50, oid=20_001, after=ANN)
    trail.change("DELETE", "patient_old", 60, oid=20_000, before=ANN)
    assert [v.operation.value for v in reader.history("patient", 1)] == [
        "INSERT",
        "UPDATE",
        "UPDATE",
        "INSERT",
    ]
    assert reader.history("patient_old", 1).latest.operation == "DELETE"


def test_absent_from_a_baseline_is_known_not_to_exist(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.snapshot("patient", 14, after="7")
    with pytest.raises(HistoryUnknown, match="no trace"):
        reader.as_of(Patient, 2, at(20))
    trail.snapshot("patient", 15)
    assert reader.as_of(Patient, 2, at(20)) is None
    with pytest.raises(HistoryUnknown, match="no trace"):
        reader.as_of(Patient, 2, at(14))
    trail.gap(40, 45)
    assert reader.as_of(Patient, 2, at(39)) is None
    with pytest.raises(HistoryUnknown, match="slot lost"):
        reader.as_of(Patient, 2, at(41))
    assert reader.as_of(Patient, 1, at(16)).number == 1


def test_a_baseline_after_a_gap_makes_every_record_known_again(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.gap(40, 45)
    trail.snapshot("patient", 50)
    with pytest.raises(HistoryUnknown, match="slot lost"):
        reader.as_of(Patient, 1, at(47))
    assert reader.as_of(Patient, 1, at(51)) is None
    trail.change("SNAPSHOT", "patient", 49, minute=50, after=named("Eve"))
    assert reader.as_of(Patient, 1, at(51)).after["name"] == "Eve"


def test_a_source_without_a_checkpoint_is_not_captured_yet(
    trail: HandmadeTrail, reader: AuditReader
) -> None:
    trail.destination.execute("DELETE FROM pgaudit_ctx.checkpoints")
    with pytest.raises(NotCaptured, match="pgaudit-ctx worker"):
        reader.history(Patient, 1)


@pytest.mark.parametrize("verb", ["history", "as_of"])
def test_a_verb_asks_two_questions_whatever_the_number_of_versions(
    trail: HandmadeTrail, verb: str
) -> None:
    asked = []
    engine = trail.destination.engine()
    event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    reader = AuditReader(engine, statement_timeout=None)
    if verb == "history":
        versions = reader.history(Patient, 1)
        assert [v.previous for v in versions][1:] == list(versions)[:-1]
        assert versions.as_of(at(25)).diff
    else:
        reader.as_of(Patient, 1, at(25))
    settings, *questions = asked
    assert "set_config" in settings
    assert len(questions) == 2
