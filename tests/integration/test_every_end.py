"""Every way in which the worker can end says what a person can do, in the words of the docs.

The table "When it ends" of docs/how-to/worker.md has one row for each; each has a case here.
"""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from pgaudit_ctx.cli import main
from pgaudit_ctx.connection import FIXED_SETTINGS, connect
from pgaudit_ctx.destination import handovers, ledger
from pgaudit_ctx.errors import AuditError
from pgaudit_ctx.source import catalog
from pgaudit_ctx.source.stream import ReplicationStream
from pgaudit_ctx.wal.stitcher import Stitcher
from support.command import start, urls_of
from support.database import Capture, Database, create_database, drop_database
from support.doctor import command
from support.positions import insert
from support.server import Server, server_of_its_own
from support.waiting import eventually

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "worker.md"
ADD_ROW_FILTER = "ALTER PUBLICATION pgaudit_ctx SET TABLE patient WHERE (1 / (id - 2) > -9)"


def beginnings() -> dict[str, int]:
    """The beginnings of messages that the page has, with their exit codes."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition("\n## When it ends\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| (\d+) \|", section, flags=re.MULTILINE)
    return {beginning: int(code) for beginning, code in rows}


class World(NamedTuple):
    """What a case may arrange."""

    capture: Capture
    server: Server
    patch: pytest.MonkeyPatch
    more: dict[str, str]
    opened: ExitStack

    @property
    def slot(self) -> str:
        return self.capture.options.slot

    def source(self, statement: str) -> None:
        self.capture.source.execute(statement)

    def destination(self, statement: str) -> None:
        self.capture.destination.execute(statement)

    def url(self, end: str, url: str) -> None:
        self.more[f"PGAUDIT_CTX_{end.upper()}_URL"] = url

    def before_streaming(self, act: Callable[[], object]) -> None:
        """Do something after all checks, right before the stream is started."""
        start_stream = ReplicationStream.start

        def acting(stream: ReplicationStream, lsn: int) -> None:
            act()
            start_stream(stream, lsn)

        self.patch.setattr(ReplicationStream, "start", acting)

    def drop_slot(self) -> None:
        self.source(f"SELECT pg_drop_replication_slot('{self.slot}')")


def seem_a_standby(world: World, end: str) -> None:
    """Let a server say so of itself; real ones are in test_no_writing.py."""
    function = "public.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'"
    getattr(world, end)(f"CREATE FUNCTION {function}")
    world.patch.setitem(FIXED_SETTINGS, "search_path", "public,pg_catalog")


def take_a_port(world: World) -> list[str]:
    taken = world.opened.enter_context(socket.create_server(("", 0)))
    return ["--metrics-port", str(taken.getsockname()[1])]


def insist_on_read_only(world: World) -> None:
    url = world.capture.options.destination
    option = "options=-c%20default_transaction_read_only%3Don"
    world.url("destination", f"{url}{'&' if '?' in url else '?'}{option}")


def write_no_rows_to_the_log(world: World) -> None:
    other = server_of_its_own(world.server, {"wal_level": "replica"})
    world.url("source", world.opened.enter_context(other).url("postgres"))


def be_nobody(world: World) -> None:
    """Connect to both ends as a role without any rights, which has our own password."""
    with world.capture.source.connect() as connection:
        password = connection.info.password
    world.source(f"CREATE ROLE plain LOGIN PASSWORD '{password}'")
    world.opened.callback(world.source, "DROP ROLE plain")
    for end in ("source", "destination"):
        url = getattr(world.capture.options, end)
        world.url(end, re.sub(r"//\w+([:@])", r"//plain\1", url))


def may_not_replicate(world: World) -> None:
    be_nobody(world)
    del world.more["PGAUDIT_CTX_DESTINATION_URL"]


def know_no_encoding(world: World) -> None:
    name = f"{world.capture.source.name}ascii"
    with psycopg.connect(world.server.url("postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"
        )
    made = Database(world.server, name)
    world.opened.callback(drop_database, made)
    world.url("source", made.url)


def read_the_slot_of_another_database(world: World) -> None:
    other = create_database(world.server)
    world.opened.callback(drop_database, other)
    world.url("source", other.url)


def read_the_slot(world: World) -> list[str]:
    options = world.capture.options
    stream = ReplicationStream(options.source, options.slot, options.publication)
    world.opened.enter_context(stream).start(0)
    return []


def publish(setting: str) -> Callable[[World], None]:
    return lambda world: world.source(f"ALTER PUBLICATION pgaudit_ctx SET ({setting})")


def publish_all_tables(world: World) -> None:
    world.source("DROP PUBLICATION pgaudit_ctx")
    world.source("CREATE PUBLICATION pgaudit_ctx FOR ALL TABLES")


def filter_rows(world: World) -> None:
    with world.capture.source.connect() as connection:
        if connection.info.server_version < 15_00_00:
            pytest.skip("PostgreSQL 14 has no row filters")
    world.source(ADD_ROW_FILTER)


def publish_anew(world: World) -> None:
    world.source("DROP PUBLICATION pgaudit_ctx")
    insert(world.capture.source, 1)
    world.source(
        "CREATE PUBLICATION pgaudit_ctx FOR TABLE patient WITH (publish_via_partition_root)"
    )


def set_up_nothing(world: World) -> list[str]:
    return ["--slot", "nowhere", "--name", "other"]


def use_a_second_slot(world: World) -> list[str]:
    name = f"{world.slot}_b"
    world.source(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    return ["--slot", name]


def divide_by_zero(*rows: str) -> Callable[[World], None]:
    """Let the server fail to decode one row: the filter, refused otherwise, divides by its key."""

    def arrange(world: World) -> None:
        filter_rows(world)
        world.patch.setattr("pgaudit_ctx.preflight.refuse_filters", lambda *_: None)
        for row in rows:
            world.source(f"INSERT INTO patient (id, name, status) VALUES {row}")

    return arrange


def refuse_to_stream(world: World) -> None:
    world.patch.setattr("pgaudit_ctx.source.stream._UNDEFINED_OBJECT", "")
    world.before_streaming(world.drop_slot)


def be_short_of_something(world: World) -> None:
    refuse_to_stream(world)
    world.patch.setattr("pgaudit_ctx.source.stream._PASSING", frozenset({"42"}))


def be_on_another_timeline(world: World) -> None:
    read_identity = catalog.read_identity
    world.patch.setattr(
        catalog, "read_identity", lambda source: read_identity(source)._replace(timeline=99)
    )


def move_the_slot(world: World) -> None:
    insert(world.capture.source, 1)
    world.source(f"SELECT pg_replication_slot_advance('{world.slot}', pg_current_wal_lsn())")


def begin_a_hand_over(world: World) -> None:
    with world.capture.connections() as (_, destination):
        name = world.capture.source.name
        held = ledger.read_checkpoint(destination, name)
        assert held is not None
        handovers.record_begin(destination, name, held.epoch, held.end_lsn, [], slot_kept=False)
    world.drop_slot()


def move_the_checkpoint_meanwhile(world: World) -> list[str]:
    move_the_slot(world)
    remember = ledger.accept_loss

    def accept(*arguments, **options) -> None:
        world.destination("UPDATE pgaudit_ctx.checkpoints SET end_lsn = '0/1'")
        remember(*arguments, **options)

    world.patch.setattr(ledger, "accept_loss", accept)
    return ["--accept-gap"]


def lose_the_checkpoint(world: World) -> None:
    world.before_streaming(lambda: world.destination("DELETE FROM pgaudit_ctx.checkpoints"))


def store_a_change_twice(world: World) -> None:
    """Set back both ends, the slot and the checkpoint, but not the changes."""
    kept = f"{world.slot}_kept"
    world.source(f"SELECT pg_copy_logical_replication_slot('{world.slot}', '{kept}')")
    world.destination("CREATE TABLE kept AS SELECT end_lsn FROM pgaudit_ctx.checkpoints")
    insert(world.capture.source, 1)
    world.capture.run()
    world.drop_slot()
    world.source(f"SELECT pg_copy_logical_replication_slot('{kept}', '{world.slot}')")
    world.destination("UPDATE pgaudit_ctx.checkpoints SET end_lsn = kept.end_lsn FROM kept")


def hold_the_trail(world: World) -> None:
    other = world.opened.enter_context(closing(connect(world.capture.destination.url, "other")))
    ledger.hold_trail(other, world.capture.source.name)
    world.patch.setattr(ledger, "_END_HOLDER", "SELECT %s::int, %s::text")


def be_of_a_newer_version(world: World) -> None:
    world.destination("INSERT INTO pgaudit_ctx.migrations VALUES (9999, 'future')")


def be_of_an_older_version(world: World) -> None:
    world.destination(
        "DELETE FROM pgaudit_ctx.migrations"
        " WHERE number = (SELECT max(number) FROM pgaudit_ctx.migrations)"
    )


def refuse_all_rows(world: World) -> None:
    for table in ("changes", "rejected"):
        world.destination(
            f"ALTER TABLE pgaudit_ctx.{table} ADD CONSTRAINT never CHECK (source = 'x') NOT VALID"
        )
    insert(world.capture.source, 1)


def send_nonsense(world: World) -> None:
    insert(world.capture.source, 1)
    world.patch.setattr(ReplicationStream, "read", lambda _: [b"nonsense"])


def make_a_mistake(world: World) -> None:
    insert(world.capture.source, 1)

    def receive(*_: object) -> None:
        raise ValueError("hunter2")

    world.patch.setattr(Stitcher, "receive", receive)


CASES: dict[str, Callable[[World], Sequence[str] | None]] = {
    "no source was named": lambda world: world.url("source", ""),
    "no destination was named": lambda world: world.url("destination", ""),
    "a database URL must": lambda world: world.url("source", "mysql://h/db"),
    "the source's URL cannot be read": lambda world: world.url("source", "postgresql://u@[h/db"),
    "… does not say how to redact": lambda _: ["--redact-column", "patient.name"],
    "… cannot be ignored or redacted": lambda _: ["--ignore-column", "patient.id"],
    "… is not a size": lambda _: ["--batch-size", "many"],
    "… is not a time": lambda _: ["--batch-time", "long"],
    "metrics cannot be served on port": take_a_port,
    "cannot connect to the source": lambda w: w.url("source", "postgresql://p@127.0.0.1:1/x"),
    "cannot connect to the destination": (
        lambda world: world.url("destination", "postgresql://p@127.0.0.1:1/x")
    ),
    "the source runs PostgreSQL": (
        lambda world: world.patch.setattr("pgaudit_ctx.source.setup.OLDEST_VERSION", 99_00_00)
    ),
    "the source is a standby": lambda world: seem_a_standby(world, "source"),
    "the destination is a standby": lambda world: seem_a_standby(world, "destination"),
    "the destination is read-only": insist_on_read_only,
    "the source has wal_level =": write_no_rows_to_the_log,
    "the role … may not replicate": may_not_replicate,
    "the source's encoding is SQL_ASCII": know_no_encoding,
    "the slot … belongs to database": read_the_slot_of_another_database,
    "the slot … is being read by another process": read_the_slot,
    "the source has no publication": lambda world: world.source("DROP PUBLICATION pgaudit_ctx"),
    "the publication … is FOR ALL TABLES": publish_all_tables,
    "the publication … does not send": publish("publish = 'insert'"),
    "the publication … sends partitions": publish("publish_via_partition_root = false"),
    "the publication … leaves out": filter_rows,
    "the publication … did not exist": publish_anew,
    "the source has no replication slot": set_up_nothing,
    "the slot … cannot be read": lambda world: world.before_streaming(world.drop_slot),
    "the source refuses to stream": refuse_to_stream,
    "the source cannot stream now": be_short_of_something,
    "the source cannot send what comes": divide_by_zero("(2, 'x', 'ACTIVE')"),
    "the transaction … cannot be decoded": divide_by_zero("(1, 'x', 'ACTIVE'), (2, 'x', 'ACTIVE')"),
    "the source cannot say how its timeline": be_on_another_timeline,
    "the trail of … ends at": move_the_slot,
    "the source … is captured through the slot": use_a_second_slot,
    "a hand-over of": begin_a_hand_over,
    "this database is captured through": lambda _: ["--name", "typo"],
    "the checkpoint of … is gone": lose_the_checkpoint,
    "the checkpoint of … has moved": move_the_checkpoint_meanwhile,
    "the trail of … holds changes": store_a_change_twice,
    "another session of the destination": hold_the_trail,
    "the destination has no schema": (
        lambda world: world.destination("DROP SCHEMA pgaudit_ctx CASCADE")
    ),
    "the destination's schema has migration": be_of_a_newer_version,
    "the destination's schema lacks": be_of_an_older_version,
    "cannot look at the trail's schema": be_nobody,
    "cannot prepare the capture": (
        lambda world: world.destination("ALTER TABLE pgaudit_ctx.coverage RENAME TO lost")
    ),
    "cannot store changes": refuse_all_rows,
    "what the source sends cannot be read": send_nonsense,
    "a mistake in pgaudit-ctx": make_a_mistake,
}


@pytest.mark.parametrize("beginning", CASES)
def test_what_ends_the_worker_is_told_as_the_docs_have_it(
    beginning: str, capture: Capture, server: Server, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with ExitStack() as opened, monkeypatch.context() as patch:
        world = World(capture, server, patch, {}, opened)
        patch.setattr("pgaudit_ctx.supervisor.FIRST_PAUSE", 0.01)
        more = CASES[beginning](world) or []
        with pytest.raises(AuditError) as ended:
            command(capture, "worker", "--until-caught-up", *more, more=world.more)
    said = str(ended.value)
    pattern = ".+".join(map(re.escape, beginning.split("…")))
    assert re.match(pattern.removeprefix("\\ "), said), said
    assert re.search(r"Remedy|must look like|must begin with|write it like", said), said
    assert ended.value.exit_code == beginnings()[beginning]
    assert "hunter2" not in said + capsys.readouterr().err


def test_the_docs_have_each_way_and_no_other() -> None:
    others = {"Usage:", "The command line needs the package", "ended at once", "…: stored"}
    assert set(beginnings()) == {*CASES, *others}


def test_an_option_that_there_is_not_is_wrong_usage(capture: Capture) -> None:
    done = command(capture, "worker", "--frobnicate")
    assert done.exit_code == beginnings()["Usage:"]
    assert done.stderr.startswith("Usage:")
    assert "--frobnicate" in done.stderr


def test_a_missing_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pgaudit_ctx.cli.app", None)
    with pytest.raises(SystemExit) as ended:
        main(["worker"])
    assert ended.value.code == beginnings()["The command line needs the package"]
    said = capsys.readouterr().err
    assert said.startswith("pgaudit-ctx: The command line needs the package")
    assert "pip install 'pgaudit-ctx[worker]'" in said


def test_a_request_to_stop_is_answered_with_what_was_stored(capture: Capture) -> None:
    done = command(capture, "worker", "--until-caught-up")
    assert done.exit_code == beginnings()["…: stored"] == 0
    assert done.stderr.splitlines()[-1].startswith(f"{capture.source.name}: stored 0 changes of")


def test_a_second_signal_ends_a_worker_at_once_and_it_says_what_that_means(
    capture: Capture,
) -> None:
    with capture.destination.connect() as other, other.transaction():
        worker = start("worker", env=urls_of(capture))
        assert worker.stderr is not None
        with worker:
            eventually(lambda: "capturing" in worker.stderr.readline(), "it captures")
            other.execute("LOCK pgaudit_ctx.changes IN ACCESS EXCLUSIVE MODE")
            insert(capture.source, 1)
            eventually(
                lambda: other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone(),
                "the worker waits for the destination",
            )
            while worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(3)
            said = worker.stderr.read()
    assert worker.returncode == beginnings()["ended at once"]
    assert "ended at once: what was not committed will be captured" in said


def test_a_port_that_cannot_be_had_leaves_nothing_open(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr("pgaudit_ctx.supervisor.Supervisor.close", lambda it: closed.append(it))  # noqa: PLW0108 - a method
    with ExitStack() as opened:
        arguments = take_a_port(World(capture, capture.source.server, monkeypatch, {}, opened))
        with pytest.raises(AuditError):
            command(capture, "worker", *arguments)
    assert len(closed) == 1
    closed[0]._stop.close()
