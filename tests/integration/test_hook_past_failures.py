"""What ends, fails or is lent past SQLAlchemy leaves no stale context and no broken connection."""

import gc
import weakref
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, exc, insert, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from pgaudit_ctx import ContextRequired, audit_context, install, uninstall
from support.clinic import Patient
from support.database import Database
from support.messages import Messages

A = '{"user":"a"}'
B = '{"user":"b"}'


def write(number: int):
    return insert(Patient).values(id=number, name="x")


def raw_write(connection, number: int) -> None:
    connection.execute(
        "INSERT INTO patient (id, name, status) VALUES (%s, 'x', 'ACTIVE')", [number]
    )


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_that_the_driver_ended_is_told_anew_after_a_read(
    source: Database, messages: Messages, driver: str, end: str
) -> None:
    engine = source.engine(driver)
    install(engine)
    with audit_context(user="a"), engine.connect() as connection:
        connection.execute(write(1))
        getattr(connection.connection.dbapi_connection, end)()
        connection.execute(select(Patient))
        connection.execute(write(2))
        connection.commit()
    uninstall(engine)
    kept = [A, "INSERT"] if end == "commit" else []
    assert messages.all() == [*kept, A, "INSERT"]


def test_read_only_ends_with_its_transaction_however_that_ended(
    engine: Engine, messages: Messages
) -> None:
    with audit_context(user="a"), engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.connection.dbapi_connection.rollback()
        connection.execute(write(1))
        connection.commit()
    assert messages.all() == [A, "INSERT"]


def test_sqlalchemy_and_a_raw_cursor_alternate_on_a_detached_connection(
    engine: Engine, messages: Messages
) -> None:
    with engine.connect() as connection:
        connection.detach()
        with audit_context(user="a"):
            connection.execute(write(1))
        with audit_context(user="b"):
            raw_write(connection.connection.dbapi_connection, 2)
        with audit_context(user="a"):
            connection.execute(write(3))
        connection.commit()
    assert messages.all() == [A, "INSERT", B, "INSERT", A, "INSERT"]


@pytest.fixture
def lent(source: Database) -> Iterator[Engine]:
    """An engine that is lent one connection of the application's own again and again."""

    class Kept(psycopg.Connection):
        def close(self) -> None:
            self.rollback()

    kept = Kept.connect(source.url)
    engine = create_engine("postgresql+psycopg://", creator=lambda: kept, poolclass=NullPool)
    install(engine)
    yield engine
    uninstall(engine)
    psycopg.Connection.close(kept)


def test_a_connection_that_is_lent_a_second_time_is_followed_anew(
    lent: Engine, messages: Messages
) -> None:
    with lent.connect() as connection:
        connection.execute(select(Patient))
    with lent.connect() as connection:
        with audit_context(user="a"):
            connection.execute(write(1))
        with audit_context(user="b"):
            raw_write(connection.connection.dbapi_connection, 2)
        with audit_context(user="a"):
            connection.execute(write(3))
        connection.commit()
    assert messages.all() == [A, "INSERT", B, "INSERT", A, "INSERT"]


def test_refused_writes_in_autocommit_mode_leave_the_connection_fit_for_the_next(
    source: Database,
) -> None:
    engine = source.engine(isolation_level="AUTOCOMMIT")
    install(engine)
    with audit_context(user="a"), engine.connect() as connection:
        for number in range(24):
            if number in {1, 7}:
                with pytest.raises(exc.IntegrityError):
                    connection.execute(write(0))
            else:
                connection.execute(write(number))
    assert len(source.execute("SELECT 1 FROM patient")) == 22
    uninstall(engine)


def test_writes_in_a_failed_transaction_leave_the_connection_fit_for_the_next(
    engine: Engine, messages: Messages
) -> None:
    with engine.connect() as connection:
        for number in range(5):
            connection.execute(write(number))
        connection.commit()
        connection.execute(text("SAVEPOINT s"))
        with pytest.raises(exc.DataError):
            connection.execute(text("SELECT 1/0"))
        with audit_context(user="a"):
            with pytest.raises(exc.InternalError, match="aborted"):
                connection.execute(write(5))
            connection.execute(text("ROLLBACK TO s"))
            connection.execute(write(6))
            connection.execute(write(7))
        connection.commit()
    assert messages.all() == [*["INSERT"] * 5, A, *["INSERT"] * 2]


