"""Which functions a statement calls, told from its text; pure.

What they do is asked of the server (``volatility.py``): a SELECT that calls a volatile function may
write.
"""

import re
from typing import Final

# What PostgreSQL takes for part of a name (documentation: "Identifiers and Key Words").
NAMED: Final = r"\w$\x80-\U0010ffff"

# Behind whatever else stands before it a parenthesis calls nothing: %(placeholder)s, IN ((1, 2)).
_OPENING: Final = re.compile(rf'"[^"]*"|\((?<=[{NAMED}"\s]\()')
# A name as it stands before a parenthesis, read from there backwards: so each place of a text is
# looked at once, however many names it has. What is cast to (x::numeric(10, 2), CAST(x AS
# numeric(10, 2))), and what is defined in FROM f() AS t(a, b), is no function.
_NAME: Final = rf'(?:"(?:[^"]|"")*+"|[{NAMED}]++)'
_CALLED: Final = re.compile(
    rf"\s*+(?P<name>{_NAME}(?:\s*+\.\s*+{_NAME})*+)\s*+(?P<cast>::|sa(?![{NAMED}]))?", re.IGNORECASE
)
_PART: Final = re.compile(r'"((?:[^"]|"")*)"|([^\s."]+)')
# The columns of WITH name(a, b) AS [NOT MATERIALIZED] (SELECT …), but not the types of what a
# function gives: FROM f() AS (a int).
_BEFORE_A_CTE: Final = re.compile(rf",|(?:htiw|evisrucer)(?![{NAMED}])", re.IGNORECASE)
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
_NO_NAME_BEGINS_WITH: Final = tuple("0123456789$")
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
    backwards = statement[::-1]
    size = len(statement)
    found = set()
    for opening in _OPENING.finditer(statement):
        if opening[0] != "(":
            continue  # a quoted name, which may hold a parenthesis of its own
        called = _CALLED.match(backwards, size - opening.start())
        if called is None or called["cast"]:
            continue
        word = called["name"][::-1]
        lower = word.lower()
        if lower in found or lower in _KEYWORDS:
            continue
        if lower in _AFTER_A_CALL and backwards.startswith(")", called.end()):
            continue
        parts = [_fold(part) for part in _PART.findall(word)]
        if parts[-1].startswith(_NO_NAME_BEGINS_WITH):
            continue
        if len(parts) > 1 and parts[-2] in _CATALOGS:
            continue
        if _BEFORE_A_CTE.match(backwards, called.end()) and _CTE_COLUMNS.match(
            statement, opening.end()
        ):
            continue
        found.add(".".join(parts[-2:]))
    return tuple(sorted(found))


def _fold(part: tuple[str, str]) -> str:
    quoted, bare = part
    return quoted.replace('""', '"') if quoted else bare.lower()
