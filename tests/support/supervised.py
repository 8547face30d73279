"""A supervised capture in another thread, while a test does things to its servers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.supervisor import Supervisor

_SECONDS = 60.0


@contextmanager
def supervised(
    options: WorkerOptions, *, standby: bool = False, ends_by_itself: bool = False
) -> Iterator[Supervisor]:
    """Capture while the block runs; whatever ended the supervisor early is raised at its end.

    One that shall end by itself is given a minute for it before it is told to.
    """
    supervisor = Supervisor(options, standby=standby)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            supervisor.run()
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield supervisor
        if ends_by_itself:
            thread.join(_SECONDS)
    finally:
        supervisor.stop()
        thread.join()
        supervisor.close()
    if failed:
        raise failed[0]
