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


@pytest.mark.parametrize(
    "case", [name for name, text in parts(CASES.read_text("utf-8")).items() if "```console" in text]
)
def test_a_case_shows_what_the_page_says(
    case: str, clinic: Machine, pytestconfig: pytest.Config
) -> None:
    play(CASES, clinic, pytestconfig, case)
