"""Fixtures of the integration tests beside the common ones."""

from collections.abc import Iterator

import pytest

from support.database import Capture, Database, create_database, drop_database
from support.messages import Messages
from support.server import Server


@pytest.fixture
def blank(empty_database: Database, destination: Database) -> Capture:
    """A source without tables; a test makes its own, then calls ``setup()``."""
    return Capture(empty_database, destination)


@pytest.fixture
def messages(source: Database) -> Messages:
    """What is written into the source's log from now on."""
    return Messages(source)


@pytest.fixture(scope="module")
def handmade(server: Server, destination_template: str) -> Iterator[Database]:
    """A destination for a trail written by hand, which the tests of a module only read."""
    database = create_database(server, destination_template)
    yield database
    drop_database(database)


@pytest.fixture(scope="module")
def module_capture(server: Server, handmade: Database) -> Iterator[Capture]:
    """An empty source and a destination for a whole module, which calls ``setup()`` once."""
    database = create_database(server)
    yield Capture(database, handmade)
    drop_database(database)
