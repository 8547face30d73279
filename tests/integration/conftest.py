"""Fixtures of the integration tests beside the common ones."""

import pytest

from support.database import Capture, Database
from support.messages import Messages


@pytest.fixture
def blank(empty_database: Database, destination: Database) -> Capture:
    """A source without tables; a test makes its own, then calls ``setup()``."""
    return Capture(empty_database, destination)


@pytest.fixture
def messages(source: Database) -> Messages:
    """What is written into the source's log from now on."""
    return Messages(source)
