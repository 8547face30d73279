"""The pytest plugin, in suites of its own that are run against this run's server."""

from textwrap import dedent

import psycopg
import pytest

from pgaudit_ctx.testbed.server import docker_answers
from support.server import Server

CONFTEST = """
import pytest
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

class Visit(Base):
    __tablename__ = "visits"
    __table_args__ = {"schema": "clinic"}
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey(Patient.id))

@pytest.fixture(scope="session")
def audit_metadata():
    return Base.metadata
"""
HEAD = """
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from conftest import Base, Patient, Visit
from pgaudit_ctx import audit_context

def write(session, *objects, **context):
    with audit_context(**context):
        session.add_all(objects)
        session.commit()
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, server: Server):
    """A suite that uses the fixtures: ``run(source)`` gives its result."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error"
    )

    def run(source: str, *options: str, conftest: str = "", subprocess: bool = False):
        if conftest:
            path = pytester.path / "conftest.py"
            path.write_text(f"{path.read_text()}\n{dedent(conftest)}")
        pytester.makepyfile(f"{HEAD}\n{dedent(source)}")
        arguments = (f"--audit-postgres={server.url('postgres')}", "-p", "no:randomly", *options)
        if subprocess:
            return pytester.runpytest_subprocess(*arguments)
        return pytester.runpytest_inprocess(*arguments)

    return run


def test_a_test_sees_what_it_has_committed_with_its_context(suite) -> None:
    result = suite(
        """
        def test_it(audit_session, audit_trail):
            write(audit_session, Patient(id=42, name="Ann"), user="r.tyler")
            audit_session.get_one(Patient, 42).name = "Anna"
            write(audit_session, user="dr.who", reason="typo")
            version = audit_trail.assert_changed(
                Patient, 42, operation="UPDATE", changed={"name": ("Ann", "Anna")},
                context={"user": "dr.who"},
            )
            assert version.context == {"user": "dr.who", "reason": "typo"}
            assert [v.operation for v in audit_trail.changes(Patient)] == ["INSERT", "UPDATE"]
            (same,) = audit_trail.changes(Patient, 42, operation="update")
            assert (same.diff, same.number) == (version.diff, 2)
            assert [v.user for v in audit_trail.history(Patient, 42)] == ["r.tyler", "dr.who"]
            assert audit_trail.changes(Patient, 43) == []
            audit_trail.assert_changed(Patient, changed={"name": (None, "Ann")})
            audit_trail.assert_unchanged(Visit)
            audit_trail.assert_unchanged(Patient, 43)
            audit_trail.assert_context_everywhere("user")
            audit_trail.clear()
            audit_trail.assert_unchanged()
        """
    )
    result.assert_outcomes(passed=1)


def test_raw_sql_of_others_truncate_and_tables_without_a_model_are_seen_too(suite) -> None:
    result = suite(
        """
        def test_it(audit_engine, audit_url, audit_trail):
            stranger = create_engine(audit_url)
            with stranger.begin() as connection:
                connection.execute(text("CREATE TABLE keyless (n int)"))
            audit_trail.clear()
            with stranger.begin() as connection:
                connection.execute(text("INSERT INTO keyless VALUES (1), (2)"))
                connection.execute(text("INSERT INTO patients VALUES (1, 'Eve')"))
                connection.execute(text("UPDATE patients SET name = 'Eva'"))
                connection.execute(text("UPDATE patients SET id = 2"))
                connection.execute(text("TRUNCATE patients CASCADE"))
            stranger.dispose()
            assert [(v.operation, v.row.table_name, v.diff) for v in audit_trail.changes()] == [
                ("INSERT", "keyless", {"n": (None, 1)}),
                ("INSERT", "keyless", {"n": (None, 2)}),
                ("INSERT", "patients", {"id": (None, 1), "name": (None, "Eve")}),
                ("UPDATE", "patients", {"name": ("Eve", "Eva")}),
                ("UPDATE", "patients", {"id": (1, 2)}),
                ("TRUNCATE", "patients", {}),
                ("TRUNCATE", "visits", {}),
            ]
            assert [v.operation for v in audit_trail.history(Patient, 1)] == [
                "INSERT", "UPDATE", "UPDATE"
            ]
            audit_trail.assert_changed("keyless", operation="INSERT", changed={"n": (None, 2)})
            with pytest.raises(AssertionError, match="every change was expected with a context"):
                audit_trail.assert_context_everywhere()
        """
    )
    result.assert_outcomes(passed=1)


