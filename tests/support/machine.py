"""A machine as the pages on upgrades and failovers have it: PostgreSQL where Debian puts it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from pgaudit_ctx.embedded import _unprivileged_user, reachable
from support.command import environment
from support.waiting import eventually

_END = "--- the command has ended ---"
_SETTINGS = """\
wal_level = logical
listen_addresses = ''
fsync = off
max_wal_senders = 10
max_replication_slots = 10
wal_receiver_status_interval = 1s
"""


class Machine:
    """A directory that stands for a machine's root, and a shell in it.

    The pages say ``/usr/lib/postgresql``, ``/var/lib/postgresql``, ``/etc/postgresql`` and
    ``/run/postgresql``; the shell is given the directories that stand for them.

    Args:
        binaries: PostgreSQL's programs by major version; ``PATH`` has the first one's.
    """

    def __init__(self, binaries: Mapping[int, Path]) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pgaudit-ctx-"))
        self._user = _unprivileged_user()
        for name in ("usr", "var", "var/archive", "etc", "run", "bin", "bin/copies"):
            (self.root / name).mkdir()
        (self.root / "etc" / "clinic.conf").write_text(
            f"{_SETTINGS}unix_socket_directories = '{self.root}/run'\n"
            "archive_mode = on\n"
            f"archive_command = 'cp %p {self.root}/var/archive/%f'\n"
            f"restore_command = 'cp {self.root}/var/archive/%f %p'\n"
        )
        self._own(self.root)
        self._own(self.root / "var")
        self._names = {
            page: str(self.root / place)
            for page, place in {
                "/usr/lib/postgresql": "usr",
                "/var/lib/postgresql": "var",
                "/etc/postgresql": "etc",
                "/run/postgresql": "run",
            }.items()
        }
        for version, found in binaries.items():
            self._install(found, self.root / "usr" / str(version) / "bin")
        self._shell: subprocess.Popen[str] | None = None
        first = self.root / "usr" / str(next(iter(binaries))) / "bin"
        ours = self.root / "bin"
        self._script(ours / "pgaudit-ctx", f'exec {sys.executable} -m pgaudit_ctx "$@"')
        self.environment = environment(
            {
                "COLUMNS": "100",
                "LC_ALL": "C.UTF-8",
                "PGAUDIT_CTX_LOG_LEVEL": "warning",
                "PGHOST": f"{self.root}/run",
                "PGUSER": "postgres",
            }
        )
        self.environment["PATH"] = f"{ours}:{first}:{os.environ['PATH']}"
        self.set_url("SOURCE", "clinic")
        self.set_url("DESTINATION", "audit")

    def url(self, database: str, port: int = 5432) -> str:
        """A URL of a database on this machine."""
        return f"postgresql://postgres@/{database}?host={self.root}/run&port={port}"

    def set_url(self, end: str, database: str, port: int = 5432) -> None:
        """Have the shell's environment name an end."""
        self.environment[f"PGAUDIT_CTX_{end}_URL"] = self.url(database, port)

    def run(self, command: str) -> str:
        """Run a command of a page in the shell; give what it printed, as the page would say it."""
        if self._shell is None:
            self._shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                env=self.environment,
                cwd=self.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        for name, place in self._names.items():
            command = command.replace(name, place)
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null\necho '{_END}'\n")
        self._shell.stdin.flush()
        printed = ""
        for line in self._shell.stdout:
            if line.rstrip().endswith(_END):
                break
            printed += f"{line.rstrip()}\n"
        else:
            raise AssertionError(f"the shell ended: {printed}")
        for name, place in self._names.items():
            printed = printed.replace(place, name)
        return printed

    def make_cluster(self, version: int, name: str, port: int = 5432) -> None:
        """Make a server with the settings of ``/etc/postgresql/clinic.conf``, and start it."""
        bin_, data = f"/usr/lib/postgresql/{version}/bin", f"/var/lib/postgresql/{name}"
        options = "-U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync"
        self.must(f"{bin_}/initdb {options} -D {data}")
        self.must(f"echo \"include '/etc/postgresql/clinic.conf'\" >> {data}/postgresql.conf")
        self.must(f"echo 'port = {port}' >> {data}/postgresql.conf")
        self.must(f"{bin_}/pg_ctl start -w -D {data} -l {data}.log")

    def must(self, command: str) -> str:
        """Run a command that must succeed."""
        printed = self.run(f"{command} || echo FAILED")
        assert not printed.rstrip().endswith("FAILED"), printed
        return printed

    def execute(self, statement: str, database: str = "clinic", port: int = 5432) -> None:
        """Run a statement as psql would."""
        with psycopg.connect(self.url(database, port), autocommit=True) as connection:
            connection.execute(statement)

    def close(self) -> None:
        """End everything that was started, and remove it."""
        if self._shell is not None:
            self._shell.communicate()
        for status in (self.root / "var").glob("**/postmaster.pid"):
            pid = int(status.read_text().splitlines()[0])
            os.kill(pid, signal.SIGQUIT)
            eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the server has ended")
        shutil.rmtree(self.root, ignore_errors=True)

    def _install(self, binaries: Path, place: Path) -> None:
        """Put programs where the page says they are; as root they run as somebody else."""
        binaries = reachable(binaries, self.root / "bin" / "copies", self._user)
        place.mkdir(parents=True)
        for program in binaries.iterdir():
            if self._user is None or program.name in {"psql", "pg_config"}:
                (place / program.name).symlink_to(program)
                continue
            ids = f"--reuid={self._user.pw_uid} --regid={self._user.pw_gid} --clear-groups"
            self._script(
                place / program.name,
                f'[ "$(id -u)" != 0 ] || set -- setpriv {ids} -- {program} "$@"\n'
                f'[ "$(id -u)" = 0 ] || set -- {program} "$@"\nexec "$@"',
            )

    def _script(self, path: Path, script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def _own(self, place: Path) -> None:
        place.chmod(0o755)
        if self._user is not None:
            for path in (place, *place.iterdir()):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)


@contextmanager
def running_machine(binaries: Mapping[int, Path]) -> Iterator[Machine]:
    machine = Machine(binaries)
    try:
        yield machine
    finally:
        machine.close()