def test_a_function_that_gives_records_with_named_columns_counts_as_called(
    source: Database, engine: Engine, messages: Messages
) -> None:
    source.execute(
        "CREATE FUNCTION admit(int) RETURNS SETOF record LANGUAGE sql AS"
        " $$ INSERT INTO patient (id, name, status) VALUES ($1, 'x', 'ACTIVE')"
        " RETURNING id, name::text $$"
    )
    with audit_context(user="a"), engine.begin() as connection:
        connection.execute(text("SELECT * FROM admit(1) AS (id int, name text)"))
    assert messages.all() == [A, "INSERT"]


def test_a_string_that_begins_with_set_is_refused_too_where_a_context_is_required(
    source: Database,
) -> None:
    engine = source.engine()
    install(engine, require_context=True)
    statement = "SET LOCAL work_mem = '4MB'; INSERT INTO patient (id, name) VALUES (1, 'x')"
    with engine.begin() as connection, pytest.raises(ContextRequired):
        connection.execute(text(statement))
    uninstall(engine)


def test_raw_cursors_of_an_engine_without_the_hook_are_left_alone(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    child = engine.execution_options(isolation_level="REPEATABLE READ")
    install(child, require_context=True)
    with engine.begin() as connection:
        raw_write(connection.connection.dbapi_connection, 1)
    uninstall(child)
    assert messages.all() == ["INSERT"]


def test_a_cursor_class_of_the_applications_own_is_not_kept_alive(source: Database) -> None:
    class Own(psycopg.Cursor):
        pass

    engine = source.engine(connect_args={"cursor_factory": Own})
    install(engine)
    with engine.connect() as connection:
        connection.execute(select(Patient))
    uninstall(engine)
    engine.dispose()
    gone = weakref.ref(Own)
    del Own, engine, connection
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_after_commit_sent_as_text_each_write_is_explained(
    source: Database, messages: Messages, driver: str
) -> None:
    engine = source.engine(driver)
    install(engine)
    with audit_context(user="a"), engine.connect() as connection:
        connection.execute(write(1))
        connection.execute(text("COMMIT"))
        connection.execute(write(2))
        connection.commit()
        connection.execute(write(3))
        connection.commit()
    uninstall(engine)
    assert messages.all() == [A, "INSERT"] * 3


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_after_commit_sent_as_text_each_asynchronous_write_is_explained(
    source: Database, messages: Messages, driver: str
) -> None:
    engine = create_async_engine(source.sqlalchemy_url(driver), poolclass=NullPool)
    install(engine)
    async with engine.connect() as connection:
        with audit_context(user="a"):
            await connection.execute(write(1))
            await connection.execute(text("COMMIT"))
            await connection.execute(write(2))
            await connection.commit()
            await connection.execute(write(3))
            await connection.commit()
    await engine.dispose()
    assert messages.all() == [A, "INSERT"] * 3


@pytest.mark.parametrize("mode", ["READ COMMITTED", "AUTOCOMMIT"])
def test_with_a_libpq_that_knows_no_pipelines_a_message_travels_alone(
    source: Database, messages: Messages, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    def none(*_: object) -> None:
        raise psycopg.NotSupportedError("libpq is older than version 14")

    monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    monkeypatch.setattr(psycopg.Connection, "pipeline", none)
    engine = source.engine(isolation_level=mode)
    install(engine)
    with audit_context(user="a"), engine.connect() as connection:
        connection.execute(select(Patient))
        connection.execute(write(1))
        connection.execute(write(2))
        connection.commit()
    uninstall(engine)
    told = [A, "INSERT"] * 2 if mode == "AUTOCOMMIT" else [A, "INSERT", "INSERT"]
    assert messages.all() == told
