"""The pytest plugin: a real server for the run, and assertions on what tests have committed.

pytest loads it in every run in whose environment this package is installed, so nothing is
imported here that a run without our fixtures could do without.
"""

import functools
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pgaudit_ctx.errors import AuditError, MissingExtra

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from pgaudit_ctx.testbed.database import AuditDatabase
    from pgaudit_ctx.testbed.run import Run
    from pgaudit_ctx.testing import AuditTrail, EmittedContexts

_RUN: "pytest.StashKey[Run]" = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--audit-postgres``."""
    parser.getgroup("pgaudit-ctx").addoption(
        "--audit-postgres",
        metavar="SERVER",
        default="auto",
        help="where the fixtures of pgaudit-ctx get their PostgreSQL server from: testcontainers, "
        "embedded (the wheel's), system (this machine's), the URL of one that runs, or auto (the "
        "default): PGAUDIT_CTX_TEST_URL, else testcontainers if a Docker engine answers, else "
        "embedded",
    )


@pytest.fixture(scope="session")
def audit_url(request: pytest.FixtureRequest) -> str:
    """The URL of the database that is audited, in SQLAlchemy's form.

    Override it to use a database of yours, with ``scope="session"``.
    """
    with _told():
        run = _run(request.config)
        return run.own_url()


@pytest.fixture(scope="session")
def audit_metadata() -> "MetaData | Iterable[MetaData] | None":
    """The tables to create; override it to return your ``Base.metadata``, or several."""
    return None


@pytest.fixture(scope="session")
def audit_database(
    request: pytest.FixtureRequest, audit_url: str, audit_metadata: Any
) -> "Iterator[AuditDatabase]":
    """The database with its tables, captured."""
    run = _run(request.config)
    with _told():
        database = run.watch(audit_url)
        database.create_tables(audit_metadata)
    yield database
    run.unwatch()


@pytest.fixture(scope="session")
def audit_engine(audit_database: "AuditDatabase") -> "Iterator[Engine]":
    """An engine with the hook."""
    from sqlalchemy import create_engine  # heavy, and only needed where this fixture is

    from pgaudit_ctx import install, uninstall  # likewise

    engine = create_engine(audit_database.sync_url())
    install(engine)
    yield engine
    uninstall(engine)
    engine.dispose()


@pytest.fixture
def audit_session(audit_engine: "Engine") -> "Iterator[Session]":
    """A session on that engine, rolled back and closed after the test."""
    from sqlalchemy.orm import Session  # heavy, and only needed where this fixture is

    with Session(audit_engine) as session:
        yield session


@pytest.fixture(scope="session")
def async_audit_engine(audit_database: "AuditDatabase") -> "Iterator[AsyncEngine]":
    """An asynchronous engine with the hook, which keeps no connection from test to test."""
    from pgaudit_ctx import install, uninstall  # heavy, and only needed where this fixture is

    with _told():
        engine = audit_database.async_engine()
    install(engine)
    yield engine
    uninstall(engine)


@pytest.fixture
def async_audit_session(async_audit_engine: "AsyncEngine") -> "Iterator[AsyncSession]":
    """A session on that engine, closed after the test, whichever plugin runs it."""
    from pgaudit_ctx.testbed.async_session import session_for_a_test  # needs greenlet

    with session_for_a_test(async_audit_engine) as session:
        yield session


@pytest.fixture
def audit_trail(audit_database: "AuditDatabase") -> "AuditTrail":
    """What is committed from here on, and assertions on it."""
    from pgaudit_ctx.testing import AuditTrail  # heavy, and only needed where this fixture is

    with _told():
        return AuditTrail(audit_database)


@pytest.fixture
def emitted_contexts() -> "Iterator[EmittedContexts]":
    """The context of each write that is executed from here on, committed or not."""
    from pgaudit_ctx import testing  # heavy, and only needed where this fixture is

    with testing.emitted_contexts() as recorded:
        yield recorded


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the slot of a process of pytest-xdist; its tests begin when all have collected."""
    if hasattr(session.config, "workerinput") and any(
        "audit_database" in getattr(item, "fixturenames", ()) for item in session.items
    ):
        _run(session.config).prepare()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: "pytest.FixtureDef[Any]", request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Keep the rows that a fixture of a whole module or session writes, as long as it lives."""
    database = _database(request.config)
    if database is None or fixturedef.scope == "function":
        return (yield)
    with database.keeping() as kept:
        result = yield
    if kept:
        fixturedef.addfinalizer(functools.partial(database.release, kept))
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Empty the tables that the test has written, after all of its fixtures are gone."""
    yield
    database = _database(item.config)
    if database is not None:
        with _told():
            database.empty()


def _run(config: pytest.Config) -> "Run":
    run = config.stash.get(_RUN, None)
    if run is None:
        try:
            from pgaudit_ctx.testbed.run import Run  # heavy, and only needed by our fixtures
        except ImportError as error:
            missing = MissingExtra("pytest", "a fixture of pgaudit-ctx", error.name or "psycopg")
            raise pytest.fail.Exception(str(missing), pytrace=False) from None
        run = config.stash[_RUN] = Run(config.getoption("--audit-postgres"))
        config.add_cleanup(run.close)
    return run


def _database(config: pytest.Config) -> "AuditDatabase | None":
    run = config.stash.get(_RUN, None)
    return None if run is None else run.database


@contextmanager
def _told() -> Iterator[None]:
    """Show what went wrong with server or database without a traceback of ours."""
    try:
        yield
    except AuditError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
