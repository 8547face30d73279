"""Where nothing can be written: on a hot standby, and in transactions that are READ ONLY."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from sqlalchemy import delete, exc, func, insert, select, text, update
from sqlalchemy.orm import Session

from pgaudit_ctx import audit_context
from pgaudit_ctx.embedded import EmbeddedPostgres
from support.client import DRIVERS, Client
from support.clinic import Base, Patient
from support.database import Database, create_database
from support.server import Server
from support.standby import Pair, Sent, running_pair
from support.waiting import eventually

Work: TypeAlias = Callable[[Session], Any]

_FUNCTIONS = """
CREATE FUNCTION stable_fn() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM patient';
CREATE FUNCTION volatile_fn() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM patient';
CREATE FUNCTION writing_fn() RETURNS void LANGUAGE sql AS $$
    INSERT INTO patient (id, name, status) VALUES (7, 'x', 'ACTIVE') $$;
CREATE PROCEDURE reading_procedure() LANGUAGE plpgsql AS $$ BEGIN PERFORM volatile_fn(); END $$;
INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE'), (2, 'Bob', 'ACTIVE');
"""

# As PostGIS has them: in a schema of their own, stable, overloaded, aggregates and sets among them.
_GEOMETRY = """
CREATE SCHEMA postgis;
CREATE FUNCTION postgis.st_makepoint(float, float) RETURNS point
    LANGUAGE sql IMMUTABLE AS 'SELECT point($1, $2)';
CREATE FUNCTION postgis.st_distance(point, point) RETURNS float
    LANGUAGE sql IMMUTABLE AS 'SELECT $1 <-> $2';
CREATE FUNCTION postgis.st_distance(box, box) RETURNS float
    LANGUAGE sql STABLE AS 'SELECT $1 <-> $2';
CREATE FUNCTION postgis.st_dwithin(point, point, float) RETURNS boolean
    LANGUAGE sql STABLE AS 'SELECT ($1 <-> $2) <= $3';
CREATE FUNCTION postgis.st_dump(point) RETURNS SETOF float
    LANGUAGE sql STABLE AS 'SELECT unnest(ARRAY[$1[0], $1[1]])';
CREATE FUNCTION postgis.extend(box, point) RETURNS box
    LANGUAGE sql IMMUTABLE AS 'SELECT coalesce(bound_box($1, box($2)), box($2))';
CREATE AGGREGATE postgis.st_extent(point) (SFUNC = postgis.extend, STYPE = box);
"""

_ids = itertools.count(100)


@pytest.fixture(scope="module")
def pair(server: Server) -> Iterator[Pair]:
    with running_pair(server if isinstance(server, EmbeddedPostgres) else None) as running:
        yield running


@pytest.fixture(scope="module")
def clinic(pair: Pair) -> Database:
    """A database of the primary."""
    database = create_database(pair.primary)
    Base.metadata.create_all(database.engine())
    database.execute(_FUNCTIONS)
    database.execute(_GEOMETRY)
    database.execute(f"ALTER DATABASE {database.name} SET search_path = public, postgis")
    database.execute("CREATE ROLE reader SUPERUSER LOGIN")
    database.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    return database


@pytest.fixture
def primary(pair: Pair, clinic: Database) -> str:
    return clinic.url


@pytest.fixture
def standby(pair: Pair, clinic: Database) -> str:
    """The same database on the standby, which shows the same as the primary."""
    pair.catch_up()
    return pair.standby.url(clinic.name)


def outcome(client: Client, work: Work) -> object:
    """What an application gets: the result, or the server's error."""
    try:
        with audit_context(user="a"):
            return client.transaction(work)
    except exc.DBAPIError as error:
        return type(error), type(error.orig), str(error.orig), error.statement


def rows(statement: Any) -> Work:
    return lambda session: session.execute(statement).all()


def changed(statement: Any) -> Work:
    return lambda session: session.execute(statement) and None


def in_a_savepoint(session: Session) -> object:
    with session.begin_nested():
        return session.execute(text("SELECT volatile_fn()")).all()


def by_hand(session: Session) -> object:
    statement = text("SELECT stable_fn()").execution_options(pgaudit_ctx="emit")
    return session.execute(statement).all()


def streamed(session: Session) -> object:
    return list(session.scalars(select(Patient.name).order_by(Patient.id).limit(2), **_YIELD))