def test_each_test_finds_empty_tables_and_its_own_changes_only(suite) -> None:
    result = suite(
        """
        @pytest.fixture
        def ann(audit_session):
            patient = Patient(name="Ann")
            write(audit_session, patient, Visit(id=7, patient_id=1))
            return patient

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(ann, audit_session, audit_trail, number):
            assert ann.id == 1
            audit_trail.assert_unchanged()
            audit_session.delete(audit_session.get_one(Visit, 7))
            write(audit_session, user="a")
            assert len(audit_trail.changes()) == 1
        """
    )
    result.assert_outcomes(passed=2)


def test_rows_of_a_fixture_of_a_wider_scope_stay_as_long_as_the_fixture(suite) -> None:
    result = suite(
        """
        @pytest.fixture(scope="session")
        def ann(audit_engine):
            with Session(audit_engine) as session:
                write(session, Patient(id=1, name="Ann"))

        class TestBoth:
            @pytest.fixture(scope="class")
            @classmethod
            def visit(cls, ann, audit_engine):
                with Session(audit_engine) as session:
                    write(session, Visit(id=1, patient_id=1))

            @pytest.mark.parametrize("number", [1, 2])
            def test_both_are_there(self, visit, audit_session, number):
                assert audit_session.get(Patient, 1)
                assert audit_session.get(Visit, 1)

        def test_only_the_sessions_is_left(ann, audit_session):
            assert audit_session.get(Patient, 1)
            assert audit_session.get(Visit, 1) is None
        """
    )
    result.assert_outcomes(passed=3)


