"""The SQLAlchemy hook: writes the current context into the log right before the first write.

``_listen`` lists every SQLAlchemy event that is used. What was emitted is remembered per database
transaction, with one entry for each open savepoint, because a savepoint that is rolled back takes
its messages with it.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import sqlalchemy
from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, Engine, Text, bindparam, event, text
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgaudit_ctx.context import Scope, current_scope
from pgaudit_ctx.emitted import (
    UNKNOWN,
    emitted_of,
    follow,
    forget,
    open_savepoint,
    release_savepoint,
    roll_back_to_savepoint,
)
from pgaudit_ctx.errors import ContextInvalid, ContextRequired, UsageError
from pgaudit_ctx.message import EMPTY, PREFIX, encode_context, plain_context
from pgaudit_ctx.statements import Effect, Statement, classify

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    Target: TypeAlias = (
        Engine | AsyncEngine | sessionmaker[Any] | scoped_session[Any] | type[Session]
    )

Provider: TypeAlias = Callable[[], Mapping[str, Any]]

_OPTION: Final = "pgaudit_ctx"
_DISABLED: Final = "PGAUDIT_CTX_DISABLED"
_EMIT: Final = text(
    f"SELECT pg_catalog.pg_logical_emit_message(true, '{PREFIX}', CAST(:content AS text))"
).bindparams(bindparam("content", type_=Text()))


# SQLAlchemy 2.0 calls the event outside of the block that turns the driver's errors into its own
# and gives up a lost connection; 2.1 calls it inside.
_EVENT_IS_UNPROTECTED: Final = sqlalchemy.__version__.startswith("2.0.")


class _Hook:
    """The handlers of one installation, and its options."""

    def __init__(
        self,
        context_model: type[BaseModel] | None,
        require_context: bool,  # noqa: FBT001 - private, and named at its only call
        providers: Iterable[Provider],
    ) -> None:
        self._context_model = context_model
        self._require_context = require_context
        self._providers = tuple(providers)
        self._complained: set[object] = set()
        self.active = True

    def before_cursor_execute(
        self,
        connection: Connection,
        _cursor: Any,
        statement: str,
        _parameters: Any,
        context: Any,
        _executemany: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> None:
        by_hand = context.execution_options.get(_OPTION)
        if by_hand == "skip" or not self.active:
            return
        if by_hand != "emit" and not (context.isinsert or context.isupdate or context.isdelete):
            found = classify(statement)
            if found.effect is Effect.WRITES and not self._would_come_early(connection, found):
                self.emit(connection)
            if found.effect is not Effect.READS or found.unclear:
                follow(connection, found)
            return
        self.emit(connection)

    def _would_come_early(self, connection: Connection, found: Statement) -> bool:
        """Say whether a message would break a string such as ``SET TRANSACTION …; INSERT …``."""
        if not found.begins_bare or emitted_of(connection).text is not None:
            return False
        self._complain(
            "several statements",
            "a string of several statements begins with one that must come first in its "
            "transaction: what it writes is captured without context. Send the writes apart",
        )
        return True

    def emit(self, connection: Connection) -> None:
        content = self.content()
        emitted = emitted_of(connection)
        if content == emitted.text or (content == EMPTY and emitted.text is None):
            return
        if getattr(connection.connection.dbapi_connection, "autocommit", False):
            self._complain(
                "AUTOCOMMIT",
                "the engine %r runs in AUTOCOMMIT mode, where a message and the write it explains "
                "would be two transactions: its writes are captured without context. Use "
                "transactions, or call emit_context() inside one",
                connection.engine,
            )
            return
        _send(connection, content)
        emitted.text = content

    def content(self) -> str:
        scope = current_scope()
        if self._require_context and (scope is None or not scope.merged):
            raise ContextRequired(
                "a write without context, on an engine installed with require_context=True. "
                "Remedy: do it inside `with audit_context(user=..., reason=...):`"
            )
        if scope is None and not self._providers:
            return EMPTY
        merged: dict[str, Any] = {}
        for provider in self._providers:
            merged.update(self._ask(provider))
        if scope is not None:
            merged.update(scope.merged)
            if merged and self._context_model is not None:
                self._validate(scope, merged, self._context_model)
            if not self._providers:
                return scope.text
        return encode_context(merged)

    def _validate(self, scope: Scope, merged: dict[str, Any], model: type[BaseModel]) -> None:
        validated = (scope.stamp, model)
        if scope.validated_by == validated:
            return
        try:
            model.model_validate(merged)
        except ValidationError as error:
            # Neither pydantic's own text nor its "input" may appear: they quote values.
            fields = ", ".join(
                f"{'.'.join(map(str, found['loc'])) or 'the whole'} ({found['type']})"
                for found in error.errors(include_input=False, include_url=False)
            )
            raise ContextInvalid(
                f"the context does not fit {model.__name__}: {fields}. Remedy: correct these keys "
                "in audit_context() or bind_context()"
            ) from None
        scope.validated_by = validated

    def _ask(self, provider: Provider) -> Mapping[str, Any]:
        try:
            return plain_context(provider())
        except Exception as error:  # noqa: BLE001 - whatever it raises must not break the write
            self._complain(
                provider,
                "the context provider %s failed with %s: its keys are left out",
                getattr(provider, "__qualname__", type(provider).__name__),
                type(error).__name__,
            )
            return {}

    def _complain(self, about: object, message: str, *arguments: object) -> None:
        if about not in self._complained:
            self._complained.add(about)
            log.warning(message, *arguments)


_Handlers: TypeAlias = list[tuple[str, Callable[..., None]]]

# Values must not refer to their keys, or engines and connections would live for ever.
_installed: "weakref.WeakKeyDictionary[object, tuple[_Hook, _Handlers]]" = (
    weakref.WeakKeyDictionary()
)
_by_dialect: "weakref.WeakKeyDictionary[Dialect, _Hook]" = weakref.WeakKeyDictionary()
_compiled: "weakref.WeakKeyDictionary[Dialect, Callable[[str], tuple[str, Any]]]" = (
    weakref.WeakKeyDictionary()
)


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
    hook = _Hook(context_model, require_context, providers)
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
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise UsageError(
            "emit_context() on a connection in AUTOCOMMIT mode would be a transaction of its own "
            "and explain nothing: begin a transaction first"
        )
    installed = _installed.get(connection)
    # An engine made by execution_options() is another object, but has the same dialect.
    hook = _by_dialect.get(connection.dialect) if installed is None else installed[0]
    if hook is None:
        hook = _Hook(None, require_context=False, providers=())
    content = hook.content()
    connection.execute(_EMIT, {"content": content})
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
        ("begin", forget),
        ("commit", forget),
        ("rollback", forget),
        ("begin_twophase", forget),
        ("commit_twophase", forget),
        ("rollback_twophase", forget),
        ("savepoint", open_savepoint),
        ("rollback_savepoint", roll_back_to_savepoint),
        ("release_savepoint", release_savepoint),
    ]
    for name, handler in handlers:
        event.listen(target, name, handler)
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


def _send(connection: Connection, content: str) -> None:
    dialect = connection.dialect
    prepare = _compiled.get(dialect)
    if prepare is None:
        prepare = _compiled[dialect] = _compile(dialect)
    statement, parameters = prepare(content)
    cursor = connection.connection.cursor()
    try:
        dialect.do_execute(cursor, statement, parameters)
    except dialect.loaded_dbapi.Error as error:
        if _EVENT_IS_UNPROTECTED:
            connection._handle_dbapi_exception(error, statement, None, cursor, None)  # noqa: SLF001 - see there
        raise
    finally:
        cursor.close()


def _compile(dialect: Dialect) -> Callable[[str], tuple[str, Any]]:
    compiled = _EMIT.compile(dialect=dialect)
    statement = str(compiled)
    if getattr(compiled, "positional", False):
        return lambda content: (statement, (content,))
    return lambda content: (statement, {"content": content})
