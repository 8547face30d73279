"""A server that cannot be written to for a while is waited for, and the log says why."""

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from pgaudit_ctx import supervisor as module
from pgaudit_ctx.doctor.finding import State
from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.errors import ServerReadOnly
from pgaudit_ctx.supervisor import Supervisor
from support.database import Capture, Database, create_database, drop_database
from support.doctor import ask
from support.positions import insert, run_and_refuse
from support.server import Server
from support.standby import Pair, running_pair
from support.supervised import supervised
from support.waiting import eventually
from support.wire import Link


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def pair(server: Server) -> Iterator[Pair]:
    with running_pair(server if isinstance(server, EmbeddedPostgres) else None) as running:
        yield running


def stored(destination: Database) -> list[int]:
    return [
        int(row.primary_key[0])
        for row in destination.execute(
            "SELECT primary_key FROM pgaudit_ctx.changes ORDER BY epoch, commit_lsn, ordinal"
        )
    ]


def write_all_the_same(source: Database, number: int) -> None:
    """Write where sessions are read-only unless they say otherwise."""
    source.execute(
        "BEGIN READ WRITE;"
        f"INSERT INTO patient (id, name, status) VALUES ({number}, 'x', 'ACTIVE'); COMMIT"
    )


@contextmanager
def read_only(database: Database) -> Iterator[None]:
    """Make a whole server read-only, as managed services do when its disk is nearly full."""

    def set_default(value: str) -> None:
        with database.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")
        shown = "SHOW default_transaction_read_only"
        eventually(lambda: database.execute(shown) == [(value,)], "the server has a new default")

    set_default("on")
    try:
        yield
    finally:
        set_default("off")
        database.execute("ALTER SYSTEM RESET default_transaction_read_only")
        database.execute("SELECT pg_reload_conf()")


def test_a_destination_that_becomes_read_only_is_waited_for(
    capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    with supervised(capture.options):
        insert(capture.source, 1)
        eventually(lambda: stored(capture.destination) == [1], "the change is stored")
        with read_only(capture.destination):
            write_all_the_same(capture.source, 2)
            eventually(lambda: "the destination is read-only:" in caplog.text, "it is told")
            assert stored(capture.destination) == [1]
        eventually(lambda: stored(capture.destination) == [1, 2], "everything is stored")


def test_the_doctor_calls_a_read_only_destination_a_problem(capture: Capture) -> None:
    assert ask(capture)["writable"].state is State.OK
    with read_only(capture.destination):
        assert ask(capture)["writable"].state is State.PROBLEM


def test_a_read_only_destination_ends_a_first_start_unless_its_url_says_otherwise(
    capture: Capture,
) -> None:
    with read_only(capture.destination):
        assert "disk is nearly full" in run_and_refuse(capture, ServerReadOnly)
        write_all_the_same(capture.source, 1)
        separator = "&" if "?" in capture.options.destination else "?"
        option = f"{separator}options=-c%20default_transaction_read_only%3Doff"
        insisting = capture.options._replace(destination=capture.options.destination + option)
        with closing(Supervisor(insisting)) as supervisor:
            assert supervisor.run(until_caught_up=True).changes == 1


def test_a_source_that_is_a_standby_for_a_while_is_waited_for(
    pair: Pair, destination: Database, caplog: pytest.LogCaptureFixture
) -> None:
    source = create_database(pair.primary)
    source.execute("CREATE TABLE patient (id int PRIMARY KEY, name text, status text)")
    capture = Capture(source, destination)
    capture.setup()
    pair.catch_up()
    with Link.before(source.url) as address:
        options = capture.options._replace(source=address.url(source.url))
        with supervised(options):
            insert(source, 1)
            eventually(lambda: stored(destination) == [1], "the change is stored")
            address.lead_to(pair.standby.url(source.name))
            eventually(lambda: "the source is a standby" in caplog.text, "it is told")
            insert(source, 2)
            address.lead_to(source.url)
            eventually(lambda: stored(destination) == [1, 2], "everything is stored")


def test_a_destination_that_is_a_standby_until_it_is_promoted_is_waited_for_and_not_believed(
    capture: Capture, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    there = create_database(pair.primary)
    trail = Capture(capture.source, there)
    trail.options = capture.options._replace(destination=there.url)
    trail.setup()
    with (
        Link.before(there.url) as address,
        supervised(trail.options._replace(destination=address.url(there.url))),
    ):
        insert(capture.source, 1)
        eventually(lambda: stored(there) == [1], "the change is stored")
        pair.catch_up()
        # It holds less than the slot has been told for a while, as one that is behind does.
        promoted = Database(pair.standby, there.name)
        promoted.execute("SELECT pg_wal_replay_pause()")
        insert(capture.source, 2)
        eventually(lambda: stored(there) == [1, 2], "the next change is stored on the primary")
        address.lead_to(pair.standby.url(there.name))
        eventually(lambda: "the destination is a standby" in caplog.text, "it is told")
        seen = Capture(capture.source, promoted)
        seen.options = trail.options._replace(destination=promoted.url)
        assert ask(seen)["writable"].state is State.PROBLEM
        insert(capture.source, 3)
        promoted.execute("SELECT pg_wal_replay_resume()")
        pair.catch_up()
        pair.promote()
        eventually(lambda: stored(promoted) == [1, 2, 3], "everything is stored")


@pytest.fixture
def small(server: Server, destination_template: str) -> Iterator[tuple[Database, str]]:
    """A destination on a file system of 24 MB of its own, and where that is mounted."""
    if not isinstance(server, EmbeddedPostgres):
        pytest.skip("only a server of this machine can be given a file system")
    place = server.directory / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=777", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip("only root may mount a file system")
    try:
        (place / "data").mkdir()
        server._hand_over(place / "data")
        postgres = Database(server, "postgres")
        postgres.execute(f"CREATE TABLESPACE small LOCATION '{place}/data'")
        made = create_database(server, destination_template)
        try:
            postgres.execute(f"ALTER DATABASE {made.name} SET TABLESPACE small")
            yield made, str(place)
        finally:
            drop_database(made)
            postgres.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def test_a_full_disk_of_the_destination_is_waited_for_and_told(
    source: Database, small: tuple[Database, str], caplog: pytest.LogCaptureFixture
) -> None:
    destination, place = small
    capture = Capture(source, destination)
    capture.setup()
    with supervised(capture.options):
        for start in range(1, 20_000, 5000):
            source.execute(
                "INSERT INTO patient (id, name, status) SELECT n, repeat(md5(n::text), 30),"
                f" 'ACTIVE' FROM generate_series({start}, {start + 4999}) n"
            )
        eventually(lambda: "No space left on device" in caplog.text, "it is told")
        assert "Check free disk space" in caplog.text
        subprocess.run(["mount", "-o", "remount,size=400m", place], check=True)
        count = "SELECT count(*) AS n FROM pgaudit_ctx.changes"
        eventually(lambda: destination.execute(count) == [(20_000,)], "everything is stored")
