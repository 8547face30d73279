"""In AUTOCOMMIT mode message and statement share one transaction, and nothing else changes."""

import pytest
from sqlalchemy import Engine, exc, func, insert, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from pgaudit_ctx import audit_context, emit_context, install
from pgaudit_ctx.errors import UsageError
from support.clinic import Patient, Status
from support.database import Database
from support.messages import A, Messages

PLAIN = "INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')"


@pytest.fixture(params=["psycopg", "psycopg2", "pg8000"])
def autocommit(request: pytest.FixtureRequest, source: Database) -> Engine:
    engine = source.engine(request.param, isolation_level="AUTOCOMMIT")
    install(engine)
    return engine


def insert_ann(number: int = 1):
    return insert(Patient).values(id=number, name="x")


def test_each_write_is_explained_and_committed_by_itself(
    source: Database, messages: Messages, autocommit: Engine
) -> None:
    with audit_context(user="a"), autocommit.connect() as connection:
        assert connection.execute(insert_ann(1).returning(Patient.id)).scalar_one() == 1
        assert source.execute("SELECT count(*) FROM patient") == [(1,)]
        connection.execute(insert_ann(2))
        assert connection.execute(update(Patient).values(name="y")).rowcount == 2
        connection.execute(text("DELETE FROM patient WHERE id = 2"))
        assert source.execute("SELECT count(*) FROM patient") == [(1,)]
    assert messages.all() == [A, "INSERT", A, "INSERT", A, "UPDATE", "UPDATE", A, "DELETE"]


def test_many_rows_in_one_execution_share_one_message(
    messages: Messages, autocommit: Engine
) -> None:
    rows = [{"id": number, "name": "x", "status": Status.ACTIVE} for number in (1, 2, 3)]
    with audit_context(user="a"), autocommit.connect() as connection:
        connection.execute(insert(Patient), rows)
    assert messages.contexts()[:1] == [A]


MANY = text("INSERT INTO patient (id, name, status) VALUES (:id, 'x', 'ACTIVE')")
WAYS = [
    ("psycopg", {}),
    ("psycopg2", {}),
    ("psycopg2", {"executemany_mode": "values_plus_batch", "executemany_batch_page_size": 2}),
    ("pg8000", {}),
]


@pytest.mark.parametrize(("driver", "options"), WAYS, ids=str)
def test_of_many_rows_as_many_stay_before_one_that_fails_as_without_the_hook(
    source: Database, messages: Messages, driver: str, options: dict[str, object]
) -> None:
    found = []
    for hook in (False, True):
        source.execute("TRUNCATE patient CASCADE")
        engine = source.engine(driver, isolation_level="AUTOCOMMIT", **options)
        if hook:
            install(engine)
        messages.all()
        with audit_context(user="a"), engine.connect() as connection:
            affected = connection.execute(MANY, [{"id": number} for number in (6, 7)]).rowcount
            with pytest.raises(exc.IntegrityError) as raised:
                connection.execute(MANY, [{"id": number} for number in (1, 2, 3, 4, 1, 5)])
        kept = source.execute("SELECT id FROM patient ORDER BY id")
        found.append((affected, type(raised.value.orig), str(raised.value.orig), kept))
    assert found[0] == found[1]
    # Each row that stayed is preceded by its context, in its own transaction.
    arrived = messages.all()
    assert arrived.count("INSERT") == len(found[1][-1])
    assert arrived[0] == A
    if driver == "pg8000":
        assert arrived == [A, "INSERT"] * 6


def test_many_updated_rows_are_counted_as_without_the_hook(
    source: Database, messages: Messages, autocommit: Engine
) -> None:
    source.execute(f"{PLAIN}; INSERT INTO patient (id, name, status) VALUES (2, 'x', 'ACTIVE')")
    statement = text("UPDATE patient SET name = :name WHERE id >= :id")
    many = [{"name": "y", "id": 1}, {"name": "z", "id": 2}]
    with autocommit.connect() as connection:
        plain = connection.execute(statement, many).rowcount
        messages.all()
        with audit_context(user="a"):
            assert connection.execute(statement, many).rowcount == plain
    assert {entry for entry in messages.all() if entry.startswith("{")} == {A}


