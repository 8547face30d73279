"""Fixtures of the acceptance tests: databases that nothing was done to yet."""

from collections.abc import Iterator

import pytest

from support.database import Capture, create_database, drop_database
from support.server import Server


@pytest.fixture
def bare(server: Server, source_template: str) -> Iterator[Capture]:
    """The clinic's tables as a source, and an empty destination; no setup was run."""
    made = Capture(create_database(server, source_template), create_database(server))
    yield made
    drop_database(made.source)
    drop_database(made.destination)


@pytest.fixture
def ready(bare: Capture) -> Capture:
    """The same after what ``pgaudit-ctx setup`` does; that the command does it is tested once."""
    bare.setup()
    return bare
