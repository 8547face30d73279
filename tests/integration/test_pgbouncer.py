"""Behind PgBouncer in transaction mode, where all clients share one connection to the server."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.orm import Session

from pgaudit_ctx import audit_context, emit_context
from pgaudit_ctx.embedded import EmbeddedPostgres
from support.client import DRIVERS, Client
from support.clinic import Base, Patient
from support.database import Capture, create_database
from support.pgbouncer import WITHOUT_PREPARED_STATEMENTS, running_pgbouncer
from support.server import Server
from support.standby import Sent, running_pair

Connect = Callable[[str], Client]


@pytest.fixture
def connect(capture: Capture) -> Iterator[Connect]:
    """Gives clients of one PgBouncer in front of the source, by driver."""
    clients: list[Client] = []

    def connected(driver: str) -> Client:
        clients.append(Client(url, driver, connect_args=WITHOUT_PREPARED_STATEMENTS[driver]))
        return clients[-1]

    with running_pgbouncer(capture.source.url) as url:
        yield connected
        for client in clients:
            client.close()


def users(capture: Capture) -> list[tuple[str, object, object]]:
    """Operation, key and user of each change, in order."""
    return [
        (row.operation, row.primary_key[0], (row.context or {}).get("user"))
        for row in capture.changes("patient")
    ]


def server_connection(session: Session) -> int:
    return session.execute(text("SELECT pg_backend_pid()")).scalar_one()


def write(client: Client, number: int) -> int:
    """Write one patient in a transaction of its own; give the server's process that did it."""

    def work(session: Session) -> int:
        session.add(Patient(id=number, name="Ann"))
        session.flush()
        return server_connection(session)

    return client.transaction(work)


@pytest.mark.parametrize("driver", DRIVERS)
def test_clients_that_take_turns_on_one_server_connection_keep_their_own_contexts(
    capture: Capture, connect: Connect, driver: str
) -> None:
    one, two = connect(driver), connect(driver)
    used = set()
    for number in range(0, 6, 2):
        with audit_context(user="one"):
            used.add(write(one, number))
        with audit_context(user="two"):
            used.add(write(two, number + 1))
    assert len(used) == 1
    assert users(capture) == [
        ("INSERT", str(number), "two" if number % 2 else "one") for number in range(6)
    ]


def test_clients_with_different_drivers_on_one_server_connection_keep_their_own_contexts(
    capture: Capture, connect: Connect
) -> None:
    clients = {driver: connect(driver) for driver in DRIVERS}
    used = set()
    for first in (0, 3):
        for number, (driver, client) in enumerate(clients.items(), first):
            with audit_context(user=driver):
                used.add(write(client, number))
    assert len(used) == 1
    assert [user for _, _, user in users(capture)] == [*DRIVERS, *DRIVERS]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_context_reaches_no_later_transaction_of_another_client_or_its_own(
    capture: Capture, connect: Connect, driver: str
) -> None:
    one, two = connect(driver), connect(driver)
    write(two, 1)
    with audit_context(user="one"):
        write(one, 2)
    write(two, 3)
    write(one, 4)
    with audit_context(user="one"):
        write(one, 5)
    with audit_context(user="two"):
        write(two, 6)
    assert users(capture) == [
        ("INSERT", "1", None),
        ("INSERT", "2", "one"),
        ("INSERT", "3", None),
        ("INSERT", "4", None),
        ("INSERT", "5", "one"),
        ("INSERT", "6", "two"),
    ]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_context_whose_transaction_rolled_back_reaches_nobody_and_is_told_again(
    capture: Capture, connect: Connect, driver: str
) -> None:
    one, two = connect(driver), connect(driver)

    def give_up(session: Session) -> None:
        session.execute(insert(Patient).values(id=1, name="Ann"))
        raise LookupError

    with audit_context(user="one"):
        with pytest.raises(LookupError):
            one.transaction(give_up)
        # No second scope: what the client remembers of the one that was rolled back must go.
        write(one, 2)
        with pytest.raises(LookupError):
            one.transaction(give_up)
    write(two, 3)
    assert users(capture) == [("INSERT", "2", "one"), ("INSERT", "3", None)]


