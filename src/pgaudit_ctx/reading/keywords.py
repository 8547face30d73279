"""Refuses keywords that do not exist: what a filter is typed as is not checked when it runs."""

from collections.abc import Mapping
from typing import Any

from pgaudit_ctx.errors import UsageError


def refuse_unknown(verb: str, given: Mapping[str, Any], kind: Any) -> None:
    """Refuse keywords that a verb does not have; ignored, they would show more than was asked for.

    Args:
        verb: Whose keywords they are.
        given: The keywords.
        kind: The ``TypedDict`` that lists them.

    Raises:
        UsageError: Naming those that there are.
    """
    unknown = sorted(set(given) - set(kind.__annotations__))
    if unknown:
        raise UsageError(
            f"{verb}() has no keyword {', '.join(unknown)}. Remedy: use one of "
            f"{', '.join(sorted(kind.__annotations__))}"
        )
