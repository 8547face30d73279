"""What a supervised worker lives through, and what ends it all the same."""

import threading

import psycopg
import pytest

from pgaudit_ctx import supervisor as module
from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import ledger
from pgaudit_ctx.errors import ConnectionFailed, PositionMismatch, SlotBusy
from pgaudit_ctx.source import catalog
from pgaudit_ctx.supervisor import Supervisor
from pgaudit_ctx.worker import Worker
from support.database import Capture, Database
from support.messages import Messages
from support.positions import insert
from support.supervised import supervised
from support.waiting import eventually


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(module, "_STANDBY_SECONDS", 0.02)


def stored(capture: Capture) -> list[int]:
    return [
        int(row.primary_key[0])
        for row in capture.destination.execute(
            "SELECT primary_key FROM pgaudit_ctx.changes ORDER BY epoch, commit_lsn, ordinal"
        )
    ]


def reader(capture: Capture) -> int | None:
    """The process that reads the slot."""
    ((pid,),) = capture.source.execute(
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", [capture.options.slot]
    )
    return pid


def end_connections(database: Database, kind: str) -> None:
    database.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = %s"
        " AND application_name LIKE 'pgaudit_ctx%%'",
        [kind],
    )


@pytest.mark.parametrize("end", ["source", "source stream", "destination"])
def test_a_lost_connection_is_made_again_and_nothing_is_lost(capture: Capture, end: str) -> None:
    kind = "walsender" if end == "source stream" else "client backend"
    database = capture.destination if end == "destination" else capture.source
    with supervised(capture.options):
        for number in range(1, 4):
            insert(capture.source, number)
            eventually(lambda: stored(capture)[-1:] == [number], "the change is stored")  # noqa: B023
            end_connections(database, kind)
        insert(capture.source, 4)
        eventually(lambda: stored(capture) == [1, 2, 3, 4], "all are stored, each once")


def test_an_unreachable_server_ends_the_first_start(capture: Capture) -> None:
    nowhere = capture.options._replace(destination="postgresql://postgres@127.0.0.1:1/x")
    with pytest.raises(ConnectionFailed, match="destination"):
        Supervisor(nowhere)


def test_the_checks_of_a_start_are_made_again_before_each_reconnection(capture: Capture) -> None:
    def set_the_checkpoint_back() -> None:
        with supervised(capture.options):
            insert(capture.source, 1)
            eventually(lambda: stored(capture) == [1], "the change is stored")
            capture.destination.execute("UPDATE pgaudit_ctx.checkpoints SET end_lsn = '0/1'")
            end_connections(capture.source, "walsender")
            eventually(lambda: reader(capture) is None, "the worker has ended")

    with pytest.raises(PositionMismatch, match="never stored"):
        set_the_checkpoint_back()


def test_a_second_worker_ends_naming_the_process_that_reads_the_slot(capture: Capture) -> None:
    with supervised(capture.options):
        pid = eventually(lambda: reader(capture), "the first worker reads the slot")
        second = Supervisor(capture.options)
        with pytest.raises(SlotBusy, match=f"PID {pid}.*--standby"):
            second.run()
        second.close()


def test_a_standby_waits_for_the_slot_and_takes_over(capture: Capture) -> None:
    first = supervised(capture.options)
    with first:
        pid = eventually(lambda: reader(capture), "the first worker reads the slot")
        standby = supervised(capture.options, standby=True)
        standby.__enter__()
        insert(capture.source, 1)
        eventually(lambda: stored(capture) == [1], "the change is stored")
        assert reader(capture) == pid
    eventually(lambda: reader(capture) not in {None, pid}, "the standby has taken over")
    insert(capture.source, 2)
    eventually(lambda: stored(capture) == [1, 2], "the next change is stored too")
    standby.__exit__(None, None, None)


