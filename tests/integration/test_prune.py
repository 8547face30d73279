"""``pgaudit-ctx prune``: old changes leave the trail, and reading knows it."""

import datetime as dt
import subprocess

import psycopg
import pytest

from pgaudit_ctx import AuditReader, HistoryUnknown
from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination.retention import old_partitions, prune
from pgaudit_ctx.errors import DatabaseError
from support.clinic import Patient
from support.command import run
from support.database import Capture, Database
from support.handmade import NOON, HandmadeTrail, at
from support.positions import insert
from support.supervised import supervised
from support.waiting import eventually

ANN = {"id": 1, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None}
DAY = 24 * 60
NEXT_QUARTER = 40 * DAY
YEAR = 365 * 86400.0


@pytest.fixture
def trail(destination: Database) -> HandmadeTrail:
    """Ann is inserted in the first quarter of 2024 and renamed in the second; 2 and 3 come then."""
    made = HandmadeTrail(destination)
    destination.execute("SELECT pgaudit_ctx.ensure_partition(%s)", [at(NEXT_QUARTER)])
    made.cover("patient")
    made.change("INSERT", "patient", 10, after=ANN)
    made.change("INSERT", "patient", 11, key=("2",), after={**ANN, "id": 2})
    eve = {**ANN, "name": "Eve"}
    made.change("UPDATE", "patient", NEXT_QUARTER, before={"name": "Ann"}, after=eve)
    made.change("INSERT", "patient", NEXT_QUARTER + 1, key=("3",), after={**ANN, "id": 3})
    return made


def first_quarter() -> str:
    """How old the second quarter is not, as a whole, but the first is."""
    age = dt.datetime.now(dt.UTC) - dt.datetime(2024, 6, 30, tzinfo=dt.UTC)
    return f"{age.days}d"


def pruned(database: Database, *more: str) -> subprocess.CompletedProcess[str]:
    env = {"PGAUDIT_CTX_DESTINATION_URL": database.url}
    return run("prune", "--older-than", first_quarter(), *more, env=env)


def partitions(database: Database) -> list[str]:
    return [
        name
        for (name,) in database.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'pgaudit_ctx'::regnamespace"
            " AND relname LIKE 'changes\\_2024%' AND relkind = 'r' ORDER BY 1"
        )
    ]


def test_prune_lists_whole_partitions_that_are_old_and_changes_nothing_without_yes(
    trail: HandmadeTrail,
) -> None:
    done = pruned(trail.destination)
    assert done.returncode == 2
    assert "changes_2024q1" in done.stdout
    assert "changes_2024q2" not in done.stdout
    assert "repeat with --yes" in done.stderr
    assert partitions(trail.destination) == ["changes_2024q1", "changes_2024q2"]


def test_prune_drops_them_and_writes_down_who_did(trail: HandmadeTrail) -> None:
    done = pruned(trail.destination, "--yes")
    assert done.returncode == 0, done.stderr
    assert partitions(trail.destination) == ["changes_2024q2"]
    ((partition, upper, dropped_at),) = trail.destination.execute(
        "SELECT partition, upper_bound, dropped_at FROM pgaudit_ctx.pruned"
    )
    assert (partition, upper) == ("changes_2024q1", dt.datetime(2024, 4, 1, tzinfo=dt.UTC))
    assert dropped_at is not None
    (operation,) = trail.destination.execute(
        "SELECT * FROM pgaudit_ctx.operations WHERE command = 'prune'"
    )
    assert operation.arguments["partitions"] == ["changes_2024q1"]
    again = pruned(trail.destination, "--yes")
    assert (again.returncode, "nothing" in again.stdout) == (0, True)


def test_what_was_pruned_is_unknown_and_never_taken_for_absent(trail: HandmadeTrail) -> None:
    trail.snapshot("patient", 12)
    reader = AuditReader(trail.destination.engine())
    assert reader.as_of(Patient, 3, at(20)) is None
    pruned(trail.destination, "--yes")
    later = at(NEXT_QUARTER + 2)
    # Forgotten with its INSERT; unchanged since; and one whose own INSERT is still there.
    with pytest.raises(HistoryUnknown, match="pruned"):
        reader.as_of(Patient, 1, at(20))
    with pytest.raises(HistoryUnknown, match="pruned"):
        reader.as_of(Patient, 2, later)
    with pytest.raises(HistoryUnknown, match="pruned"):
        reader.as_of(Patient, 3, at(20))
    assert reader.as_of(Patient, 3, at(NEXT_QUARTER)) is None
    assert [version.after["name"] for version in reader.history(Patient, 1)] == ["Eve"]
    with pytest.raises(HistoryUnknown, match="pgaudit-ctx snapshot"):
        reader.select_as_of(Patient, later)


