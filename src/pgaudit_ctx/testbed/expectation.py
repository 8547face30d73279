"""What a test expects of a change, how far others are from it, and how to say so; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import ContextInvalid
from pgaudit_ctx.message import plain
from pgaudit_ctx.reading.version import Version
from pgaudit_ctx.testbed.records import Recorded

_LONGEST: Final = 200
_NEAREST: Final = 3


@dataclass(frozen=True)
class Expectation:
    """What is expected of one change; what is left out of ``changed`` and ``context`` is not.

    Attributes:
        operation: One of the five.
        changed: Attribute → old and new value.
        context: Key → value, as the application would give it.
    """

    operation: str | None = None
    changed: Mapping[str, tuple[Any, Any]] | None = None
    context: Mapping[str, Any] | None = None

    def misses(self, version: Version[Any]) -> list[str]:
        """Say what of a change is not as expected, one line for each; empty if all is."""
        found = []
        if self.operation is not None and version.operation != self.operation:
            found.append(f"operation {self.operation}, not {version.operation}")
        diff = version.diff
        for name, (old, new) in (self.changed or {}).items():
            wanted = f"{name}: {shown(old)} → {shown(new)}"
            if name not in diff:
                found.append(f"{wanted}, but {name} did not change")
            elif tuple(diff[name]) != (old, new):
                found.append(f"{wanted}, not {shown(diff[name].old)} → {shown(diff[name].new)}")
        found += context_misses(self.context or {}, version.row.context)
        return found

    def lines(self) -> list[str]:
        """Describe what is expected."""
        found = [] if self.operation is None else [self.operation]
        found += _changed_lines(self.changed or {})
        if self.context:
            found.append(_context_line(self.context))
        return found or ["any change"]


def context_misses(wanted: Mapping[str, Any], context: Mapping[str, Any] | None) -> list[str]:
    """Say what a context lacks of what is expected, one line for each key."""
    found = []
    for key, value in wanted.items():
        expected = f"context {key}={shown(value)}"
        if context is None:
            found.append(f"{expected}, but there is no context")
        elif key not in context:
            found.append(f"{expected}, but the context has no {key}")
        elif not _same(value, context[key]):
            found.append(f"{expected}, not {shown(context[key])}")
    return found


def shown(value: Any) -> str:
    """Print a value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def described(recorded: Recorded) -> list[str]:
    """Describe a change: what happened to which record, its values, its context."""
    version = recorded.version
    unchanged = version.operation == Operation.UPDATE and not version.diff
    return [
        f"{version.operation} {recorded.name}, transaction {version.transaction_id}",
        *(["nothing changed"] if unchanged else _changed_lines(version.diff)),
        _context_line(version.row.context),
    ]


def nearest(
    expectation: Expectation, candidates: Sequence[Recorded]
) -> list[tuple[Recorded, list[str]]]:
    """Give the changes that miss the least of what is expected, the nearest and newest first."""
    judged = [(each, expectation.misses(each.version)) for each in reversed(candidates)]
    return sorted(judged, key=lambda pair: len(pair[1]))[:_NEAREST]


def indented(lines: Iterable[str], by: int) -> list[str]:
    """Indent lines, the first by four less."""
    first, *others = lines
    return [" " * (by - 4) + first, *(" " * by + line for line in others)]


def _changed_lines(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {shown(old)} → {shown(new)}" for name, (old, new) in changed.items()]


def _context_line(context: Mapping[str, Any] | None) -> str:
    if context is None:
        return "no context"
    return f"context {', '.join(f'{key}={shown(value)}' for key, value in context.items())}"


def _same(wanted: Any, found: Any) -> bool:
    """Compare a value as the application gives it with what JSON made of it."""
    if wanted == found:
        return True
    try:
        return bool(plain(wanted, "expected") == found)
    except ContextInvalid:
        return False