_YIELD: dict[str, Any] = {"execution_options": {"yield_per": 1}}

READS: dict[str, Work] = {
    "stable function": rows(text("SELECT stable_fn()")),
    "volatile function": rows(text("SELECT volatile_fn()")),
    "volatile function in ORM": rows(select(Patient.name).where(func.volatile_fn() > Patient.id)),
    "volatile function in FROM": rows(text("SELECT * FROM volatile_fn() AS found")),
    "quoted name": rows(text('SELECT * FROM "public"."volatile_fn"(), pg_catalog.version()')),
    "ORM": rows(select(Patient.id, Patient.name).order_by(Patient.id)),
    "ORM get": lambda session: session.get_one(Patient, 1).name,
    "ORM stream": streamed,
    "text": rows(text("SELECT id, name FROM patient ORDER BY id")),
    "text CTE": rows(text("WITH one AS (SELECT volatile_fn() AS n) SELECT n FROM one")),
    "savepoint": in_a_savepoint,
    "marked to emit": by_hand,
    "DO": changed(text("DO $$ BEGIN PERFORM volatile_fn(); END $$")),
    "CALL": changed(text("CALL reading_procedure()")),
}  # fmt: skip

WRITES: dict[str, Work] = {
    "function that writes": rows(text("SELECT writing_fn()")),
    "ORM": lambda session: session.add(Patient(id=7, name="x")) or session.flush(),
    "ORM lock": rows(select(Patient.id).with_for_update()),
    "insert": changed(insert(Patient).values(id=7, name="x")),
    "update": changed(update(Patient).values(name="x")),
    "delete": changed(delete(Patient).where(Patient.id == 2)),
    "text": changed(text("UPDATE patient SET name = 'x'")),
    "text CTE": rows(text("WITH gone AS (DELETE FROM patient RETURNING id) SELECT id FROM gone")),
    "marked to emit": changed(insert(Patient).values(id=7).execution_options(pgaudit_ctx="emit")),
    "DO": changed(text("DO $$ BEGIN DELETE FROM patient; END $$")),
    "CREATE": changed(text("CREATE TABLE other (id int)")),
    "TRUNCATE": changed(text("TRUNCATE patient CASCADE")),
}

ISOLATION = {"in a transaction": {}, "in AUTOCOMMIT mode": {"isolation_level": "AUTOCOMMIT"}}

by_driver = pytest.mark.parametrize("driver", DRIVERS)
by_isolation = pytest.mark.parametrize("options", ISOLATION.values(), ids=ISOLATION)


@pytest.mark.parametrize("work", READS.values(), ids=READS)
@by_isolation
@by_driver
def test_on_a_standby_a_read_gives_what_it_gives_without_the_hook_and_sends_no_message(
    pair: Pair, standby: str, driver: str, options: Mapping[str, Any], work: Work
) -> None:
    sent = Sent(pair.standby)
    with Client(standby, driver, hook=False, **options) as client:
        expected = outcome(client, work)
    with Client(standby, driver, **options) as client:
        assert [outcome(client, work), outcome(client, work)] == [expected, expected]
    assert sent.messages() == 0


@pytest.mark.parametrize("work", WRITES.values(), ids=WRITES)
@by_isolation
@by_driver
def test_on_a_standby_a_write_fails_as_it_does_without_the_hook_and_sends_no_message(
    pair: Pair, standby: str, driver: str, options: Mapping[str, Any], work: Work
) -> None:
    sent = Sent(pair.standby)
    with Client(standby, driver, hook=False, **options) as client:
        expected = outcome(client, work)
    assert isinstance(expected, tuple)
    with Client(standby, driver, **options) as client:
        assert outcome(client, work) == expected
    assert sent.messages() == 0


@by_driver
def test_on_a_standby_a_write_that_fails_in_a_savepoint_leaves_the_transaction_usable(
    pair: Pair, standby: str, driver: str
) -> None:
    def work(session: Session) -> object:
        with pytest.raises(exc.DBAPIError, match="INSERT"), session.begin_nested():
            session.execute(insert(Patient).values(id=7, name="x"))
        return session.scalar(text("SELECT volatile_fn() = stable_fn()"))

    sent = Sent(pair.standby)
    with Client(standby, driver) as client, audit_context(user="a"):
        assert client.transaction(work) is True
    assert sent.messages() == 0


