"""Who and why: scopes that carry a context through threads of execution.

A scope lives in a context variable of the standard library, so it follows ``await``, tasks and
``contextvars.copy_context``. ``bind_context`` changes the scope itself, which every copy shares.
"""

import contextlib
import copy
import functools
import inspect
import threading
import types
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextvars import ContextVar, Token
from typing import Any, Final, Protocol, TypeVar, cast

from pydantic import BaseModel

from pgaudit_ctx.errors import ContextInvalid, NoOpenScope
from pgaudit_ctx.message import MAX_TEXT, encode_context, measured_context

_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R")

_NESTED: Final = frozenset({dict, list})


class _Flushable(Protocol):
    def flush(self) -> Any: ...


# Threads that share a scope may bind at the same time.
_binding: Final = threading.Lock()


class Scope:
    """One open context: its own values over those of the scope around it."""

    __slots__ = ("_memo", "_own", "_parent", "_version", "bound", "validated_by")

    def __init__(self, own: dict[str, Any], bound: int, parent: "Scope | None") -> None:
        self._own = own
        self._parent = parent
        self.bound: int = bound if parent is None else bound + parent.bound
        """Bytes that the text of the merged context surely does not exceed."""
        self._version = 0
        self._memo: tuple[int, Mapping[str, Any], str | None] | None = None
        self.validated_by: tuple[int, object] | None = None

    @property
    def parent(self) -> "Scope | None":
        """The scope around this one."""
        return self._parent

    @property
    def stamp(self) -> int:
        """A number that grows with every change to this scope or to one around it."""
        return self._version + (self._parent.stamp if self._parent is not None else 0)

    def bind(self, values: dict[str, Any], bound: int) -> None:
        """Add values to this scope, replacing those of the same name."""
        with _binding:
            merged = {**self.merged, **values}
            bound += self.bound
            if bound > MAX_TEXT:
                bound = len(encode_context(merged))
            self._own = {**self._own, **values}
            self.bound = bound
            self._version += 1

    def unbind(self, names: Iterable[str]) -> None:
        """Take values away from this scope; those of the scopes around it stay."""
        with _binding:
            gone = frozenset(names)
            self._own = {name: value for name, value in self._own.items() if name not in gone}
            self._version += 1

    @property
    def merged(self) -> Mapping[str, Any]:
        """The values of this scope and of those around it, inner over outer; read-only."""
        return self._remember()[1]

    @property
    def text(self) -> str:
        """The merged context as the text of a message, built once."""
        memo = self._memo
        if memo is None or memo[0] != (self._version if self._parent is None else self.stamp):
            memo = self._remember()
        stamp, merged, text = memo
        if text is None:
            text = encode_context(merged)
            self._memo = (stamp, merged, text)
        return text

    def _remember(self) -> tuple[int, Mapping[str, Any], str | None]:
        stamp = self.stamp
        memo = self._memo
        if memo is None or memo[0] != stamp:
            own = self._own
            merged = own if self._parent is None else {**self._parent.merged, **own}
            memo = self._memo = (stamp, types.MappingProxyType(merged), None)
        return memo


_innermost: ContextVar[Scope | None] = ContextVar("pgaudit_ctx_scope", default=None)


def current_scope() -> Scope | None:
    """Give the innermost open scope, or ``None``."""
    return _innermost.get()


class apart:  # noqa: N801 - used as a verb, like audit_context
    """Leave all open scopes for a while, for work that has nothing to do with them.

    A server may begin a request, and a queue a task, in the context of the one before; nothing
    of that may be inherited.
    """

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _innermost.set(None)

    def __exit__(self, *_: object) -> None:
        # Where it is left in another copy of the context, that one was never changed.
        with contextlib.suppress(ValueError):
            _innermost.reset(self._token)


def current_context() -> Mapping[str, Any] | None:
    """Give the merged context.

    Returns:
        A read-only mapping of plain JSON values (a UUID is its text by now), or ``None`` outside
        of any scope. Lists and dicts in it are copies.
    """
    scope = _innermost.get()
    return None if scope is None else _shown(scope.merged)


def _shown(merged: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the context to the application so that nothing it does reaches the scope."""
    if not any(type(value) in _NESTED for value in merged.values()):
        return merged
    return types.MappingProxyType(copy.deepcopy(dict(merged)))


class _Entered(Mapping[str, Any]):
    """What ``with audit_context(...) as context:`` gives: merged only if somebody looks at it."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __getitem__(self, key: str) -> Any:
        return _shown(self._scope.merged)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scope.merged)

    def __len__(self) -> int:
        return len(self._scope.merged)

    def __repr__(self) -> str:
        return repr(dict(self._scope.merged))


def bind_context(**values: Any) -> None:
    """Add values to the innermost open scope.

    It reaches the scope itself, also from a thread or task that only has a copy of the context,
    as FastAPI's sync dependencies and ``asyncio`` tasks do.

    Args:
        **values: What to add; same types as for :class:`audit_context`.

    Raises:
        NoOpenScope: Outside of any scope.
        ContextInvalid: If a value cannot be carried, or the whole becomes too large.
    """
    scope = _innermost.get()
    if scope is None:
        raise NoOpenScope(
            "bind_context() needs an open scope: call it inside "
            "`with audit_context(...):`, or install the middleware that opens one per request"
        )
    scope.bind(*measured_context(values))


