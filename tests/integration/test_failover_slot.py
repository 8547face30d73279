"""From PostgreSQL 17 on the slot is kept on a standby too, and a promotion loses nothing."""

from collections.abc import Iterator

import psycopg
import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres
from support.database import Capture, Database, create_database
from support.doctor import ask
from support.positions import insert
from support.server import Server
from support.standby import Pair, Standby, running_pair
from support.waiting import eventually

PHYSICAL = "standby"


@pytest.fixture
def pair(server: Server) -> Iterator[Pair]:
    with running_pair(server if isinstance(server, EmbeddedPostgres) else None) as running:
        with psycopg.connect(running.primary.url("postgres")) as connection:
            if connection.info.server_version < 17_00_00:
                pytest.skip("slots follow a failover from PostgreSQL 17 on")
        yield running


def follow(pair: Pair) -> None:
    """Let the standby keep the primary's slots: what its administrator sets."""
    (conninfo,) = run(pair.standby, "SHOW primary_conninfo")[0]
    conninfo = str(conninfo).replace("'", "''") + " dbname=postgres"
    run(pair.standby, f"ALTER SYSTEM SET primary_conninfo = '{conninfo}'")
    run(pair.standby, f"ALTER SYSTEM SET primary_slot_name = '{PHYSICAL}'")
    run(pair.standby, "ALTER SYSTEM SET hot_standby_feedback = on")
    run(pair.standby, "ALTER SYSTEM SET sync_replication_slots = on")
    run(pair.standby, "SELECT pg_reload_conf()")


def run(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def is_kept(standby: Standby, slot: str) -> bool:
    return bool(
        run(
            standby,
            "SELECT 1 FROM pg_replication_slots WHERE synced AND NOT temporary"
            f" AND invalidation_reason IS NULL AND slot_name = '{slot}'",
        )
    )


def test_a_promoted_standby_that_keeps_the_slot_goes_on_in_the_same_epoch_with_nothing_lost(
    pair: Pair, destination: Database
) -> None:
    source = create_database(pair.primary)
    source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
    capture = Capture(source, destination)
    capture.setup()
    run(pair.primary, f"SELECT pg_create_physical_replication_slot('{PHYSICAL}', true)")
    lagging = ask(capture)["failover"]
    assert lagging.state == "warning"
    assert "may lack what is captured already" in lagging.evidence
    run(pair.primary, f"ALTER SYSTEM SET synchronized_standby_slots = '{PHYSICAL}'")
    run(pair.primary, "SELECT pg_reload_conf()")
    waited_for = eventually(
        lambda: (f := ask(capture)["failover"]).state == "problem" and f, "the doctor sees it"
    )
    assert "nothing is sent to the worker" in waited_for.evidence
    follow(pair)
    insert(source, 1)

    def work() -> bool:
        # A standby keeps a slot for good once the primary's has moved past where it began to.
        run(pair.primary, "SELECT pg_log_standby_snapshot()")
        capture.run()
        return is_kept(pair.standby, capture.options.slot)

    eventually(work, "the slot is kept")
    assert ask(capture)["failover"].state == "ok"
    insert(source, 2)  # after the last that was captured
    pair.catch_up()
    pair.primary.stop()
    pair.promote()
    capture.source = Database(pair.standby, source.name)
    capture.options = capture.options._replace(source=capture.source.url)
    insert(capture.source, 3)
    rows = capture.changes("patient")
    assert [(row.epoch, row.primary_key) for row in rows] == [(1, ["1"]), (1, ["2"]), (1, ["3"])]
    assert destination.execute("SELECT 1 FROM pgaudit_ctx.gaps") == []
