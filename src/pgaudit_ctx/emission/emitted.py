"""What the log of a connection's current transaction holds by now: the last message we wrote.

There is one entry for each open savepoint beside it, because a savepoint that is rolled back takes
its messages with it.
"""

import weakref
from typing import Any, Final

from sqlalchemy import Connection

from pgaudit_ctx.emission.statements import Effect, Statement
from pgaudit_ctx.emission.transactions import is_open

_STATE: Final = "pgaudit_ctx"

# No message has this text, so whatever comes next differs from it and is emitted.
UNKNOWN: Final = "?"


class Emitted:
    """What a transaction's log holds: the last message, and the one at each savepoint.

    Args:
        transaction: SQLAlchemy's; ``None`` for one that SQLAlchemy does not know of.

    Attributes:
        text: The last message; ``None`` if there was none.
        savepoints: The open ones, the innermost last: name, and what held there: the message, and
            ``read_only``, which PostgreSQL gives back at each end of a savepoint.
        read_only: What SET TRANSACTION or BEGIN said of the transaction; ``None`` if nothing was
            said, so that the connection's defaults hold.
    """

    __slots__ = ("_transaction", "read_only", "savepoints", "text")

    def __init__(self, transaction: object | None = None) -> None:
        self._transaction = None if transaction is None else weakref.ref(transaction)
        self.text: str | None = None
        self.savepoints: list[tuple[str, str | None, bool | None]] = []
        self.read_only: bool | None = None

    def belongs_to(self, transaction: object) -> bool:
        """Say whether this is the state of that transaction of SQLAlchemy's."""
        return self._transaction is not None and self._transaction() is transaction

    def savepoint(self, name: str) -> None:
        """Open a savepoint."""
        self.savepoints.append((name, self.text, self.read_only))

    def rollback_to(self, name: str) -> None:
        """Roll back to a savepoint, which stays open."""
        while self.savepoints:
            found, self.text, self.read_only = self.savepoints.pop()
            if found == name:
                # The savepoint itself stays open after ROLLBACK TO.
                self.savepoint(name)
                return
        self.text = UNKNOWN

    def release(self, name: str) -> None:
        """Release a savepoint and those inside of it."""
        while self.savepoints:
            found, _, self.read_only = self.savepoints.pop()
            if found == name:
                return

    def forget(self) -> None:
        """Start anew: the transaction has ended, though not by SQLAlchemy's own methods."""
        self.text = None
        self.savepoints.clear()
        self.read_only = None

    def follow(self, found: Statement) -> None:
        """Take notice of a statement that is about to be sent."""
        if found.read_only is not None:
            self.read_only = found.read_only
        if found.unclear:
            self.text = UNKNOWN
        elif found.effect is Effect.ENDS:
            self.forget()
        elif found.savepoint is None:
            return
        elif found.effect is Effect.SAVEPOINT:
            self.savepoint(found.savepoint)
        elif found.effect is Effect.ROLLBACK_TO:
            self.rollback_to(found.savepoint)
        else:
            self.release(found.savepoint)


def emitted_of(connection: Connection) -> Emitted:
    """Give the state of a connection's current transaction; to be asked at its first statement.

    Should the server have one open by then, as with a pool that does not roll back what is
    returned to it, then nobody knows what was said in it.
    """
    info = connection.info
    transaction = connection.get_transaction()
    state: Emitted | None = info.get(_STATE)
    if state is None or not state.belongs_to(transaction):
        state = info[_STATE] = Emitted(transaction)
        if is_open(connection):
            state.text = UNKNOWN
    return state


def emitted_in(info: dict[Any, Any], *, idle: bool) -> Emitted:
    """Give the same to a cursor of the driver's own.

    Args:
        info: SQLAlchemy's notes on the driver's connection.
        idle: Whether no transaction is open, so that what was said before has ended.
    """
    state: Emitted | None = info.get(_STATE)
    if state is None:
        state = info[_STATE] = Emitted()
    elif idle:
        state.forget()
    return state
