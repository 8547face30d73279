"""The PostgreSQL servers that tests run against, chosen by ``--postgres`` or ``--postgres-url``."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres

KINDS = ("embedded", "system", "testcontainers")


class Server(Protocol):
    """A running server that a test may create databases in."""

    def url(self, database: str) -> str: ...


class RemoteServer:
    """A server that somebody else runs; its URL must be a superuser's."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)

    def url(self, database: str) -> str:
        return urlunsplit(self._parts._replace(path=f"/{database}"))


def system_binaries() -> Path:
    """The machine's own PostgreSQL: the newest of Debian's, else what pg_config names."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if installed:
        return installed[-1].parent
    found = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


@contextmanager
def running_server(config: pytest.Config) -> Iterator[Server]:
    url = config.getoption("--postgres-url")
    kind = config.getoption("--postgres")
    if url:
        yield RemoteServer(url)
    elif kind == "testcontainers":
        with _container() as server:
            yield server
    else:
        binaries = system_binaries() if kind == "system" else None
        settings = {"max_prepared_transactions": "10"}
        with EmbeddedPostgres(binaries, settings, in_memory=True) as server:
            yield server


def server_of_its_own(server: Server, settings: Mapping[str, str]) -> EmbeddedPostgres:
    """A second server with other settings, of the same binaries where these are known."""
    binaries = server.binaries if isinstance(server, EmbeddedPostgres) else None
    return EmbeddedPostgres(binaries, settings, in_memory=True)


@contextmanager
def _container() -> Iterator[Server]:
    try:
        from testcontainers.community.postgres import PostgresContainer
    except ImportError:  # before 4.15
        from testcontainers.postgres import PostgresContainer

    image = os.environ.get("PGAUDIT_CTX_TEST_IMAGE", "postgres:15")
    container = PostgresContainer(image, username="postgres", dbname="postgres").with_command(
        "postgres -c wal_level=logical -c max_replication_slots=50 -c max_wal_senders=50"
        " -c max_prepared_transactions=10 -c fsync=off"
    )
    container.with_env("LANG", "C.UTF-8")  # what initdb takes the encoding from
    with container:
        yield RemoteServer(container.get_connection_url(driver=None))
