"""Whatever way a write takes, its context stands before it in the log; reads emit nothing."""

import io
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    MetaData,
    Sequence,
    Table,
    Text,
    create_engine,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgaudit_ctx import ContextInvalid, audit_context, emit_context, install
from support.client import ALL_DRIVERS, Client
from support.clinic import Patient, Status
from support.database import Database
from support.messages import A, B, Messages

ROWS = [{"id": number, "name": "x", "status": Status.ACTIVE} for number in (1, 2)]
PLAIN = "INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')"


def ann(number: int = 1) -> Patient:
    return Patient(id=number, name="Ann")


def orm_flush(session: Session) -> None:
    session.add(ann())
    session.flush()


def orm_query(session: Session) -> None:
    session.query(Patient).filter(Patient.id == 0).update({"name": "y"})
    session.merge(ann())
    session.flush()


def bulk(session: Session) -> None:
    session.bulk_save_objects([ann()])
    session.bulk_insert_mappings(Patient, [{"id": 2, "name": "x"}])
    session.bulk_update_mappings(Patient, [{"id": 2, "name": "y"}])


def core(session: Session) -> None:
    session.execute(insert(Patient).values(id=1, name="x"))
    session.execute(update(Patient).values(name="y"))
    session.execute(delete(Patient))


def insertmanyvalues(session: Session) -> None:
    session.execute(insert(Patient).returning(Patient.id), ROWS).all()


def executemany(session: Session) -> None:
    session.connection().execute(insert(Patient), ROWS)


def executemany_update(session: Session) -> None:
    session.execute(text(PLAIN))
    session.execute(update(Patient), [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])


def insert_on_conflict(session: Session) -> None:
    statement = upsert(Patient).values(id=1, name="x")
    session.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={"name": "y"}).returning(
            Patient.name
        )
    ).all()


def cte(session: Session) -> None:
    written = insert(Patient).values(id=1, name="x").returning(Patient.id).cte("written")
    session.execute(select(written.c.id)).all()


def text_cte(session: Session) -> None:
    session.execute(text(f"WITH x AS ({PLAIN} RETURNING id) SELECT id FROM x")).all()


def from_select(session: Session) -> None:
    values = select(literal_column("1"), literal("x"), literal_column("'ACTIVE'::status"))
    session.execute(insert(Patient).from_select(["id", "name", "status"], values))


def leading_comments(session: Session) -> None:
    session.execute(text(f"\n\n  /* SELECT */ -- SELECT\n  {PLAIN}"))


def function_in_select(session: Session) -> None:
    session.execute(text("SELECT admit(1)")).all()


def function_from_core(session: Session) -> None:
    session.scalars(select(func.admit(1))).all()


def function_in_from(session: Session) -> None:
    session.execute(select(func.public.admit(1).column_valued("x"))).all()


def do_block(session: Session) -> None:
    session.execute(text(f"DO $do$ BEGIN {PLAIN}; END $do$"))


def call(session: Session) -> None:
    session.execute(text("CALL admit_all()"))


def several_statements(session: Session) -> None:
    session.connection().exec_driver_sql(f"SELECT 1; {PLAIN}")


def driver_sql(session: Session) -> None:
    session.connection().exec_driver_sql(PLAIN)


def sequence_first(session: Session) -> None:
    table = Table(
        "counted", MetaData(), Column("id", BigInteger, Sequence("counter")), Column("name", Text)
    )
    session.execute(insert(table).values(name="x").inline())
    session.execute(insert(table).values(name="x"))


def truncate(session: Session) -> None:
    session.execute(text("TRUNCATE patient CASCADE"))


def table_as(session: Session) -> None:
    session.execute(text("CREATE TABLE copied AS SELECT 1 AS one"))


PATHS = [
    orm_flush, orm_query, bulk, core, insertmanyvalues, executemany, executemany_update,
    insert_on_conflict, cte, text_cte, from_select, leading_comments, function_in_select,
    function_from_core, function_in_from, do_block, call, several_statements, driver_sql,
    sequence_first, truncate, table_as,
]  # fmt: skip


