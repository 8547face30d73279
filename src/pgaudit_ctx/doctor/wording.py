"""How findings say things alike."""

from collections.abc import Iterable
from typing import Final

from pgaudit_ctx.doctor.facts import Names

_FEW: Final = 5
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")
_STEP: Final = 1024


def command(names: Names, *words: str) -> str:
    """Write a command of ours with the names that differ from the defaults, in backticks."""
    options = []
    if names.slot != "pgaudit_ctx":
        options += ["--slot", names.slot]
    if names.publication != "pgaudit_ctx":
        options += ["--publication", names.publication]
    if names.named:
        options += ["--name", names.source]
    return f"`{' '.join(['pgaudit-ctx', *words, *options])}`"


def few(items: Iterable[str]) -> str:
    """List some, and say how many more there are."""
    found = list(items)
    more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
    return ", ".join(found[:_FEW]) + more


def size(amount: float) -> str:
    """Write a number of bytes for people."""
    for unit in _UNITS:
        if abs(amount) < _STEP or unit == _UNITS[-1]:
            break
        amount /= _STEP
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