class audit_context:  # noqa: N801 - used as a verb, like contextlib.suppress
    """Say who writes, and why, for everything written inside.

    Use it with ``with``, with ``async with``, or as a decorator of a function or coroutine
    function. Nested scopes merge, the inner one wins, and leaving restores the outer one, also
    after an exception::

        with audit_context(user="dr.who", reason="allergy reported"):
            patient.allergies.append("penicillin")
            session.commit()

    Only what reaches the database inside the block carries the context: objects changed inside
    and flushed after it do not. ``flush=session`` flushes that session when the block is left
    without an exception.

    Args:
        context: A mapping or a pydantic model; keywords are merged over it.
        flush: A ``Session``, or an ``AsyncSession`` (which needs ``async with``), to flush on a
            clean exit.
        **values: The context. JSON types, UUID, datetime, date, time, timedelta (ISO 8601),
            Decimal (as text), Enum (its value), Path, IP addresses, pydantic models.

    Raises:
        ContextInvalid: On entering, if the context is not a mapping, a key is not text or is
            ``$pgaudit_ctx``, a value cannot be carried, or the merged text exceeds 64 KiB.
    """

    __slots__ = ("_flush", "_given", "_opened")

    def __init__(
        self,
        context: Mapping[str, Any] | BaseModel | None = None,
        /,
        *,
        flush: _Flushable | None = None,
        **values: Any,
    ) -> None:
        if context is None:
            given = values
        elif isinstance(context, BaseModel):
            given = {**context.model_dump(), **values}
        elif isinstance(context, Mapping):
            given = {**context, **values}
        else:
            raise ContextInvalid(
                f"a context must be a mapping, a pydantic model or keywords, not a "
                f"{type(context).__name__}: write audit_context(user=..., reason=...)"
            )
        self._given = given
        self._flush = flush
        self._opened: list[tuple[Scope, Token[Scope | None]]] = []

    def __enter__(self) -> Mapping[str, Any]:
        if self._flush is not None and inspect.iscoroutinefunction(self._flush.flush):
            raise ContextInvalid(
                "flush= was given an AsyncSession, which can only be flushed in "
                "`async with audit_context(...)`"
            )
        return self._open()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._flush is None:
            self._close()
            return
        try:
            if kind is None and self._flush is not None:
                self._flush.flush()
        finally:
            self._close()

    async def __aenter__(self) -> Mapping[str, Any]:
        return self._open()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._flush is not None:
                outcome = self._flush.flush()
                if inspect.isawaitable(outcome):
                    await outcome
        finally:
            self._close()

    def __call__(self, function: _F) -> _F:
        """Open a new scope around each call of ``function``."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ContextInvalid(
                f"audit_context cannot decorate the generator {function.__qualname__}: its scope "
                "would leak into whoever iterates it. Open the scope inside, around each write"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                async with self._fresh():
                    return await function(*args, **kwargs)

            return cast("_F", call_async)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                result = function(*args, **kwargs)
            # A function that merely returns a coroutine does its work when that is awaited.
            return self._around(result) if inspect.iscoroutine(result) else result

        return cast("_F", call)

    async def _around(self, coroutine: Coroutine[Any, Any, _R]) -> _R:
        async with self._fresh():
            return await coroutine

    def _fresh(self) -> "audit_context":
        return audit_context(self._given, flush=self._flush)

    def _open(self) -> Mapping[str, Any]:
        parent = _innermost.get()
        own, bound = measured_context(self._given)
        scope = Scope(own, bound, parent)
        if scope.bound > MAX_TEXT:
            scope.bound = len(encode_context(dict(scope.merged)))
        self._opened.append((scope, _innermost.set(scope)))
        return _Entered(scope)

    def _close(self) -> None:
        opened = self._opened
        if not opened:
            return  # entering it failed
        scope, token = opened.pop()
        if opened and scope is not _innermost.get():
            # One object may be entered by several tasks at once: leave this one's own scope.
            opened.append((scope, token))
            innermost = _innermost.get()
            own = next((i for i, entry in enumerate(opened) if entry[0] is innermost), -1)
            scope, token = opened.pop(own)
        try:
            _innermost.reset(token)
        except ValueError:
            # Left in another copy of the context than it was entered in, as a framework does that
            # runs both halves of a `yield` dependency in worker threads.
            if _innermost.get() is scope:
                _innermost.set(scope.parent)


def dump_context() -> dict[str, Any] | None:
    """Give the current context as a small JSON-able value, to send to another process or thread.

    Returns:
        A dict of plain JSON values, or ``None`` outside of any scope.
    """
    scope = _innermost.get()
    return None if scope is None else copy.deepcopy(dict(scope.merged))


def load_context(value: Mapping[str, Any] | None) -> audit_context:
    """Make a scope from what :func:`dump_context` gave.

    Args:
        value: That value; ``None`` makes a scope without values of its own.

    Returns:
        A scope, to be used like any :class:`audit_context`.

    Raises:
        ContextInvalid: If the value is not such a mapping.
    """
    return audit_context(value)
