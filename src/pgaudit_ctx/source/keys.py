"""Which columns were a table's primary key when what comes now was written; pure.

The log does not say it: under REPLICA IDENTITY FULL every column counts as key. The catalog does,
but it is of today, and the table may have been dropped or given another key since. So each look at
the catalog is kept together with where the log stood. Between two looks that saw the same key
nothing else can have been the key; between two that differ the key is left out, never guessed.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pgaudit_ctx.wal.pgoutput import Relation


class KnownKey(NamedTuple):
    """A primary key: the oid of its index (0 without a key), and its columns in key order."""

    index_oid: int
    columns: tuple[str, ...]


class _Look(NamedTuple):
    lsn: int
    key: KnownKey


class KeyHistory:
    """Remembers what was seen of each table's key, and says what it was then.

    Args:
        known: The keys at the position from which the stream is read.
    """

    def __init__(self, known: Mapping[int, KnownKey]) -> None:
        self._before = dict(known)
        self._last: dict[int, _Look] = {}
        self._final_lsn = 0
        self._unsettled: dict[int, tuple[int, Relation]] = {}

    def begin(self, final_lsn: int) -> Sequence[Relation]:
        """Take note of a transaction that begins.

        Args:
            final_lsn: Where its commit record starts.

        Returns:
            Relations whose key could not be known, and now can be: no other Relation message has
            come, so the key still is what it was, and what a look has seen meanwhile.
        """
        self._final_lsn = final_lsn
        if not self._unsettled:
            return ()
        passed = [oid for oid, (lsn, _) in self._unsettled.items() if final_lsn > lsn]
        return [self._unsettled.pop(oid)[1] for oid in passed]

    def columns(
        self, relation: Relation, oid: int, now: KnownKey | None, lsn: int
    ) -> tuple[str, ...]:
        """Give the key's columns for what follows a Relation message.

        Args:
            relation: The message.
            oid: The oid of its table; of the root, for a partition.
            now: The key in the catalog now; ``None`` if the table is gone.
            lsn: Where the log stood right after the catalog was read.

        Returns:
            Their names in key order; empty if there was no key or it cannot be known.
        """
        last = self._last.get(oid)
        if last is not None and self._final_lsn > last.lsn:
            self._before[oid] = last.key
        before = self._before.get(oid)
        self._unsettled.pop(relation.oid, None)
        columns = _columns(before, now, {column.name for column in relation.columns})
        if now is not None:
            self._last[oid] = _Look(lsn, now)
            if columns != now.columns:
                self._unsettled[relation.oid] = (lsn, relation)
        return columns


def _columns(
    before: KnownKey | None, now: KnownKey | None, names: Collection[str]
) -> tuple[str, ...]:
    seen = [key for key in (before, now) if key is not None]
    same = len({key.index_oid for key in seen}) == 1 or len({key.columns for key in seen}) == 1
    if not same:
        return ()
    # One index, two spellings: its columns were renamed meanwhile.
    possible = {key.columns for key in seen if set(key.columns) <= set(names)}
    return possible.pop() if len(possible) == 1 else ()