@pytest.mark.parametrize("driver", DRIVERS)
def test_savepoints_of_clients_that_share_a_server_connection_take_only_their_own_messages(
    capture: Capture, connect: Connect, driver: str
) -> None:
    one, two = connect(driver), connect(driver)

    def work(session: Session, first: int) -> None:
        with audit_context(step="given up"):
            savepoint = session.begin_nested()
            session.execute(insert(Patient).values(id=first, name="Ann"))
            savepoint.rollback()
        with session.begin_nested():
            session.execute(insert(Patient).values(id=first + 1, name="Bob"))
        session.execute(update(Patient).where(Patient.id == first + 1).values(name="Cid"))

    for user, client, first in (("one", one, 10), ("two", two, 20), ("one", one, 30)):
        with audit_context(user=user):
            client.transaction(lambda session, first=first: work(session, first))
    two.transaction(lambda session: work(session, 40))
    rows = capture.changes("patient")
    assert [(row.operation, row.primary_key[0], row.context) for row in rows] == [
        (operation, key, context)
        for key, context in (
            ("11", {"user": "one"}),
            ("21", {"user": "two"}),
            ("31", {"user": "one"}),
            ("41", None),
        )
        for operation in ("INSERT", "UPDATE")
    ]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_context_that_changes_in_mid_transaction_covers_what_follows_of_that_client_only(
    capture: Capture, connect: Connect, driver: str
) -> None:
    one, two = connect(driver), connect(driver)

    def work(session: Session) -> None:
        session.execute(insert(Patient).values(id=1, name="Ann"))
        with audit_context(user="deputy"):
            session.execute(insert(Patient).values(id=2, name="Bob"))
            emit_context(session)
        session.execute(insert(Patient).values(id=3, name="Cid"))

    with audit_context(user="one"):
        one.transaction(work)
    write(two, 4)
    assert users(capture) == [
        ("INSERT", "1", "one"),
        ("INSERT", "2", "deputy"),
        ("INSERT", "3", "one"),
        ("INSERT", "4", None),
    ]


@pytest.mark.parametrize("driver", DRIVERS)
def test_clients_that_compete_for_the_server_connection_keep_their_own_contexts(
    capture: Capture, connect: Connect, driver: str
) -> None:
    def work(session: Session, number: int, user: str) -> None:
        session.execute(insert(Patient).values(id=number, name=user))
        session.execute(update(Patient).where(Patient.id == number).values(notes={}))

    def live(name: str, first: int) -> None:
        client = connect(driver)
        for number in range(first, first + 20):
            with audit_context(user=name):
                client.transaction(lambda session, number=number: work(session, number, name))

    names = [f"user {number}" for number in range(4)]
    with ThreadPoolExecutor(len(names)) as pool:
        for done in [pool.submit(live, name, 100 * n) for n, name in enumerate(names)]:
            done.result()
    rows = capture.changes("patient")
    assert len(rows) == 2 * 20 * len(names)
    assert [row.context for row in rows] == [{"user": row.after["name"]} for row in rows]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_client_that_vanishes_in_mid_transaction_leaves_no_context_behind(
    capture: Capture, connect: Connect, driver: str
) -> None:
    one, two = connect(driver), connect(driver)
    with audit_context(user="one"):
        lost = one.engine.connect()
        lost.execute(insert(Patient).values(id=1, name="Ann"))
        lost.detach()
        lost.connection.dbapi_connection.close()  # neither COMMIT nor ROLLBACK is sent
    write(two, 2)
    lost.invalidate()
    lost.close()
    assert users(capture) == [("INSERT", "2", None)]


@pytest.mark.parametrize("driver", DRIVERS)
def test_clients_of_a_pooler_whose_standby_is_promoted_are_attributed_from_then_on(
    server: Server, driver: str
) -> None:
    # PgBouncer goes on saying in_hot_standby = on: to clients that did not happen to be served when
    # the server said otherwise, and to new ones.
    options = {"connect_args": WITHOUT_PREPARED_STATEMENTS[driver]}
    with running_pair(server if isinstance(server, EmbeddedPostgres) else None) as pair:
        database = create_database(pair.primary)
        Base.metadata.create_all(database.engine())
        pair.catch_up()
        with (
            running_pgbouncer(pair.standby.url(database.name)) as url,
            Client(url, driver, **options) as one,
            Client(url, driver, **options) as two,
        ):
            for client in (one, two):
                client.transaction(lambda session: session.scalars(select(Patient)).all())
            pair.promote()
            sent = Sent(pair.standby)
            with Client(url, driver, **options) as new, audit_context(user="a"):
                for number, client in enumerate((one, two, new)):
                    write(client, number)
                    assert sent.messages() == number + 1
