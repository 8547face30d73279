"""Waiting for a condition, with a deadline instead of a fixed sleep."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SECONDS = 60.0


def eventually(check: Callable[[], T], what: str) -> T:
    """Ask again and again until the answer is true; fail after a minute."""
    deadline = time.monotonic() + _SECONDS
    while not (answer := check()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)
    return answer
