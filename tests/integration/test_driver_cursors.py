"""What is written past SQLAlchemy, on psycopg's own connection, is explained as well."""

import logging
from contextlib import aclosing

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgaudit_ctx import ContextRequired, audit_context, install, uninstall
from support.clinic import Patient
from support.database import Database
from support.messages import A, B, Messages

PLAIN = "INSERT INTO patient (id, name, status) VALUES (%s, 'x', 'ACTIVE')"
COPY = "COPY patient (id, name, status) FROM STDIN"


def test_a_copy_on_the_drivers_connection_carries_its_context(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), engine.begin() as connection:
        driver = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(COPY) as copy:
            copy.write_row((1, "x", "ACTIVE"))
            copy.write_row((2, "x", "ACTIVE"))
    assert messages.all() == [A, "INSERT", "INSERT"]


def test_a_cursor_of_the_drivers_connection_carries_its_context(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), Session(engine) as session:
        driver = session.connection().connection.driver_connection
        with driver.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.execute(PLAIN, [1])
            cursor.executemany(PLAIN, [[2], [3]])
            cursor.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier("patient")))
            cursor.execute(b"SELECT 1")
        driver.execute(PLAIN, [4])
        session.commit()
    arrived = messages.all()
    assert [entry for entry in arrived if entry != A] == ["INSERT"] * 3 + ["DELETE"] * 3 + [
        "INSERT"
    ]
    assert arrived[0] == A


def test_a_raw_connection_of_the_engine_carries_its_context(
    messages: Messages, engine: Engine
) -> None:
    raw = engine.raw_connection()
    with audit_context(user="a"), raw.cursor() as cursor:
        cursor.execute(PLAIN, [1])
        raw.commit()
        cursor.execute(PLAIN, [2])
        raw.commit()
    raw.close()
    assert messages.all() == [A, "INSERT", A, "INSERT"]


def test_outside_of_any_scope_a_cursor_emits_nothing(messages: Messages, engine: Engine) -> None:
    raw = engine.raw_connection()
    with audit_context(user="a"):
        raw.driver_connection.execute(PLAIN, [1])
        raw.commit()
    raw.driver_connection.execute(PLAIN, [2])
    raw.commit()
    raw.close()
    arrived = messages.all()
    assert arrived[:2] == [A, "INSERT"]
    assert A not in arrived[2:]


def test_what_was_told_in_a_savepoint_of_the_driver_is_told_again_after_it(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), engine.begin() as connection:
        driver = connection.connection.driver_connection
        with driver.transaction():
            driver.execute(PLAIN, [1])
            raise psycopg.Rollback
        connection.execute(insert(Patient).values(id=2, name="x"))
    assert messages.all() == [A, "INSERT"]


def test_writes_of_the_engine_and_of_the_driver_may_alternate(
    messages: Messages, engine: Engine
) -> None:
    with engine.begin() as connection:
        driver = connection.connection.driver_connection
        with audit_context(user="a"):
            connection.execute(insert(Patient).values(id=1, name="x"))
        with audit_context(user="b"):
            driver.execute(PLAIN, [2])
        with audit_context(user="a"):
            connection.execute(insert(Patient).values(id=3, name="x"))
        driver.execute(PLAIN, [4])
    assert messages.all() == [A, "INSERT", B, "INSERT", A, "INSERT", "{}", "INSERT"]


def test_a_function_that_only_reads_emits_nothing(
    source: Database, messages: Messages, engine: Engine
) -> None:
    source.execute("CREATE FUNCTION one() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'")
    source.execute(
        "CREATE FUNCTION admit() RETURNS int LANGUAGE sql AS"
        " $$ INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE') RETURNING id $$"
    )
    with audit_context(user="a"), engine.begin() as connection:
        driver = connection.connection.driver_connection
        assert driver.execute("SELECT one()").fetchone() == (1,)
        assert messages.all() == []
        assert driver.execute("SELECT admit()").fetchone() == (1,)
    assert messages.all() == [A, "INSERT"]