def test_a_baseline_after_what_was_pruned_makes_everything_known_again(
    trail: HandmadeTrail,
) -> None:
    pruned(trail.destination, "--yes")
    moment = NEXT_QUARTER + 10
    for key in ("1", "2", "3"):
        after = {**ANN, "id": int(key)}
        trail.change("SNAPSHOT", "patient", moment - 1, ordinal=int(key), key=(key,), after=after)
    trail.snapshot("patient", moment)
    reader = AuditReader(trail.destination.engine())
    found = reader.as_of(Patient, 2, at(moment + 1))
    assert found is not None
    assert found.operation == "SNAPSHOT"
    assert reader.as_of(Patient, 9, at(moment + 1)) is None
    reader.select_as_of(Patient, at(moment + 1))


def test_a_reader_is_waited_for_and_named_and_the_next_prune_goes_on(
    trail: HandmadeTrail,
) -> None:
    with (
        psycopg.connect(trail.destination.url) as report,
        connect(trail.destination.url, "destination") as owner,
    ):
        (pid,) = report.execute("SELECT pg_backend_pid() FROM pgaudit_ctx.changes").fetchone() or ()
        due = old_partitions(owner, YEAR)[:1]
        named: list[int] = []
        with pytest.raises(DatabaseError, match=f"pid {pid}"):
            prune(
                owner,
                due,
                older_than=YEAR,
                wait=0.2,
                report=lambda _, who: named.extend(one.pid for one in who),
            )
        assert named == [pid]
        # Capture goes on meanwhile, and whoever asks now is told.
        trail.change("INSERT", "patient", NEXT_QUARTER + 3, key=("7",), after={**ANN, "id": 7})
        with pytest.raises(HistoryUnknown, match="pruned"):
            AuditReader(trail.destination.engine()).as_of(Patient, 1, NOON)
    assert partitions(trail.destination) == ["changes_2024q1", "changes_2024q2"]
    assert pruned(trail.destination, "--yes").returncode == 0
    assert partitions(trail.destination) == ["changes_2024q2"]


def test_a_wait_of_nothing_ends_at_once(trail: HandmadeTrail) -> None:
    with (
        psycopg.connect(trail.destination.url) as report,
        connect(trail.destination.url, "destination") as owner,
    ):
        report.execute("SELECT FROM pgaudit_ctx.changes")
        due = old_partitions(owner, YEAR)[:1]
        with pytest.raises(DatabaseError, match="still read"):
            prune(owner, due, older_than=YEAR, wait=0, report=lambda *_: None)


def test_a_late_change_for_a_partition_that_is_going_waits_until_it_is_gone(
    capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    def stored() -> list[str]:
        rows = capture.destination.execute("SELECT primary_key[1] FROM pgaudit_ctx.changes")
        return [key for (key,) in rows]

    with supervised(capture.options), connect(capture.destination.url, "destination") as owner:
        insert(capture.source, 1)
        eventually(lambda: stored() == ["1"], "the first change is stored")
        with psycopg.connect(capture.destination.url) as report:
            report.execute("SELECT FROM pgaudit_ctx.changes")
            now = dt.datetime.now(dt.UTC)
            due = [one for one in old_partitions(owner, -YEAR) if one.lower <= now < one.upper]
            with pytest.raises(DatabaseError):
                prune(owner, due, older_than=1, wait=0.2, report=lambda *_: None)
            insert(capture.source, 2)
            eventually(lambda: "being taken out" in caplog.text, "the worker waits")
        prune(owner, due, older_than=1, wait=10, report=lambda *_: None)
        eventually(lambda: stored() == ["2"], "the change is stored")
    assert capture.destination.execute("SELECT FROM pgaudit_ctx.rejected") == []


def test_nobody_but_the_trails_owner_can_prune(trail: HandmadeTrail) -> None:
    trail.destination.execute("CREATE ROLE pruner_nobody LOGIN")
    try:
        trail.destination.execute("GRANT USAGE ON SCHEMA pgaudit_ctx TO pruner_nobody")
        trail.destination.execute("GRANT ALL ON ALL TABLES IN SCHEMA pgaudit_ctx TO pruner_nobody")
        with connect(trail.destination.url, "destination") as connection:
            connection.execute("SET ROLE pruner_nobody")
            due = old_partitions(connection, YEAR)[:1]
            with pytest.raises(DatabaseError, match="owner"):
                prune(connection, due, older_than=YEAR, wait=5, report=lambda *_: None)
        assert "changes_2024q1" in partitions(trail.destination)
    finally:
        trail.destination.execute("DROP OWNED BY pruner_nobody; DROP ROLE pruner_nobody")


def test_the_wrong_time_is_wrong_usage(destination: Database) -> None:
    for wrong in ("0d", "two years"):
        done = run("prune", "--older-than", wrong, "--destination", destination.url)
        assert (done.returncode, "--older-than" in done.stderr or "time" in done.stderr) == (
            2,
            True,
        )