def test_a_connection_that_is_set_to_autocommit_is_explained_too(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    install(engine)
    with audit_context(user="a"):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(insert_ann(1))
        with engine.begin() as connection:
            connection.execute(insert_ann(2))
    assert messages.all() == [A, "INSERT", A, "INSERT"]


def test_a_failed_write_leaves_nothing_and_the_connection_usable(
    source: Database, messages: Messages, autocommit: Engine
) -> None:
    source.execute(PLAIN)
    messages.all()
    with audit_context(user="a"), autocommit.connect() as connection:
        with pytest.raises(exc.IntegrityError):
            connection.execute(insert_ann(1))
        connection.execute(insert_ann(2))
    assert messages.all() == [A, "INSERT"]


def test_a_deferred_constraint_fails_the_statement_as_it_would_without_the_hook(
    source: Database, messages: Messages, autocommit: Engine
) -> None:
    source.execute("CREATE TABLE d (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    source.execute("INSERT INTO d VALUES (1)")
    messages.all()
    with audit_context(user="a"), autocommit.connect() as connection:
        with pytest.raises(exc.IntegrityError):
            connection.execute(text("INSERT INTO d VALUES (1)"))
        connection.execute(text("INSERT INTO d VALUES (2)"))
    assert messages.all() == [A, "INSERT"]


def test_a_volatile_function_is_explained_and_a_read_takes_no_transaction(
    source: Database, messages: Messages, autocommit: Engine
) -> None:
    source.execute(
        f"CREATE FUNCTION admit() RETURNS int LANGUAGE sql AS $$ {PLAIN} RETURNING id $$"
    )
    with audit_context(user="a"), autocommit.connect() as connection:
        connection.execute(select(Patient)).all()
        assert connection.execute(select(func.admit())).scalar_one() == 1
    assert messages.all() == [A, "INSERT"]


def test_what_cannot_run_in_a_transaction_runs_untouched(
    source: Database, messages: Messages, autocommit: Engine
) -> None:
    source.execute(
        "CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE'); COMMIT; END $$"
    )
    with audit_context(user="a"), autocommit.connect() as connection:
        for statement in (
            "VACUUM patient",
            "CREATE INDEX CONCURRENTLY by_name ON patient (name)",
            "CALL commits()",
            "DO $$ BEGIN UPDATE patient SET name = 'y'; COMMIT; END $$",
            "REINDEX TABLE CONCURRENTLY patient",
        ):
            connection.execute(text(statement))
    assert messages.all() == ["INSERT", "UPDATE"]


def test_what_is_left_unexplained_is_said_once_in_the_log(
    source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine = source.engine(isolation_level="AUTOCOMMIT")
    install(engine)
    with audit_context(user="a"), engine.connect() as connection:
        for _ in range(2):
            connection.execute(text("DO $$ BEGIN END $$"))
    assert [record.message.count("AUTOCOMMIT") for record in caplog.records] == [1]


def test_a_transaction_begun_as_text_keeps_its_writes_together(
    source: Database, messages: Messages, autocommit: Engine
) -> None:
    with audit_context(user="a"), autocommit.connect() as connection:
        connection.execute(text("BEGIN"))
        connection.execute(insert_ann(1))
        connection.execute(text("ROLLBACK"))
        connection.execute(text("BEGIN"))
        connection.execute(insert_ann(2))
        connection.execute(text("COMMIT"))
    assert source.execute("SELECT id FROM patient") == [(2,)]
    assert messages.all() == [A, "INSERT"]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_asynchronous_drivers_do_so_too(
    source: Database, messages: Messages, driver: str
) -> None:
    engine = create_async_engine(
        source.sqlalchemy_url(driver), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    install(engine)
    with audit_context(user="a"):
        async with engine.connect() as connection:
            await connection.execute(insert_ann(1))
            with pytest.raises(exc.IntegrityError):
                await connection.execute(insert_ann(1))
            result = await connection.execute(insert_ann(2).returning(Patient.id))
            assert result.scalar_one() == 2
            await connection.execute(text("VACUUM patient"))
    await engine.dispose()
    assert messages.all() == [A, "INSERT", A, "INSERT"]


def test_emit_context_needs_a_transaction(source: Database) -> None:
    engine = source.engine(isolation_level="AUTOCOMMIT")
    with (
        audit_context(user="a"),
        engine.connect() as connection,
        pytest.raises(UsageError, match="AUTOCOMMIT"),
    ):
        emit_context(connection)


def test_in_a_transaction_begun_as_text_the_end_of_a_scope_is_told_too(
    messages: Messages, autocommit: Engine
) -> None:
    with autocommit.connect() as connection:
        connection.execute(text("BEGIN"))
        with audit_context(user="a"):
            connection.execute(insert_ann(1))
        connection.execute(insert_ann(2))
        connection.execute(text("COMMIT"))
    assert messages.all() == [A, "INSERT", "{}", "INSERT"]
