"""Whatever is killed, crashes or is cut: the trail is what the triggers wrote down.

``--faults`` says how many of them a round has, ``--rounds`` how many rounds there are, ``--pause``
how fast is written meanwhile; ``nox -s soak`` is for many. A round's number is the seed of what is
written and of what befalls it.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.chaos import Chaos
from support.database import Capture, create_database
from support.server import Server, server_of_its_own
from support.witness import Workload, folded, live, make_tables, told, witnessed

_WRITERS = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    first = metafunc.config.getoption("--first-round")
    seeds = range(first, first + metafunc.config.getoption("--rounds"))
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", seeds)


@pytest.fixture
def apart(server: Server) -> Iterator[Capture]:
    """Source and destination, each on a server of its own, which may crash."""
    with server_of_its_own(server, {}) as one, server_of_its_own(server, {}) as other:
        made = Capture(create_database(one), create_database(other))
        make_tables(made.source)
        made.setup()
        yield made


def test_nothing_is_lost_doubled_or_blamed_on_another_whatever_fails(
    apart: Capture, seed: int, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    over = threading.Event()
    # Writers that took all of the machine would leave the worker nothing to do its own faults with.
    pause = pytestconfig.getoption("--pause")
    failed: list[BaseException] = []

    def write(part: int) -> None:
        workload = Workload(seed * 1000 + part, part, truncates=part == 0, alters=part == 0)
        try:
            workload.run_while(apart.source, lambda: not over.wait(pause))
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    writers = [threading.Thread(target=write, args=[part]) for part in range(_WRITERS)]
    with Chaos(apart, seed, tmp_path / "worker.log") as chaos:
        for writer in writers:
            writer.start()
        try:
            chaos.befall(pytestconfig.getoption("--faults"))
        finally:
            over.set()
            for writer in writers:
                writer.join()
        chaos.finish()
    assert failed == []
    expected = witnessed(apart.source)
    trail = apart.changes()
    assert told(trail) == expected
    assert folded(trail) == live(apart.source)
    changes = sum(map(len, expected.values()))
    print(f"\nround {seed}: {changes} changes, {len(expected)} transactions, {dict(chaos.counts)}")  # noqa: T201 - the figures of a soak
