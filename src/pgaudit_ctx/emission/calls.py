"""Which functions a statement calls, told from its text; pure.

What they do is asked of the server (``volatility.py``): a SELECT that calls a volatile function may
write.
"""

import re
from typing import Final

_NAME: Final = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*+)'
_CALL: Final = re.compile(rf"(?<![\w$])({_NAME}(?:\s*\.\s*{_NAME})*)\s*\(")
_PART: Final = re.compile(_NAME)
# What comes before a name that is no function: CAST(x AS numeric(10, 2)), x::numeric(10, 2),
# FROM f() AS t(a, b), and a column after a point is part of the name already.
_NOT_CALLED_AFTER: Final = re.compile(r"(?:\bas|::)\s*\Z", re.IGNORECASE)
# The columns of WITH name(a, b) AS [NOT MATERIALIZED] (SELECT …), but not the types of what a
# function gives: FROM f() AS (a int).
_BEFORE_A_CTE: Final = re.compile(r"(?:\bwith|\brecursive|,)\s*\Z", re.IGNORECASE)
_CTE_COLUMNS: Final = re.compile(
    r"[^()]*\)\s*as\s*(?:(?:not\s+)?materialized\s*)?"
    r"\(\s*(?:\(|(?:select|with|insert|update|delete|merge|values|table)\b)",
    re.IGNORECASE,
)
_CATALOGS: Final = frozenset({"pg_catalog", "information_schema"})

# Words of SQL that a parenthesis may follow and that cannot be names of functions, with a few that
# can but mean something else there (by, cube, rollup, sets); PostgreSQL documentation, "SQL Key
# Words".
_KEYWORDS: Final = frozenset(
    """
    all and any array as between bit by case cast char character coalesce cross cube current_time
    current_timestamp dec decimal distinct else end except exists extract fetch float for from full
    greatest group grouping having ilike in inner intersect interval into is isnull join json_array
    json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize
    json_table json_value lateral least left like limit localtime localtimestamp materialized
    merge_action natural normalize not notnull nullif numeric offset on only or order outer overlaps
    overlay position primary references returning right rollup row select sets similar some
    substring table tablesample then time timestamp to treat trim union unique using values varchar
    varying when where window with xmlattributes xmlconcat xmlelement xmlexists xmlforest
    xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
    """.split()  # noqa: SIM905 - a hundred quoted words would be harder to read
)
_AFTER_A_CALL: Final = frozenset({"filter", "over"})


def called_functions(statement: str) -> tuple[str, ...]:
    """Find the functions that a statement may call.

    Args:
        statement: One statement, without comments and without anything in single or dollar quotes.

    Returns:
        Their names as PostgreSQL folds them, sorted, each with its schema where the statement gives
        one (``"clinic.admit"``). Those of ``pg_catalog`` are left out where it is named; names that
        are not functions at all may be among them.
    """
    found = set()
    for match in _CALL.finditer(statement):
        parts = [_fold(part) for part in _PART.findall(match[1])]
        word = match[1].lower()
        if word in _KEYWORDS:
            continue
        if word in _AFTER_A_CALL and statement[: match.start()].rstrip().endswith(")"):
            continue
        if len(parts) > 1 and parts[-2] in _CATALOGS:
            continue
        if _NOT_CALLED_AFTER.search(statement, max(0, match.start() - 32), match.start()):
            continue
        before = statement[max(0, match.start() - 32) : match.start()]
        if _BEFORE_A_CTE.search(before) and _CTE_COLUMNS.match(statement, match.end()):
            continue
        found.add(".".join(parts[-2:]))
    return tuple(sorted(found))


def _fold(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
