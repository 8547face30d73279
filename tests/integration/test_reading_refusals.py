"""What stands between a question and its answer is told by errors of ours, sync and async alike."""

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from pgaudit_ctx import AsyncAuditReader, AuditReader, configure, history
from pgaudit_ctx.errors import ConnectionFailed, KeyMismatch, NotCaptured, SourceUnknown, UsageError
from pgaudit_ctx.reading import default
from support.clinic import Patient
from support.database import Capture

NOW = dt.datetime.now(dt.UTC)
NOWHERE = "auditor:hunter2@no-such-host.invalid/audit"
CLOSED = "auditor:hunter2@127.0.0.1:1/audit"
NO_PORT = "auditor:hunter2@127.0.0.1:99999/audit"
SPLIT = "auditor:some@hunter2@no-such-host.invalid/audit"


def ask(engine: Engine) -> list[Callable[[], Any]]:
    """One question through each kind of destination, and each verb once."""
    reader = AuditReader(engine)
    return [
        lambda: reader.history(Patient, 1),
        lambda: reader.as_of(Patient, 1, NOW),
        reader.changes,
        lambda: AuditReader(sessionmaker(engine)).history(Patient, 1),
        lambda: AuditReader(Session(engine)).history(Patient, 1),
    ]


def ask_async(url: str) -> list[Callable[[], Any]]:
    engine = create_async_engine(url, poolclass=NullPool)
    reader = AsyncAuditReader(engine)

    async def in_session() -> None:
        async with AsyncSession(engine) as session:
            await AsyncAuditReader(session).history(Patient, 1)

    return [
        lambda: asyncio.run(reader.history(Patient, 1)),
        lambda: asyncio.run(reader.as_of(Patient, 1, NOW)),
        lambda: asyncio.run(AsyncAuditReader(async_sessionmaker(engine)).changes()),
        lambda: asyncio.run(in_session()),
    ]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "async psycopg"])
@pytest.mark.parametrize(
    ("url", "host", "remedy"),
    [
        (NOWHERE, "no-such-host.invalid", "check the host"),
        (CLOSED, "127.0.0.1", "that the server runs"),
        (NO_PORT, "127.0.0.1", "check the port"),
        (SPLIT, "no-such-host.invalid", "%40"),
    ],
)
def test_a_server_that_cannot_be_reached_is_our_error_whichever_driver_asks(
    driver: str, url: str, host: str, remedy: str
) -> None:
    name, _, other = driver.rpartition(" ")
    full = f"postgresql+{other}://{url}"
    asynchronous = name == "async" or other == "asyncpg"
    for question in ask_async(full) if asynchronous else ask(create_engine(full)):
        with pytest.raises(ConnectionFailed) as caught:
            question()
        said = str(caught.value)
        assert f"cannot connect to the destination (host {host}, database audit" in said
        assert remedy in said.partition("Remedy: ")[2]
        assert "hunter2" not in said
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__  # SQLAlchemy's own text is not shown with it


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_role_or_database_that_is_not_there_is_our_error(capture: Capture, driver: str) -> None:
    url = capture.destination.sqlalchemy_url(driver)
    for wrong, remedy in (
        (url.replace("postgres@", "nobody_here@"), "check the user"),
        (url.replace(capture.destination.name, "nowhere"), "check the database's name"),
    ):
        questions = ask_async(wrong) if driver == "asyncpg" else ask(create_engine(wrong))
        with pytest.raises(ConnectionFailed, match=remedy):
            questions[0]()


@pytest.mark.parametrize("port", ["abc", "54x2"])
def test_a_port_that_is_no_number_is_our_error(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "_configured", None)
    url = f"postgresql://auditor:hunter2@localhost:{port}/audit"
    with pytest.raises(UsageError, match="a number for its port") as caught:
        configure(url)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(default.ENVIRONMENT, url)
    with pytest.raises(UsageError, match="a number for its port"):
        history(Patient, 1)


