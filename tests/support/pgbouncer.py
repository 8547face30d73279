"""PgBouncer in front of a test's source: many clients share one connection to the server."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgaudit_ctx.embedded import _unprivileged_user
from support.waiting import eventually

# What each driver needs where the next transaction may run on another connection to the server.
WITHOUT_PREPARED_STATEMENTS: dict[str, dict[str, Any]] = {
    "psycopg": {"prepare_threshold": None},
    "psycopg2": {},
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
    },
}


def pgbouncer_binary() -> Path:
    """Find the program, or skip the test."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        pytest.skip("no pgbouncer on this machine, neither in PATH nor in /usr/sbin")
    return Path(found)


@contextmanager
def running_pgbouncer(target: str) -> Iterator[str]:
    """Start one with a single connection to the server, in transaction mode.

    Gives the URL that clients use in place of ``target``, a URL of the server.
    """
    binary = pgbouncer_binary()
    to_server = {name: str(value) for name, value in conninfo_to_dict(target).items() if value}
    directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    try:
        (directory / "pgbouncer.ini").write_text(_configuration(directory, to_server))
        with _process(binary, directory):
            yield f"postgresql://client@/{to_server['dbname']}?host={directory}"
    finally:
        shutil.rmtree(directory)


def _configuration(directory: Path, to_server: dict[str, str]) -> str:
    connection = " ".join(
        "{}='{}'".format(name, value.replace("'", "''"))
        for name, value in to_server.items()
        if name in {"host", "port", "dbname", "user", "password"}
    )
    return f"""
[databases]
{to_server["dbname"]} = {connection}

[pgbouncer]
unix_socket_dir = {directory}
listen_addr =
listen_port = 5432
auth_type = any
pool_mode = transaction
default_pool_size = 1
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def _process(binary: Path, directory: Path) -> Iterator[None]:
    privileges: dict[str, Any] = {}
    user = _unprivileged_user()  # like PostgreSQL, it does not run as root
    if user is not None:
        for path in (directory, directory / "pgbouncer.ini"):
            os.chown(path, user.pw_uid, user.pw_gid)
        privileges = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    log = directory / "pgbouncer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(binary), str(directory / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            start_new_session=True,
            **privileges,
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-800:]
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(directory / ".s.PGSQL.5432")) == 0

    try:
        eventually(answers, "pgbouncer accepts connections")
        yield
    finally:
        process.kill()  # it keeps nothing; and newer ones wait for their clients when asked to end
        process.wait()
