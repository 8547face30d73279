"""What people do to the trail itself is written down, with who did it and what came of it."""

import pytest

from pgaudit_ctx.worker import Worker
from support.database import Capture, Database
from support.doctor import command
from support.positions import insert


def acts(destination: Database) -> list[str]:
    rows = destination.execute(
        "SELECT command, actor, result, arguments::text AS given FROM pgaudit_ctx.operations"
        " ORDER BY id"
    )
    for row in rows:
        assert row.actor
        assert row.result
        assert "postgresql://" not in row.given
    return [row.command for row in rows]


@pytest.fixture
def made(blank: Capture) -> Capture:
    """Set up by the command."""
    blank.source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
    assert command(blank, "setup", "--no-roles").exit_code == 0
    return blank


def test_setup_snapshot_and_teardown_are(made: Capture) -> None:
    assert command(made, "snapshot").exit_code == 0
    assert command(made, "teardown", "--yes").exit_code == 0
    assert acts(made.destination) == ["setup", "snapshot", "teardown"]


def test_a_slot_that_is_made_anew_is_with_its_gap(made: Capture) -> None:
    insert(made.source, 1)
    made.run()
    assert command(made, "setup", "--no-roles", "--recreate-slot", "--yes").exit_code == 0
    assert acts(made.destination)[:2] == ["setup", "setup"]
    rows = made.destination.execute(
        "SELECT arguments ->> 'recreate_slot' AS anew FROM pgaudit_ctx.operations"
        " WHERE command = 'setup' ORDER BY id"
    )
    assert [row.anew for row in rows] == ["false", "true"]


def test_an_accepted_gap_is(made: Capture) -> None:
    made.source.execute("SELECT pg_drop_replication_slot(%s)", [made.options.slot])
    worker = Worker(made.options._replace(accept_gap=True))
    worker.close()
    assert acts(made.destination) == ["setup", "worker --accept-gap"]


def test_a_change_that_was_refused_and_stored_after_all_is(made: Capture) -> None:
    made.destination.execute(
        "ALTER TABLE pgaudit_ctx.changes ADD CONSTRAINT odd CHECK (primary_key <> '{2}')"
    )
    insert(made.source, 1, 2)
    command(made, "worker", "--until-caught-up")
    made.destination.execute("ALTER TABLE pgaudit_ctx.changes DROP CONSTRAINT odd")
    assert command(made, "rejected", "replay").exit_code == 0
    assert acts(made.destination) == ["setup", "rejected replay"]


def test_both_halves_of_a_hand_over_are(made: Capture) -> None:
    assert command(made, "handover", "begin", "--yes", "--keep-slot").exit_code == 0
    assert command(made, "handover", "finish", "--yes", "--no-roles").exit_code == 0
    assert acts(made.destination) == ["setup", "handover begin", "handover finish"]
