"""What a statement does, told from its text; pure and cached.

It errs on the side of attribution: a message too many costs microseconds, one too few loses who did
it. Plain reads stay free of messages.
"""

import enum
import functools
import re
from typing import Final, NamedTuple


class Effect(enum.Enum):
    """What matters of a statement for emitting a context."""

    READS = "only reads, or must not be preceded by a message"
    WRITES = "may write"
    SAVEPOINT = "opens a savepoint"
    ROLLBACK_TO = "rolls back to a savepoint"
    RELEASE = "releases a savepoint"
    ENDS = "ends the transaction"


class Statement(NamedTuple):
    """The effect of a statement, and the savepoint it names."""

    effect: Effect
    savepoint: str | None = None


# Comments and everything quoted, so that no word inside is taken for SQL.
_OPAQUE: Final = re.compile(
    r"""--[^\n]*
    | /\*.*?\*/
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | [eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    """,
    re.VERBOSE | re.DOTALL,
)
_IDENTIFIER: Final = re.compile(r'"(?:[^"]|"")*"')
_WORD: Final = re.compile(r"[a-z_]+")
_LOCKING: Final = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b")
_WRITING: Final = re.compile(
    r"\b(?:insert|update|delete|merge|into|truncate|copy|call|do|create|alter|drop|refresh|execute"
    r"|grant|revoke|comment|import|reindex|reassign|security)\b"
)
_SAVEPOINT: Final = re.compile(
    r"""^\s*(?P<verb>savepoint|rollback\s+(?:(?:work|transaction)\s+)?to(?:\s+savepoint)?
    |release(?:\s+savepoint)?)\s+(?P<name>"(?:[^"]|"")*"|\w+)""",
    re.VERBOSE | re.IGNORECASE,
)
_OUTSIDE_TRANSACTIONS: Final = re.compile(
    r"\bconcurrently\b|^(?:create|drop)\s+(?:database|tablespace)\b|^alter\s+system\b"
    r"|^alter\s+database\b.*\bset\s+tablespace\b"
)

_ENDS: Final = frozenset({"commit", "end", "rollback", "abort"})
_MAY_READ: Final = frozenset({"select", "with", "values", "table"})
_NEVER: Final = frozenset(
    {
        "set", "show", "reset", "lock", "begin", "start", "declare", "fetch", "move", "close",
        "listen", "unlisten", "notify", "prepare", "deallocate", "discard", "checkpoint", "load",
        "vacuum", "cluster",
    }
)  # fmt: skip


@functools.lru_cache(maxsize=2048)
def classify(statement: str) -> Statement:  # noqa: PLR0911 - one return per kind
    """Tell what a statement does.

    Args:
        statement: SQL text, with or without placeholders; several statements may be in it.

    Returns:
        Its effect. A ``SELECT`` counts as reading unless it contains a data-modifying CTE or
        ``INTO``; what the functions do that it calls cannot be told from here.
    """
    bare = _IDENTIFIER.sub('""', _OPAQUE.sub(" ", statement)).strip().lstrip("(").lower().strip()
    found = _WORD.match(bare)
    if found is None:
        return Statement(Effect.READS)
    word = found[0]
    several = ";" in bare.rstrip("; \n\t")
    savepoint = _SAVEPOINT.match(_OPAQUE.sub(" ", statement))
    if savepoint is not None and not several:
        return Statement(_savepoint_effect(savepoint["verb"]), _folded(savepoint["name"]))
    if word in _ENDS and not several:
        return Statement(Effect.ENDS)
    if word == "explain":
        executes = re.search(r"\banaly[sz]e\b", bare) is not None
        return Statement(Effect.WRITES if executes and _writes(bare) else Effect.READS)
    if several or word in _MAY_READ:
        return Statement(Effect.WRITES if _writes(bare) else Effect.READS)
    if word in _NEVER or _OUTSIDE_TRANSACTIONS.search(bare):
        return Statement(Effect.READS)
    return Statement(Effect.WRITES)


def _writes(bare: str) -> bool:
    return _WRITING.search(_LOCKING.sub(" ", bare)) is not None


def _savepoint_effect(verb: str) -> Effect:
    first = verb.split(maxsplit=1)[0].lower()
    if first == "savepoint":
        return Effect.SAVEPOINT
    return Effect.ROLLBACK_TO if first == "rollback" else Effect.RELEASE


def _folded(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
