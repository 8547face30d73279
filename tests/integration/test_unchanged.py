"""With the hook the application gets the same results and the same errors, once."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    event,
    exc,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session

from pgaudit_ctx import audit_context, install
from support.clinic import Patient, Status
from support.database import Database
from support.messages import A, Messages

ROWS = [{"id": number, "name": "x", "status": Status.ACTIVE} for number in (1, 2, 3)]


def rowcounts(connection: Connection) -> Any:
    return [
        connection.execute(insert(Patient), ROWS).rowcount,
        connection.execute(update(Patient).values(name="y")).rowcount,
        connection.execute(
            update(Patient).where(Patient.id == 1), [{"name": "a"}, {"name": "b"}]
        ).rowcount,
        connection.execute(text("DELETE FROM patient WHERE id > 1")).rowcount,
    ]


def returning(connection: Connection) -> Any:
    result = connection.execute(insert(Patient).returning(Patient.id, Patient.name), ROWS)
    described = [column[0] for column in result.cursor.description]
    return described, list(result.keys()), result.all()


def primary_keys(connection: Connection) -> Any:
    connection.execute(text("CREATE TABLE numbered (id serial PRIMARY KEY, name text)"))
    table = Table(
        "numbered", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text)
    )
    return connection.execute(insert(table).values(name="x")).inserted_primary_key


def unique_violation(connection: Connection) -> Any:
    connection.execute(insert(Patient), ROWS)
    with pytest.raises(exc.IntegrityError) as raised, connection.begin_nested():
        connection.execute(insert(Patient).values(id=1, name="x"))
    connection.execute(insert(Patient).values(id=9, name="x"))
    return shape(raised.value)


def syntax_error(connection: Connection) -> Any:
    with pytest.raises(exc.ProgrammingError) as raised, connection.begin_nested():
        connection.execute(text("INSERT INTO patient VALUES ("))
    return shape(raised.value)


def adaptation_error(connection: Connection) -> Any:
    with pytest.raises(exc.ProgrammingError) as raised:
        connection.execute(
            text("INSERT INTO patient (id, name, status) VALUES (1, :name, 'ACTIVE')"),
            {"name": object()},
        )
    connection.execute(insert(Patient).values(id=9, name="x"))
    return shape(raised.value), connection.scalar(select(func.count()).select_from(Patient))


def data_error(connection: Connection) -> Any:
    with pytest.raises(exc.DataError) as raised, connection.begin_nested():
        connection.execute(text("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'Q')"))
    return shape(raised.value)


def failed_transaction(connection: Connection) -> Any:
    with pytest.raises(exc.ProgrammingError):
        connection.execute(text("SELECT nothing_like_this"))
    with pytest.raises(exc.InternalError) as raised:
        connection.execute(insert(Patient).values(id=1, name="x"))
    connection.rollback()
    connection.execute(insert(Patient).values(id=1, name="x"))
    return shape(raised.value)


def shape(error: exc.DBAPIError) -> Any:
    """What an application may look at, but for addresses in memory."""
    return (
        type(error),
        type(error.orig),
        error.statement,
        str(error.orig).split(" at 0x")[0],
        error.connection_invalidated,
        getattr(error.orig, "sqlstate", None),
    )


WORK = [
    rowcounts, returning, primary_keys, unique_violation, syntax_error, adaptation_error,
    data_error, failed_transaction,
]  # fmt: skip


def outcome(engine: Engine, work: Callable[[Connection], Any], *, read_first: bool) -> Any:
    with audit_context(user="a"), engine.connect() as connection:
        if read_first:
            connection.execute(select(Patient)).all()
        result = work(connection)
        connection.rollback()
        return result


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
@pytest.mark.parametrize("read_first", [False, True], ids=["first", "after a read"])
def test_results_and_errors_are_what_they_were(
    source: Database, driver: str, read_first: bool
) -> None:
    plain, audited = source.engine(driver), source.engine(driver)
    install(audited)
    works = [work for work in WORK if driver == "psycopg" or work in (rowcounts, returning)]
    for work in works:
        expected = outcome(plain, work, read_first=read_first)
        assert outcome(audited, work, read_first=read_first) == expected, work.__name__


@pytest.mark.parametrize("read_first", [False, True], ids=["first", "after a read"])
def test_a_statement_that_cannot_be_adapted_leaves_the_context_told(
    messages: Messages, engine: Engine, read_first: bool
) -> None:
    with audit_context(user="a"), engine.begin() as connection:
        if read_first:
            connection.execute(select(Patient))
        with pytest.raises(exc.ProgrammingError):
            connection.execute(
                text("INSERT INTO patient (id, name) VALUES (1, :name)"), {"name": object()}
            )
        connection.execute(insert(Patient).values(id=1, name="x"))
    assert messages.all() == [A, "INSERT"]


def test_what_other_listeners_and_the_log_see_is_what_they_saw(
    source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[list[str]] = []
    logged: list[list[str]] = []
    for audited in (False, True):
        engine = source.engine()
        statements: list[str] = []
        if audited:
            install(engine)
        for name in ("before_cursor_execute", "after_cursor_execute"):
            event.listen(engine, name, lambda *a, into=statements: into.append(a[2]))
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, "sqlalchemy.engine"),
            audit_context(user="a"),
            Session(engine) as session,
        ):
            session.scalars(select(Patient)).all()
            session.add(Patient(id=1, name="Ann"))
            session.flush()
            session.execute(update(Patient).values(name="y"))
            session.rollback()
        seen.append(statements)
        # Without the note on the cache of compiled statements, in which a time stands.
        logged.append([record.message.split("] ")[-1] for record in caplog.records])
    assert seen[0] == seen[1]
    assert logged[0] == logged[1]


def test_statements_are_cached_as_they_were(engine: Engine) -> None:
    hits = []
    with audit_context(user="a"), engine.begin() as connection:
        for number in range(3):
            connection.execute(insert(Patient).values(id=number, name="x"))
            hits.append(len(engine._compiled_cache))
    assert hits[0] == hits[1] == hits[2]


@pytest.mark.parametrize(
    "first", ["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "LOCK TABLE dose"]
)
def test_what_must_come_before_the_snapshot_still_does(
    source: Database, messages: Messages, engine: Engine, first: str
) -> None:
    with audit_context(user="a"), engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        connection.execute(text(first))
        source.execute("INSERT INTO patient (id, name, status) VALUES (5, 'x', 'ACTIVE')")
        connection.execute(insert(Patient).values(id=1, name="x"))
        # A message before the first statement would have taken the snapshot without number 5.
        assert connection.scalars(select(Patient.id).order_by(Patient.id)).all() == [1, 5]
        connection.commit()
    assert messages.all() == ["INSERT", A, "INSERT"]