def test_a_full_destination_is_waited_for(capture: Capture) -> None:
    capture.destination.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$;"
        "CREATE SEQUENCE attempts;"
        "CREATE TRIGGER full_disk BEFORE INSERT ON pgaudit_ctx.changes FOR EACH ROW"
        " WHEN (nextval('public.attempts') > 0) EXECUTE FUNCTION full_disk()"
    )
    with supervised(capture.options):
        insert(capture.source, 1, 2)
        eventually(
            lambda: capture.destination.execute("SELECT 1 FROM attempts WHERE last_value >= 3"),
            "it was tried three times",
        )
        assert stored(capture) == []
        capture.destination.execute("DROP TRIGGER full_disk ON pgaudit_ctx.changes")
        eventually(lambda: stored(capture) == [1, 2], "everything is stored")


def test_a_stop_is_heard_while_the_destination_is_away(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 1000.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 1000.0)
    paused = threading.Event()
    monkeypatch.setattr(module, "_tell", lambda _: paused.set())
    with supervised(capture.options):
        eventually(lambda: reader(capture), "the worker reads the slot")
        # A column that COPY does not know of and must.
        capture.destination.execute("ALTER TABLE pgaudit_ctx.changes RENAME COLUMN context TO c")
        insert(capture.source, 1)
        assert paused.wait(60)


def test_a_slow_destination_does_not_cost_the_stream(capture: Capture) -> None:
    capture.source.execute(f"ALTER DATABASE {capture.source.name} SET wal_sender_timeout = '500ms'")
    with supervised(capture.options):
        pid = eventually(lambda: reader(capture), "the worker reads the slot")
        with capture.destination.connect() as other, other.transaction():
            other.execute("LOCK pgaudit_ctx.changes IN ACCESS EXCLUSIVE MODE")
            insert(capture.source, *range(1, 4))
            other.execute("SELECT pg_sleep(1.5)")
        with capture.destination.connect() as other, other.transaction():
            other.execute("SELECT FROM pgaudit_ctx.checkpoints FOR UPDATE")
            insert(capture.source, *range(4, 7))
            other.execute("SELECT pg_sleep(1.5)")
        eventually(lambda: stored(capture) == [1, 2, 3, 4, 5, 6], "everything is stored")
        assert reader(capture) == pid


def test_what_an_earlier_worker_left_in_the_destination_is_ended_first(capture: Capture) -> None:
    insert(capture.source, 1)
    with connect(capture.destination.url, "destination") as left:
        ledger.hold_trail(left, capture.source.name)
        left.execute("BEGIN")
        ((lsn,),) = capture.source.execute("SELECT pg_current_wal_insert_lsn()::text AS lsn")
        left.execute("UPDATE pgaudit_ctx.checkpoints SET end_lsn = %s", [lsn])
        assert [row.primary_key for row in capture.changes()] == [["1"]]
        with pytest.raises(psycopg.OperationalError):
            left.execute("COMMIT")


def test_a_transaction_that_is_on_its_way_is_finished_before_the_worker_stops(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(capture.source, *range(1, 4))
    capture.source.execute(
        "INSERT INTO patient (id, name, status) SELECT n, 'x', 'ACTIVE'"
        " FROM generate_series(4, 20000) n"
    )
    worker = Worker(capture.options)
    monkeypatch.setattr(
        worker._sink, "write", lambda rows, write=worker._sink.write: (worker.stop(), write(rows))
    )
    worker.run()
    assert not worker._inside
    worker.close()
    assert stored(capture) in ([1], list(range(1, 20001)))


@pytest.mark.parametrize("least", [0, 2**60])
def test_a_heartbeat_is_written_only_for_a_slot_that_keeps_much_and_does_not_move(
    capture: Capture, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    looks = []

    def looked(*arguments: object) -> tuple[int, int]:
        looks.append(read_retained(*arguments))
        return looks[-1]

    read_retained = catalog.read_retained
    monkeypatch.setattr(catalog, "read_retained", looked)
    monkeypatch.setattr("pgaudit_ctx.upkeep.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr("pgaudit_ctx.upkeep.HEARTBEAT_BYTES", least)
    monkeypatch.setattr("pgaudit_ctx.worker._IDLE_SECONDS", 0.02)
    messages = Messages(capture.source)
    with supervised(capture.options):
        if least:
            eventually(lambda: len(looks) > 20, "it was looked at again and again")
            assert messages.all() == []
        else:
            eventually(messages.all, "a heartbeat")
    assert capture.destination.execute("SELECT 1 FROM pgaudit_ctx.changes") == []
