"""What one commit did."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from pgaudit_ctx.errors import HistoryUnknown, TransactionAmbiguous
from pgaudit_ctx.reading.trail import Change


class Transaction(Sequence[Change]):
    """The changes of one commit, in the order they were made.

    Args:
        changes: At least one, in order.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    @overload
    def __getitem__(self, index: int) -> Change: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...

    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return self._changes[index]

    def __len__(self) -> int:
        return len(self._changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self._changes)

    def __repr__(self) -> str:
        return f"<Transaction {self.transaction_id}: {len(self)} changes>"

    @property
    def transaction_id(self) -> int:
        """The source's transaction id (xid)."""
        return self._changes[0].transaction_id

    @property
    def commit_lsn(self) -> str:
        """Where its commit stands in the log."""
        return str(self._changes[0].commit_lsn)

    @property
    def committed_at(self) -> dt.datetime:
        """When it was committed, by the source's clock; aware."""
        return self._changes[0].committed_at

    @property
    def contexts(self) -> Sequence[Mapping[str, Any]]:
        """Each context that was in force, once, in the order of their first change."""
        found: list[Mapping[str, Any]] = []
        for change in self._changes:
            if change.context is not None and change.context not in found:
                found.append(change.context)
        return found


def one_transaction(changes: Sequence[Change], xid: int) -> Transaction:
    """Refuse none and several.

    Raises:
        HistoryUnknown: If the trail has nothing of it.
        TransactionAmbiguous: If the number was used more than once.
    """
    commits = {(c.source, c.epoch, str(c.commit_lsn)): c.committed_at for c in changes}
    if not commits:
        raise HistoryUnknown(
            f"the trail has no change of transaction {xid}: it wrote to no captured table, or is "
            "not captured yet"
        )
    if len(commits) > 1:
        listed = ", ".join(
            f"{lsn} of {source}, epoch {epoch} ({moment:%Y-%m-%d %H:%M:%S%z})"
            for (source, epoch, lsn), moment in commits.items()
        )
        raise TransactionAmbiguous(
            f"transaction {xid} was committed at {listed}: the numbers of a cluster start again. "
            "Remedy: pass commit_lsn="
        )
    return Transaction(changes)
