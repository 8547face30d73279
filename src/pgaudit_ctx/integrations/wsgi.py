"""One scope for each request of a WSGI application, whatever framework it is of.

PEP 3333 lets a server ask for the next part of a body, and close it, long after the application
returned: the scope is open until then.
"""

import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from pgaudit_ctx.context import apart, audit_context, current_scope
from pgaudit_ctx.integrations.request import (
    FORWARDED_FOR,
    MARK,
    Address,
    Network,
    TrustedProxies,
    defaults,
    merge,
)

_Environ: TypeAlias = dict[str, Any]
WSGIApp: TypeAlias = Callable[[_Environ, Any], Iterable[bytes]]
GetContext: TypeAlias = Callable[[_Environ], Mapping[str, Any] | None]

_COMPLETE: Final = frozenset({list, tuple})


class AuditContextMiddleware:
    """Opens one scope for each request.

    It says ``method``, ``endpoint`` (the path: WSGI knows no routes), ``request_id`` (the header
    ``X-Request-ID``, or a new UUID), ``ip`` and ``user_agent``. Each request runs in a copy of its
    thread's context variables, so nothing of it is left behind in a thread that serves the next
    one, whatever goes wrong::

        application = AuditContextMiddleware(application, trusted_proxies=["10.0.0.0/8"])

    Inside of another one of its kind it keeps what that one said, and adds only its own
    ``get_context``.

    Args:
        app: The application.
        get_context: Called with the ``environ`` before the application; what it returns is merged
            over the defaults key by key, and ``None`` for a key removes it. What it raises ends
            the request.
        trusted_proxies: Addresses and networks of proxies whose header is believed; ``"unix"`` for
            one that connects through a Unix socket. Nobody's by default.
        forwarded_header: The header that these proxies set: ``X-Forwarded-For``, ``Forwarded`` or
            one with a single address.

    Raises:
        UsageError: If an entry of ``trusted_proxies`` is neither an address nor a network.
    """

    def __init__(
        self,
        app: WSGIApp,
        get_context: GetContext | None = None,
        trusted_proxies: Iterable[str | Address | Network] = (),
        *,
        forwarded_header: str = FORWARDED_FOR,
    ) -> None:
        self.app = app
        self._get_context = get_context
        self._proxies = TrustedProxies(trusted_proxies, forwarded_header)
        self._header = f"HTTP_{forwarded_header.upper().replace('-', '_')}"

    def __call__(self, environ: _Environ, start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        context = contextvars.copy_context()
        body = context.run(self._serve, environ, start_response)
        wrapper = environ.get("wsgi.file_wrapper")
        if type(body) in _COMPLETE or (isinstance(wrapper, type) and isinstance(body, wrapper)):
            return body  # nothing of the application runs any more, and servers know these kinds
        return _Body(body, context)

    def _serve(self, environ: _Environ, start_response: Any) -> Iterable[bytes]:
        inside = MARK in environ
        values = {} if inside else self._defaults(environ)
        environ[MARK] = True
        # Neither is ever left: they end with the copy of the context that they were opened in.
        if not inside:
            apart().__enter__()
        audit_context(values).__enter__()
        if self._get_context is not None:
            opened = current_scope()
            assert opened is not None  # noqa: S101 - it was opened above
            merge(opened, self._get_context(environ))
        return self.app(environ, start_response)

    def _defaults(self, environ: _Environ) -> dict[str, str]:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        forwarded = environ.get(self._header) if self._proxies else None
        return defaults(
            method=environ.get("REQUEST_METHOD", ""),
            # PEP 3333: the bytes of the path, each as one character.
            path=path.encode("latin-1", "replace").decode("utf-8", "replace"),
            request_id=environ.get("HTTP_X_REQUEST_ID"),
            ip=self._proxies.client(
                environ.get("REMOTE_ADDR"), [] if forwarded is None else [forwarded]
            ),
            user_agent=environ.get("HTTP_USER_AGENT"),
        )


class _Body:
    """A body whose parts are made, and which is closed, in the context of its request."""

    def __init__(self, body: Iterable[bytes], context: contextvars.Context) -> None:
        self._body = body
        self._parts: Iterator[bytes] = context.run(iter, body)
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(next, self._parts)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)