def test_a_connection_that_is_lost_in_the_middle_is_our_error(capture: Capture) -> None:
    engine = capture.destination.engine()

    @event.listens_for(engine, "before_cursor_execute")
    def cut(connection: Any, *_: Any) -> None:
        pid = connection.connection.driver_connection.info.backend_pid
        capture.destination.execute("SELECT pg_terminate_backend(%s)", [pid])

    with pytest.raises(ConnectionFailed, match="was lost while the trail was read"):
        AuditReader(engine).history(Patient, 1)


def test_nothing_captured_yet_is_told_with_the_remedy_by_every_verb(capture: Capture) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')")
    reader = AuditReader(capture.destination.engine())
    verbs: list[Callable[[], Any]] = [
        lambda: reader.history(Patient, 1),
        lambda: reader.as_of(Patient, 1, NOW),
        lambda: reader.select_as_of(Patient, NOW),
        lambda: reader.blame(Patient, 1),
        lambda: reader.deleted(Patient),
        reader.changes,
        lambda: reader.changes(Patient, without_context=True),
    ]
    for verb in verbs:
        with pytest.raises(NotCaptured, match=r"the worker has not run\. Remedy: start") as caught:
            verb()
        assert capture.source.name in str(caught.value)
    capture.run()
    assert len(reader.history(Patient, 1)) == 1
    assert reader.changes(Patient, 2) == []
    assert reader.deleted(Patient) == []


def test_a_worker_that_found_nothing_to_store_has_run(capture: Capture) -> None:
    capture.source.execute("SELECT pg_logical_emit_message(true, 'other', 'x')")
    capture.run()
    reader = AuditReader(capture.destination.engine())
    assert len(reader.history(Patient, 1)) == 0
    assert reader.changes() == []


def test_of_a_table_known_by_name_a_column_or_key_it_cannot_have_is_refused(
    capture: Capture,
) -> None:
    capture.source.execute(
        "INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE');"
        "INSERT INTO dose (patient_id, given_on, dose_mg) VALUES (1, '2026-01-01', 2.5)"
    )
    capture.run()
    reader = AuditReader(capture.destination.engine())
    for ask_for in (
        lambda: reader.history("public.patient", 1, fields=["nme"]),
        lambda: reader.changes("public.patient", field="nme"),
        lambda: reader.changes("public.patient", field={"nme": {"to": "Eve"}}),
    ):
        with pytest.raises(UsageError, match=r"has no attribute nme: it has .*name"):
            ask_for()
    for key in ("x", "01", "1.0"):
        with pytest.raises(KeyMismatch, match=r"column id of public\.patient holds an integer"):
            reader.history("public.patient", key)
    with pytest.raises(KeyMismatch, match="patient_id"):
        reader.changes("public.dose", ("2026-01-01", "Ann"))
    # What it could have is only not there.
    assert len(reader.history("public.patient", 2)) == 0
    assert len(reader.history("public.patient", 1, fields=["born"])) == 1  # the INSERT
    capture.source.execute("ALTER TABLE patient ADD email text")
    capture.source.execute(
        "INSERT INTO patient (id, name, status, email) VALUES (2, 'Eve', 'ACTIVE', 'e')"
    )
    capture.run()
    assert len(reader.history("public.patient", 1, fields=["email"])) == 0


def test_changes_of_a_table_or_source_the_trail_has_never_heard_of_are_refused(
    capture: Capture,
) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')")
    capture.run()
    reader = AuditReader(capture.destination.engine())
    with pytest.raises(NotCaptured, match=r"public\.nowhere was never captured"):
        reader.changes("public.nowhere")
    with pytest.raises(NotCaptured, match="never captured"):
        reader.changes("*.nowhere")
    with pytest.raises(SourceUnknown, match="'elsewhere'"):
        reader.changes(source="elsewhere")
