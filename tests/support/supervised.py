"""A supervised capture in another thread, while a test does things to its servers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.supervisor import Supervisor


@contextmanager
def supervised(options: WorkerOptions, *, standby: bool = False) -> Iterator[Supervisor]:
    """Capture while the block runs; whatever ended the supervisor early is raised at its end."""
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
    finally:
        supervisor.stop()
        thread.join()
        supervisor.close()
    if failed:
        raise failed[0]
