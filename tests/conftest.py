"""A real server for the run, and databases of its own for each test."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine

from pgaudit_ctx import install, uninstall
from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from support.clinic import Base
from support.database import Capture, Database, create_database, drop_database
from support.server import KINDS, Server, running_server

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pgaudit-ctx")
    group.addoption(
        "--postgres",
        choices=KINDS,
        default="embedded",
        help="where the server comes from: the embedded wheel, this machine, or a container",
    )
    group.addoption(
        "--faults",
        type=int,
        default=12,
        help="how many faults a round of tests/faults brings about",
    )
    group.addoption("--rounds", type=int, default=1, help="how many rounds, on new servers each")
    group.addoption(
        "--pause", type=float, default=0.03, help="seconds between two transactions of a writer"
    )
    group.addoption("--first-round", type=int, default=1, help="its number is the round's seed")
    group.addoption("--postgres-url", help="a superuser's URL of a server that runs already")


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[Server]:
    with running_server(pytestconfig) as running:
        yield running


@pytest.fixture(scope="session")
def source_template(server: Server) -> Iterator[str]:
    database = create_database(server)
    Base.metadata.create_all(database.engine())
    yield database.name
    drop_database(database)


@pytest.fixture(scope="session")
def destination_template(server: Server) -> Iterator[str]:
    database = create_database(server)
    with connect(database.url, "destination") as connection:
        schema.migrate(connection, "quarter")
    yield database.name
    drop_database(database)


@pytest.fixture
def source(server: Server, source_template: str) -> Iterator[Database]:
    database = create_database(server, source_template)
    yield database
    drop_database(database)


@pytest.fixture
def destination(server: Server, destination_template: str) -> Iterator[Database]:
    database = create_database(server, destination_template)
    yield database
    drop_database(database)


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    database = create_database(server)
    yield database
    drop_database(database)


@pytest.fixture
def capture(source: Database, destination: Database) -> Capture:
    """Source and destination, set up."""
    made = Capture(source, destination)
    made.setup()
    return made


@pytest.fixture
def engine(source: Database) -> Iterator[Engine]:
    """An application's engine on the source, with the hook."""
    made = source.engine()
    install(made)
    yield made
    uninstall(made)


@pytest.fixture
def psql(source: Database) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Somebody at the source who knows nothing of this package."""
    with psycopg.connect(source.url, autocommit=True) as connection:
        yield connection
