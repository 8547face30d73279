"""The hook emits a context right before the first write, once, and changes nothing else."""

import gc
import logging
import weakref
from collections.abc import Iterator

import psycopg
import pytest
from pydantic import BaseModel
from sqlalchemy import (
    Engine,
    create_engine,
    delete,
    event,
    exc,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool

from pgaudit_ctx import (
    ContextInvalid,
    ContextRequired,
    audit_context,
    emit_context,
    install,
    uninstall,
)
from pgaudit_ctx.errors import UsageError
from support.clinic import Patient, Status
from support.database import Database
from support.messages import A, B, Messages


def ann(number: int = 1) -> Patient:
    return Patient(id=number, name="Ann")


def write(engine: Engine, number: int = 1) -> None:
    with engine.begin() as connection:
        connection.execute(insert(Patient).values(id=number, name="Ann"))


def test_one_context_is_emitted_once_in_a_transaction_before_its_first_write(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), Session(engine) as session:
        session.scalars(select(Patient)).all()
        session.add_all([ann(1), ann(2)])
        session.flush()
        session.execute(update(Patient).values(name="x"))
        session.execute(delete(Patient).where(Patient.id == 1))
        session.commit()
    assert messages.all() == [A, "INSERT", "INSERT", "UPDATE", "UPDATE", "DELETE"]


def test_each_transaction_is_told_its_context_again(messages: Messages, engine: Engine) -> None:
    with audit_context(user="a"):
        write(engine, 1)
        write(engine, 2)
    assert messages.all() == [A, "INSERT", A, "INSERT"]


def test_a_scope_that_ends_and_one_with_the_same_text_that_begins_emit_nothing_new(
    messages: Messages, engine: Engine
) -> None:
    with Session(engine) as session:
        for number in (1, 2):
            with audit_context(user="a"):
                session.add(ann(number))
                session.flush()
        session.commit()
    assert messages.contexts() == [A]


def test_the_end_of_a_scope_is_told_before_the_next_write_of_the_transaction(
    messages: Messages, engine: Engine
) -> None:
    with Session(engine) as session:
        with audit_context(user="a"):
            session.add(ann(1))
            session.flush()
        session.add(ann(2))
        session.commit()
    assert messages.all() == [A, "INSERT", "{}", "INSERT"]


@pytest.mark.parametrize(
    "statement",
    [
        select(Patient),
        select(Patient).with_for_update(),
        text("SHOW server_version"),
        text("EXPLAIN DELETE FROM patient"),
        text("WITH x AS (SELECT 1) SELECT 'insert into' FROM x"),
        text("SET LOCAL work_mem = '1MB'"),
    ],
)
def test_what_only_reads_takes_no_transaction_id_and_emits_nothing(
    engine: Engine, statement
) -> None:
    with audit_context(user="a"), engine.begin() as connection:
        connection.execute(statement)
        taken = connection.execute(text("SELECT pg_current_xact_id_if_assigned()::text"))
        assert taken.scalar_one() is None


def test_outside_of_any_scope_a_write_emits_nothing(messages: Messages, engine: Engine) -> None:
    write(engine)
    assert messages.all() == ["INSERT"]


@pytest.mark.parametrize(
    "statement",
    [
        text("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')"),
        text("WITH x AS (INSERT INTO patient VALUES (1,'x',NULL,'ACTIVE') RETURNING 1) TABLE x"),
        text("DO $$ BEGIN INSERT INTO patient VALUES (1, 'x', NULL, 'ACTIVE'); END $$"),
        insert(Patient).values(id=1, name="x", status=Status.ACTIVE).returning(Patient.id),
        upsert(Patient)
        .values(id=1, name="x")
        .on_conflict_do_update(index_elements=["id"], set_={"name": "y"}),
        insert(Patient).from_select(
            ["id", "name", "status"],
            select(literal_column("1"), text("'x'"), text("'ACTIVE'::status")),
        ),
        select(insert(Patient).values(id=1, name="x").returning(Patient.id).cte("written").c.id),
    ],
    ids=["text", "text cte", "do", "returning", "upsert", "from select", "cte"],
)
def test_every_way_to_insert_is_preceded_by_its_context(
    messages: Messages, engine: Engine, statement
) -> None:
    with audit_context(user="a"), engine.begin() as connection:
        connection.execute(statement)
    assert messages.all() == [A, "INSERT"]


def test_many_rows_in_one_execution_are_preceded_by_one_context(
    messages: Messages, engine: Engine
) -> None:
    rows = [{"id": number, "name": "x", "status": Status.ACTIVE} for number in range(2500)]
    with audit_context(user="a"), Session(engine) as session:
        session.execute(insert(Patient).returning(Patient.id), rows).all()
        session.execute(update(Patient), [{"id": number, "name": "y"} for number in range(3)])
        session.bulk_update_mappings(Patient, [{"id": 5, "name": "z"}])
        session.commit()
    arrived = messages.all()
    assert arrived == [A, *["INSERT"] * 2500, *["UPDATE"] * 4]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_synchronous_drivers_emit_alike(
    source: Database, messages: Messages, driver: str
) -> None:
    engine = create_engine(source.sqlalchemy_url(driver), poolclass=NullPool)
    install(engine)
    percent = "100% %s %(content)s :x"
    with audit_context(user=percent), Session(engine) as session:
        session.add_all([ann(1), ann(2)])
        session.commit()
    assert messages.all() == [f'{{"user":"{percent}"}}', "INSERT", "INSERT"]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_asynchronous_drivers_emit_alike(
    source: Database, messages: Messages, driver: str
) -> None:
    engine = create_async_engine(source.sqlalchemy_url(driver), poolclass=NullPool)
    install(engine)
    async with AsyncSession(engine) as session:
        async with audit_context(user="a 100% $1 %s", flush=session):
            session.add_all([ann(1), ann(2)])
        async with audit_context(user="b"):
            async with session.begin_nested():
                await session.execute(update(Patient).values(name="x"))
            await session.run_sync(emit_context)
        await session.commit()
    await engine.dispose()
    assert messages.all() == [
        '{"user":"a 100% $1 %s"}', "INSERT", "INSERT", B, "UPDATE", "UPDATE", B,
    ]  # fmt: skip


async def test_an_async_sessionmakers_engine_takes_the_hook(
    source: Database, messages: Messages
) -> None:
    engine = create_async_engine(source.sqlalchemy_url("asyncpg"), poolclass=NullPool)
    install(engine)
    install(engine)
    async with async_sessionmaker(engine).begin() as session, audit_context(user="a"):
        session.add(ann())
        await session.flush()
    await engine.dispose()
    assert messages.all() == [A, "INSERT"]


def test_another_engine_on_the_same_database_stays_as_it_was(
    source: Database, messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"):
        write(source.engine())
    assert messages.all() == ["INSERT"]


def test_install_on_a_sessionmaker_reaches_its_sessions_and_no_others(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    audited = sessionmaker(engine)
    install(audited)
    with audit_context(user="a"):
        with audited.begin() as session:
            session.add(ann(1))
        with Session(engine) as session:
            session.add(ann(2))
            session.commit()
        write(engine, 3)
    assert messages.all() == [A, "INSERT", "INSERT", "INSERT"]


def test_install_on_a_session_class_reaches_its_instances(
    source: Database, messages: Messages
) -> None:
    class Audited(Session):
        pass

    engine = source.engine()
    install(Audited)
    with audit_context(user="a"):
        with Audited(engine) as session:
            session.add(ann(1))
            session.commit()
            session.add(ann(2))
            session.commit()
        with Session(engine) as session:
            session.add(ann(3))
            session.commit()
    assert messages.all() == [A, "INSERT", A, "INSERT", "INSERT"]


def test_install_on_a_scoped_session_reaches_its_sessions(
    source: Database, messages: Messages
) -> None:
    scoped = scoped_session(sessionmaker(source.engine()))
    install(scoped)
    with audit_context(user="a"):
        scoped.add(ann())
        scoped.commit()
    scoped.remove()
    assert messages.all() == [A, "INSERT"]


def test_engine_and_sessionmaker_both_installed_emit_once(
    source: Database, messages: Messages, engine: Engine
) -> None:
    audited = sessionmaker(engine)
    install(audited)
    with audit_context(user="a"), audited.begin() as session:
        session.add(ann())
    assert messages.contexts() == [A]


def test_installing_twice_emits_once_and_takes_the_new_options(
    messages: Messages, engine: Engine
) -> None:
    install(engine)
    install(engine, require_context=True)
    with audit_context(user="a"):
        write(engine)
    assert messages.contexts() == [A]
    with pytest.raises(ContextRequired):
        write(engine, 2)


def test_after_uninstall_nothing_is_emitted(messages: Messages, engine: Engine) -> None:
    uninstall(engine)
    uninstall(engine)
    with audit_context(user="a"):
        write(engine)
    assert messages.all() == ["INSERT"]


def test_install_refuses_what_it_cannot_attach_to(engine: Engine) -> None:
    for wrong in (None, "postgresql://h/db", Session(engine), engine.dialect):
        with pytest.raises(UsageError):
            install(wrong)


def test_the_switch_in_the_environment_turns_install_off_with_a_warning(
    source: Database,
    messages: Messages,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PGAUDIT_CTX_DISABLED", "1")
    engine = source.engine()
    install(engine, require_context=True)
    with audit_context(user="a"):
        write(engine)
    assert messages.all() == ["INSERT"]
    assert "PGAUDIT_CTX_DISABLED=1" in caplog.text


def test_another_dialect_is_left_alone_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = create_engine("sqlite://")
    with caplog.at_level(logging.INFO):
        install(engine, require_context=True)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (id int)"))
        connection.execute(text("INSERT INTO t VALUES (1)"))
    engine.dispose()
    assert "not PostgreSQL" in caplog.text


def test_a_required_context_that_is_missing_is_an_error_before_anything_is_sent(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    install(engine, require_context=True)
    with engine.begin() as connection:
        connection.execute(select(Patient))
        with pytest.raises(ContextRequired):
            connection.execute(insert(Patient).values(id=1, name="x"))
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        with audit_context(user="a"):
            connection.execute(insert(Patient).values(id=2, name="x"))
    assert messages.all() == [A, "INSERT"]


class Who(BaseModel):
    user: str
    ticket: int | None = None


def test_a_context_that_does_not_fit_the_model_is_an_error_that_quotes_no_value(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    install(engine, context_model=Who)
    with (
        audit_context(user="a", ticket="hunter2"),
        pytest.raises(ContextInvalid, match="ticket") as refused,
    ):
        write(engine)
    assert "hunter2" not in str(refused.value)
    with audit_context(user="a"):
        write(engine)
    write(engine, 2)
    assert messages.all() == [A, "INSERT", "INSERT"]


def test_providers_are_asked_at_each_emission_and_lie_under_the_scope(
    source: Database, messages: Messages
) -> None:
    requests = iter(range(1, 9))
    engine = source.engine()
    install(
        engine,
        providers=[lambda: {"user": "nobody", "request": next(requests)}, lambda: {"host": "h"}],
    )
    write(engine, 1)
    with audit_context(user="a"):
        write(engine, 2)
    assert messages.contexts() == [
        '{"user":"nobody","request":1,"host":"h"}',
        '{"user":"a","request":2,"host":"h"}',
    ]


def test_emit_context_on_an_engine_with_execution_options_asks_the_providers(
    source: Database, messages: Messages
) -> None:
    engine = source.engine()
    install(engine, providers=[lambda: {"host": "h"}])
    with audit_context(user="a"), engine.execution_options(foo=1).begin() as connection:
        emit_context(connection)
        connection.execute(insert(Patient).values(id=1, name="x"))
    assert messages.all() == ['{"host":"h","user":"a"}', "INSERT"]


def test_a_provider_that_fails_is_left_out_and_logged_once(
    source: Database, messages: Messages, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> dict[str, object]:
        raise LookupError("hunter2")

    engine = source.engine()
    install(engine, providers=[broken, lambda: {"host": "h"}])
    write(engine, 1)
    write(engine, 2)
    assert messages.contexts() == ['{"host":"h"}'] * 2
    assert len(caplog.records) == 1
    assert "LookupError" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_read_marked_emit_emits_and_a_write_marked_skip_does_not(
    source: Database, messages: Messages, engine: Engine
) -> None:
    source.execute(
        "CREATE FUNCTION writes() RETURNS void LANGUAGE sql AS"
        " $$ INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE') $$"
    )
    with audit_context(user="a"), engine.begin() as connection:
        connection.execute(
            insert(Patient).values(id=2, name="x"), execution_options={"pgaudit_ctx": "skip"}
        )
        connection.execute(text("SELECT writes()").execution_options(pgaudit_ctx="emit"))
    assert messages.all() == ["INSERT", A, "INSERT"]


def test_the_servers_own_errors_pass_through_unchanged(engine: Engine) -> None:
    write(engine, 1)
    with (
        audit_context(user="a"),
        pytest.raises(exc.IntegrityError) as raised,
        engine.begin() as connection,
    ):
        connection.execute(insert(Patient).values(id=1, name="x"))
    assert isinstance(raised.value.orig, psycopg.errors.UniqueViolation)
    with audit_context(user="a"):
        write(engine, 2)


def test_a_transaction_that_rolled_back_does_not_count_as_told(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), Session(engine) as session:
        session.add(ann(1))
        session.flush()
        session.rollback()
        session.add(ann(2))
        session.commit()
    assert messages.all() == [A, "INSERT"]


def test_a_pooled_connection_does_not_remember_the_last_users_context(
    source: Database, messages: Messages
) -> None:
    engine = create_engine(
        source.sqlalchemy_url(), poolclass=QueuePool, pool_size=1, max_overflow=0
    )
    install(engine)
    with audit_context(user="a"):
        write(engine, 1)
        connection = engine.connect()
        connection.execute(insert(Patient).values(id=2, name="x"))
        connection.close()  # rolled back by the pool
        write(engine, 3)
    with audit_context(user="b"):
        write(engine, 4)
    engine.dispose()
    assert messages.all() == [A, "INSERT", A, "INSERT", B, "INSERT"]


def test_a_failed_statement_inside_a_savepoint_is_told_again_what_it_took_away(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), Session(engine) as session:
        with pytest.raises(exc.IntegrityError), session.begin_nested():
            session.execute(insert(Patient).values(id=1, name=None))
        session.add(ann(2))
        session.commit()
    assert messages.all() == [A, "INSERT"]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_two_phase_transaction_carries_its_context_and_none_where_there_is_none(
    source: Database, messages: Messages, driver: str
) -> None:
    ((allowed,),) = source.execute("SHOW max_prepared_transactions")
    if allowed == "0":
        pytest.skip("this server allows no prepared transactions")
    engine = source.engine(driver)
    install(engine)
    with audit_context(user="a"), Session(engine, twophase=True) as session:
        session.add(ann())
        session.commit()
    with Session(engine, twophase=True) as session:
        session.add(ann(2))
        session.commit()
    assert messages.all() == [A, "INSERT", "INSERT"]


@pytest.fixture
def collected() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


def test_an_engine_with_the_hook_is_forgotten_when_nobody_needs_it(
    source: Database, collected: None
) -> None:
    engine = source.engine()
    install(engine, providers=[dict])
    with audit_context(user="a"):
        write(engine)
    alive = weakref.ref(engine)
    engine.dispose()
    del engine
    gc.collect()
    assert alive() is None


def test_the_connections_of_an_audited_sessionmaker_are_forgotten_too(
    source: Database, collected: None
) -> None:
    audited = sessionmaker(source.engine())
    install(audited)
    alive = []
    with audit_context(user="a"):
        for number in range(3):
            with audited.begin() as session:
                session.add(ann(number))
                session.flush()
                alive.append(weakref.ref(session.connection()))
    maker = weakref.ref(audited)
    del session, audited
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3
    assert maker() is None


@pytest.mark.parametrize("mode", ["SERIALIZABLE", "AUTOCOMMIT"])
def test_somebody_else_who_hands_statements_to_the_driver_is_still_heard(
    source: Database, messages: Messages, mode: str
) -> None:
    heard = []
    engine = source.engine(isolation_level=mode)
    install(engine)
    engine.connect().close()  # the dialect asks its own questions once
    event.listen(
        engine, "do_execute", lambda cursor, statement, *_: heard.append(statement.split()[0])
    )
    with audit_context(user="a"), engine.connect() as connection:
        connection.execute(select(Patient))
        connection.execute(insert(Patient).values(id=1, name="x"))
        connection.commit()
    assert heard == ["SELECT", "INSERT"]
    assert messages.all() == ([A, "INSERT"] if mode == "SERIALIZABLE" else ["INSERT"])


def test_a_statement_that_another_listener_refuses_does_not_count_as_told(
    messages: Messages, engine: Engine
) -> None:
    def refuse(_connection, _cursor, statement, *_):
        if "refused" in statement:
            raise LookupError

    event.listen(engine, "before_cursor_execute", refuse)
    with audit_context(user="a"), engine.begin() as connection:
        connection.execute(select(Patient))
        with pytest.raises(LookupError):
            connection.execute(text("DELETE FROM patient /* refused */"))
        connection.execute(insert(Patient).values(id=1, name="x"))
    assert messages.all() == [A, "INSERT"]


def test_an_engine_whose_pool_was_made_anew_keeps_the_hook_and_loses_it_again(
    source: Database, messages: Messages
) -> None:
    engine = create_engine(source.sqlalchemy_url(), poolclass=QueuePool, pool_size=1)
    install(engine)
    engine.dispose()
    with audit_context(user="a"):
        raw = engine.raw_connection()
        raw.driver_connection.execute("DELETE FROM patient; DELETE FROM patient")
        raw.close()
        write(engine, 1)
        uninstall(engine)
        write(engine, 2)
    engine.dispose()
    assert messages.all() == [A, "INSERT", "INSERT"]


def test_a_connection_detached_from_its_pool_is_explained_too(
    messages: Messages, engine: Engine
) -> None:
    with audit_context(user="a"), engine.connect() as connection:
        connection.detach()
        connection.execute(insert(Patient).values(id=1, name="x"))
        connection.commit()
        connection.execute(select(Patient))
        connection.execute(insert(Patient).values(id=2, name="x"))
        connection.commit()
    assert messages.all() == [A, "INSERT", A, "INSERT"]


def test_prepared_statements_after_a_drop_in_the_same_transaction_are_still_there(
    source: Database, messages: Messages, engine: Engine
) -> None:
    rows = [{"number": number} for number in range(3)]
    source.execute("CREATE TABLE gone (id int)")
    with audit_context(user="a"), engine.connect() as connection:
        connection.execute(text("SELECT :number"), rows)  # psycopg prepares what has many rows
        connection.execute(text("DROP TABLE gone"))
        for _ in range(2):
            connection.execute(text("DELETE FROM patient WHERE id = :number"), rows)
        connection.execute(insert(Patient).values(id=1, name="x"))
        connection.commit()
    assert messages.all() == [A, "INSERT"]