@dataclass(frozen=True)
class ReadOnly:
    """One way to make a transaction READ ONLY."""

    role: str = "postgres"
    options: Mapping[str, Any] = field(default_factory=dict)
    before: str | None = None
    first: Work = lambda _: None

    def client(self, url: str, driver: str, *, hook: bool = True) -> Client:
        """Give a client that is ready to begin such a transaction."""
        made = Client(url.replace("postgres@", f"{self.role}@"), driver, hook=hook, **self.options)
        if self.before is not None:
            made.transaction(changed(text(self.before)))
        return made


def option_of_the_connection(session: Session) -> None:
    session.connection(execution_options={"postgresql_readonly": True})


WAYS = {
    "option of the engine": ReadOnly(options={"execution_options": {"postgresql_readonly": True}}),
    "option of the session's connection": ReadOnly(first=option_of_the_connection),
    "SET TRANSACTION": ReadOnly(first=changed(text("SET TRANSACTION READ ONLY"))),
    "SET TRANSACTION with more": ReadOnly(
        first=changed(text("set transaction isolation level repeatable read,\n read only"))
    ),
    "SET TRANSACTION, default turned off too late": ReadOnly(
        role="reader", first=changed(text("SET default_transaction_read_only = off"))
    ),
    "default of the role": ReadOnly(role="reader"),
    "default of the session": ReadOnly(before="SET default_transaction_read_only = on"),
    "SESSION CHARACTERISTICS": ReadOnly(
        before="SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    ),
}

by_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
# The engine's option holds for all of its connections, so these have no writable transaction.
by_lesser_way = pytest.mark.parametrize("way", [*WAYS.values()][1:], ids=[*WAYS][1:])


def transaction_id(session: Session) -> str | None:
    return session.scalar(text("SELECT pg_current_xact_id_if_assigned()::text"))


@by_way
@by_driver
def test_in_a_read_only_transaction_reads_send_no_message_and_take_no_transaction_id(
    pair: Pair, primary: str, driver: str, way: ReadOnly
) -> None:
    def work(session: Session) -> dict[str, str | None]:
        way.first(session)
        assert session.scalar(text("SHOW transaction_read_only")) == "on"
        taken = {}
        for name, read in READS.items():
            read(session)
            taken[name] = transaction_id(session)
        return taken

    with way.client(primary, driver) as client, audit_context(user="a"):
        sent = Sent(pair.primary)
        assert client.transaction(work) == dict.fromkeys(READS)
        assert sent.messages() == 0


@by_way
@by_driver
def test_in_a_read_only_transaction_writes_fail_as_without_the_hook_and_take_no_transaction_id(
    pair: Pair, primary: str, driver: str, way: ReadOnly
) -> None:
    def failures(session: Session) -> dict[str, object]:
        way.first(session)
        found: dict[str, object] = {}
        for name, write in WRITES.items():
            with pytest.raises(exc.DBAPIError) as failed, session.begin_nested():
                write(session)
            found[name] = (type(failed.value.orig), str(failed.value.orig))
            found[f"{name}: transaction id"] = transaction_id(session)
        return found

    with way.client(primary, driver, hook=False) as client:
        expected = outcome(client, failures)
    assert {found for name, found in expected.items() if name.endswith("id")} == {None}
    with way.client(primary, driver) as client:
        sent = Sent(pair.primary)
        assert outcome(client, failures) == expected
        assert sent.messages() == 0


def write(session: Session) -> None:
    session.execute(insert(Patient).values(id=next(_ids), name="x"))


def messages_of(pair: Pair, client: Client, work: Work) -> int:
    """How many messages a transaction with a context sends."""
    sent = Sent(pair.primary)
    with audit_context(user="a"):
        client.transaction(work)
    return sent.messages()


@by_driver
def test_a_volatile_function_is_preceded_by_its_context_where_it_could_write(
    pair: Pair, primary: str, driver: str
) -> None:
    with Client(primary, driver) as client:
        assert messages_of(pair, client, rows(text("SELECT volatile_fn()"))) == 1
        assert messages_of(pair, client, rows(select(func.volatile_fn()))) == 1
        assert messages_of(pair, client, rows(text("SELECT stable_fn()"))) == 0


@by_lesser_way
@by_driver
def test_the_transaction_after_a_read_only_one_is_told_its_context_if_it_may_write(
    pair: Pair, primary: str, driver: str, way: ReadOnly
) -> None:
    def read(session: Session) -> None:
        way.first(session)
        session.execute(text("SELECT volatile_fn()"))

    def make_writable_and_write(session: Session) -> None:
        if session.scalar(text("SHOW transaction_read_only")) == "on":
            session.execute(text("SET TRANSACTION READ WRITE"))
        write(session)

    with way.client(primary, driver) as client:
        assert messages_of(pair, client, read) == 0
        assert messages_of(pair, client, make_writable_and_write) == 1


@by_driver
def test_a_transaction_that_is_set_read_write_against_the_default_is_told_its_context(
    pair: Pair, primary: str, driver: str
) -> None:
    def work(session: Session) -> None:
        session.execute(text("SET TRANSACTION READ WRITE"))
        write(session)

    with ReadOnly(role="reader").client(primary, driver) as client:
        assert messages_of(pair, client, work) == 1


@by_driver
def test_an_option_that_says_read_write_against_the_default_counts_where_the_driver_sends_it(
    pair: Pair, primary: str, driver: str
) -> None:
    def work(session: Session) -> None:
        session.connection(execution_options={"postgresql_readonly": False})
        session.execute(insert(Patient).values(id=number, name="x"))

    with ReadOnly(role="reader").client(primary, driver) as client:
        number = next(_ids)
        sent = Sent(pair.primary)
        refused = outcome(client, work)
        # asyncpg has no way to say READ WRITE: its transaction stays READ ONLY.
        assert (sent.messages(), refused is None) == (
            (0, False) if driver == "asyncpg" else (1, True)
        )


@by_driver
def test_a_default_that_is_set_inside_a_transaction_counts_from_the_next_one_on(
    pair: Pair, primary: str, driver: str
) -> None:
    def set_and_write(session: Session) -> None:
        session.execute(text("SET default_transaction_read_only = on"))
        write(session)

    def set_back_and_read(session: Session) -> None:
        session.execute(text("SET default_transaction_read_only = off"))
        session.execute(text("SELECT volatile_fn()"))

    with Client(primary, driver) as client:
        assert messages_of(pair, client, set_and_write) == 1
        assert messages_of(pair, client, set_back_and_read) == 0
        assert messages_of(pair, client, write) == 1


def set_default_of_the_server(clinic: Database, value: str) -> None:
    """Set it for all connections, as an administrator does it for a maintenance, and wait."""
    clinic.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    clinic.execute("SELECT pg_reload_conf()")
    shown = "SHOW default_transaction_read_only"
    eventually(lambda: clinic.execute(shown) == [(value,)], "the server has a new default")


@by_driver
def test_a_default_that_an_administrator_takes_back_ends_on_connections_that_were_idle_meanwhile(
    pair: Pair, primary: str, clinic: Database, driver: str
) -> None:
    with Client(primary, driver) as client:
        set_default_of_the_server(clinic, "on")
        try:
            client.transaction(rows(text("SELECT 1")))
            assert messages_of(pair, client, rows(text("SELECT volatile_fn()"))) == 0
        finally:
            set_default_of_the_server(clinic, "off")
        assert messages_of(pair, client, write) == 1


@pytest.mark.parametrize("end", ["ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT"])
@pytest.mark.parametrize("as_text", [True, False], ids=["as text", "begin_nested"])
@by_driver
def test_what_was_read_only_inside_a_savepoint_is_told_its_context_after_it(
    pair: Pair, primary: str, driver: str, as_text: bool, end: str
) -> None:
    def work(session: Session) -> None:
        savepoint = None if as_text else session.begin_nested()
        if savepoint is None:
            session.execute(text("SAVEPOINT one"))
        session.execute(text("SET TRANSACTION READ ONLY"))
        session.execute(text("SELECT volatile_fn()"))
        assert sent.messages() == 0
        if savepoint is None:
            session.execute(text(f"{end} one"))
        elif end.startswith("ROLLBACK"):
            savepoint.rollback()
        else:
            savepoint.commit()
        write(session)

    with Client(primary, driver) as client, audit_context(user="a"):
        sent = Sent(pair.primary)
        client.transaction(work)
        assert sent.messages() == 1


@by_driver
def test_a_table_of_the_session_can_be_written_in_a_read_only_transaction_without_a_message(
    pair: Pair, primary: str, driver: str
) -> None:
    def work(session: Session) -> object:
        session.execute(text("SET TRANSACTION READ ONLY"))
        session.execute(text("INSERT INTO scratch VALUES (1)"))
        return session.scalar(text("SELECT id FROM scratch"))

    with Client(primary, driver) as client, audit_context(user="a"):
        client.transaction(changed(text("CREATE TEMPORARY TABLE scratch (id int)")))
        sent = Sent(pair.primary)
        assert client.transaction(work) == 1
        assert sent.messages() == 0


@pytest.fixture(scope="module")
def trigrams(clinic: Database) -> None:
    if not clinic.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'"):
        pytest.skip("the server's binaries come without the extension pg_trgm")
    clinic.execute("CREATE EXTENSION pg_trgm")


TRIGRAMS = {
    "similarity as text": text("SELECT name FROM patient WHERE similarity(name, 'An') > 0.2"),
    "% as text": text("SELECT name FROM patient WHERE name % 'Anna'"),
    "similarity": select(Patient.name).where(func.similarity(Patient.name, "An") > 0.2),
    "%": select(Patient.name).where(Patient.name.op("%")("Anna")),
    "distance": select(Patient.name)
    .where(func.word_similarity("An", Patient.name) > 0.2)
    .order_by(Patient.name.op("<->")("Ann")),
}


@pytest.mark.parametrize("statement", TRIGRAMS.values(), ids=TRIGRAMS)
@by_driver
def test_a_search_by_trigrams_sends_no_message_and_takes_no_transaction_id(
    pair: Pair, primary: str, trigrams: None, driver: str, statement: Any
) -> None:
    def work(session: Session) -> object:
        return session.scalars(statement).all(), transaction_id(session)

    with Client(primary, driver) as client, audit_context(user="a"):
        sent = Sent(pair.primary)
        assert client.transaction(work) == (["Ann"], None)
        assert sent.messages() == 0


GEOMETRY = {
    "text": text("SELECT ST_Distance(ST_MakePoint(0, 0), ST_MakePoint(3, 4))"),
    "schema": text("SELECT postgis.ST_Distance(postgis . ST_MakePoint(0, 0), '(3,4)'::point)"),
    "quoted": text("""SELECT "postgis"."st_distance"('(0,0)'::point, '(3,4)'::point)"""),
    "aggregate": text("SELECT height(ST_Extent(ST_MakePoint(n, n))) FROM generate_series(0, 5) n"),
    "set": text("SELECT sum(d) - 2 FROM ST_Dump(ST_MakePoint(3, 4)) AS d"),
    "condition": select(func.length("12345"), Patient.id).where(
        Patient.id == 1,
        func.ST_DWithin(func.ST_MakePoint(0, 0), func.ST_MakePoint(3, 4), Patient.id * 5),
    ),
    "func": select(func.postgis.ST_Distance(func.ST_MakePoint(0, 0), func.ST_MakePoint(3, 4))),
}


@pytest.mark.parametrize("statement", GEOMETRY.values(), ids=GEOMETRY)
@by_driver
def test_geometry_that_no_function_can_write_sends_no_message_and_takes_no_transaction_id(
    pair: Pair, primary: str, driver: str, statement: Any
) -> None:
    def work(session: Session) -> object:
        return session.execute(statement).all()[0][0], transaction_id(session)

    with Client(primary, driver) as client, audit_context(user="a"):
        sent = Sent(pair.primary)
        assert client.transaction(work) == (5, None)
        assert sent.messages() == 0


@by_driver
def test_an_application_that_stays_connected_while_its_standby_is_promoted_is_audited(
    server: Server, driver: str
) -> None:
    with running_pair(server if isinstance(server, EmbeddedPostgres) else None) as pair:
        database = create_database(pair.primary)
        Base.metadata.create_all(database.engine())
        pair.catch_up()
        with Client(pair.standby.url(database.name), driver) as client:
            assert client.transaction(rows(select(Patient.id))) == []
            pair.promote()
            sent = Sent(pair.standby)
            with audit_context(user="a"):
                client.transaction(write)
            assert sent.messages() == 1
