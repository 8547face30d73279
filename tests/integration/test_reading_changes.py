"""``select_changes`` and ``reader.changes`` find changes by what, when, who and why."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgaudit_ctx import AsyncAuditReader, AuditReader, Change, configure, select_changes
from pgaudit_ctx.errors import KeyMismatch, NaiveDatetime, UsageError
from pgaudit_ctx.reading import default
from support.clinic import Dose, Patient, Status
from support.database import Database
from support.handmade import HandmadeTrail, at

ANN = {"id": 1, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None}
GONE = {**ANN, "status": "DISCHARGED"}


@pytest.fixture(scope="module")
def trail(handmade: Database) -> HandmadeTrail:
    """Ann comes, gets a dose, is discharged and deleted; positions 1 to 5."""
    return ann(handmade)


def ann(destination: Database) -> HandmadeTrail:
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.cover("dose", "given_on", "patient_id")
    trail.change(
        "INSERT", "patient", 1, after=ANN, context={"user": "r.tyler", "reason": "walk-in"}
    )
    trail.change(
        "INSERT",
        "dose",
        2,
        key=("2024-02-29", "1"),
        after={"patient_id": 1, "given_on": "2024-02-29", "dose_mg": "2.500"},
        context={"user": 7, "request": {"id": "r-1", "urgent": True}, "tags": ["a", "b"]},
    )
    trail.change(
        "UPDATE",
        "patient",
        3,
        before={"status": "ACTIVE"},
        after=GONE,
        context={"user": "dr.who", "actor.id": "x", "actor": {"id": "y"}},
    )
    trail.change("UPDATE", "patient", 4, before={"name": "Ann"}, after={**GONE, "name": "Eve"})
    trail.change("DELETE", "patient", 5, before={**GONE, "name": "Eve"}, context={"user": "dr.who"})
    return trail


@pytest.fixture
def reader(trail: HandmadeTrail) -> AuditReader:
    return AuditReader(trail.destination.engine())


def positions(changes: list[Change]) -> list[int]:
    return [int(change.commit_lsn.partition("/")[2], 16) for change in changes]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [5, 4, 3, 2, 1]),
        ({"limit": 2}, [5, 4]),
        ({"user": "dr.who"}, [5, 3]),
        ({"user": 7}, [2]),
        ({"user": "7"}, [2]),
        ({"reason": "walk-in"}, [1]),
        ({"context": {"request.id": "r-1"}}, [2]),
        ({"context": {"request.urgent": True}}, [2]),
        ({"context": {"request": {"id": "r-1"}}}, [2]),
        ({"context": {"tags": ["b"]}}, [2]),
        ({"context": {"reason": None}}, [5, 4, 3, 2]),
        ({"context": {"actor.id": "x"}}, [3]),
        ({"context": {"actor.id": "y"}}, [3]),
        ({"context": {"user": "dr.who", "actor.id": "z"}}, []),
        ({"operation": "update"}, [4, 3]),
        ({"operation": ["INSERT", "DELETE"]}, [5, 2, 1]),
        ({"since": at(2), "until": at(4)}, [3, 2]),
        ({"transaction": 703}, [3]),
        ({"without_context": True}, [4]),
    ],
)
def test_changes_are_found_by_context_time_operation_and_transaction(
    reader: AuditReader, filters: dict[str, Any], expected: list[int]
) -> None:
    assert positions(reader.changes(**filters)) == expected


@pytest.mark.parametrize(
    ("model", "key", "filters", "expected"),
    [
        (Patient, None, {}, [5, 4, 3, 1]),
        (Patient, 1, {}, [5, 4, 3, 1]),
        (Patient, 2, {}, []),
        (Dose, (1, dt.date(2024, 2, 29)), {}, [2]),
        ("dose", ("2024-02-29", "1"), {}, [2]),
        (Dose.__table__, None, {}, [2]),
        ("*.patient", "1", {"user": "dr.who"}, [5, 3]),
        (Patient, 1, {"field": "name"}, [5, 4, 1]),
        (Patient, 1, {"field": Patient.status}, [5, 3, 1]),
        (Patient, 1, {"field": {"status": {"to": Status.DISCHARGED}}}, [3]),
        (Patient, 1, {"field": {Patient.status: {"from": Status.ACTIVE}}}, [3]),
        (Patient, 1, {"field": {"status": {"from": Status.DISCHARGED, "to": None}}}, [5]),
        (Patient, 1, {"field": {"name": {"from": "Ann", "to": "Eve"}}}, [4]),
        (Patient, 1, {"field": {"name": {"from": "Eve"}, "status": {}}}, [5]),
        ("patient", 1, {"field": {"id": {"to": 1}}}, [1]),
        (Dose, None, {"field": "milligrams"}, [2]),
    ],
)
def test_changes_are_found_by_record_and_by_what_changed(
    reader: AuditReader, model: Any, key: Any, filters: dict[str, Any], expected: list[int]
) -> None:
    assert positions(reader.changes(model, key, **filters)) == expected


def test_a_select_of_changes_runs_in_any_session_and_can_be_narrowed(trail: HandmadeTrail) -> None:
    with Session(trail.destination.engine()) as session:
        found = session.scalars(select_changes(Patient, user="dr.who").limit(1)).one()
        assert (found.operation, found.context) == ("DELETE", {"user": "dr.who"})
        early = select_changes(Dose, (1, dt.date(2024, 2, 29))).where(Change.epoch == 1)
        assert session.scalars(early).all() == []  # the model's key has another order


def test_select_changes_reads_the_keys_that_were_configured(
    trail: HandmadeTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default, "_configured", None)
    configure(trail.destination.engine(), user_key="actor.id", reason_key="request.id")
    with Session(trail.destination.engine()) as session:
        assert positions(list(session.scalars(select_changes(user="y")))) == [3]
        assert positions(list(session.scalars(select_changes(reason="r-1")))) == [2]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_asynchronous_reader_finds_the_same(trail: HandmadeTrail, driver: str) -> None:
    engine = create_async_engine(trail.destination.sqlalchemy_url(driver), poolclass=NullPool)
    reader = AsyncAuditReader(engine, user_key="actor.id")
    assert positions(await reader.changes(Patient, 1, user="y", operation="UPDATE")) == [3]
    found = await reader.changes(
        Patient,
        field={"status": {"to": Status.DISCHARGED}},
        context={"actor": {"id": "y"}},
        since=at(0),
        transaction=703,
        limit=5,
    )
    assert positions(found) == [3]
    await engine.dispose()


def test_what_cannot_be_meant_is_refused(reader: AuditReader) -> None:
    for wrong in (
        lambda: reader.changes(key=1),
        lambda: reader.changes(field="name"),
        lambda: reader.changes(Patient, field="surname"),
        lambda: reader.changes(Patient, field={"name": {"before": 1}}),
        lambda: reader.changes(Patient, field={"born": {"to": 5}}),
        lambda: reader.changes(operation="UPSERT"),
        lambda: select_changes(key=1),
    ):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(KeyMismatch):
        reader.changes(Patient, (1, 2))
    with pytest.raises(NaiveDatetime):
        reader.changes(since=dt.datetime(2024, 1, 1))  # noqa: DTZ001 - that is the point


def test_what_a_failover_has_undone_is_found_only_if_asked_for(
    destination: Database,
) -> None:
    trail = ann(destination)
    reader = AuditReader(destination.engine())
    trail.epoch(2, 4, "failover", fork=4)
    trail.change("UPDATE", "patient", 4, epoch=2, before={"name": "Ann"}, after=GONE)
    assert [(c.epoch, c.operation) for c in reader.changes(Patient)] == [
        (2, "UPDATE"),
        (1, "UPDATE"),
        (1, "INSERT"),
    ]
    assert len(reader.changes(Patient, include_undone=True)) == 5


def test_a_readers_own_transaction_is_read_only_bounded_in_time_and_ended(
    trail: HandmadeTrail,
) -> None:
    seen = []
    engine = create_engine(trail.destination.sqlalchemy_url(), pool_size=1, max_overflow=0)

    @event.listens_for(engine, "before_cursor_execute")
    def look(connection, cursor, statement, parameters, context, executemany):
        if "changes" in statement:
            state = cursor.connection.execute(
                "SELECT current_setting('transaction_read_only'),"
                " current_setting('statement_timeout')"
            ).fetchone()
            seen.append(tuple(state))

    AuditReader(engine, statement_timeout=1.5).changes()
    AuditReader(engine, statement_timeout=None).changes()
    assert seen == [("on", "1500ms"), ("on", "0")]
    with engine.connect() as connection:
        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert connection.execute(text(idle + " AND datname = current_database()")).scalar() == 0
        assert connection.execute(text("SHOW transaction_read_only")).scalar() == "off"
    engine.dispose()


def test_what_stands_before_a_position_is_the_next_page(reader: AuditReader) -> None:
    everything = reader.changes()
    pages, position = [], None
    while page := reader.changes(older_than=position, limit=2):
        pages += page
        position = (page[-1].epoch, page[-1].commit_lsn, page[-1].ordinal)
    assert [change.commit_lsn for change in pages] == [one.commit_lsn for one in everything]
