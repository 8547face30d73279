"""Cursors of psycopg that emit by themselves, for work that goes past SQLAlchemy.

psycopg lets a connection have its own cursor classes, so what is written through
``connection.connection.driver_connection`` is explained like everything else, COPY included.
Loaded only where psycopg is an engine's driver.
"""

import weakref
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import psycopg
from psycopg import pq, sql
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import ConnectionPoolEntry

from pgaudit_ctx.emission.composer import Composer
from pgaudit_ctx.emission.emitted import UNKNOWN, Emitted, emitted_in
from pgaudit_ctx.emission.psycopg_driver import begin_command, emit_command, simple_query
from pgaudit_ctx.emission.statements import Effect, Statement, classify
from pgaudit_ctx.emission.transactions import ASK_READ_ONLY, known_read_only, reported_by_psycopg
from pgaudit_ctx.emission.volatility import VOLATILE_AMONG, volatility_of
from pgaudit_ctx.errors import AuditError
from pgaudit_ctx.message import EMPTY

_Connection: TypeAlias = "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]"
_KINDS: Final = (psycopg.Cursor, psycopg.AsyncCursor)
_UNTOLD: Final = Statement(Effect.WRITES)


class Installation(Protocol):
    """What the cursors have to know of the hook."""

    composer: Composer
    active: bool


class _Owner:
    """Who explains what is written on one driver's connection."""

    def __init__(self, record: ConnectionPoolEntry, dialect: Dialect, hook: Installation) -> None:
        # Through a weak reference, since the record refers to the connection.
        self._record = weakref.ref(record)
        # SQLAlchemy's own, also after the connection was detached from its pool.
        self._state = emitted_in(record.info)
        self.volatility = volatility_of(dialect)
        self.hook = hook

    def is_of(self, record: ConnectionPoolEntry) -> bool:
        """Say whether the connection was lent under this record."""
        return self._record() is record

    def state_of(self, connection: "_Connection") -> Emitted | None:
        """Give the state of the connection's transaction.

        Returns:
            ``None`` while the pool is still making the connection, which is its maker's affair.
        """
        record = self._record()
        pooled = record is not None and record.driver_connection is connection
        if pooled and record is not None and not record.in_use:
            return None
        if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            self._state.forget()
            self._state.followed = True
        return self._state


_owners: "weakref.WeakKeyDictionary[_Connection, _Owner]" = weakref.WeakKeyDictionary()
# Values must not refer to their keys, and a class refers to the one it inherits from.
_classes: "weakref.WeakKeyDictionary[type, weakref.ref[type]]" = weakref.WeakKeyDictionary()


def take_over(record: ConnectionPoolEntry, dialect: Dialect, hook: Installation) -> None:
    """Let a connection's cursors emit by themselves from now on.

    Args:
        record: The pool's record of the connection.
        dialect: SQLAlchemy's, of the engine that the pool belongs to.
        hook: The installation that explains its writes.
    """
    connection: Any = record.driver_connection
    owner = _owners.get(connection)
    if owner is not None and owner.hook is hook and owner.is_of(record):
        return
    cursor_class: Any = connection.cursor_factory
    # Whatever else makes cursors, such as a function of the application's, is left alone.
    if isinstance(cursor_class, type) and issubclass(cursor_class, _KINDS):
        _owners[connection] = _Owner(record, dialect, hook)
        connection.cursor_factory = _emitting(cursor_class)


def _emitting(cursor_class: Any) -> Any:
    """Make the class of cursors that emits by itself, out of the one a connection has."""
    if issubclass(cursor_class, _EmittingCursor | _EmittingAsyncCursor):
        return cursor_class
    known = _classes.get(cursor_class)
    made = None if known is None else known()
    if made is None:
        asynchronous = issubclass(cursor_class, psycopg.AsyncCursor)
        mixin = _EmittingAsyncCursor if asynchronous else _EmittingCursor
        made = type(cursor_class.__name__, (mixin, cursor_class), {})
        _classes[cursor_class] = weakref.ref(made)
    return made


class _EmittingCursor:
    claimed = False
    connection: Any

    def _explain(self, query: Any) -> None:
        connection = self.connection
        with connection.lock:
            due = connection.wait(_is_due_gen(connection, query))
        content = None if due is None else due.compose()
        if content is not None:
            with connection.lock:
                connection.wait(due.emit_gen(connection, content))

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        if not self.claimed:
            self._explain(query)
        return super().execute(query, *args, **options)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **options: Any) -> Any:
        if not self.claimed:
            self._explain(query)
        return super().executemany(query, *args, **options)  # type: ignore[misc]

    def stream(self, query: Any, *args: Any, **options: Any) -> Any:
        if not self.claimed:
            self._explain(query)
        yield from super().stream(query, *args, **options)  # type: ignore[misc]

    def copy(self, statement: Any, *args: Any, **options: Any) -> Any:
        if not self.claimed:
            self._explain(statement)
        return super().copy(statement, *args, **options)  # type: ignore[misc]