@pytest.fixture
def functions(source: Database) -> None:
    source.execute(
        "CREATE FUNCTION admit(integer) RETURNS integer LANGUAGE sql AS"
        f" $$ {PLAIN.replace('VALUES (1', 'VALUES ($1')} RETURNING id $$"
    )
    source.execute(f"CREATE PROCEDURE admit_all() LANGUAGE sql AS $$ {PLAIN} $$")
    source.execute("CREATE TABLE counted (id bigint, name text)")
    source.execute("CREATE SEQUENCE counter")


@pytest.fixture(params=ALL_DRIVERS)
def client(request: pytest.FixtureRequest, source: Database) -> Iterator[Client]:
    with Client(source.url, request.param) as made:
        yield made


def paths_for(driver: str) -> list[Callable[[Session], None]]:
    # The protocol that these speak takes no string of several statements.
    several = driver not in {"asyncpg", "pg8000"}
    return [path for path in PATHS if several or path is not several_statements]


def is_explained(arrived: list[str]) -> bool:
    return arrived[:1] == [A] and arrived.count(A) == 1 and len(arrived) > 1


@pytest.mark.parametrize("read_first", [False, True], ids=["first", "after a read"])
def test_every_way_to_write_is_preceded_by_its_context_once(
    source: Database, messages: Messages, functions: None, client: Client, read_first: bool
) -> None:
    def work(session: Session) -> None:
        if read_first:
            session.scalars(select(Patient)).all()
        path(session)

    unexplained = {}
    for path in paths_for(client.engine.driver):
        source.execute("TRUNCATE patient CASCADE; DROP TABLE IF EXISTS copied")
        messages.all()
        with audit_context(user="a"):
            client.transaction(work)
        arrived = messages.all()
        if not is_explained(arrived):
            unexplained[path.__name__] = arrived
    assert unexplained == {}


def test_a_merge_is_preceded_by_its_context(
    source: Database, messages: Messages, client: Client
) -> None:
    ((version,),) = source.execute("SELECT current_setting('server_version_num')::int")
    if version < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    merge = text(
        "MERGE INTO patient p USING (VALUES (1)) v(id) ON p.id = v.id WHEN NOT MATCHED "
        "THEN INSERT (id, name, status) VALUES (v.id, 'x', 'ACTIVE')"
    )
    with audit_context(user="a"):
        client.transaction(lambda session: session.execute(merge).close())
    assert messages.all() == [A, "INSERT"]


def test_a_two_phase_transaction_is_preceded_by_its_context(
    source: Database, messages: Messages, client: Client
) -> None:
    ((allowed,),) = source.execute("SHOW max_prepared_transactions")
    if allowed == "0":
        pytest.skip("this server allows no prepared transactions")

    def work(session: Session) -> None:
        with session.get_bind().connect() as connection:
            transaction = connection.begin_twophase()
            connection.execute(insert(Patient).values(id=1, name="x"))
            transaction.prepare()
            transaction.commit()

    with audit_context(user="a"):
        client.transaction(work)
    assert messages.all() == [A, "INSERT"]


def test_nested_savepoints_that_roll_back_are_told_again(
    messages: Messages, client: Client
) -> None:
    def work(session: Session) -> None:
        outer = session.begin_nested()
        session.add(ann(1))
        session.flush()
        with audit_context(user="b"):
            inner = session.begin_nested()
            session.add(ann(2))
            session.flush()
            inner.rollback()
        session.add(ann(3))
        session.flush()
        outer.rollback()
        session.add(ann(4))
        session.flush()

    with audit_context(user="a"):
        client.transaction(work)
    assert messages.all() == [A, "INSERT"]


def test_savepoints_sent_as_text_count_too(messages: Messages, client: Client) -> None:
    def work(session: Session) -> None:
        session.execute(text("SAVEPOINT s"))
        session.execute(insert(Patient).values(id=1, name="x"))
        session.execute(text("ROLLBACK TO SAVEPOINT s"))
        session.execute(insert(Patient).values(id=2, name="x"))
        session.execute(text("RELEASE s"))
        session.execute(insert(Patient).values(id=3, name="x"))

    with audit_context(user="a"):
        client.transaction(work)
    assert messages.all() == [A, "INSERT", "INSERT"]


def test_a_released_savepoint_keeps_what_was_told_inside(
    messages: Messages, client: Client
) -> None:
    def work(session: Session) -> None:
        with session.begin_nested():
            session.add(ann(1))
        session.add(ann(2))
        session.flush()

    with audit_context(user="a"):
        client.transaction(work)
    assert messages.all() == [A, "INSERT", "INSERT"]


