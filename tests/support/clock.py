"""A server whose clock a test sets, with Debian's libfaketime."""

import os
from pathlib import Path
from typing import Any

import pytest

from pgaudit_ctx.embedded import EmbeddedPostgres

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class ServerWithClock(EmbeddedPostgres):
    """A server that takes its time from a file, once it has been started anew."""

    def __init__(self, binaries: Path | None) -> None:
        if not _LIBRARIES:
            pytest.skip("no libfaketime (apt-get install libfaketime)")
        self._offset: str | None = None
        super().__init__(binaries, {}, in_memory=True)

    def set_clock(self, offset: str) -> None:
        """Stop the server and start it with another time.

        Args:
            offset: From the real time, as libfaketime takes it: ``-1h``.
        """
        self.stop()
        self._offset = offset
        self.start()

    def _privileges(self) -> dict[str, Any]:
        privileges = super()._privileges()
        if self._offset is None:
            return privileges
        environment = {
            **privileges.get("env", os.environ),
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME": self._offset,
            # Waiting goes by this one.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return {**privileges, "env": environment}
