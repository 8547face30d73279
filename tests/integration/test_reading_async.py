"""The asynchronous reader gives what the synchronous one gives."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import NullPool

from pgaudit_ctx import AsyncAuditReader, AuditReader, Change, HistoryUnknown, NotCaptured
from pgaudit_ctx.errors import DestinationNotReady, KeyMismatch, UsageError
from support.clinic import Patient, Sample
from support.database import Capture, Database

STATEMENTS = (
    "INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')",
    "UPDATE patient SET name = 'Eve', born = '2024-02-29'",
    (
        "INSERT INTO sample (id, amount, span, blob, tags) VALUES"
        " ('7f3a1a5e-1111-4111-8111-111111111111', 1.50, '1 day', '\\x00ff', '{a,NULL}')"
    ),
    "DELETE FROM patient",
)


@pytest.fixture(params=["psycopg", "asyncpg"])
async def destination_engine(request, capture: Capture) -> AsyncIterator[AsyncEngine]:
    for statement in STATEMENTS:
        capture.source.execute(statement)
    capture.run()
    url = capture.destination.sqlalchemy_url(request.param)
    engine = create_async_engine(url, poolclass=NullPool)
    yield engine
    await engine.dispose()


async def test_it_gives_the_same_versions_as_the_synchronous_reader(
    capture: Capture, destination_engine: AsyncEngine
) -> None:
    expected = AuditReader(capture.destination.engine()).history(Patient, 1)
    versions = await AsyncAuditReader(destination_engine).history(Patient, 1)
    assert [
        (v.number, v.operation, v.before, v.after, v.changed, v.committed_at, v.commit_lsn)
        for v in versions
    ] == [
        (v.number, v.operation, v.before, v.after, v.changed, v.committed_at, v.commit_lsn)
        for v in expected
    ]
    assert len(versions) == 3
    assert versions.complete_up_to == expected.complete_up_to


async def test_typed_values_are_the_same_with_every_driver(
    capture: Capture, destination_engine: AsyncEngine
) -> None:
    key = "7f3a1a5e-1111-4111-8111-111111111111"
    (expected,) = AuditReader(capture.destination.engine()).history(Sample, key)
    (version,) = await AsyncAuditReader(destination_engine).history(Sample, key)
    assert version.as_dict() == expected.as_dict()
    assert (version.instance().blob, version.instance().tags) == (b"\x00\xff", ["a", None])


async def test_as_of_and_filters_work_alike(destination_engine: AsyncEngine) -> None:
    reader = AsyncAuditReader(destination_engine)
    first, second, last = await reader.history(Patient, 1)
    found = await reader.as_of(Patient, 1, second.committed_at)
    assert found.number == 2
    assert await reader.as_of(Patient, 1, last.committed_at) is None
    assert [v.number for v in await reader.history(Patient, 1, since=second.committed_at)] == [2, 3]
    assert [v.number for v in await reader.history("patient", 1, limit=1)] == [3]
    assert first.valid_to == second.committed_at


async def test_it_takes_connections_sessions_and_sessionmakers(
    destination_engine: AsyncEngine,
) -> None:
    async with destination_engine.connect() as connection:
        assert len(await AsyncAuditReader(connection).history(Patient, 1)) == 3
    async with AsyncSession(destination_engine) as session:
        assert len(await AsyncAuditReader(session).history(Patient, 1)) == 3
    maker = async_sessionmaker(destination_engine)
    assert len(await AsyncAuditReader(maker).history(Patient, 1)) == 3


async def test_its_errors_are_the_same(destination_engine: AsyncEngine) -> None:
    reader = AsyncAuditReader(destination_engine)
    with pytest.raises(NotCaptured):
        await reader.history("nowhere", 1)
    with pytest.raises(KeyMismatch):
        await reader.history(Patient, (1, 2))
    (version, *_) = await reader.history(Patient, 1)
    with pytest.raises(HistoryUnknown, match="no trace"):
        await reader.as_of(Patient, 2, version.committed_at)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_a_database_without_trail_says_so(empty_database: Database, driver: str) -> None:
    engine = create_async_engine(empty_database.sqlalchemy_url(driver), poolclass=NullPool)
    with pytest.raises(DestinationNotReady, match="pgaudit-ctx setup"):
        await AsyncAuditReader(engine).history(Patient, 1)
    await engine.dispose()


def test_it_refuses_what_is_synchronous(empty_database: Database) -> None:
    with pytest.raises(UsageError, match="AuditReader"):
        AsyncAuditReader(empty_database.engine())


async def test_a_position_is_text_and_can_be_compared_with_text(
    destination_engine: AsyncEngine,
) -> None:
    async with AsyncSession(destination_engine) as session:
        changes = (await session.scalars(select(Change))).all()
        again = select(Change).where(Change.commit_lsn == changes[0].commit_lsn)
        assert (await session.scalars(again)).all() == [changes[0]]
    assert all("/" in change.commit_lsn for change in changes)
