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
    """What is to be done about a statement.

    Attributes:
        effect: Its effect; of several statements in one string, the strongest.
        savepoint: The savepoint that it names.
        begins_bare: Whether the first of several must not be preceded by a message, as SET
            TRANSACTION and LOCK are not.
        unclear: Whether nobody can tell afterwards which message is in force, because the string
            holds several statements of which one opens, ends or rolls back something.
    """

    effect: Effect
    savepoint: str | None = None
    unclear: bool = False
    begins_bare: bool = False


# Comments and everything quoted, so that no word inside is taken for SQL.
_OPAQUE: Final = re.compile(
    r"""--[^\n]*
    | /\*.*?(?:\*/|\Z)
    | (?P<name>"[^"]*(?:""[^"]*)*(?:"|\Z))
    | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?(?:\$(?P=tag)\$|\Z)
    | (?<!\w)[eE]'[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\Z)
    | '[^']*(?:''[^']*)*(?:'|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD: Final = re.compile(r"[a-z_]+")
_LOCKING: Final = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b")
_WRITING_QUERY: Final = re.compile(r"\b(?:insert\s+into|delete\s+from|merge\s+into|into)\b")
_UPDATE: Final = re.compile(r"\bupdate\b")
_SET: Final = re.compile(r"\bset\b")
_PLAIN_DML: Final = re.compile(r"\s*(?:insert|update|delete|merge)\b", re.IGNORECASE)
_LONG: Final = 8 * 1024
_SAVEPOINT: Final = re.compile(
    r"""^(?P<verb>savepoint|rollback\s+(?:(?:work|transaction)\s+)?to(?:\s+savepoint)?
    |release(?:\s+savepoint)?)\s+(?P<name>"(?:[^"]|"")*"|\w+)""",
    re.VERBOSE | re.IGNORECASE,
)
_OUTSIDE_TRANSACTIONS: Final = re.compile(
    r"""^(?:create|drop|reindex|alter)\b.*\bconcurrently\b
    |^(?:create|drop)\s+(?:database|tablespace|subscription)\b
    |^alter\s+(?:system|subscription)\b
    |^alter\s+database\b.*\bset\s+tablespace\b
    |^reindex\s+(?:\([^)]*\)\s*)?(?:database|system|schema)\b""",
    re.VERBOSE | re.DOTALL,
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


def classify(statement: str) -> Statement:
    """Tell what a statement does.

    Args:
        statement: SQL text, with or without placeholders; several statements may be in it.

    Returns:
        What is to be done about it. A ``SELECT`` counts as reading unless it contains a
        data-modifying CTE or ``INTO``; what the functions do that it calls cannot be told here.
    """
    if len(statement) <= _LONG:
        return _remembered(statement)
    # A long text is one of a kind, and taking it apart would cost more than a message too many.
    if _PLAIN_DML.match(statement):
        return Statement(Effect.WRITES, unclear=";" in statement)
    return _classify(statement)


def _classify(statement: str) -> Statement:
    bare = _OPAQUE.sub(lambda found: (found["name"] or " ").replace(";", ":"), statement)
    found = [_classify_one(part) for part in bare.split(";") if part.strip()]
    if not found:
        return Statement(Effect.READS)
    if len(found) == 1:
        return found[0]
    effects = {one.effect for one in found}
    effect = Effect.WRITES if Effect.WRITES in effects else Effect.READS
    first = _WORD.match(bare.lstrip("( ;\n\t\r").lower())
    return Statement(
        effect,
        unclear=not effects <= {Effect.READS, Effect.WRITES},
        begins_bare=first is not None and first[0] in _NEVER,
    )


_remembered: Final = functools.lru_cache(maxsize=2048)(_classify)


def _classify_one(part: str) -> Statement:
    part = part.strip().lstrip("( \n\t\r")
    low = re.sub(r'"(?:[^"]|"")*"', '""', part).lower()
    word_found = _WORD.match(low)
    word = "" if word_found is None else word_found[0]
    savepoint = _SAVEPOINT.match(part)
    if savepoint is not None:
        return Statement(_savepoint_effect(savepoint["verb"]), _folded(savepoint["name"]))
    if word in _ENDS or low.startswith("prepare transaction"):
        return Statement(Effect.ENDS)
    if word == "explain":
        writes = re.search(r"\banaly[sz]e\b", low) is not None and (
            _query_writes(low) or re.search(r"\bexecute\b", low) is not None
        )
    elif word in _MAY_READ:
        writes = _query_writes(low)
    else:
        writes = word not in _NEVER and not _OUTSIDE_TRANSACTIONS.search(low)
    return Statement(Effect.WRITES if writes else Effect.READS)


def _query_writes(low: str) -> bool:
    low = _LOCKING.sub(" ", low)
    if _WRITING_QUERY.search(low) is not None:
        return True
    update = _UPDATE.search(low)
    return update is not None and _SET.search(low, update.end()) is not None


def _savepoint_effect(verb: str) -> Effect:
    first = verb.split(maxsplit=1)[0].lower()
    if first == "savepoint":
        return Effect.SAVEPOINT
    return Effect.ROLLBACK_TO if first == "rollback" else Effect.RELEASE


def _folded(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