def test_a_required_context_is_required_of_cursors_too(source: Database) -> None:
    engine = source.engine()
    install(engine, require_context=True)
    with engine.begin() as connection, pytest.raises(ContextRequired):
        connection.connection.driver_connection.execute(PLAIN, [1])


def test_the_drivers_own_errors_pass_through_unchanged(engine: Engine) -> None:
    with audit_context(user="a"), engine.connect() as connection:
        driver = connection.connection.driver_connection
        with pytest.raises(psycopg.errors.UndefinedTable):
            driver.execute("INSERT INTO nowhere VALUES (1)")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            driver.execute(PLAIN, [1])
        driver.rollback()
        driver.execute(PLAIN, [1])


def test_a_cursor_class_of_ones_own_is_kept(source: Database, messages: Messages) -> None:
    class Mine(psycopg.ClientCursor):
        pass

    engine = source.engine(connect_args={"cursor_factory": Mine})
    install(engine)
    with audit_context(user="a"), engine.begin() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver.cursor(), Mine)
        driver.execute(PLAIN, [1])
        connection.execute(insert(Patient).values(id=2, name="x"))
    arrived = messages.all()
    assert arrived[:2] == [A, "INSERT"]
    assert arrived[-1] == "INSERT"


def test_after_uninstall_a_cursor_emits_nothing(messages: Messages, source: Database) -> None:
    engine = source.engine()
    install(engine)
    raw = engine.raw_connection()
    uninstall(engine)
    with audit_context(user="a"):
        raw.driver_connection.execute(PLAIN, [1])
        raw.commit()
    raw.close()
    assert messages.all() == ["INSERT"]


