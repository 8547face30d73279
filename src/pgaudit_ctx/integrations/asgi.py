"""One scope for each request and WebSocket of an ASGI application, whatever framework it is of."""

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

from pgaudit_ctx.context import Scope, apart, audit_context, current_scope
from pgaudit_ctx.errors import MissingExtra
from pgaudit_ctx.integrations.request import (
    FORWARDED_FOR,
    MARK,
    Address,
    Network,
    TrustedProxies,
    defaults,
    merge,
    storable,
)
from pgaudit_ctx.message import measured_context

# The types of Starlette, which is not needed here.
_Connection: TypeAlias = MutableMapping[str, Any]
_Message: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[_Message]]
_Send: TypeAlias = Callable[[_Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[_Connection, _Receive, _Send], Awaitable[None]]

_Given: TypeAlias = Mapping[str, Any] | None
GetContext: TypeAlias = Callable[[Any], _Given | Awaitable[_Given]]

_WEBSOCKET: Final = "WEBSOCKET"
_LONGEST_TEMPLATE: Final = 1024


class AuditContextMiddleware:
    """Opens one scope for each request and for each WebSocket.

    It says ``method``, ``endpoint`` (the route's template once Starlette or FastAPI have found it,
    until then the path), ``request_id`` (the header ``X-Request-ID``, or a new UUID), ``ip`` and
    ``user_agent``. The scope is open until the application has done everything: background tasks,
    streamed bodies and the teardown of dependencies included. It is the innermost scope of sync
    routes and dependencies too, so :func:`pgaudit_ctx.bind_context` reaches it from wherever the
    request learns more::

        app.add_middleware(AuditContextMiddleware, trusted_proxies=["10.0.0.0/8"])

    Inside of another one of its kind it keeps what that one said, and adds only its own
    ``get_context`` and the route.

    Args:
        app: The application.
        get_context: Called with Starlette's ``Request`` (for a WebSocket its ``HTTPConnection``)
            before the application; what it returns is merged over the defaults key by key, and
            ``None`` for a key removes it. It may be a coroutine function. What it raises ends the
            request. It cannot read the body, and a plain function must not block.
        trusted_proxies: Addresses and networks of proxies whose header is believed; ``"unix"`` for
            one that connects through a Unix socket. Nobody's by default.
        forwarded_header: The header that these proxies set: ``X-Forwarded-For``, ``Forwarded`` or
            one with a single address.

    Raises:
        UsageError: If an entry of ``trusted_proxies`` is neither an address nor a network.
        MissingExtra: If there is a ``get_context`` but no Starlette.
    """

    def __init__(
        self,
        app: ASGIApp,
        get_context: GetContext | None = None,
        trusted_proxies: Iterable[str | Address | Network] = (),
        *,
        forwarded_header: str = FORWARDED_FOR,
    ) -> None:
        self.app = app
        self._get_context = get_context
        self._proxies = TrustedProxies(trusted_proxies, forwarded_header)
        if get_context is not None:
            _starlette_request("http")  # tells now that it is missing, and not at the first request

    async def __call__(self, scope: _Connection, receive: _Receive, send: _Send) -> None:
        """Serve one connection; the server's ``lifespan`` passes untouched."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        inside = MARK in scope
        values = {} if inside else self._defaults(scope)
        # uvicorn, for one, starts the second of two pipelined requests in the context of the first.
        with contextlib.nullcontext() if inside else apart(), audit_context(values):
            opened = current_scope()
            assert opened is not None  # noqa: S101 - it was opened in the line above
            # A copy, for the server's own need not know of us.
            connection = _Routed(scope, opened)
            connection[MARK] = True
            if self._get_context is not None:
                given = self._get_context(_starlette_request(scope["type"])(connection))
                if inspect.isawaitable(given):
                    given = await given
                merge(opened, given)
                connection.follows = given is None or "endpoint" not in given
            await self.app(connection, receive, send)

    def _defaults(self, scope: _Connection) -> dict[str, str]:
        forwarded: list[str] = []
        found: dict[bytes, str] = {}
        header = self._proxies.header
        for name, value in scope.get("headers", ()):
            low = bytes(name).lower()
            if low in {b"x-request-id", b"user-agent"}:
                found.setdefault(low, bytes(value).decode("latin-1"))
            if self._proxies and low.decode("latin-1") == header:
                forwarded.append(bytes(value).decode("latin-1"))
        client = scope.get("client")
        return defaults(
            method=scope.get("method", _WEBSOCKET) if scope["type"] == "http" else _WEBSOCKET,
            path=scope.get("path", ""),
            request_id=found.get(b"x-request-id"),
            ip=self._proxies.client(client[0] if client else None, forwarded),
            user_agent=found.get(b"user-agent"),
        )


class _Routed(dict[str, Any]):
    """An ASGI scope that tells ours of the route, which Starlette's router writes into it.

    Routing happens inside of the application, so no middleware can know the route in advance
    without doing that work twice.
    """

    def __init__(self, connection: _Connection, scope: Scope) -> None:
        super().__init__(connection)
        self._scope = scope
        self._told: str | None = None
        self.follows = True
        """Whether the endpoint is the route's; not where the application says it itself."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key == "route":
            self._tell()

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._tell()

    def _tell(self) -> None:
        template = _template(self) if self.follows else None
        if template is not None and template != self._told:
            self._told = template
            self._scope.bind(*measured_context({"endpoint": storable(template, _LONGEST_TEMPLATE)}))


def _template(connection: _Connection) -> str | None:
    """Give the template of the route that was found, with what it is mounted under."""
    # FastAPI keeps apart what a route is called where its router is included.
    of_fastapi = connection.get("fastapi")
    included = of_fastapi.get("effective_route_context") if isinstance(of_fastapi, dict) else None
    path = getattr(included, "path_format", None) or getattr(
        connection.get("route"), "path_format", None
    )
    if not isinstance(path, str):
        return None
    root, outermost = connection.get("root_path", ""), connection.get("app_root_path")
    return path if outermost is None else root.removeprefix(outermost) + path


def _starlette_request(kind: str) -> Any:
    try:
        # Only whoever gives a get_context needs Starlette.
        from starlette.requests import HTTPConnection, Request
    except ImportError:
        raise MissingExtra("fastapi", "get_context=", "starlette") from None
    return Request if kind == "http" else HTTPConnection