class _EmittingAsyncCursor:
    claimed = False
    connection: Any

    async def _explain(self, query: Any) -> None:
        connection = self.connection
        async with connection.lock:
            due = await connection.wait(_is_due_gen(connection, query))
        content = None if due is None else due.compose()
        if content is not None:
            async with connection.lock:
                await connection.wait(due.emit_gen(connection, content))

    async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        if not self.claimed:
            await self._explain(query)
        return await super().execute(query, *args, **options)  # type: ignore[misc]

    async def executemany(self, query: Any, *args: Any, **options: Any) -> Any:
        if not self.claimed:
            await self._explain(query)
        return await super().executemany(query, *args, **options)  # type: ignore[misc]

    async def stream(self, query: Any, *args: Any, **options: Any) -> Any:
        if not self.claimed:
            await self._explain(query)
        # Closed with this one: what is left early must not keep the connection busy.
        async with aclosing(super().stream(query, *args, **options)) as rows:  # type: ignore[misc]
            async for row in rows:
                yield row

    @asynccontextmanager
    async def copy(self, statement: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        if not self.claimed:
            await self._explain(statement)
        async with super().copy(statement, *args, **options) as copy:  # type: ignore[misc]
            yield copy


@dataclass(frozen=True, slots=True)
class _Due:
    """A statement that may write, and what is known of the transaction it is in."""

    composer: Composer
    state: Emitted
    read_only: bool

    def compose(self) -> str | None:
        """Compose what is to be said; ``None`` if it is nothing.

        Without the connection's lock, for a context provider may use the same connection.
        """
        try:
            content = self.composer.compose()
        except AuditError:
            if self.read_only:
                return None  # nothing will be written that would need a context
            raise
        said_nothing = content == EMPTY and self.state.text is None
        return None if self.read_only or said_nothing else content

    def emit_gen(self, connection: _Connection, content: str) -> Generator[Any, Any, None]:
        """Say it, for ``connection.wait``."""
        if not _can_be_told(connection, self.composer):
            return
        command = emit_command(connection.pgconn, content)
        if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            command = begin_command(connection) + b"; " + command
        yield from simple_query(connection, command)
        self.state.text = UNKNOWN
        self.state.told_past = True


def _is_due_gen(connection: _Connection, query: Any) -> Generator[Any, Any, _Due | None]:
    """Say whether a statement has to be explained, for ``connection.wait``.

    What was emitted before does not count here: a savepoint or a transaction that was ended past
    SQLAlchemy may have taken it away. A message twice is harmless.
    """
    owner = _owners.get(connection)
    if owner is None or not owner.hook.active:
        return None
    found = _classified(connection, query)
    state = owner.state_of(connection)
    if state is None:
        return None
    _follow(connection, state, found)
    composer = owner.hook.composer
    # In a transaction that has failed the statement's own error is due, not one of ours.
    if (state.text is None and not composer.speaks()) or _has_failed(connection):
        return None
    if not (yield from _writes_gen(connection, owner, found)):
        return None
    read_only = yield from _is_read_only_gen(connection, state.read_only)
    return _Due(composer, state, read_only)


def _follow(connection: _Connection, state: Emitted, found: Statement) -> None:
    if found.effect is Effect.SAVEPOINT and _has_failed(connection):
        return
    state.follow(found)
    if found.unclear or found.savepoint is not None:
        state.text = UNKNOWN
        state.told_past = True
    if found.read_only and connection._num_transactions:  # noqa: SLF001 - it is told nowhere else
        # Where a savepoint of `with driver.transaction():` takes it back nobody hears of it.
        state.read_only = False


def _can_be_told(connection: _Connection, composer: Composer) -> bool:
    pgconn = connection.pgconn
    if pgconn.pipeline_status != pq.PipelineStatus.OFF:
        composer.complain(
            "pipeline",
            "what is written in a pipeline of the driver's own connection is captured without "
            "context: call emit_context() before the pipeline is entered",
        )
        return False
    if connection.autocommit and pgconn.transaction_status == pq.TransactionStatus.IDLE:
        composer.complain(
            "AUTOCOMMIT, past SQLAlchemy",
            "what is written on the driver's own connection in AUTOCOMMIT mode is captured "
            "without context: use transactions for it",
        )
        return False
    return True


def _writes_gen(
    connection: _Connection, owner: _Owner, found: Statement
) -> Generator[Any, Any, bool]:
    if found.effect is Effect.WRITES or not found.functions:
        return found.effect is Effect.WRITES
    unknown = owner.volatility.unknown(found.functions)
    if unknown and connection.pgconn.pipeline_status == pq.PipelineStatus.OFF:
        encoding = connection.info.encoding
        literal = pq.Escaping(connection.pgconn).escape_literal("\n".join(unknown).encode(encoding))
        question = VOLATILE_AMONG.text.encode().replace(b":content", literal)
        (result,) = yield from simple_query(connection, question)
        names = [result.get_value(row, 0) or b"" for row in range(result.ntuples)]
        owner.volatility.learn(unknown, [(name.decode(encoding),) for name in names])
    return owner.volatility.may_write(found.functions)


def _classified(connection: _Connection, query: Any) -> Statement:
    if isinstance(query, sql.Composable):
        return classify(query.as_string(connection))
    if isinstance(query, bytes):
        return classify(query.decode(connection.info.encoding, errors="replace"))
    return classify(query) if isinstance(query, str) else _UNTOLD


def _has_failed(connection: _Connection) -> bool:
    return connection.pgconn.transaction_status == pq.TransactionStatus.INERROR


def _is_read_only_gen(
    connection: _Connection,
    said: bool | None,  # noqa: FBT001 - a value, no switch
) -> Generator[Any, Any, bool]:
    """Do what ``transactions.is_read_only`` does, for ``connection.wait``."""
    known = known_read_only(reported_by_psycopg(connection), said, connection.read_only)
    if known is not None:
        return known
    if connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
        return True
    (result,) = yield from simple_query(connection, ASK_READ_ONLY.encode())
    return result.get_value(0, 0) == b"on"
