"""Each change carries exactly the context that was in force where it was written."""

from sqlalchemy import Engine, insert, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgaudit_ctx import audit_context, bind_context, emit_context, install
from support.clinic import Patient
from support.database import Capture


def users(capture: Capture, table: str = "patient") -> list[tuple[str, object, object]]:
    """Operation, key and user of each change, in order."""
    return [
        (row.operation, row.primary_key[0], (row.context or {}).get("user"))
        for row in capture.changes(table)
    ]


def test_an_orm_write_inside_a_scope_carries_its_context(capture: Capture, engine: Engine) -> None:
    with Session(engine) as session, audit_context(user="dr.who", reason="admission"):
        session.add(Patient(id=1, name="Ann"))
        session.commit()
    (row,) = capture.changes()
    assert row.context == {"user": "dr.who", "reason": "admission"}


def test_a_write_outside_of_any_scope_has_no_context(capture: Capture, engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Patient(id=1, name="Ann"))
        session.commit()
    assert users(capture) == [("INSERT", "1", None)]


def test_a_write_past_the_application_is_captured_without_context(capture: Capture) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')")
    assert users(capture) == [("INSERT", "1", None)]


def test_a_savepoint_that_rolls_back_takes_its_message_and_its_rows(
    capture: Capture, engine: Engine
) -> None:
    with Session(engine) as session, audit_context(user="outer"):
        session.add(Patient(id=1, name="Ann"))
        session.flush()
        with audit_context(user="inner"):
            savepoint = session.begin_nested()
            session.add(Patient(id=2, name="Bob"))
            session.flush()
            savepoint.rollback()
        session.add(Patient(id=3, name="Cid"))
        session.commit()
    assert users(capture) == [("INSERT", "1", "outer"), ("INSERT", "3", "outer")]


def test_a_context_emitted_inside_a_rolled_back_savepoint_is_emitted_again(
    capture: Capture, engine: Engine
) -> None:
    with Session(engine) as session, audit_context(user="a"):
        savepoint = session.begin_nested()
        session.add(Patient(id=1, name="Ann"))
        session.flush()
        savepoint.rollback()
        session.add(Patient(id=2, name="Bob"))
        session.commit()
    assert users(capture) == [("INSERT", "2", "a")]


def test_savepoints_sent_as_text_count_as_savepoints(capture: Capture, engine: Engine) -> None:
    with engine.begin() as connection, audit_context(user="a"):
        connection.execute(text("SAVEPOINT one"))
        connection.execute(insert(Patient).values(id=1, name="Ann"))
        connection.execute(text("ROLLBACK TO SAVEPOINT one"))
        connection.execute(insert(Patient).values(id=2, name="Bob"))
    assert users(capture) == [("INSERT", "2", "a")]


def test_a_row_and_a_message_at_one_position_in_different_subtransactions(
    capture: Capture, engine: Engine
) -> None:
    # PostgreSQL delivers row 3 before the message that precedes it in the log.
    with Session(engine) as session:
        with audit_context(user="a"):
            session.add(Patient(id=1, name="Ann"))
            session.flush()
            with session.begin_nested():
                session.add(Patient(id=2, name="Bob"))
        with audit_context(user="b"):
            emit_context(session)
            with session.begin_nested():
                session.add(Patient(id=3, name="Cid"))
        session.commit()
    assert users(capture) == [("INSERT", "1", "a"), ("INSERT", "2", "a"), ("INSERT", "3", "b")]


def test_the_server_really_delivers_a_row_before_its_message_in_that_case(
    capture: Capture, engine: Engine, psql
) -> None:
    # Without this, the test before could not fail for the right reason.
    capture.source.execute(
        "SELECT pg_create_logical_replication_slot('peek', 'test_decoding')",
    )
    test_a_row_and_a_message_at_one_position_in_different_subtransactions(capture, engine)
    arrived = [
        line
        for (line,) in psql.execute(
            "SELECT data FROM pg_logical_slot_peek_changes('peek', NULL, NULL)"
        ).fetchall()
    ]
    third = next(i for i, line in enumerate(arrived) if "id[integer]:3" in line)
    message = next(i for i, line in enumerate(arrived) if '"user":"b"' in line)
    assert third < message


def test_a_context_that_changes_in_mid_transaction_covers_what_follows(
    capture: Capture, engine: Engine
) -> None:
    with Session(engine) as session:
        with audit_context(user="a"):
            session.add(Patient(id=1, name="Ann"))
            session.flush()
        with audit_context(user="b"):
            session.add(Patient(id=2, name="Bob"))
            session.flush()
            bind_context(user="c")
            session.add(Patient(id=3, name="Cid"))
            session.flush()
        session.commit()
    assert users(capture) == [("INSERT", "1", "a"), ("INSERT", "2", "b"), ("INSERT", "3", "c")]