def test_what_cannot_be_told_of_a_pipeline_or_in_autocommit_mode_is_said_in_the_log(
    messages: Messages, source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine = source.engine()
    install(engine)
    raw = engine.raw_connection()
    driver = raw.driver_connection
    with audit_context(user="a"), caplog.at_level(logging.WARNING):
        with driver.pipeline():
            driver.execute(PLAIN, [1])
        driver.commit()
        driver.autocommit = True
        driver.execute(PLAIN, [2])
        driver.autocommit = False
    raw.close()
    assert messages.all() == ["INSERT", "INSERT"]
    assert len(caplog.records) == 2


async def test_an_asynchronous_cursor_of_the_driver_does_so_too(
    source: Database, messages: Messages
) -> None:
    engine: AsyncEngine = create_async_engine(source.sqlalchemy_url(), poolclass=NullPool)
    install(engine)
    async with engine.begin() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        with audit_context(user="a"):
            async with driver.cursor() as cursor:
                await cursor.execute(PLAIN, [1])
                async with cursor.copy(COPY) as copy:
                    await copy.write_row((2, "x", "ACTIVE"))
                assert [row async for row in cursor.stream("SELECT 1")] == [(1,)]
            await connection.execute(text(PLAIN % 3))
    await engine.dispose()
    arrived = messages.all()
    assert arrived[0] == A
    assert arrived.count("INSERT") == 3


def test_a_function_that_makes_cursors_is_left_alone(source: Database, messages: Messages) -> None:
    def cursor(connection, **options):
        return psycopg.Cursor(connection, **options)

    engine = source.engine(connect_args={"cursor_factory": cursor})
    install(engine)
    with audit_context(user="a"), engine.begin() as connection:
        connection.execute(insert(Patient).values(id=1, name="x"))
    assert messages.all() == [A, "INSERT"]


@pytest.mark.parametrize("way", ["as text", "transaction()"])
def test_read_only_that_a_savepoint_took_back_past_sqlalchemy_counts_no_more(
    messages: Messages, engine: Engine, way: str
) -> None:
    with audit_context(user="a"), engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        driver = connection.connection.driver_connection
        if way == "as text":
            driver.execute("SAVEPOINT s")
            driver.execute("SET TRANSACTION READ ONLY")
            driver.execute("ROLLBACK TO s")
        else:
            with driver.transaction():
                driver.execute("SET TRANSACTION READ ONLY")
                raise psycopg.Rollback
        driver.execute(PLAIN, [1])
        connection.execute(insert(Patient).values(id=2, name="x"))
    assert messages.all() == [A, "INSERT", A, "INSERT"]


def test_after_a_read_on_the_drivers_connection_a_write_outside_of_any_scope_emits_nothing(
    messages: Messages, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.connection.driver_connection.execute("SELECT 1")
        connection.execute(insert(Patient).values(id=1, name="x"))
    assert messages.all() == ["INSERT"]


def test_after_a_write_on_the_drivers_connection_the_end_of_its_scope_is_told(
    messages: Messages, engine: Engine
) -> None:
    with engine.begin() as connection:
        with audit_context(user="a"):
            connection.connection.driver_connection.execute(PLAIN, [1])
        connection.execute(insert(Patient).values(id=2, name="x"))
    assert messages.all() == [A, "INSERT", "{}", "INSERT"]


def test_a_query_that_is_copied_carries_the_context_of_the_function_that_it_calls(
    source: Database, messages: Messages, engine: Engine
) -> None:
    source.execute(
        "CREATE FUNCTION admit(int) RETURNS int LANGUAGE sql AS"
        " $$ INSERT INTO patient (id, name, status) VALUES ($1, 'x', 'ACTIVE') RETURNING id $$"
    )
    with audit_context(user="a"), engine.begin() as connection:
        driver = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY (SELECT admit(1)) TO STDOUT") as copy:
            assert list(copy.rows()) == [("1",)]
        connection.execute(text("COPY (SELECT id FROM patient) TO '/dev/null'"))
    assert messages.all() == [A, "INSERT"]


def test_a_context_provider_may_read_on_the_connection_that_its_write_is_on(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    reading = []
    install(engine, providers=[lambda: {"answer": reading[0].execute("SELECT 42").fetchone()[0]}])
    raw = engine.raw_connection()
    reading.append(raw.driver_connection)
    raw.driver_connection.execute(PLAIN, [1])
    raw.commit()
    raw.close()
    assert messages.all() == ['{"answer":42}', "INSERT"]


async def test_a_stream_that_is_left_early_leaves_the_connection_usable(source: Database) -> None:
    engine: AsyncEngine = create_async_engine(source.sqlalchemy_url(), poolclass=NullPool)
    install(engine)
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        rows = driver.cursor().stream("SELECT generate_series(1, 100000)")
        async with aclosing(rows):
            assert await anext(rows) == (1,)
        assert not driver.lock.locked()
        await driver.rollback()  # psycopg has cancelled the query
        assert await (await driver.execute("SELECT 1")).fetchone() == (1,)
    await engine.dispose()


def test_a_stream_is_explained_when_its_first_row_is_asked_for(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), engine.begin() as connection:
        rows = connection.connection.driver_connection.cursor().stream(f"{PLAIN} RETURNING id", [1])
        connection.execute(text("SELECT 1"))
        assert list(rows) == [(1,)]
    assert messages.all() == [A, "INSERT"]


def test_the_cursors_of_a_derived_engine_go_by_the_options_of_the_engine_it_was_made_of(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    derived = engine.execution_options(foo=1)
    install(engine, providers=[lambda: {"from": "engine"}])
    install(derived, providers=[lambda: {"from": "derived"}])
    with derived.begin() as connection:
        connection.execute(insert(Patient).values(id=1, name="x"))
        connection.connection.driver_connection.execute(PLAIN, [2])
        connection.execute(insert(Patient).values(id=3, name="x"))
    uninstall(derived)
    uninstall(engine)
    told = '{"from":"derived"}'
    assert messages.all() == [told, "INSERT", '{"from":"engine"}', "INSERT", told, "INSERT"]
