"""The machines that pages are played on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgaudit_ctx.embedded import wheel_binaries
from pgaudit_ctx.testbed.server import system_binaries
from support.machine import Machine, running_machine

AUDIT_PORT = 5440


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
        begin_apart(machine, 15)
        yield machine


@pytest.fixture(scope="module")
def binaries(pytestconfig: pytest.Config) -> Path:
    """PostgreSQL's programs of the version that was asked for."""
    system = pytestconfig.getoption("--postgres") == "system"
    return system_binaries() if system else wheel_binaries()


@pytest.fixture(scope="module")
def one_version(binaries: Path) -> Iterator[Machine]:
    """A machine with one server, for several tests."""
    with running_machine({18: binaries}) as machine:
        machine.make_cluster(18, "18")
        yield machine


@pytest.fixture
def machine(binaries: Path) -> Iterator[Machine]:
    """A machine of a test's own, with a server ``main`` and another one for the trail."""
    with running_machine({18: binaries}) as made:
        made.make_cluster(18, "main")
        begin_apart(made, 18)
        yield made


def begin(machine: Machine, audit_port: int = 5432) -> None:
    """Make the databases that the pages begin with: a patient, whose first state is captured."""
    machine.execute("CREATE DATABASE clinic", "postgres")
    machine.execute("CREATE DATABASE audit", "postgres", audit_port)
    machine.execute("CREATE TABLE patient (id int PRIMARY KEY, name text)")
    machine.must("pgaudit-ctx setup")
    machine.execute("INSERT INTO patient VALUES (1, 'Ann')")
    machine.must("pgaudit-ctx worker --until-caught-up")


def begin_apart(machine: Machine, version: int) -> None:
    """The same, with the trail on a server of its own that nothing happens to."""
    machine.make_cluster(version, "audit", AUDIT_PORT)
    machine.set_url("DESTINATION", "audit", AUDIT_PORT)
    machine.run(f"export PGAUDIT_CTX_DESTINATION_URL='{machine.url('audit', AUDIT_PORT)}'")
    begin(machine, AUDIT_PORT)


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
