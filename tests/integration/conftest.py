"""Fixtures of the integration tests beside the common ones."""

import pytest

from support.database import Capture, Database


@pytest.fixture
def blank(empty_database: Database, destination: Database) -> Capture:
    """A source without tables; a test makes its own, then calls ``setup()``."""
    return Capture(empty_database, destination)
