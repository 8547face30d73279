"""Whether a function may write: asked of the server once for each name, and remembered.

PostgreSQL documentation: "Function Volatility Categories". Only a VOLATILE function may write, and
none of ``pg_catalog`` writes into a table that is captured.
"""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.engine.interfaces import Dialect

from pgaudit_ctx.emission.own_statements import prepared, run
from pgaudit_ctx.emission.transactions import DriverConnection

# Names arrive as one text, since drivers disagree about arrays.
VOLATILE_AMONG: Final = text(
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
    """What is known of the functions behind one engine.

    What nobody knows counts as volatile: it may be made later. So does every function of the same
    name in whatever schema, for which one is meant depends on the search path.
    """

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Give those of the names that were not asked for yet."""
        # The question is one line for each name.
        self._known.update({name: True for name in names if "\n" in name})
        return [name for name in names if name not in self._known]

    def learn(self, asked: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
        """Take over what ``VOLATILE_AMONG`` answered to the names that were asked for."""
        volatile = {row[0] for row in rows}
        self._known.update({name: name in volatile for name in asked})

    def may_write(self, names: Iterable[str]) -> bool:
        """Say whether one of these functions may write."""
        return any(self._known.get(name, True) for name in names)


_by_dialect: "weakref.WeakKeyDictionary[Dialect, Volatility]" = weakref.WeakKeyDictionary()


def volatility_of(dialect: Dialect) -> Volatility:
    """Give what is known of the functions behind an engine; engines made of it share it."""
    known = _by_dialect.get(dialect)
    if known is None:
        known = _by_dialect[dialect] = Volatility()
    return known


def may_write(driver: DriverConnection, names: Iterable[str]) -> bool:
    """Say whether one of these functions may write, asking the server for those not known yet.

    Args:
        driver: Where to ask: in the transaction that is about to call them, which takes its
            snapshot then anyway.
        names: As :func:`pgaudit_ctx.emission.calls.called_functions` gives them.
    """
    volatility = volatility_of(driver.dialect)
    unknown = volatility.unknown(names)
    if unknown and not driver.in_pipeline():  # where answers come later
        question = prepared(driver.dialect, VOLATILE_AMONG, "\n".join(unknown))
        volatility.learn(unknown, run(driver.adapted, *question))
    return volatility.may_write(names)
