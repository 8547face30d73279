"""What the log of a connection's current transaction holds by now: the last message we wrote.

There is one entry for each open savepoint beside it, because a savepoint that is rolled back takes
its messages with it.
"""

import weakref
from typing import Any, Final

from sqlalchemy import Connection, TwoPhaseTransaction

from pgaudit_ctx.emission.statements import Effect, Statement
from pgaudit_ctx.emission.transactions import DriverConnection, driver_connection

_STATE: Final = "pgaudit_ctx"
_DRIVER: Final = "pgaudit_ctx driver"

# No message has this text, so whatever comes next differs from it and is emitted.
UNKNOWN: Final = "?"


class Emitted:
    """What a transaction's log holds: the last message, and the one at each savepoint.

    There is one for each connection of the driver, and each transaction starts it anew.

    Attributes:
        text: The last message; ``None`` if there was none.
        savepoints: The open ones, the innermost last: name, and what held there: the message, and
            ``read_only``, which PostgreSQL gives back at each end of a savepoint.
        read_only: What SET TRANSACTION or BEGIN said of the transaction; ``None`` if nothing was
            said, so that the connection's defaults hold.
        followed: Whether it was begun by a cursor of the driver's that takes note of what is said.
        told_past: Whether such a cursor has told something since SQLAlchemy's first statement, or
            since the connection was idle.
        explainer: Who explains its statements, so that it is found once for each transaction.
        transaction: Refers to SQLAlchemy's.
    """

    __slots__ = (
        "explainer",
        "followed",
        "read_only",
        "savepoints",
        "text",
        "told_past",
        "transaction",
    )

    def __init__(self) -> None:
        self.text: str | None = None
        self.savepoints: list[tuple[str, str | None, bool | None]] = []
        self.read_only: bool | None = None
        self.followed = False
        self.told_past = False
        self.explainer: Any = None
        self.transaction: weakref.ref[object] | None = None

    def begin(self, transaction: object, *, is_open: bool) -> None:
        """Start anew, at the first statement of a transaction of SQLAlchemy's.

        Args:
            transaction: SQLAlchemy's.
            is_open: Whether the server has one open by then, as with a pool that does not roll
                back what is returned to it: nobody knows what was said in it, unless a cursor that
                takes note has begun it.
        """
        self.explainer = None
        self.transaction = weakref.ref(transaction)
        if is_open and self.followed:
            self.followed = False
            return
        # SQLAlchemy itself has opened a two-phase transaction, at its beginning.
        unknown = is_open and (self.told_past or not isinstance(transaction, TwoPhaseTransaction))
        self.forget()
        if unknown:
            self.text = UNKNOWN

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
        self.followed = self.told_past = False

    def follow(self, found: Statement) -> None:
        """Take notice of a statement that is about to be sent."""
        if found.read_only is not None:
            self.read_only = found.read_only
        if found.unclear:
            self.text = UNKNOWN
            self.read_only = False  # which errs on the side of attribution
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


def emitted_of(connection: Connection, transaction: object) -> tuple[Emitted, DriverConnection]:
    """Give the state of a connection's transaction; to be asked at its first statement.

    Args:
        connection: SQLAlchemy's.
        transaction: The one that it is in.

    Returns:
        The state, and the driver's connection that it is about.
    """
    lent = connection.connection
    info = lent.info
    driver: DriverConnection | None = info.get(_DRIVER)
    if driver is None or driver.adapted is not lent.dbapi_connection:
        driver = info[_DRIVER] = driver_connection(connection.dialect, lent.dbapi_connection)
    state = emitted_in(info)
    is_open = driver.is_open()
    if state.transaction is None or state.transaction() is not transaction:
        state.begin(transaction, is_open=is_open)
    elif not is_open:
        state.forget()  # also if somebody has ended it past SQLAlchemy
    return state, driver


def emitted_in(info: dict[Any, Any]) -> Emitted:
    """Give the same from SQLAlchemy's notes on the driver's connection."""
    state: Emitted | None = info.get(_STATE)
    if state is None:
        state = info[_STATE] = Emitted()
    return state
