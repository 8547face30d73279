"""The command line as its users run it: in a process of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from pgaudit_ctx.embedded import EmbeddedPostgres
from support.database import Capture
from support.server import Server

_SECONDS = 120


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of ours, and with these."""
    own = {name: v for name, v in os.environ.items() if not name.startswith(("PGAUDIT", "PG"))}
    return {**own, "NO_COLOR": "1", "COLUMNS": "200", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pgaudit_ctx", *arguments]


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def start(
    *arguments: str, env: Mapping[str, str], stderr: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start one command; the caller ends it."""
    return subprocess.Popen(
        command(*arguments),
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def urls_of(capture: Capture) -> dict[str, str]:
    """The environment that names a test's databases and its slot."""
    return {
        "PGAUDIT_CTX_SOURCE_URL": capture.source.url,
        "PGAUDIT_CTX_DESTINATION_URL": capture.destination.url,
        "PGAUDIT_CTX_SLOT": capture.options.slot,
    }


def binary(server: Server, name: str) -> Path:
    """One of PostgreSQL's own programs, of the server's version where that is known."""
    if isinstance(server, EmbeddedPostgres):
        return server.binaries / name
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return Path(found)


def run_binary(
    server: Server, name: str, *arguments: str, script: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's own programs, which must succeed."""
    done = subprocess.run(
        [str(binary(server, name)), *arguments],
        env=environment({}),
        input=script or "",
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def lines_of(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line.strip()]
