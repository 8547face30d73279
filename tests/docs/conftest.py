"""The databases that documents are played on."""

from collections.abc import Iterator

import pytest

from pgaudit_ctx.cli import clinic
from support.database import Capture, create_database, drop_database
from support.redis_server import running_redis
from support.server import Server


@pytest.fixture
def broker() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def blank(server: Server) -> Iterator[Capture]:
    """A source without tables and its destination, set up."""
    made = Capture(create_database(server), create_database(server))
    made.setup()
    yield made
    drop_database(made.source)
    drop_database(made.destination)


@pytest.fixture
def kept_demo(server: Server) -> Iterator[Capture]:
    """What ``pgaudit-ctx demo --keep`` leaves behind: the clinic's tables, captured."""
    made = Capture(create_database(server), create_database(server))
    made.options = made.options._replace(name="clinic")
    clinic.create_schema(made.source.sqlalchemy_url())
    made.setup()
    yield made
    drop_database(made.source)
    drop_database(made.destination)
