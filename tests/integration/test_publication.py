"""What becomes of the trail when a publication, or a table in it, is changed behind its back."""

import datetime as dt

import pytest

from pgaudit_ctx import AuditReader, HistoryUnknown
from pgaudit_ctx.errors import SourceNotReady
from support.clinic import Patient
from support.continuity import accept, epochs, gaps, publish
from support.database import Capture
from support.positions import acknowledged, insert, run_and_refuse

SEND_ALL = "ALTER PUBLICATION pgaudit_ctx SET (publish = 'insert, update, delete, truncate')"
# Under FULL a column list would make the application's own UPDATE fail.
UNDER_DEFAULT = "ALTER TABLE patient REPLICA IDENTITY DEFAULT"
ALL_ROWS = "ALTER PUBLICATION pgaudit_ctx SET TABLE patient"


def rename(capture: Capture, name: str) -> None:
    """Write the one patient as psql would."""
    capture.source.execute("UPDATE patient SET name = %s WHERE id = 1", [name])


def now(capture: Capture) -> dt.datetime:
    ((moment,),) = capture.source.execute("SELECT clock_timestamp() AS now")
    return moment


def names(capture: Capture) -> list[str]:
    """The states of the one patient, as history tells them."""
    versions = AuditReader(capture.destination.engine()).history(Patient, 1)
    return [version.after["name"] for version in versions]


@pytest.fixture
def begun(capture: Capture) -> Capture:
    """A patient whose first state is captured."""
    insert(capture.source, 1)
    rename(capture, "first")
    capture.run()
    return capture


def test_a_publication_that_was_made_anew_is_refused_or_its_gap_is_written_down(
    begun: Capture,
) -> None:
    rename(begun, "second")
    begun.source.execute("DROP PUBLICATION pgaudit_ctx")
    rename(begun, "third")
    inside = now(begun)
    publish(begun.source)
    rename(begun, "fourth")
    before = acknowledged(begun)
    message = run_and_refuse(begun, SourceNotReady)
    assert "--accept-gap" in message
    assert acknowledged(begun) == before
    assert gaps(begun) == []

    accept(begun)
    rename(begun, "fifth")
    begun.run()
    assert names(begun) == ["x", "first", "fifth"]
    assert gaps(begun) == [(1, 1, "the publication was dropped or made anew")]
    assert epochs(begun) == [(1, False)]
    with pytest.raises(HistoryUnknown):
        AuditReader(begun.destination.engine()).as_of(Patient, 1, inside)


def test_a_publication_that_is_gone_can_be_made_anew_and_the_gap_accepted(begun: Capture) -> None:
    begun.source.execute("DROP PUBLICATION pgaudit_ctx")
    rename(begun, "second")
    run_and_refuse(begun, SourceNotReady)
    publish(begun.source)
    run_and_refuse(begun, SourceNotReady)
    accept(begun)
    rename(begun, "third")
    begun.run()
    assert names(begun) == ["x", "first", "third"]


def test_what_a_table_is_written_before_it_left_and_after_it_came_back_is_kept_in_order(
    begun: Capture,
) -> None:
    rename(begun, "second")
    begun.source.execute("ALTER PUBLICATION pgaudit_ctx DROP TABLE patient")
    rename(begun, "third")
    inside = now(begun)
    begun.source.execute("ALTER PUBLICATION pgaudit_ctx ADD TABLE patient")
    rename(begun, "fourth")
    begun.run()
    rename(begun, "fifth")
    begun.run()
    assert names(begun) == ["x", "first", "second", "fourth", "fifth"]
    (hole,) = AuditReader(begun.destination.engine()).history(Patient, 1).gaps
    assert hole.to_time is not None
    assert hole.from_time < inside < hole.to_time
    assert gaps(begun) == []  # nothing of the log was lost


@pytest.mark.parametrize(
    ("leave_out", "repair", "kept"),
    [
        (
            "ALTER PUBLICATION pgaudit_ctx SET (publish = 'insert')",
            SEND_ALL,
            ["x", "first", "second", "fourth"],
        ),
        (
            "ALTER PUBLICATION pgaudit_ctx SET TABLE patient WHERE (id > 10)",
            ALL_ROWS,
            ["x", "first", "second", "fourth"],
        ),
        (
            f"{UNDER_DEFAULT}; ALTER PUBLICATION pgaudit_ctx SET TABLE patient (id, status)",
            f"{ALL_ROWS}; ALTER TABLE patient REPLICA IDENTITY FULL",
            None,
        ),
    ],
    ids=["publish", "row filter", "column list"],
)
def test_a_publication_that_left_something_out_is_refused_and_leaves_a_hole_when_it_is_repaired(
    begun: Capture, leave_out: str, repair: str, kept: list[str] | None
) -> None:
    rename(begun, "second")
    begun.source.execute(leave_out)
    rename(begun, "third")
    inside = now(begun)
    message = run_and_refuse(begun, SourceNotReady)
    assert "ALTER PUBLICATION" in message
    with pytest.raises(SourceNotReady):
        accept(begun)  # it would go on being lost
    begun.source.execute(repair)
    rename(begun, "fourth")
    begun.run()
    if kept is not None:
        assert names(begun) == kept
    with pytest.raises(HistoryUnknown):
        AuditReader(begun.destination.engine()).as_of(Patient, 1, inside)


def test_under_a_weaker_identity_the_old_values_are_missing_and_coverage_says_since_when(
    begun: Capture,
) -> None:
    begun.source.execute(UNDER_DEFAULT)
    begun.run()
    rename(begun, "second")
    begun.run()
    begun.source.execute("ALTER TABLE patient REPLICA IDENTITY FULL")
    begun.run()
    rename(begun, "third")
    begun.run()
    versions = AuditReader(begun.destination.engine()).history(Patient, 1)
    assert names(begun) == ["x", "first", "second", "third"]
    assert [version.row.before for version in versions][2:] == [None, {"name": "second"}]
    assert versions.gaps == []
    covered = begun.destination.execute(
        "SELECT identity, to_lsn IS NULL AS open FROM pgaudit_ctx.coverage"
        " WHERE table_name = 'patient' ORDER BY from_lsn"
    )
    assert [tuple(row) for row in covered] == [
        ("FULL", False),
        ("DEFAULT", False),
        ("FULL", True),
    ]


def test_a_table_that_was_dropped_and_made_again_goes_on_after_a_hole(begun: Capture) -> None:
    begun.source.execute("DROP TABLE dose")
    begun.source.execute("DROP TABLE patient")
    begun.source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
    insert(begun.source, 1)
    rename(begun, "nobody saw this")
    inside = now(begun)
    begun.run()
    begun.source.execute(
        "ALTER TABLE patient REPLICA IDENTITY FULL; ALTER PUBLICATION pgaudit_ctx ADD TABLE patient"
    )
    rename(begun, "second")
    begun.run()
    rename(begun, "third")
    begun.run()
    reader = AuditReader(begun.destination.engine())
    versions = reader.history("public.patient", 1)
    assert [version.after["name"] for version in versions] == ["x", "first", "second", "third"]
    (hole,) = versions.gaps
    assert hole.to_time is not None
    with pytest.raises(HistoryUnknown):
        reader.as_of("public.patient", 1, inside)
