"""What a statement does, told from its text; pure and cached.

It errs on the side of attribution: a message too many costs microseconds, one too few loses who did
it. Plain reads stay free of messages.
"""

import enum
import functools
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from pgaudit_ctx.emission.calls import NAMED, called_functions


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
        unclear: Whether nobody can tell afterwards which message is in force, because the string
            holds several statements of which one opens, ends or rolls back something.
        begins_bare: Whether the first of several must not be preceded by a message, as SET
            TRANSACTION and LOCK are not.
        several: Whether the string holds more than one statement, or is a COPY: such a one cannot
            be sent together with others.
        wrappable: Whether it may be given a transaction in AUTOCOMMIT mode without any difference
            to who sent it.
        functions: What a statement calls that only reads by itself: names as PostgreSQL folds
            them, with their schema where it was given.
        read_only: What it says of the current transaction: that it is READ ONLY, or READ WRITE.
        sets_default: Whether it may change the default of transactions to come.
    """

    effect: Effect
    savepoint: str | None = None
    unclear: bool = False
    begins_bare: bool = False
    several: bool = False
    wrappable: bool = False
    functions: tuple[str, ...] = ()
    read_only: bool | None = None
    sets_default: bool = False


DML: Final = Statement(Effect.WRITES, wrappable=True)
"""An INSERT, UPDATE or DELETE that SQLAlchemy compiled."""

# Comments and everything quoted, so that no word inside is taken for SQL. Each begins with one of a
# few characters, which is what makes the search for the next one fast.
_OPAQUE: Final = re.compile(
    rf"""--[^\n\r]*
    | /(?P<comment>\*)
    | "(?P<name>[^"]*(?:"|\Z))
    | \$(?<![{NAMED}]\$)(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?)\$
      .*?(?:\$(?P=tag)\$|\Z)
    | '(?<=[eE]')(?<![{NAMED}][eE]')[^'\\]*(?:(?:\\.|'')[^'\\]*)*(?:'|\Z)
    | '[^']*(?:'|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_HARMLESS: Final = str.maketrans(";()", ":::")
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_WORD: Final = re.compile(r"[a-z_]+")
_LOCKING: Final = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b")
_WRITING_QUERY: Final = re.compile(r"\b(?:into|delete\s+from)\b")
_READ_ONLY: Final = re.compile(r"\bread\s+(only|write)\b")
_SET_READ_ONLY: Final = re.compile(
    r"^set\s+(?:local\s+)?transaction_read_only\s*(?:=|\bto\b)\s*(\w+)?"
)
_DEFAULTS: Final = re.compile(r"\bdefault_transaction_read_only\b|\bcharacteristics\b")
_NESTING: Final = re.compile(r"[()]")
_NESTING_OR_FROM: Final = re.compile(r"[()]|\bfrom\b")
_COPIED_QUERY: Final = re.compile(r"copy\s*\(", re.IGNORECASE)
_UPDATE: Final = re.compile(r"\bupdate\b")
_SET: Final = re.compile(r"\bset\b")
_PLAIN_DML: Final = re.compile(r"\s*(?:insert|update|delete|merge)\b", re.IGNORECASE)
# A long text is seldom seen twice: it holds values, or as many placeholders as there were values.
_LONG: Final = 8 * 1024
_VERY_LONG: Final = 64 * 1024
_QUOTED_NAME: Final = re.compile(r'"[^"]*"')
_SAVEPOINT: Final = re.compile(
    r"""^(?P<verb>savepoint|rollback\s+(?:(?:work|transaction)\s+)?to(?:\s+savepoint)?
    |release(?:\s+savepoint)?)\s+(?P<name>"(?:[^"]|"")*"|[\w$]+)""",
    re.VERBOSE | re.IGNORECASE,
)
_OUTSIDE_TRANSACTIONS: Final = re.compile(
    r"""(?:create|drop|reindex|alter)\b.*\bconcurrently\b
    |(?:create|drop)\s+(?:database|tablespace|subscription)\b
    |alter\s+(?:system|subscription)\b
    |alter\s+database\b.*\bset\s+tablespace\b
    |reindex\s+(?:\([^)]*\)\s*)?(?:database|system|schema)\b""",
    re.VERBOSE | re.DOTALL,
)

_ENDS: Final = frozenset({"commit", "end", "rollback", "abort"})
_CHARACTERISTICS: Final = frozenset({"set", "begin", "start"})
_DML_VERBS: Final = frozenset({"insert", "update", "delete", "merge", "truncate"})
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
        data-modifying CTE or ``INTO``; what the functions do that it calls cannot be told here, so
        they are named.
    """
    if len(statement) <= _LONG:
        return _remembered(statement)
    if len(statement) <= _VERY_LONG:
        return _remembered_long(statement)
    return _classify(statement)


def _classify(statement: str) -> Statement:
    if ";" not in statement and _PLAIN_DML.match(statement):
        return DML
    bare = _bare(statement)
    found = [_classify_one(part) for part in bare.split(";") if part.strip()]
    if not found:
        return Statement(Effect.READS)
    if len(found) == 1:
        return found[0]
    effects = {one.effect for one in found}
    first = _WORD.match(bare.lstrip("( ;\n\t\r").lower())
    said = [one.read_only for one in found if one.read_only is not None]
    return Statement(
        Effect.WRITES if Effect.WRITES in effects else Effect.READS,
        unclear=not effects <= {Effect.READS, Effect.WRITES},
        begins_bare=first is not None and first[0] in _NEVER,
        several=True,
        functions=tuple(sorted({name for one in found for name in one.functions})),
        # Where it is said twice, nobody knows when which part ran.
        read_only=said[0] if len(set(said)) == 1 else None,
        sets_default=any(one.sets_default for one in found),
    )


_remembered: Final = functools.lru_cache(maxsize=2048)(_classify)
_remembered_long: Final = functools.lru_cache(maxsize=64)(_classify)


def _bare(statement: str) -> str:
    """Blank out comments and everything quoted, except names, which are left without ";()"."""
    found = _OPAQUE.search(statement)
    if found is None:
        return statement
    parts, position = [], 0
    while found is not None:
        parts.append(statement[position : found.start()])
        position = found.end()
        if found["comment"]:
            position = _end_of_comment(statement, position)
        parts.append(" " if found["name"] is None else found[0].translate(_HARMLESS))
        found = _OPAQUE.search(statement, position)
    parts.append(statement[position:])
    return "".join(parts)


def _end_of_comment(statement: str, position: int) -> int:
    """Give where a comment ends whose beginning ends at a position; they nest, unlike in C."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(statement, position):
        depth += 1 if edge[0] == "/*" else -1
        if not depth:
            return edge.end()
    return len(statement)


def _classify_one(part: str) -> Statement:  # noqa: PLR0911 - one for each kind of statement
    part = part.strip().lstrip("( \n\t\r")
    low = (_QUOTED_NAME.sub('""', part) if '"' in part else part).lower()
    word_found = _WORD.match(low)
    word = "" if word_found is None else word_found[0]
    savepoint = _SAVEPOINT.match(part)
    if savepoint is not None:
        return Statement(_savepoint_effect(savepoint["verb"]), _folded(savepoint["name"]))
    if word in _ENDS or low.startswith("prepare transaction"):
        return Statement(Effect.ENDS)
    if word in _CHARACTERISTICS:
        return Statement(
            Effect.READS, read_only=_read_only(low), sets_default=bool(_DEFAULTS.search(low))
        )
    if word == "copy":
        return _classify_copy(part, low)
    explained = word == "explain"
    if explained and re.search(r"\banaly[sz]e\b", low) is None:
        return Statement(Effect.READS)
    if explained and re.search(r"\bexecute\b", low) is not None:
        return Statement(Effect.WRITES)
    if explained or word in _MAY_READ:
        if _query_writes(low):
            return Statement(Effect.WRITES, wrappable=not explained)
        return Statement(Effect.READS, wrappable=not explained, functions=called_functions(part))
    if word in _NEVER or _OUTSIDE_TRANSACTIONS.match(low):
        return Statement(Effect.READS)
    return Statement(Effect.WRITES, wrappable=word in _DML_VERBS)


def _read_only(low: str) -> bool | None:
    """Give what SET TRANSACTION, BEGIN and the like say of the current transaction."""
    if _DEFAULTS.search(low):
        return None
    assigned = _SET_READ_ONLY.match(low)
    if assigned is not None:
        # A quoted value is not seen here. Taking it for "off" errs on the side of attribution.
        return assigned[1] in {"on", "true", "yes", "1"}
    if not re.match(r"(?:begin|start)\b|set\s+(?:local\s+)?transaction\b", low):
        return None
    access = _READ_ONLY.search(low)
    return None if access is None else access[1] == "only"


def _classify_copy(part: str, low: str) -> Statement:
    query = _COPIED_QUERY.match(part)
    if query is None:  # COPY t (a, b) FROM, or TO
        into_it = any(
            depth == 0 and found[0] == "from" for found, depth in _nesting(low, _NESTING_OR_FROM)
        )
        return Statement(Effect.WRITES if into_it else Effect.READS, several=True)
    # Without what stands behind the query, for its options look like calls.
    ends = (found.start() for found, depth in _nesting(part, _NESTING) if depth <= 0)
    copied = part[query.end() : next(ends, len(part))]
    if _query_writes(copied.lower()):
        return Statement(Effect.WRITES, several=True)
    return Statement(Effect.READS, several=True, functions=called_functions(copied))


def _nesting(text: str, marks: "re.Pattern[str]") -> Iterator[tuple["re.Match[str]", int]]:
    """Give each mark in a text with how deep in parentheses it stands, a closing one outside."""
    depth = 0
    for found in marks.finditer(text):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        yield found, depth


def _query_writes(low: str) -> bool:
    # Most reads have none of the words, and to look for these alone is fast.
    if ("into" in low or "delete" in low) and _WRITING_QUERY.search(low) is not None:
        return True
    if "update" not in low:
        return False
    low = _LOCKING.sub(" ", low)
    update = _UPDATE.search(low)
    return update is not None and _SET.search(low, update.end()) is not None


def _savepoint_effect(verb: str) -> Effect:
    first = verb.split(maxsplit=1)[0].lower()
    if first == "savepoint":
        return Effect.SAVEPOINT
    return Effect.ROLLBACK_TO if first == "rollback" else Effect.RELEASE


def _folded(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
