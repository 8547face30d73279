"""The machines that pages are played on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgaudit_ctx.embedded import wheel_binaries
from pgaudit_ctx.testbed.server import system_binaries
from support.machine import Machine, running_machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-pages",
        action="store_true",
        help="put into the pages what their commands print now, instead of comparing it",
    )


@pytest.fixture(scope="module")
def both_versions() -> dict[int, Path]:
    old = Path("/usr/lib/postgresql/15/bin")
    if not (old / "pg_upgrade").exists():
        pytest.skip("no PostgreSQL 15 to upgrade from (apt-get install postgresql-15)")
    return {15: old, 18: wheel_binaries()}


@pytest.fixture
def old_and_new(both_versions: dict[int, Path]) -> Iterator[Machine]:
    """A machine with both versions; the old server runs, with what begins each page."""
    with running_machine(both_versions) as machine:
        machine.make_cluster(15, "15")
        begin(machine)
        yield machine


@pytest.fixture(scope="module")
def one_version(pytestconfig: pytest.Config) -> Iterator[Machine]:
    """A machine with one server of the version that was asked for."""
    system = pytestconfig.getoption("--postgres") == "system"
    binaries = system_binaries() if system else wheel_binaries()
    with running_machine({18: binaries}) as machine:
        machine.make_cluster(18, "18")
        yield machine


def begin(machine: Machine) -> None:
    """Make the databases that the pages begin with: a patient, whose first state is captured."""
    for database in ("clinic", "audit"):
        machine.execute(f"CREATE DATABASE {database}", "postgres")
    machine.execute("CREATE TABLE patient (id int PRIMARY KEY, name text)")
    machine.must("pgaudit-ctx setup")
    machine.execute("INSERT INTO patient VALUES (1, 'Ann')")
    machine.must("pgaudit-ctx worker --until-caught-up")


@pytest.fixture
def clinic(one_version: Machine) -> Iterator[Machine]:
    """Databases of a test's own on it."""
    begin(one_version)
    yield one_version
    for database in ("clinic", "audit"):
        one_version.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            f" WHERE database = '{database}'",
            "postgres",
        )
        one_version.execute(f"DROP DATABASE {database} WITH (FORCE)", "postgres")