def test_a_write_after_the_end_of_the_block_in_the_same_transaction_has_no_context(
    capture: Capture, engine: Engine
) -> None:
    with Session(engine) as session:
        with audit_context(user="a"):
            session.add(Patient(id=1, name="Ann"))
            session.flush()
        session.add(Patient(id=2, name="Bob"))
        session.commit()
    assert users(capture) == [("INSERT", "1", "a"), ("INSERT", "2", None)]


def test_the_next_transaction_on_the_same_connection_does_not_inherit_a_context(
    capture: Capture, engine: Engine
) -> None:
    with engine.connect() as connection:
        with audit_context(user="a"):
            connection.execute(insert(Patient).values(id=1, name="Ann"))
            connection.commit()
        connection.execute(insert(Patient).values(id=2, name="Bob"))
        connection.commit()
        with audit_context(user="a"):
            connection.execute(insert(Patient).values(id=3, name="Cid"))
            connection.commit()
    assert users(capture) == [("INSERT", "1", "a"), ("INSERT", "2", None), ("INSERT", "3", "a")]


async def test_a_write_of_an_async_session_carries_its_context(capture: Capture) -> None:
    engine = create_async_engine(capture.source.sqlalchemy_url())
    install(engine)
    async with AsyncSession(engine) as session, audit_context(user="a"):
        session.add(Patient(id=1, name="Ann"))
        await session.commit()
    await engine.dispose()
    assert users(capture) == [("INSERT", "1", "a")]


def test_a_bulk_core_update_carries_its_context_on_each_row(
    capture: Capture, engine: Engine
) -> None:
    capture.source.execute(
        "INSERT INTO patient (id, name, status) SELECT n, 'x', 'ACTIVE' FROM generate_series(1,3) n"
    )
    with Session(engine) as session, audit_context(user="a"):
        session.execute(update(Patient).values(name="y"))
        session.commit()
    assert users(capture)[3:] == [("UPDATE", "1", "a"), ("UPDATE", "2", "a"), ("UPDATE", "3", "a")]


def test_a_row_written_by_a_trigger_carries_the_context_of_its_cause(
    capture: Capture, engine: Engine
) -> None:
    capture.source.execute(
        """CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO patient (id, name, status) VALUES (NEW.id + 100, 'echo', 'ACTIVE');
            RETURN NULL; END $$;
        CREATE TRIGGER echo AFTER INSERT ON patient FOR EACH ROW
            WHEN (NEW.id < 100) EXECUTE FUNCTION echo()"""
    )
    with Session(engine) as session, audit_context(user="a"):
        session.add(Patient(id=1, name="Ann"))
        session.commit()
    assert users(capture) == [("INSERT", "1", "a"), ("INSERT", "101", "a")]


def test_a_copy_after_emit_context_carries_the_context_on_each_row(
    capture: Capture, engine: Engine
) -> None:
    with engine.begin() as connection, audit_context(user="a"):
        emit_context(connection)
        driver = connection.connection.dbapi_connection
        with driver.cursor().copy("COPY patient (id, name, status) FROM STDIN") as copy:
            for number in range(1, 4):
                copy.write_row((number, "x", "ACTIVE"))
    assert users(capture) == [("INSERT", "1", "a"), ("INSERT", "2", "a"), ("INSERT", "3", "a")]


def test_a_context_in_any_script_arrives_unharmed(capture: Capture, engine: Engine) -> None:
    hostile = "*/; DROP TABLE patient; -- %s %(x)s ' \" \\ \\u0041 日本語 🩺"
    with Session(engine) as session, audit_context(user="a", reason=hostile):
        session.add(Patient(id=1, name=hostile))
        session.commit()
    (row,) = capture.changes()
    assert row.context["reason"] == hostile
    assert row.after["name"] == hostile


def test_a_context_that_is_no_json_object_is_kept_and_marked(capture: Capture, psql) -> None:
    with psql.transaction():
        psql.execute("SELECT pg_logical_emit_message(true, 'pgaudit_ctx', 'not json')")
        psql.execute("INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')")
    (row,) = capture.changes()
    assert row.context == {"$pgaudit_ctx": "invalid", "text": "not json"}


def test_messages_with_other_prefixes_change_nothing(capture: Capture, psql) -> None:
    with psql.transaction():
        psql.execute("SELECT pg_logical_emit_message(true, 'pgaudit_ctx', '{\"user\": \"a\"}')")
        psql.execute("SELECT pg_logical_emit_message(true, 'other', '{\"user\": \"b\"}')")
        psql.execute("SELECT pg_logical_emit_message(false, 'pgaudit_ctx', '{\"user\": \"c\"}')")
        psql.execute("INSERT INTO patient (id, name, status) VALUES (1, 'Ann', 'ACTIVE')")
    assert users(capture) == [("INSERT", "1", "a")]
