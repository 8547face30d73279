"""Defaults of a role or database cannot end the worker."""

import threading

import pytest

from pgaudit_ctx.worker import Worker
from support.database import Capture
from support.waiting import eventually


def test_a_statement_timeout_of_the_destination_does_not_end_a_long_copy(capture: Capture) -> None:
    name = capture.destination.name
    capture.destination.execute(f"ALTER DATABASE {name} SET statement_timeout = '200ms'")
    capture.source.execute(
        "INSERT INTO patient (id, name, status)"
        " SELECT n, 'x', 'ACTIVE' FROM generate_series(1, 100000) n"
    )
    assert capture.run().changes == 100_000


def test_a_destination_that_is_read_only_by_default_is_written_all_the_same(
    capture: Capture,
) -> None:
    name = capture.destination.name
    capture.destination.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    assert capture.run().changes == 1


@pytest.mark.parametrize("end", ["source", "destination"])
def test_an_idle_session_timeout_does_not_end_an_idle_worker(capture: Capture, end: str) -> None:
    database = getattr(capture, end)
    database.execute(f"ALTER DATABASE {database.name} SET idle_session_timeout = '50ms'")
    worker = Worker(capture.options)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    threading.Event().wait(0.4)
    with capture.source.connect() as connection:
        connection.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")

    def over() -> bool:
        with capture.destination.connect() as connection:
            (count,) = connection.execute(
                "SELECT count(*) AS n FROM pgaudit_ctx.changes"
            ).fetchone()
        return bool(failed) or count == 1

    eventually(over, "the change is stored, or the worker has failed")
    worker.stop()
    thread.join()
    worker.close()
    assert failed == []
