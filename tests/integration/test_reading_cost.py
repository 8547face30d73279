"""Reading plans its questions once, and leaves the caller's transactions as they are."""

import datetime as dt

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from pgaudit_ctx import AuditReader, select_changes
from pgaudit_ctx.reading.async_reader import AsyncAuditReader
from support.clinic import Patient
from support.database import Database
from support.handmade import HandmadeTrail

ANN = {"id": 1, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None}
PREPARED = text("SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements")
MODE = text("SHOW plan_cache_mode")


@pytest.fixture
def trail(destination: Database) -> HandmadeTrail:
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.change("INSERT", "patient", 10, after=ANN)
    return trail


def test_after_a_few_histories_their_questions_stay_prepared_with_one_plan_for_all_keys(
    trail: HandmadeTrail,
) -> None:
    engine = create_engine(trail.destination.engine().url)  # with a pool, as applications have it
    reader = AuditReader(engine)
    for key in range(10):
        reader.history(Patient, key + 1)
    with engine.connect() as connection:
        found = [row for row in connection.execute(PREPARED) if "hash_array" in row.statement]
    engine.dispose()
    assert len(found) == 1
    assert found[0].generic_plans > 0
    assert found[0].custom_plans == 0


async def test_the_asynchronous_reader_keeps_them_prepared_too(trail: HandmadeTrail) -> None:
    engine = create_async_engine(trail.destination.engine().url)
    reader = AsyncAuditReader(engine)
    for key in range(10):
        await reader.history(Patient, key + 1)
    async with engine.connect() as connection:
        found = [row for row in await connection.execute(PREPARED) if "hash_array" in row.statement]
    await engine.dispose()
    assert [(row.generic_plans > 0, row.custom_plans) for row in found] == [(True, 0)]


def test_how_to_plan_is_said_in_transactions_of_ours_only_and_not_for_changes(
    trail: HandmadeTrail,
) -> None:
    engine = trail.destination.engine()
    modes = []

    def look(connection, cursor, statement, *_) -> None:
        if "pgaudit_ctx.changes" in statement:
            with connection.connection.driver_connection.cursor() as another:
                modes.extend(another.execute("SHOW plan_cache_mode").fetchone())

    event.listen(engine, "after_cursor_execute", look)
    AuditReader(engine).history(Patient, 1)
    AuditReader(engine).changes(Patient, 1)
    with engine.connect() as connection:
        AuditReader(connection).history(Patient, 1)
        assert connection.scalar(MODE) == "auto"
    assert modes == ["force_generic_plan", "auto", "auto"]


def test_what_one_user_did_is_found_by_an_index(trail: HandmadeTrail) -> None:
    since = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    statement = select_changes(user="dr.who", since=since).limit(50)
    engine = create_engine(trail.destination.engine().url)
    bound = statement.compile(engine, compile_kwargs={"literal_binds": True})
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = connection.exec_driver_sql(f"EXPLAIN {bound}".replace("%", "%%")).scalars().all()
    engine.dispose()
    conditions = [line for line in plan if "Index Cond" in line and "context ->> 'user'" in line]
    assert conditions, "\n".join(plan)
