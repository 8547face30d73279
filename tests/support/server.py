"""The PostgreSQL servers that tests run against, chosen by ``--postgres`` or ``--postgres-url``."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.testbed import server as testbed
from pgaudit_ctx.testbed.server import Server

KINDS = ("embedded", "system", "testcontainers")


@contextmanager
def running_server(config: pytest.Config) -> Iterator[Server]:
    chosen = config.getoption("--postgres-url") or config.getoption("--postgres")
    with testbed.running_server(chosen, {"max_prepared_transactions": "10"}) as server:
        yield server


def server_of_its_own(server: Server, settings: Mapping[str, str]) -> EmbeddedPostgres:
    """A second server with other settings, of the same binaries where these are known."""
    binaries = server.binaries if isinstance(server, EmbeddedPostgres) else None
    return EmbeddedPostgres(binaries, settings, in_memory=True)
