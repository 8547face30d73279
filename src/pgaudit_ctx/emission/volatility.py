"""Whether a function may write: asked of the server once for each name, and remembered.

PostgreSQL documentation: "Function Volatility Categories". Only a VOLATILE function may write, and
none of ``pg_catalog`` writes into a table that is captured.
"""

import weakref
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.engine.interfaces import Dialect

from pgaudit_ctx.emission.statement_text import compiled_for

# Names arrive as one text, since drivers disagree about arrays; no name holds a line break here.
_QUERY: Final = text(
    r"""
    SELECT asked.name
    FROM unnest(string_to_array(CAST(:content AS text), E'\n')) AS asked(name)
    WHERE coalesce((
        SELECT bool_or(p.provolatile = 'v'
            AND n.nspname NOT IN ('pg_catalog', 'information_schema'))
        FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE asked.name IN (p.proname, n.nspname || '.' || p.proname)
    ), true)
    """
)


class Volatility:
    """What is known of the functions behind one engine."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def may_write(self, connection: Connection, names: Iterable[str]) -> bool:
        """Say whether one of these functions may write.

        What nobody knows counts as volatile: it may be made later. So does every function of the
        same name in whatever schema, for which one is meant depends on the search path.

        Args:
            connection: Where to ask for those that were not asked for before; in the transaction
                that is about to call them, which takes its snapshot then anyway.
            names: As :func:`pgaudit_ctx.emission.calls.called_functions` gives them.
        """
        known = self._known
        unknown = [name for name in names if name not in known]
        if unknown:
            found = self._ask(connection, unknown)
            known.update({name: name in found for name in unknown})
        return any(known[name] for name in names)

    def _ask(self, connection: Connection, names: list[str]) -> set[str]:
        certain = {name for name in names if "\n" in name}
        dialect = connection.dialect
        statement, parameters = compiled_for(dialect, _QUERY)("\n".join(names))
        cursor = connection.connection.cursor()
        try:
            dialect.do_execute(cursor, statement, parameters)
            return certain | {row[0] for row in cursor.fetchall()}
        finally:
            cursor.close()


_by_dialect: "weakref.WeakKeyDictionary[Dialect, Volatility]" = weakref.WeakKeyDictionary()


def volatility_of(dialect: Dialect) -> Volatility:
    """Give what is known of the functions behind an engine; engines made of it share it."""
    known = _by_dialect.get(dialect)
    if known is None:
        known = _by_dialect[dialect] = Volatility()
    return known