def test_a_failure_shows_the_nearest_changes_and_the_difference(suite) -> None:
    result = suite(
        """
        def test_it(audit_session, audit_trail):
            write(audit_session, Patient(id=42, name="Ann"))
            audit_session.get_one(Patient, 42).name = "Anne"
            write(audit_session, user="r.tyler", reason="typo")
            wanted = {"user": "dr.who", "ticket": 7}
            changed = {"name": ("Ann", "Anna")}
            audit_trail.assert_changed(
                Patient, 42, operation="UPDATE", changed=changed, context=wanted)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*audit_trail.assert_changed(",
            "*Patient, 42, operation=*",
            "E *AssertionError: no change of Patient 42 is as expected",
            "E *expected:",
            "E *UPDATE",
            "E *name: 'Ann' → 'Anna'",
            "E *context user='dr.who', ticket=7",
            "E *2 committed; the nearest, and what differs:",
            "E *UPDATE Patient 42, transaction *",
            "E *name: 'Ann' → 'Anne'",
            "E *context user='r.tyler', reason='typo'",
            "E *- expected name: 'Ann' → 'Anna', not 'Ann' → 'Anne'",
            "E *- expected context user='dr.who', not 'r.tyler'",
            "E *- expected context ticket=7, but the context has no ticket",
            "E *INSERT Patient 42, transaction *",
            "E *id: None → 42",
            "E *name: None → 'Ann'",
            "E *no context",
            "E *- expected operation UPDATE, not INSERT",
        ],
        consecutive=True,
    )
    result.stdout.no_fnmatch_line("*testing.py*")


def test_a_failure_says_what_else_there_was(suite) -> None:
    result = suite(
        """
        def test_other_record(audit_session, audit_trail):
            write(audit_session, Patient(id=43, name="Eve"))
            audit_trail.assert_changed(Patient, 42)

        def test_other_table(audit_session, audit_trail):
            write(audit_session, Patient(id=43, name="Eve"))
            audit_trail.assert_changed(Visit)

        def test_not_committed(audit_session, audit_trail):
            audit_session.add(Patient(id=42, name="Ann"))
            audit_session.flush()
            audit_trail.assert_changed(Patient, 42)

        def test_unchanged(audit_session, audit_trail):
            write(audit_session, Patient(id=42, name="Ann"), user="a")
            audit_trail.assert_unchanged(Patient, 42)

        def test_context(audit_session, audit_trail):
            write(audit_session, Patient(id=42, name="Ann"), user="a")
            audit_trail.assert_context_everywhere("user", "reason")

        def test_attribute(audit_session, audit_trail):
            audit_trail.assert_changed(Patient, 42, changed={"nmae": ("a", "b")})

        def test_operation(audit_session, audit_trail):
            audit_trail.assert_changed(Patient, 42, operation="UPSERT")
        """
    )
    result.assert_outcomes(failed=7)
    result.stdout.fnmatch_lines(
        [
            "E *nothing of Patient 42 was committed. Others of Patient:",
            "E *INSERT Patient 43, transaction *",
            "E *nothing of Visit was committed, but of other tables:",
            "E *INSERT public.patients 43, transaction *",
            "E *nothing at all was committed",
            "E *still open after writing: process * idle in transaction). A change is there once*",
            "E *no change of Patient 42 was expected, but there is 1 change:",
            "E *every change was expected with user, reason, but there is 1 change without:",
            "E *UsageError: Patient has no attribute nmae: it has id, name",
            "E *UsageError: operation='UPSERT': it is one of INSERT, UPDATE, *",
        ]
    )


def test_a_table_made_later_is_an_error_until_the_trail_begins_anew(suite) -> None:
    result = suite(
        """
        from pgaudit_ctx import NotCaptured

        def test_it(audit_session, audit_trail):
            audit_session.execute(text("CREATE TABLE late (id int PRIMARY KEY)"))
            audit_session.commit()
            with pytest.raises(NotCaptured, match="was made after this trail began"):
                audit_trail.assert_unchanged("late")
            audit_trail.clear()
            audit_session.execute(text("INSERT INTO late VALUES (1)"))
            audit_session.commit()
            audit_trail.assert_changed("late", 1)
        """
    )
    result.assert_outcomes(passed=1)


def test_a_transaction_left_open_that_keeps_rows_locked_is_told_after_its_test(suite) -> None:
    result = suite(
        """
        left = []

        def test_it(audit_engine, audit_session):
            write(audit_session, Patient(id=1, name="Ann"))
            left.append(Session(audit_engine))
            left[0].get_one(Patient, 1).name = "Anna"
            left[0].flush()

        def test_next(audit_session):
            left[0].close()
        """
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*cannot be emptied for the next one: process * keeps rows locked. Remedy: *"]
    )


def test_contexts_are_recorded_of_writes_that_are_rolled_back(suite) -> None:
    result = suite(
        """
        @pytest.fixture
        def session(audit_engine):
            with audit_engine.connect() as connection, connection.begin() as outer:
                with Session(connection, join_transaction_mode="create_savepoint") as session:
                    yield session
                outer.rollback()

        def test_it(session, emitted_contexts, audit_trail):
            write(session, Patient(id=1, name="Ann"), user="dr.who", reason="new")
            write(session, Patient(id=2, name="Eve"), user="dr.who", reason="new")
            session.get(Patient, 1)
            session.connection().connection.driver_connection.execute(
                "DELETE FROM patients WHERE id = 2"
            )
            audit_trail.assert_unchanged()
            first, second, third = emitted_contexts
            assert first.context == second.context == {"user": "dr.who", "reason": "new"}
            assert first.statement.startswith("INSERT INTO patients")
            assert third == (None, None)
            assert emitted_contexts.assert_emitted({"user": "dr.who"}) == second
            with pytest.raises(AssertionError) as raised:
                emitted_contexts.assert_emitted({"user": "r.tyler"})
            assert "expected context user='r.tyler', not 'dr.who'" in str(raised.value)
            with pytest.raises(AssertionError, match="there is 1 write without"):
                emitted_contexts.assert_context_everywhere()
            emitted_contexts.clear()
            with pytest.raises(AssertionError, match="no write was executed on an engine that"):
                emitted_contexts.assert_emitted({"user": "dr.who"})
        """
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_asynchronous_session_is_closed_in_its_loop_whoever_runs_that(suite, driver) -> None:
    result = suite(
        """
        import asyncio, gc

        async def write_and_read(session):
            with audit_context(user="a"):
                session.add(Patient(name="Ann"))
                await session.commit()
            assert await session.get(Patient, 99) is None

        @pytest.mark.asyncio
        async def test_pytest_asyncio(async_audit_session, audit_trail):
            await write_and_read(async_audit_session)
            audit_trail.assert_context_everywhere("user")

        @pytest.mark.asyncio(loop_scope="session")
        async def test_a_loop_of_the_session(async_audit_session):
            await write_and_read(async_audit_session)

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_anyio(async_audit_session):
            await write_and_read(async_audit_session)

        def test_no_plugin(async_audit_session):
            asyncio.run(write_and_read(async_audit_session))
            asyncio.run(write_and_read(async_audit_session))

        def test_nothing_is_left_open():
            gc.collect()  # a connection left open would warn, and a warning is an error
        """,
        conftest=f"""
        @pytest.fixture(scope="session")
        def async_audit_engine(async_audit_engine, audit_database):
            from sqlalchemy.ext.asyncio import create_async_engine
            from sqlalchemy.pool import NullPool
            from pgaudit_ctx import install
            url = audit_database.async_url().replace("+psycopg", "+{driver}")
            engine = create_async_engine(url, poolclass=NullPool)
            install(engine)
            return engine
        """,
    )
    result.assert_outcomes(passed=5)


def test_a_database_of_ones_own_is_captured_and_left_as_it_was(suite, source) -> None:
    result = suite(
        """
        def test_it(audit_session, audit_trail):
            insert = "INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')"
            audit_session.execute(text(insert))
            audit_session.commit()
            audit_trail.assert_changed("patient", 1, operation="INSERT")
        """,
        conftest=f"""
        @pytest.fixture(scope="session")
        def audit_url():
            return {source.url!r}

        @pytest.fixture(scope="session")
        def audit_metadata():
            return None
        """,
    )
    result.assert_outcomes(passed=1)
    assert source.execute("SELECT name FROM patient") == [("x",)]
    assert source.execute("SELECT FROM pg_publication") == []
    slots = "SELECT FROM pg_replication_slots WHERE database = current_database()"
    assert source.execute(slots) == []


def test_a_process_of_xdist_makes_its_slot_before_any_test_begins(suite, server) -> None:
    # To make a slot waits for whatever writes on the server; here somebody does throughout.
    result = suite(
        """
        def test_it(audit_session, audit_trail):
            write(audit_session, Patient(id=1, name="Ann"), user="a")
            assert len(audit_trail.changes()) == 1
        """,
        "-p",
        "no:xdist",
        conftest=f"""
        import psycopg

        def pytest_configure(config):
            config.workerinput = {{}}

        @pytest.hookimpl(wrapper=True)
        def pytest_runtestloop(session):
            with psycopg.connect({server.url("postgres")!r}) as somebody:
                somebody.execute("SELECT pg_current_xact_id()")
                return (yield)
        """,
    )
    result.assert_outcomes(passed=1)


def test_nothing_is_left_on_the_server_that_was_named(suite, server) -> None:
    suite("def test_it(audit_session): pass").assert_outcomes(passed=1)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        found = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'pgaudit\\_ctx\\_test\\_%'"
            " UNION ALL SELECT slot_name FROM pg_replication_slots"
            " WHERE slot_name LIKE 'pgaudit\\_ctx\\_test\\_%'"
        ).fetchall()
    assert found == []


def test_a_server_that_does_not_answer_is_told_without_a_traceback(suite) -> None:
    result = suite(
        "def test_it(audit_trail): pass",
        "--audit-postgres=postgresql://nobody@127.0.0.1:1/none",
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*cannot connect to the source (host 127.0.0.1*Remedy: *"])
    result.stdout.no_fnmatch_line("*Traceback*")


ONE_TEST = """
def test_it(audit_session, audit_trail):
    write(audit_session, Patient(id=1, name="Ann"), user="a")
    audit_trail.assert_changed(Patient, 1, context={"user": "a"})
"""


def test_a_server_is_started_for_the_run(suite, pytestconfig) -> None:
    kind = pytestconfig.getoption("--postgres")
    suite(ONE_TEST, f"--audit-postgres={kind}").assert_outcomes(passed=1)


def test_what_is_not_asynchronous_needs_no_greenlet(suite) -> None:
    block = "import sys; sys.modules['greenlet'] = None"
    suite(ONE_TEST, conftest=block, subprocess=True).assert_outcomes(passed=1)


def test_a_container_is_started_for_the_run(suite, monkeypatch) -> None:
    if not docker_answers():
        pytest.skip("no Docker engine answers")
    # The plugin removes its container; Ryuk, for processes that are killed, is one more image.
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    result = suite(ONE_TEST, "--audit-postgres=testcontainers", subprocess=True)
    result.assert_outcomes(passed=1)


def test_a_run_without_the_fixtures_loads_neither_sqlalchemy_nor_a_driver(pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it(request):
            assert request.config.pluginmanager.has_plugin("pgaudit_ctx")
            heavy = {"sqlalchemy", "pydantic", "psycopg", "pgaudit_ctx.testing"}
            assert heavy.isdisjoint(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=1)
