"""The SQLAlchemy hook: writes the current context into the log right before the first write.

``_listen`` lists every event that is used. They are those in which a dialect hands a statement to
the driver: a listener to the events of connections costs each transaction tens of microseconds
before it does anything. What is emitted, and when, is decided in ``emission/``.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool

from pgaudit_ctx.emission.composer import Composer, Provider
from pgaudit_ctx.emission.emitted import UNKNOWN, Emitted, emitted_of
from pgaudit_ctx.emission.explain import Explainer
from pgaudit_ctx.emission.own_statements import EMIT, claim
from pgaudit_ctx.emission.sending import Execute, Many
from pgaudit_ctx.emission.transactions import driver_connection
from pgaudit_ctx.errors import UsageError

log = logging.getLogger(__name__)
_attending: Final = threading.Lock()

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine

    Target: TypeAlias = (
        Engine | AsyncEngine | sessionmaker[Any] | scoped_session[Any] | type[Session]
    )

_DISABLED: Final = "PGAUDIT_CTX_DISABLED"

_Handlers: TypeAlias = list[tuple[str, Callable[..., Any]]]

# Values must not refer to their keys, or engines and connections would live for ever.
_installed: "weakref.WeakKeyDictionary[object, tuple[Explainer, _Handlers]]" = (
    weakref.WeakKeyDictionary()
)
# Who explains what an engine executes.
_explainers: "weakref.WeakKeyDictionary[Engine, Explainer]" = weakref.WeakKeyDictionary()
# For whom we listen to a dialect; engines that were made by execution_options() share theirs.
_attended: "weakref.WeakKeyDictionary[Dialect, weakref.WeakSet[Explainer]]" = (
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
    composer = Composer(context_model, require_context=require_context, providers=providers)
    explainer = Explainer(composer, repr(target))
    listen = _listen if isinstance(target, Engine) else _listen_to_sessions
    _installed[target] = (explainer, listen(target, explainer))


def uninstall(engine: "Target") -> None:
    """Detach the hook from what it was installed on; without effect where it was not."""
    target = _target(engine)
    explainer, handlers = _installed.pop(target, (None, []))
    if explainer is None:
        return
    explainer.active = False  # connections that sessions hold still have it
    _explainers.pop(target, None)
    for name, handler in handlers:
        event.remove(target, name, handler)
    for dialect, explainers in list(_attended.items()):
        explainers.discard(explainer)
        if not explainers:
            del _attended[dialect]
            for name, handle in _HANDLERS:
                event.remove(dialect, name, handle)


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
    driver = driver_connection(connection.dialect, connection.connection.dbapi_connection)
    if driver.is_autocommit() and not driver.is_open():
        raise UsageError(
            "emit_context() on a connection in AUTOCOMMIT mode would be a transaction of its own "
            "and explain nothing: begin a transaction first"
        )
    state, _ = emitted_of(connection, connection.get_transaction() or connection.begin())
    explainer = _explainer_of(connection, state)
    composer = Composer() if explainer is None else explainer.composer
    content = composer.compose()
    connection.execute(EMIT, {"content": content})
    state.text = content


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


def _listen(engine: Engine, explainer: Explainer) -> _Handlers:
    _explainers[engine] = explainer
    _attend(engine.dialect, explainer)
    return _take_over_cursors(engine, explainer)


def _listen_to_sessions(sessions: Any, explainer: Explainer) -> _Handlers:
    """Explain each transaction that such a session takes part in."""

    def after_begin(_session: Session, _transaction: Any, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            state, _ = emitted_of(connection, connection.get_transaction())
            state.explainer = explainer
            _attend(connection.dialect, explainer)

    event.listen(sessions, "after_begin", after_begin)
    return [("after_begin", after_begin)]


def _attend(dialect: "Dialect", explainer: Explainer) -> None:
    """Listen to the events in which a dialect hands statements to the driver; idempotent."""
    with _attending:
        explainers = _attended.get(dialect)
        if explainers is None:
            explainers = weakref.WeakSet()
            for name, handle in _HANDLERS:
                # Ours goes first: whoever executes a statement keeps the others from being asked.
                event.listen(dialect, name, handle, insert=True)
            _attended[dialect] = explainers
        explainers.add(explainer)


def _do_execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    execute = context.dialect.do_execute
    return _handle(
        cursor, statement, context, lambda: execute(cursor, statement, parameters, context)
    )


def _do_executemany(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    execute = context.dialect.do_executemany

    def execute_some(some: Sequence[Any]) -> None:
        execute(cursor, statement, some, context)

    many = Many(execute_some, parameters)
    return _handle(cursor, statement, context, lambda: execute_some(parameters), many)


def _do_execute_no_params(cursor: Any, statement: str, context: Any) -> bool:
    execute = context.dialect.do_execute_no_params
    return _handle(cursor, statement, context, lambda: execute(cursor, statement, context))


_HANDLERS: Final = (
    ("do_execute", _do_execute),
    ("do_executemany", _do_executemany),
    ("do_execute_no_params", _do_execute_no_params),
)


def _handle(
    cursor: Any, statement: str, context: Any, execute: Execute, many: Many | None = None
) -> bool:
    """Have a statement explained; ``True`` tells SQLAlchemy that it was executed by us."""
    claim(cursor)
    connection: Connection = context.root_connection
    transaction = connection.get_transaction()
    if transaction is None:
        return False  # a dialect initialises itself with its first connection
    state, driver = emitted_of(connection, transaction)
    explainer = _explainer_of(connection, state)
    if explainer is None:
        return False
    return explainer.explain(state, driver, cursor, statement, context, execute, many)


def _explainer_of(connection: Connection, state: Emitted) -> Explainer | None:
    """Find who explains a transaction: whom its session has, or whom the engine has."""
    explainer: Explainer | None = state.explainer
    if explainer is not None:
        if explainer.active:
            return explainer
        state.text = UNKNOWN  # it was uninstalled meanwhile, and no longer followed
    engine: Engine | None = connection.engine
    while engine is not None:
        explainer = state.explainer = _explainers.get(engine)
        if explainer is not None:
            break
        # What an engine made by execution_options() was made of; told nowhere else.
        engine = getattr(engine, "_proxied", None)
    return explainer


def _take_over_cursors(engine: Engine, explainer: Explainer) -> _Handlers:
    """Let the driver's own cursors emit by themselves, where the driver can do that."""
    # The pool of an engine made by execution_options() is that of the engine it was made of.
    if engine.dialect.driver != "psycopg" or hasattr(engine, "_proxied"):
        return []
    dialect, pool = engine.dialect, engine.pool

    def take_over(_connection: Any, record: Any, *_: Any) -> None:
        # The application need not have psycopg: this is only loaded where it is the driver.
        from pgaudit_ctx.emission import driver_cursors

        driver_cursors.take_over(record, dialect, explainer)

    # Listening to each checkout costs each transaction more than the rest of the hook does, and is
    # only needed if the pool has made connections before.
    fresh = isinstance(pool, QueuePool) and pool.checkedin() + pool.checkedout() == 0
    name = "connect" if fresh else "checkout"
    event.listen(engine, name, take_over)
    return [(name, take_over)]
