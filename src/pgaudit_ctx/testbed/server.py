"""The PostgreSQL server of a test run: the wheel's, this machine's, a container's, or one given."""

import gc
import logging
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.errors import ConnectionFailed, MissingExtra, UsageError
from pgaudit_ctx.urls import libpq_url

log = logging.getLogger(__name__)

KINDS: Final = ("auto", "testcontainers", "embedded", "system")
URL_VARIABLE: Final = "PGAUDIT_CTX_TEST_URL"
IMAGE_VARIABLE: Final = "PGAUDIT_CTX_TEST_IMAGE"
_IMAGE: Final = "postgres:15"
_CONTAINER_SETTINGS: Final = {
    "wal_level": "logical",
    "max_replication_slots": "50",
    "max_wal_senders": "50",
    "fsync": "off",
}


class Server(Protocol):
    """A running server that databases can be created in."""

    def url(self, database: str) -> str:
        """Give the URL of one of its databases, in libpq's form."""


class RemoteServer:
    """A server that somebody else runs.

    Args:
        url: Of one of its databases, as a role that may create others.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(libpq_url(url))

    def url(self, database: str) -> str:
        """Give the URL of one of its databases, in libpq's form."""
        return urlunsplit(self._parts._replace(path=f"/{database}"))


def choose(wanted: str, environ: Mapping[str, str]) -> str:
    """Decide what ``auto`` stands for.

    Args:
        wanted: One of ``KINDS``, or a URL.
        environ: The environment.

    Returns:
        A URL, or one of ``KINDS`` other than ``auto``.

    Raises:
        UsageError: If ``wanted`` is neither of both.
    """
    if wanted != "auto":
        if wanted not in KINDS and "://" not in wanted:
            raise UsageError(
                f"--audit-postgres={wanted}: it takes {', '.join(KINDS)}, or the URL of a server "
                "(postgresql://user@host/database)"
            )
        return wanted
    return environ.get(URL_VARIABLE) or ("testcontainers" if docker_answers() else "embedded")


@contextmanager
def running_server(
    kind: str, settings: Mapping[str, str] | None = None, *, or_embedded: bool = False
) -> Iterator[Server]:
    """Start a server, and end it on leaving.

    Args:
        kind: What :func:`choose` gave.
        settings: Server settings over those it has anyway; without effect on a URL's.
        or_embedded: Take the wheel's server if a container cannot be started.

    Raises:
        MissingExtra: If the package it needs is not installed.
        DatabaseError: If it does not start.
    """
    with ExitStack() as stack:
        if "://" in kind:
            yield RemoteServer(kind)
            return
        server: Server
        try:
            if kind == "testcontainers":
                server = stack.enter_context(_container(settings or {}))
            else:
                server = _own_server(stack, kind, settings)
        except (ConnectionFailed, MissingExtra) as error:
            if not or_embedded or kind != "testcontainers":
                raise
            log.warning("%s. The embedded server is used instead", error)
            server = _own_server(stack, "embedded", settings)
        yield server


def _own_server(
    stack: ExitStack, kind: str, settings: Mapping[str, str] | None
) -> EmbeddedPostgres:
    binaries = system_binaries() if kind == "system" else None
    return stack.enter_context(EmbeddedPostgres(binaries, settings, in_memory=True))


def system_binaries() -> Path:
    """Find the machine's own PostgreSQL: the newest of Debian's, else what pg_config names.

    Raises:
        UsageError: If there is none.
    """
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdecimal() else 0,
    )
    if installed:
        return installed[-1].parent
    try:
        found = subprocess.run(
            ["pg_config", "--bindir"],  # noqa: S607 - whichever this machine's PATH has
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        raise UsageError(
            "no PostgreSQL server is installed on this machine: neither /usr/lib/postgresql nor "
            "pg_config has one. Remedy: install it, or use --audit-postgres=embedded"
        ) from None
    return Path(found.stdout.strip())


def docker_answers() -> bool:
    """Say whether testcontainers is installed and finds a Docker engine that answers."""
    try:
        from testcontainers.core.docker_client import DockerClient  # an optional package
    except ImportError:
        return False
    try:
        with closing(DockerClient().client) as engine:
            return bool(engine.ping())
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it does not answer
        log.debug("no Docker engine answers: %s", type(error).__name__)
    # The client leaves the socket that it failed with to the garbage collector. Later that would
    # warn in some test that has nothing to do with it, and fail it where warnings are errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return False


@contextmanager
def _container(settings: Mapping[str, str]) -> Iterator[Server]:
    container_class = _container_class()
    image = os.environ.get(IMAGE_VARIABLE, _IMAGE)
    options = " ".join(
        f"-c {name}={value}" for name, value in {**_CONTAINER_SETTINGS, **settings}.items()
    )
    with ExitStack() as stack:
        try:
            container = container_class(image, username="postgres", dbname="postgres")
            container.with_command(f"postgres {options}")
            container.with_env("LANG", "C.UTF-8")  # what initdb takes the encoding from
            stack.enter_context(container)
        except Exception as error:  # noqa: BLE001 - the errors of Docker, of its client and of testcontainers
            raise ConnectionFailed(
                f"no container of the image {image} could be started: "
                f"{' '.join(str(error).split())[:300]}. Remedy: start Docker, name another image "
                f"in {IMAGE_VARIABLE}, or use --audit-postgres=embedded"
            ) from None
        yield RemoteServer(container.get_connection_url(driver=None))


def _container_class() -> Any:
    try:
        try:
            from testcontainers.community.postgres import PostgresContainer  # an optional package
        except ImportError:  # before 4.15
            from testcontainers.postgres import PostgresContainer
    except ImportError:
        raise MissingExtra("testcontainers", "a server in a container", "testcontainers") from None
    return PostgresContainer
