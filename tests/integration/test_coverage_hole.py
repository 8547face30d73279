"""A table that was not published for a while is a hole, and as_of inside of it cannot know."""

import datetime as dt
import logging

import pytest

from pgaudit_ctx import AuditReader, HistoryUnknown, upkeep
from support.clinic import Patient
from support.database import Capture
from support.doctor import command
from support.positions import insert
from support.supervised import supervised
from support.waiting import eventually

DROP = "ALTER PUBLICATION pgaudit_ctx DROP TABLE patient"
ADD = "ALTER PUBLICATION pgaudit_ctx ADD TABLE patient"


def now(capture: Capture) -> dt.datetime:
    ((moment,),) = capture.source.execute("SELECT clock_timestamp() AS now")
    return moment


def is_read(capture: Capture) -> bool:
    (slot,) = capture.source.execute(
        "SELECT active FROM pg_replication_slots WHERE slot_name = %s", [capture.options.slot]
    )
    return slot.active


def intervals(capture: Capture) -> list[tuple[bool, str | None]]:
    rows = capture.destination.execute(
        "SELECT to_lsn IS NULL AS open, reason, from_lsn <= coalesce(to_lsn, from_lsn) AS ordered"
        " FROM pgaudit_ctx.coverage WHERE table_name = 'patient' ORDER BY from_lsn, to_lsn"
    )
    assert all(row.ordered for row in rows)
    return [(row.open, row.reason) for row in rows]


def test_as_of_while_a_table_was_out_of_the_publication_is_unknown(capture: Capture) -> None:
    insert(capture.source, 1)
    capture.run()
    capture.source.execute(DROP)
    capture.run()
    capture.source.execute("UPDATE patient SET name = 'changed while nobody looked'")
    inside = now(capture)
    capture.source.execute(ADD)
    capture.run()
    with pytest.raises(HistoryUnknown):
        AuditReader(capture.destination.engine()).as_of(Patient, 1, inside)


def test_a_table_that_left_and_came_back_between_two_looks_is_a_hole(
    capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    insert(capture.source, 1)
    capture.run()
    capture.source.execute(DROP)
    capture.source.execute("UPDATE patient SET name = 'changed while nobody looked'")
    inside = now(capture)
    capture.source.execute(ADD)
    with caplog.at_level(logging.WARNING):
        capture.run()
    assert "public.patient was not published" in caplog.text
    assert intervals(capture) == [(False, "not published, or not all of it"), (True, None)]
    with pytest.raises(HistoryUnknown):
        AuditReader(capture.destination.engine()).as_of(Patient, 1, inside)


def test_a_publication_altered_and_altered_back_between_two_looks_is_a_hole(
    capture: Capture,
) -> None:
    capture.run()
    for publish in ("insert", "insert, update, delete, truncate"):
        capture.source.execute(f"ALTER PUBLICATION pgaudit_ctx SET (publish = '{publish}')")
    capture.run()
    assert [is_open for is_open, _ in intervals(capture)] == [False, True]


@pytest.mark.parametrize(
    ("statement", "repair"),
    [
        (DROP, ADD),
        (
            "ALTER PUBLICATION pgaudit_ctx SET (publish = 'insert')",
            "ALTER PUBLICATION pgaudit_ctx SET (publish = 'insert, update, delete, truncate')",
        ),
        (
            "ALTER PUBLICATION pgaudit_ctx SET TABLE patient WHERE (id > 10)",
            "ALTER PUBLICATION pgaudit_ctx SET TABLE patient",
        ),
    ],
    ids=["left", "publish", "row filter"],
)
def test_a_running_worker_sees_a_hole_begin_and_end_and_goes_on(
    capture: Capture, monkeypatch: pytest.MonkeyPatch, statement: str, repair: str
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr("pgaudit_ctx.worker._IDLE_SECONDS", 0.1)
    with supervised(capture.options):
        eventually(lambda: is_read(capture), "the worker runs")
        capture.source.execute(statement)
        closed = [(False, "not published, or not all of it")]
        eventually(lambda: intervals(capture) == closed, "the hole has begun")
        capture.source.execute(repair)
        eventually(lambda: intervals(capture) == [*closed, (True, None)], "the hole has ended")
        insert(capture.source, 11)
        eventually(
            lambda: capture.destination.execute("SELECT 1 FROM pgaudit_ctx.changes") != [],
            "the worker goes on",
        )


def test_log_says_what_its_list_cannot_hold(capture: Capture) -> None:
    insert(capture.source, 1)
    capture.run()
    whole = command(capture, "log", "--table", "patient")
    assert "gap" not in whole.stderr
    assert f"{capture.source.name} is complete up to" in whole.stderr
    capture.source.execute(DROP)
    capture.source.execute("UPDATE patient SET name = 'unseen'")
    capture.source.execute("ALTER PUBLICATION pgaudit_ctx ADD TABLE patient")
    capture.run()
    assert "not captured" in command(capture, "log", "--table", "patient").stderr
    assert "not captured" in command(capture, "log", "--table", "public.patient", "--json").stderr
    assert "not captured" not in command(capture, "log", "--table", "dose").stderr
    early = command(capture, "log", "--table", "patient", "--until", "2001-01-01T00:00:00Z")
    assert "not captured" not in early.stderr
    recreate(capture)
    capture.options = capture.options._replace(accept_gap=True)
    capture.run()
    assert "the slot was recreated" in command(capture, "log", "--table", "dose").stderr
    assert "the slot was recreated" in command(capture, "log").stderr


def recreate(capture: Capture) -> None:
    """Make the slot anew, behind everybody's back."""
    slot = capture.options.slot
    capture.source.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    capture.source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
