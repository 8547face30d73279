"""The pages on what is lost, and on planned and unplanned moves: they show what happens.

``--write-pages`` writes what the commands print into the pages, for somebody to read.
"""

from pathlib import Path

import pytest

from support.machine import Machine
from support.pages import parts, played, steady

pytestmark = pytest.mark.continuity

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
CASES = PAGES / "continuity.md"


def play(page: Path, machine: Machine, config: pytest.Config, part: str | None = None) -> None:
    """Play a page, or a part of it, and compare what is printed but for what differs each time."""
    text = page.read_text(encoding="utf-8")
    shown = text if part is None else parts(text)[part]
    printed = played(shown, machine.run)
    if config.getoption("--write-pages"):
        page.write_text(text.replace(shown, printed), encoding="utf-8")
    else:
        # Where a line is wrapped depends on the length of what differs.
        assert steady(printed).split() == steady(shown).split()


def cases(name: str) -> list[str]:
    """The parts of a page that have commands, each of which is played on servers of its own."""
    found = parts((PAGES / name).read_text("utf-8")).items()
    return [heading for heading, text in found if "```console" in text]


@pytest.mark.parametrize("case", cases("pg-upgrade.md"))
def test_pg_upgrade_does_what_the_page_says(
    case: str, old_and_new: Machine, pytestconfig: pytest.Config
) -> None:
    play(PAGES / "pg-upgrade.md", old_and_new, pytestconfig, case)


def test_a_move_by_logical_replication_does_what_the_page_says(
    old_and_new: Machine, pytestconfig: pytest.Config
) -> None:
    play(PAGES / "blue-green.md", old_and_new, pytestconfig)


def test_a_minor_upgrade_does_what_the_page_says(
    machine: Machine, pytestconfig: pytest.Config
) -> None:
    play(PAGES / "minor-upgrade.md", machine, pytestconfig)


@pytest.mark.parametrize("case", cases("failover.md")[1:])
def test_a_failover_does_what_the_page_says(
    case: str, machine: Machine, pytestconfig: pytest.Config
) -> None:
    # How the standby is made comes first on the page.
    play(PAGES / "failover.md", machine, pytestconfig, cases("failover.md")[0])
    play(PAGES / "failover.md", machine, pytestconfig, case)


@pytest.mark.parametrize("case", cases("restore.md"))
def test_a_restore_does_what_the_page_says(
    case: str, machine: Machine, pytestconfig: pytest.Config
) -> None:
    play(PAGES / "restore.md", machine, pytestconfig, case)


@pytest.mark.parametrize("case", cases("continuity.md"))
def test_a_case_shows_what_the_page_says(
    case: str, clinic: Machine, pytestconfig: pytest.Config
) -> None:
    play(CASES, clinic, pytestconfig, case)