def test_what_goes_past_sqlalchemy_is_explained_after_emit_context(
    messages: Messages, client: Client
) -> None:
    def work(session: Session) -> None:
        emit_context(session)
        adapted = session.connection().connection.dbapi_connection
        cursor = adapted.cursor()
        cursor.execute(PLAIN)
        cursor.close()

    with audit_context(user="a"):
        client.transaction(work)
    assert messages.all() in ([A, "INSERT"], [A, A, "INSERT"])  # psycopg's cursors emit as well


def test_a_copy_through_the_drivers_connection_after_emit_context(
    messages: Messages, source: Database
) -> None:
    engine = create_engine(source.sqlalchemy_url("psycopg2"), poolclass=NullPool)
    install(engine)
    with audit_context(user="a"), engine.begin() as connection:
        emit_context(connection)
        with connection.connection.cursor() as cursor:
            cursor.copy_expert(
                "COPY patient (id, name, status) FROM STDIN", io.StringIO("1\tx\tACTIVE\n")
            )
    assert messages.all() == [A, "INSERT"]


READS = [
    select(Patient),
    select(func.count()).select_from(Patient),
    select(func.stable_one(), func.lower("X"), func.coalesce(None, 1)),
    select(func.jsonb_build_object("a", 1)),
    select(func.row_number().over(order_by=Patient.id)),
    select(func.array_agg(Patient.id).filter(Patient.id > 0)),
    text("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3)"
         " SELECT CAST(n AS numeric(10, 2)) FROM t"),
    text("SELECT nextval('counter'), now(), pg_backend_pid()"),
    text("COPY (SELECT 1) TO '/dev/null'"),
]  # fmt: skip


def test_a_read_emits_nothing(
    source: Database, messages: Messages, functions: None, client: Client
) -> None:
    source.execute("CREATE FUNCTION stable_one() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'")

    def work(session: Session) -> None:
        for statement in READS:
            session.execute(statement)

    with audit_context(user="a"):
        client.transaction(work)
    assert messages.all() == []


def test_a_function_is_looked_up_once_for_all_connections_of_an_engine(
    source: Database, functions: None, engine: Engine
) -> None:
    source.execute("CREATE FUNCTION stable_one() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'")
    with audit_context(user="a"):
        with engine.begin() as connection:
            connection.execute(text("SELECT stable_one()"))
        source.execute("ALTER FUNCTION stable_one() VOLATILE")
        with engine.begin() as connection:
            connection.execute(text("SELECT stable_one()"))
            taken = connection.execute(text("SELECT pg_current_xact_id_if_assigned()::text"))
            assert taken.scalar_one() is None


HOSTILE = [
    "*/; DROP TABLE patient; --",
    "%s %(content)s %% %",
    "'quoted' \"doubly\" $$ $1 :x",
    "back\\slash \\' \\u0041",
    "emoji 🩺 名前 é",
    "new\nline\ttab\x7f",
]


@pytest.mark.parametrize("read_first", [False, True], ids=["with begin", "with the write"])
def test_a_hostile_value_round_trips_byte_for_byte(
    source: Database, messages: Messages, client: Client, read_first: bool
) -> None:
    def work(session: Session) -> None:
        if read_first:
            session.execute(select(Patient))
        session.execute(insert(Patient).values(name="x"))

    for value in HOSTILE:
        with audit_context(user=value):
            client.transaction(work)
        (told,) = messages.contexts()
        assert source.execute("SELECT %s::jsonb ->> 'user'", [told]) == [(value,)]


def test_two_contexts_in_one_transaction_each_stand_before_their_own_rows(
    messages: Messages, client: Client
) -> None:
    def work(session: Session) -> None:
        for user, number in (("a", 1), ("b", 2), ("b", 3), ("a", 4)):
            with audit_context(user=user):
                session.execute(insert(Patient).values(id=number, name="x"))

    client.transaction(work)
    assert messages.all() == [A, "INSERT", B, "INSERT", "INSERT", A, "INSERT"]


def test_a_character_that_jsonb_cannot_hold_is_refused_on_entering_the_scope() -> None:
    with pytest.raises(ContextInvalid, match="user"), audit_context(user="a\x00b"):
        pass
