"""What the log of a connection's current transaction holds by now: the last message we wrote.

There is one entry for each open savepoint beside it, because a savepoint that is rolled back takes
its messages with it.
"""

from typing import Any, Final

from sqlalchemy import Connection

from pgaudit_ctx.emission.statements import Effect, Statement
from pgaudit_ctx.emission.transactions import is_open

_STATE: Final = "pgaudit_ctx"

# No message has this text, so whatever comes next differs from it and is emitted.
UNKNOWN: Final = "?"


class Emitted:
    """What the current transaction's log holds: the last message, and the one at each savepoint.

    Attributes:
        text: The last message; ``None`` if there was none.
        savepoints: The open ones, the innermost last: name, and what held there: the message, and
            ``read_only``, which PostgreSQL gives back at each end of a savepoint.
        read_only: What SET TRANSACTION or BEGIN said of the transaction; ``None`` if nothing was
            said, so that the connection's defaults hold.
    """

    __slots__ = ("read_only", "savepoints", "text")

    def __init__(self) -> None:
        self.text: str | None = None
        self.savepoints: list[tuple[str, str | None, bool | None]] = []
        self.read_only: bool | None = None

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


def emitted_of(connection: Connection) -> Emitted:
    """Give the state of a connection's current transaction."""
    return emitted_in(connection.info)


def emitted_in(info: dict[Any, Any]) -> Emitted:
    """Give the same, from SQLAlchemy's notes on the driver's connection."""
    state: Emitted | None = info.get(_STATE)
    if state is None:
        state = info[_STATE] = Emitted()
    return state


def _is_gone(connection: Connection) -> bool:
    # Asking a lost connection for its info would raise, and hide why it was lost.
    return connection.invalidated or connection.closed


def begin(connection: Connection) -> None:
    """Start anew with a transaction.

    Should one be open by now, as with a pool that does not roll back what is returned to it, then
    nobody knows what was said in it.
    """
    if _is_gone(connection):
        return
    state = Emitted()
    if is_open(connection):
        state.text = UNKNOWN
    connection.info[_STATE] = state


def begin_twophase(connection: Connection, _xid: Any) -> None:
    """Start anew with a transaction that will be prepared."""
    begin(connection)


def forget(connection: Connection, *_: Any) -> None:
    """Start anew: the transaction has ended."""
    if not _is_gone(connection):
        connection.info.pop(_STATE, None)


def open_savepoint(connection: Connection, name: str) -> None:
    """Remember what held when a savepoint was opened."""
    if not _is_gone(connection):
        emitted_of(connection).savepoint(name)


def roll_back_to_savepoint(connection: Connection, name: str, _: Any) -> None:
    """Go back to what held when a savepoint was opened."""
    if not _is_gone(connection):
        emitted_of(connection).rollback_to(name)


def release_savepoint(connection: Connection, name: str, _: Any) -> None:
    """Keep what was emitted inside of a savepoint."""
    if not _is_gone(connection):
        emitted_of(connection).release(name)


def follow(connection: Connection, found: Statement) -> None:
    """Do the same for transaction control that was sent as text."""
    state = emitted_of(connection)
    if found.read_only is not None:
        state.read_only = found.read_only
    if found.unclear:
        state.text = UNKNOWN
    elif found.effect is Effect.ENDS:
        forget(connection)
    elif found.savepoint is None:
        return
    elif found.effect is Effect.SAVEPOINT:
        state.savepoint(found.savepoint)
    elif found.effect is Effect.ROLLBACK_TO:
        state.rollback_to(found.savepoint)
    else:
        state.release(found.savepoint)
