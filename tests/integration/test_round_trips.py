"""An audited transaction needs no more trips to the server than a plain one (psycopg 3)."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, func, insert, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from pgaudit_ctx import audit_context, install
from pgaudit_ctx.emission.psycopg_driver import begin_command
from pgaudit_ctx.urls import sqlalchemy_url
from support.clinic import Patient, Status
from support.database import Database
from support.messages import A, Messages
from support.wire import Link


@pytest.fixture
def link(source: Database) -> Iterator[Link]:
    # With the delay nothing that the server answers overtakes what is still being sent.
    with Link.before(source.url, delay=0.002) as made:
        yield made


@pytest.fixture
def distant(source: Database, link: Link) -> Engine:
    return create_engine(sqlalchemy_url(link.url(source.url)), poolclass=QueuePool, pool_size=1)


def write_first(session: Session) -> None:
    session.add(Patient(id=1, name="Ann"))
    session.flush()
    session.execute(update(Patient).values(name="y"))


def read_first(session: Session) -> None:
    session.scalars(select(Patient)).all()
    write_first(session)


def many_at_once(session: Session) -> None:
    session.scalar(select(func.count()).select_from(Patient))
    rows = [{"id": number, "name": "x", "status": Status.ACTIVE} for number in range(5)]
    session.connection().execute(insert(Patient), rows)


def many_first(session: Session) -> None:
    rows = [{"id": number, "name": "x", "status": Status.ACTIVE} for number in range(5)]
    session.connection().execute(insert(Patient), rows)


def in_a_savepoint(session: Session) -> None:
    with session.begin_nested():
        write_first(session)


def only_reads(session: Session) -> None:
    session.scalars(select(Patient)).all()
    session.scalar(select(func.lower("X")))


WORK = [write_first, read_first, many_at_once, many_first, in_a_savepoint, only_reads]


def trips(engine: Engine, link: Link, work: Callable[[Session], None]) -> int:
    """Count the trips of one transaction on a connection that has done this before."""
    for _ in range(2):
        link.reset()
        with audit_context(user="a"), Session(engine) as session:
            work(session)
            session.execute(text("DELETE FROM patient"))
            session.commit()
    return link.round_trips


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_an_audited_transaction_needs_no_more_trips_than_a_plain_one(
    distant: Engine, link: Link, messages: Messages, work
) -> None:
    plain = trips(distant, link, work)
    assert messages.contexts() == []
    install(distant)
    assert trips(distant, link, work) <= plain
    assert messages.contexts() == [A, A]
    distant.dispose()


def test_a_write_in_autocommit_mode_needs_no_more_trips_than_a_plain_one(
    source: Database, distant: Engine, link: Link
) -> None:
    engine = distant.execution_options(isolation_level="AUTOCOMMIT")
    counted = []
    for number in range(4):
        if number == 2:
            install(engine)
        with audit_context(user="a"), engine.connect() as connection:
            link.reset()
            connection.execute(insert(Patient).values(id=number, name="x"))
            counted.append(link.round_trips)
    distant.dispose()
    assert counted == [1, 1, 1, 1]


async def test_the_message_of_an_async_transaction_travels_with_its_begin(
    source: Database, link: Link
) -> None:
    engine = create_async_engine(sqlalchemy_url(link.url(source.url)), pool_size=1)
    counted = []
    for number in range(4):
        if number == 2:
            install(engine)
        link.reset()
        with audit_context(user="a"):
            async with engine.begin() as connection:
                await connection.execute(insert(Patient).values(id=number, name="x"))
        counted.append(link.round_trips)
    await engine.dispose()
    # The first transaction of a connection is preceded by questions of the dialect.
    assert counted[1:] == [3, 3, 3]


@pytest.mark.parametrize("level", [None, "SERIALIZABLE", "REPEATABLE READ", "READ UNCOMMITTED"])
@pytest.mark.parametrize("read_only", [None, False])
@pytest.mark.parametrize("deferrable", [None, True, False])
def test_a_transaction_is_begun_as_psycopg_would_begin_it(
    source: Database, level: str | None, read_only: bool | None, deferrable: bool | None
) -> None:
    with psycopg.connect(source.url) as connection:
        if level is not None:
            connection.isolation_level = psycopg.IsolationLevel[level.replace(" ", "_")]
        connection.read_only = read_only
        connection.deferrable = deferrable
        # psycopg's own way is private; should it change, this tells.
        assert begin_command(connection) == connection._get_tx_start_command()


def test_isolation_level_and_the_like_hold_for_a_transaction_begun_with_its_message(
    source: Database, messages: Messages
) -> None:
    engine = source.engine(isolation_level="SERIALIZABLE")
    install(engine)
    with (
        audit_context(user="a"),
        engine.connect().execution_options(postgresql_deferrable=True) as connection,
    ):
        connection.execute(insert(Patient).values(id=1, name="x"))
        assert connection.scalar(text("SHOW transaction_isolation")) == "serializable"
        assert connection.scalar(text("SHOW transaction_deferrable")) == "on"
        connection.commit()
    assert messages.all() == [A, "INSERT"]
