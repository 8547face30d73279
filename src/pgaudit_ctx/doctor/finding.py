"""What one check found."""

import enum
from typing import Any, NamedTuple


class State(enum.StrEnum):
    """How well it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Group(enum.StrEnum):
    """What a check is about."""

    SOURCE = "source"
    DESTINATION = "destination"
    WORKER = "worker"
    COVERAGE = "coverage"


class Finding(NamedTuple):
    """One line of the doctor's report.

    Attributes:
        check: The check's name; stable, for machines.
        group: What it is about.
        state: How well it is.
        evidence: What was seen, in words; never a value of a row.
        remedy: What to do, with statements and commands in backticks, to be run as they stand.
            Empty if all is well.
    """

    check: str
    group: Group
    state: State
    evidence: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same as an object for JSON."""
        return {**self._asdict(), "group": self.group.value, "state": self.state.value}
