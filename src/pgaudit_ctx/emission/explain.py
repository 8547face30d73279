"""Whether a statement needs an explanation, and how its message goes with it."""

from typing import Any, Final

from pgaudit_ctx.emission.composer import Composer
from pgaudit_ctx.emission.emitted import UNKNOWN, Emitted
from pgaudit_ctx.emission.sending import (
    Execute,
    Many,
    can_pipeline,
    can_send_with,
    send,
    send_apart,
    send_pipelined,
    send_portions,
    send_wrapped,
)
from pgaudit_ctx.emission.statements import DML, Effect, Statement, classify
from pgaudit_ctx.emission.transactions import DriverConnection
from pgaudit_ctx.emission.volatility import may_write
from pgaudit_ctx.errors import AuditError
from pgaudit_ctx.message import EMPTY

_OPTION: Final = "pgaudit_ctx"
_PLAIN: Final = frozenset({Effect.READS, Effect.WRITES})


class Explainer:
    """Explains the statements of one installation.

    Args:
        composer: Composes the messages.
        name: Of what it was installed on, for the log.

    Attributes:
        active: Whether it still explains anything; connections that sessions hold outlive an
            installation.
    """

    def __init__(self, composer: Composer, name: str) -> None:
        self.composer = composer
        self._name = name
        self.active = True

    def explain(
        self,
        state: Emitted,
        driver: DriverConnection,
        cursor: Any,
        statement: str,
        context: Any,
        execute: Execute,
        many: Many | None = None,
    ) -> bool:
        """Emit what explains a statement that is about to be executed, if it may write.

        Args:
            state: Of the connection's current transaction.
            driver: The driver's connection.
            cursor: The driver's.
            statement: As the driver gets it.
            context: SQLAlchemy's execution context.
            execute: Hands the statement to the driver.
            many: Does so with some of its parameters, where it has many sets of them.

        Returns:
            Whether the statement has been executed by now, together with its message.

        Raises:
            AuditError: If there is no context where there has to be one, or not a right one.
            Exception: The driver's own, if the server refuses.
        """
        compiled = context.isinsert or context.isupdate or context.isdelete
        # What another listener has made of it may be several statements.
        found = DML if compiled and ";" not in statement else classify(statement)
        executed = False
        by_hand = context.execution_options.get(_OPTION)
        if (
            self.active
            and by_hand != "skip"
            and (compiled or by_hand == "emit" or self._writes(state, driver, found))
            # Where the transaction has failed the statement's own error is due.
            and not driver.has_failed()
        ):
            content = self._content(state, driver, statement)
            if content is not None:
                # That a cursor is server-side is told nowhere else.
                alone = not found.wrappable or context._is_server_side  # noqa: SLF001
                how = None if alone else execute
                if driver.is_autocommit():
                    executed = self._emit_autocommit(
                        state, driver, content, cursor, how, many, context
                    )
                else:
                    executed = self._emit(state, driver, content, cursor, how)
        if not compiled:
            _follow(state, driver, found)
        return executed

    def _writes(self, state: Emitted, driver: DriverConnection, found: Statement) -> bool:
        if found.effect is Effect.WRITES:
            return not self._would_come_early(state, found)
        if not found.functions:
            return False
        if state.text is None and not self.composer.speaks():
            return False
        if driver.is_read_only(state.read_only):
            return False
        return may_write(driver, found.functions)

    def _would_come_early(self, state: Emitted, found: Statement) -> bool:
        """Say whether a message would break a string such as ``SET TRANSACTION …; INSERT …``."""
        if not found.begins_bare or state.text is not None:
            return False
        self.composer.compose()  # which refuses where there has to be a context
        self.composer.complain(
            "several statements",
            "a string of several statements begins with one that must come first in its "
            "transaction: what it writes is captured without context. Send the writes apart",
        )
        return True

    def _content(self, state: Emitted, driver: DriverConnection, statement: str) -> str | None:
        """Compose what is to be said; ``None`` if it is nothing, or was said."""
        try:
            content = self.composer.compose(statement)
        except AuditError:
            if driver.is_read_only(state.read_only):
                return None  # nothing will be written that would need a context
            raise
        if content == state.text or (content == EMPTY and state.text is None):
            return None
        return None if driver.is_read_only(state.read_only) else content

    def _emit(
        self,
        state: Emitted,
        driver: DriverConnection,
        content: str,
        cursor: Any,
        execute: Execute | None,
    ) -> bool:
        is_open = driver.is_open()
        if is_open and execute is not None and can_pipeline(driver):
            # The message arrives also if the statement turns out not to be fit for sending.
            state.text = content
            send_pipelined(driver, cursor, execute, content)
            return True
        send(driver, content, is_open=is_open)
        state.text = content
        return False

    def _emit_autocommit(
        self,
        state: Emitted,
        driver: DriverConnection,
        content: str,
        cursor: Any,
        execute: Execute | None,
        many: Many | None,
        context: Any,
    ) -> bool:
        if driver.is_open():
            # BEGIN was sent as text; where that transaction ends is not always to be seen.
            send_apart(driver, content)
            state.text = UNKNOWN
            return False
        if execute is not None and can_send_with(driver):
            size = None if many is None else driver.commits_many_in()
            if many is None or size is None:
                send_wrapped(driver, cursor, execute, content)
            else:
                rows = send_portions(driver, cursor, many, size, content)
                if size == 1:  # a driver adds them up, but the last execution is all it knows of
                    context._rowcount = rows  # noqa: SLF001 - there is no other way to say it
            return True
        self.composer.complain(
            "AUTOCOMMIT",
            "%s runs in AUTOCOMMIT mode, where CALL, DO and other text that may need to run "
            "outside of transactions is captured without context. Use transactions for what it "
            "writes",
            self._name,
        )
        return False


def _follow(state: Emitted, driver: DriverConnection, found: Statement) -> None:
    if found.sets_default:
        # The default counts for the transactions that come after this one.
        state.read_only = driver.is_read_only(state.read_only)
    opens = found.effect is Effect.SAVEPOINT
    if opens and driver.has_failed():
        return
    if found.unclear or found.read_only is not None or found.effect not in _PLAIN:
        state.follow(found)
