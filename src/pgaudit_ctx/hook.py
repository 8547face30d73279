"""The SQLAlchemy hook: writes the current context into the log right before the first write.

``_listen`` lists every event of SQLAlchemy's connections that is used, and ``sending.attend`` those
of its dialects. What was emitted is remembered per database transaction (``emitted.py``).
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import sqlalchemy
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgaudit_ctx.emission.composer import Composer, Provider
from pgaudit_ctx.emission.emitted import (
    UNKNOWN,
    begin,
    begin_twophase,
    emitted_of,
    follow,
    forget,
    open_savepoint,
    release_savepoint,
    roll_back_to_savepoint,
)
from pgaudit_ctx.emission.own_statements import EMIT, claim
from pgaudit_ctx.emission.sending import (
    attend,
    can_send_with,
    send,
    send_apart,
    send_with,
    send_wrapped,
    take_over_cursors,
)
from pgaudit_ctx.emission.statements import DML, Effect, Statement, classify
from pgaudit_ctx.emission.transactions import is_autocommit, is_open, is_read_only
from pgaudit_ctx.emission.volatility import may_write
from pgaudit_ctx.errors import AuditError, UsageError
from pgaudit_ctx.message import EMPTY

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine

    Target: TypeAlias = (
        Engine | AsyncEngine | sessionmaker[Any] | scoped_session[Any] | type[Session]
    )

_OPTION: Final = "pgaudit_ctx"
_DISABLED: Final = "PGAUDIT_CTX_DISABLED"

# SQLAlchemy 2.0 calls the event outside of the block that turns the driver's errors into its own
# and gives up a lost connection; 2.1 calls it inside.
_EVENT_IS_UNPROTECTED: Final = sqlalchemy.__version__.startswith("2.0.")


class _Hook:
    """The handlers of one installation."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.active = True

    def before_cursor_execute(
        self,
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        _executemany: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> None:
        claim(cursor)
        compiled = context.isinsert or context.isupdate or context.isdelete
        found = DML if compiled else classify(statement)
        by_hand = context.execution_options.get(_OPTION)
        if self.active and by_hand != "skip":
            try:
                if compiled or by_hand == "emit" or self._writes(connection, found):
                    self._explain(connection, context, found)
            except Exception as error:
                if _EVENT_IS_UNPROTECTED and isinstance(error, _driver_error(connection)):
                    connection._handle_dbapi_exception(  # noqa: SLF001 - see there
                        error, statement, parameters, cursor, context
                    )
                raise
        if not compiled:
            self._follow(connection, found)

    def _writes(self, connection: Connection, found: Statement) -> bool:
        if found.effect is Effect.WRITES:
            return not self._would_come_early(connection, found)
        if not found.functions:
            return False
        state = emitted_of(connection)
        if state.text is None and not self.composer.speaks():
            return False
        if is_read_only(connection, state.read_only):
            return False
        return may_write(connection, found.functions)

    def _would_come_early(self, connection: Connection, found: Statement) -> bool:
        """Say whether a message would break a string such as ``SET TRANSACTION …; INSERT …``."""
        if not found.begins_bare or emitted_of(connection).text is not None:
            return False
        self.composer.complain(
            "several statements",
            "a string of several statements begins with one that must come first in its "
            "transaction: what it writes is captured without context. Send the writes apart",
        )
        return True

    def _explain(self, connection: Connection, context: Any, found: Statement) -> None:
        """Emit what explains a statement, unless the log of its transaction has it by now."""
        state = emitted_of(connection)
        try:
            content = self.composer.compose()
        except AuditError:
            if is_read_only(connection, state.read_only):
                return  # nothing will be written that would need a context
            raise
        if content == EMPTY and state.text is None:
            return
        # Somebody may have ended the transaction past SQLAlchemy.
        if content == state.text and is_open(connection):
            return
        if is_read_only(connection, state.read_only):
            return
        together = found.wrappable and not context._is_server_side  # noqa: SLF001 - told nowhere else
        if is_autocommit(connection):
            self._explain_autocommit(connection, context, content, together)
            return
        if together:
            send_with(connection, context, content)
        else:
            send(connection, content)

    def _explain_autocommit(
        self,
        connection: Connection,
        context: Any,
        content: str,
        wrappable: bool,  # noqa: FBT001 - private, and named at its only call
    ) -> None:
        if is_open(connection):
            # BEGIN was sent as text; where that transaction ends is not always to be seen.
            send_apart(connection, content)
            emitted_of(connection).text = UNKNOWN
        elif wrappable and can_send_with(connection):
            send_wrapped(connection, context, content)
        else:
            self.composer.complain(
                "AUTOCOMMIT",
                "the engine %r runs in AUTOCOMMIT mode, where CALL, DO and other text that may "
                "need to run outside of transactions is captured without context. Use "
                "transactions for what it writes",
                connection.engine,
            )

    def _follow(self, connection: Connection, found: Statement) -> None:
        if found.sets_default:
            # The default counts for the transactions that come after this one.
            state = emitted_of(connection)
            state.read_only = is_read_only(connection, state.read_only)
        if found.unclear or found.read_only is not None or found.effect not in _PLAIN:
            follow(connection, found)


_PLAIN: Final = frozenset({Effect.READS, Effect.WRITES})


def _driver_error(connection: Connection) -> Any:
    return connection.dialect.loaded_dbapi.Error


_Handlers: TypeAlias = list[tuple[str, Callable[..., None]]]

# Values must not refer to their keys, or engines and connections would live for ever.
_installed: "weakref.WeakKeyDictionary[object, tuple[_Hook, _Handlers]]" = (
    weakref.WeakKeyDictionary()
)
_by_dialect: "weakref.WeakKeyDictionary[Dialect, _Hook]" = weakref.WeakKeyDictionary()


def install(
    engine: "Target",
    *,
    context_model: type[BaseModel] | None = None,
    require_context: bool = False,
    providers: Iterable[Provider] = (),
) -> None:
    """Attach the hook to an engine, or to the connections of a kind of session; to nothing else.

    Installing again only replaces the options. On a dialect other than PostgreSQL, and with
    ``PGAUDIT_CTX_DISABLED=1`` in the environment, nothing is attached and the log says so.

    Args:
        engine: An ``Engine``, ``AsyncEngine``, ``sessionmaker``, ``scoped_session`` or ``Session``
            class.
        context_model: Checks the merged context at the first emission of a scope.
        require_context: Refuse writes outside of any scope, before they are sent.
        providers: Callables without arguments that return a mapping, asked at each emission;
            keys of the scope win over theirs. One that fails is left out, and logged once.

    Raises:
        UsageError: If ``engine`` is none of these.
        ContextRequired: Later, by a write without context under ``require_context=True``.
        ContextInvalid: Later, by a write whose context does not fit ``context_model``.
    """
    target = _target(engine)
    if os.environ.get(_DISABLED) == "1":
        log.warning("%s=1: writes of %r are captured without context", _DISABLED, engine)
        return
    if isinstance(target, Engine) and target.dialect.name != "postgresql":
        log.info("%r is not PostgreSQL: nothing is attached to it", engine)
        return
    uninstall(engine)
    hook = _Hook(Composer(context_model, require_context=require_context, providers=providers))
    listen = _listen if isinstance(target, Engine) else _listen_to_sessions
    _installed[target] = (hook, listen(target, hook))
    if isinstance(target, Engine):
        _by_dialect[target.dialect] = hook


def uninstall(engine: "Target") -> None:
    """Detach the hook from what it was installed on; without effect where it was not."""
    target = _target(engine)
    hook, handlers = _installed.pop(target, (None, []))
    if hook is not None:
        hook.active = False  # connections that sessions hold still have it
    if isinstance(target, Engine):
        _by_dialect.pop(target.dialect, None)
    for name, handler in handlers:
        event.remove(target, name, handler)


def emit_context(connection: Connection | Session) -> None:
    """Write the current context into the open transaction by hand.

    For work that goes past SQLAlchemy, such as COPY or a cursor of the driver's connection; it
    applies to everything after it in the transaction, under the options given to
    :func:`install`. On an ``AsyncConnection`` or
    ``AsyncSession``: ``await connection.run_sync(emit_context)``.

    Args:
        connection: A connection or session; a transaction is begun if none is open.

    Raises:
        UsageError: If the connection is in AUTOCOMMIT mode, where it would explain nothing.
    """
    if isinstance(connection, Session):
        connection = connection.connection()
    if is_autocommit(connection) and not is_open(connection):
        raise UsageError(
            "emit_context() on a connection in AUTOCOMMIT mode would be a transaction of its own "
            "and explain nothing: begin a transaction first"
        )
    installed = _installed.get(connection)
    # An engine made by execution_options() is another object, but has the same dialect.
    hook = _by_dialect.get(connection.dialect) if installed is None else installed[0]
    if hook is None:
        hook = _Hook(Composer())
    content = hook.composer.compose()
    connection.execute(EMIT, {"content": content})
    emitted_of(connection).text = content


def _target(engine: Any) -> Any:
    sync_engine = getattr(engine, "sync_engine", None)
    if isinstance(sync_engine, Engine):
        return sync_engine
    if isinstance(engine, scoped_session):
        engine = engine.session_factory
    if isinstance(engine, Engine | sessionmaker):
        return engine
    if isinstance(engine, type) and issubclass(engine, Session):
        return engine
    raise UsageError(
        f"install() takes an Engine, AsyncEngine, sessionmaker or Session class, not a "
        f"{type(engine).__name__}. For async sessions, install on their AsyncEngine"
    )


def _listen(target: Engine | Connection, hook: _Hook) -> _Handlers:
    handlers: _Handlers = [
        ("before_cursor_execute", hook.before_cursor_execute),
        ("begin", begin),
        ("commit", forget),
        ("rollback", forget),
        ("begin_twophase", begin_twophase),
        ("commit_twophase", forget),
        ("rollback_twophase", forget),
        ("savepoint", open_savepoint),
        ("rollback_savepoint", roll_back_to_savepoint),
        ("release_savepoint", release_savepoint),
    ]
    for name, handler in handlers:
        event.listen(target, name, handler)
    if isinstance(target, Engine):
        attend(target)
        return handlers + take_over_cursors(target, hook)
    attend(target.engine)
    return handlers


def _listen_to_sessions(sessions: Any, hook: _Hook) -> _Handlers:
    """Attach the handlers to each connection that such a session takes, while it has it."""

    def after_begin(_session: Session, _transaction: Any, connection: Connection) -> None:
        if connection.dialect.name == "postgresql" and connection not in _installed:
            _installed[connection] = (hook, _listen(connection, hook))
            # Its transaction began before we listened: what it holds by now is not known.
            emitted_of(connection).text = UNKNOWN

    event.listen(sessions, "after_begin", after_begin)
    return [("after_begin", after_begin)]
