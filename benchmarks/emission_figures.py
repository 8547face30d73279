"""Medians with their intervals, and the tables that show them."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

_RESAMPLES = 2_000


@dataclass(frozen=True)
class Figure:
    """A median and the 95 % interval around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> Self:
        """Bootstrap over rounds and then over the pairs inside each.

        Rounds are processes and databases of their own: what they have in common inside, such
        as how memory came to lie, must not pass for many observations.
        """
        chance = random.Random(1)
        medians = []
        for _ in range(_RESAMPLES):
            drawn: list[float] = []
            for samples in chance.choices(rounds, k=len(rounds)):
                drawn += chance.choices(samples, k=len(samples))
            medians.append(statistics.median(drawn))
        medians.sort()
        everything = [sample for samples in rounds for sample in samples]
        return cls(
            statistics.median(everything),
            medians[int(0.025 * _RESAMPLES)],
            medians[int(0.975 * _RESAMPLES) - 1],
        )

    def show(self, form: str) -> str:
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"

    def verdict(self, goal: float) -> str:
        if self.high <= goal:
            return "met"
        if self.low > goal:
            return "missed"
        return "met, but within the error" if self.median <= goal else "missed, within the error"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with columns as wide as they must be."""
    lines = [head, ["---"] * len(head), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
