"""Our own few statements in each driver's paramstyle, compiled once for each dialect."""

import weakref
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sqlalchemy import Text, TextClause, bindparam
from sqlalchemy.engine.interfaces import Dialect

_Prepare: TypeAlias = Callable[[str], tuple[str, Any]]

_compiled: Final["weakref.WeakKeyDictionary[Dialect, dict[int, _Prepare]]"] = (
    weakref.WeakKeyDictionary()
)


def compiled_for(dialect: Dialect, statement: TextClause) -> _Prepare:
    """Compile a statement with the one parameter ``:content``.

    Args:
        dialect: The engine's.
        statement: One that lives as long as the process.

    Returns:
        A function from the parameter's value to what the dialect's ``do_execute`` takes.
    """
    known = _compiled.setdefault(dialect, {})
    prepare = known.get(id(statement))
    if prepare is None:
        prepare = known[id(statement)] = _compile(dialect, statement)
    return prepare


def _compile(dialect: Dialect, statement: TextClause) -> _Prepare:
    compiled = statement.bindparams(bindparam("content", type_=Text())).compile(dialect=dialect)
    sql = str(compiled)
    if getattr(compiled, "positional", False):
        return lambda content: (sql, (content,))
    return lambda content: (sql, {"content": content})
