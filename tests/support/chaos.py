"""Kills, crashes and cut connections, chosen at random, while a worker captures."""

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from pgaudit_ctx.embedded import EmbeddedPostgres
from support.command import start, urls_of
from support.database import Capture
from support.waiting import eventually
from support.wire import Link

_CAPTURING = "capturing"


class Chaos:
    """A worker in a process of its own behind two links, and what befalls it.

    It is started again after each kill, as systemd would. Any other end of it is a failure of the
    test, but for a first start that found a server down.

    Args:
        capture: The two databases, each on a server of its own.
        seed: Of the choices.
        log: Where the worker's messages go.
    """

    def __init__(self, capture: Capture, seed: int, log: Path) -> None:
        self._random = random.Random(seed)
        self._capture = capture
        self._source = Link.before(capture.source.url)
        self._destination = Link.before(capture.destination.url)
        self._log = log
        self._begun_at = 0
        self._process = self._started()
        self.counts: Counter[str] = Counter()
        self._faults = [
            ("kill", 9, self._kill),
            ("kill at the start", 3, self._kill_at_the_start),
            ("crash of the source", 3, lambda: self._crash(capture.source.server)),
            ("crash of the destination", 3, lambda: self._crash(capture.destination.server)),
            ("cut to the source", 4, lambda: self._cut(self._source)),
            ("cut to the destination", 4, lambda: self._cut(self._destination)),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._source.close()
        self._destination.close()

    def befall(self, number: int) -> None:
        """Bring about so many faults, one after the other, with a little work in between."""
        names, weights, actions = zip(*self._faults, strict=True)
        for _ in range(number):
            time.sleep(self._random.random() * 0.4)  # the moment of the fault is part of the chance
            (chosen,) = self._random.choices(range(len(names)), weights)
            self._check()
            actions[chosen]()
            self.counts[names[chosen]] += 1
        self._check()

    def finish(self) -> None:
        """End the worker as an operator would."""
        self._await_start()
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0, self._said()

    def _started(self) -> subprocess.Popen[str]:
        urls = {
            **urls_of(self._capture),
            "PGAUDIT_CTX_SOURCE_URL": self._source.url(self._capture.source.url),
            "PGAUDIT_CTX_DESTINATION_URL": self._destination.url(self._capture.destination.url),
        }
        self._begun_at = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("a") as log:
            return start("worker", "--standby", env=urls, stderr=log)

    def _said(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._begun_at)
            return log.read().decode()

    def _ended_at_its_first_start(self) -> bool:
        return self._process.poll() is not None and _CAPTURING not in self._said()

    def _await_start(self) -> None:
        """Wait until the worker captures; from then on nothing of all this may end it."""

        def captures() -> bool:
            if self._ended_at_its_first_start():
                self._process.communicate()
                self._process = self._started()
            return _CAPTURING in self._said()

        eventually(captures, "the worker captures")

    def _check(self) -> None:
        if not self._ended_at_its_first_start():
            assert self._process.poll() is None, self._said()

    def _kill(self) -> None:
        self._await_start()
        self._end()

    def _kill_at_the_start(self) -> None:
        self._end()
        time.sleep(self._random.random() * 0.6)  # likewise
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._process = self._started()

    def _crash(self, server: EmbeddedPostgres) -> None:
        self._await_start()
        server.stop(signal.SIGQUIT)
        server.start()

    def _cut(self, link: Link) -> None:
        self._await_start()
        before = link.cuts
        link.cut_after(self._random.choice([1, 100, 10_000, 200_000]) + self._random.randrange(100))
        eventually(lambda: link.cuts > before, "so much has passed")
