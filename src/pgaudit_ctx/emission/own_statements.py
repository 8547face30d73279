"""Our own few statements, in each driver's paramstyle, compiled once for each dialect."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import Text, TextClause, bindparam, text
from sqlalchemy.engine.interfaces import Dialect

from pgaudit_ctx.message import PREFIX

_Prepare: TypeAlias = Callable[[str], tuple[str, Any]]

EMIT: Final = text(
    f"SELECT pg_catalog.pg_logical_emit_message(true, '{PREFIX}', CAST(:content AS text))"
)

_compiled: Final["weakref.WeakKeyDictionary[Dialect, dict[TextClause, _Prepare]]"] = (
    weakref.WeakKeyDictionary()
)


def prepared(dialect: Dialect, statement: TextClause, content: str) -> tuple[str, Any]:
    """Give a statement and its one parameter ``:content`` as the driver's cursor takes them.

    Args:
        dialect: The engine's.
        statement: One that lives as long as the process.
        content: The parameter's value.
    """
    known = _compiled.get(dialect)
    if known is None:
        known = _compiled[dialect] = {}
    prepare = known.get(statement)
    if prepare is None:
        prepare = known[statement] = _compile(dialect, statement)
    return prepare(content)


def run(adapted: Any, statement: str, parameters: Any = ()) -> Sequence[Any]:
    """Run a statement on a cursor of its own, past SQLAlchemy's events and log; give its rows.

    Args:
        adapted: The driver's connection as SQLAlchemy drives it.
        statement: In the driver's paramstyle.
        parameters: Its parameters.
    """
    cursor = adapted.cursor()
    claim(cursor)
    try:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else ()
    finally:
        cursor.close()


def claim(cursor: Any) -> None:
    """Tell a cursor that emits by itself (``driver_cursors.py``) that it need not this time."""
    # SQLAlchemy's asynchronous cursors wrap the driver's.
    driver_cursor = getattr(cursor, "_cursor", cursor)
    if hasattr(driver_cursor, "claimed"):
        driver_cursor.claimed = True


def _compile(dialect: Dialect, statement: TextClause) -> _Prepare:
    compiled = statement.bindparams(bindparam("content", type_=Text())).compile(dialect=dialect)
    sql = str(compiled)
    if getattr(compiled, "positional", False):
        return lambda content: (sql, (content,))
    return lambda content: (sql, {"content": content})
