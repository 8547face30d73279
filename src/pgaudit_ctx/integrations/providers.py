"""Providers for ``install(engine, providers=[...])``: what other libraries know of the moment.

Keys of the scope win over theirs, and one that fails is left out and named in the log once, so none
of them can break a write.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from pgaudit_ctx.errors import UsageError

_Provider: TypeAlias = Callable[[], Mapping[str, Any]]

_NO_TRACE: Final[Mapping[str, Any]] = {}


def opentelemetry() -> _Provider:
    """Make a provider of ``trace_id`` and ``span_id``, in hexadecimal as traces are searched for.

    Returns:
        A provider that gives both while a span is current, recorded or not, and else nothing.

    Raises:
        UsageError: If ``opentelemetry-api`` is not installed.
    """
    try:
        # Each of these libraries is the application's own; none is needed here.
        from opentelemetry import trace
    except ImportError:
        raise _missing("opentelemetry-api") from None

    def opentelemetry_span() -> Mapping[str, Any]:
        span = trace.get_current_span().get_span_context()
        if not span.is_valid:
            return _NO_TRACE
        return {
            "trace_id": trace.format_trace_id(span.trace_id),
            "span_id": trace.format_span_id(span.span_id),
        }

    return opentelemetry_span


def structlog(*keys: str) -> _Provider:
    """Make a provider of what was bound with ``structlog.contextvars.bind_contextvars``.

    Args:
        *keys: Which of its keys to take. Without any it takes all of them, so that one value
            which cannot be carried costs the others too.

    Returns:
        A provider that gives those of the keys that are bound.

    Raises:
        UsageError: If ``structlog`` is not installed.
    """
    try:
        from structlog.contextvars import get_contextvars
    except ImportError:
        raise _missing("structlog") from None

    def structlog_contextvars() -> Mapping[str, Any]:
        bound = get_contextvars()
        return {key: bound[key] for key in keys if key in bound} if keys else bound

    return structlog_contextvars


def asgi_correlation_id(key: str = "request_id") -> _Provider:
    """Make a provider of the id that ``asgi-correlation-id`` gave the request.

    ``AuditContextMiddleware`` has a ``request_id`` of its own, which wins over the one here: take
    another key, or let ``get_context`` return ``{"request_id": None}``.

    Args:
        key: The context key to give it.

    Returns:
        A provider that gives the id while a request is served, and else nothing.

    Raises:
        UsageError: If ``asgi-correlation-id`` is not installed.
    """
    try:
        from asgi_correlation_id import correlation_id
    except ImportError:
        raise _missing("asgi-correlation-id") from None

    def asgi_correlation_id() -> Mapping[str, Any]:
        found = correlation_id.get()
        return {} if found is None else {key: found}

    return asgi_correlation_id


def contextvars_extras(*registries: Mapping[str, Any]) -> _Provider:
    """Make a provider of the variables in registries of ``contextvars-extras``.

    Args:
        *registries: Instances of subclasses of ``ContextVarsRegistry``. Where they have variables
            of the same name, the last one wins.

    Returns:
        A provider that gives each variable that is set or has a default.

    Raises:
        UsageError: If one is not an instance of such a class.
    """
    for registry in registries:
        if not isinstance(registry, Mapping):
            raise UsageError(
                "contextvars_extras() takes instances of your ContextVarsRegistry subclasses: "
                "write contextvars_extras(RequestVars())"
            )

    def contextvars_registry() -> Mapping[str, Any]:
        return {key: value for registry in registries for key, value in registry.items()}

    return contextvars_registry


def _missing(package: str) -> UsageError:
    return UsageError(
        f"a provider was asked for what {package} knows, but that is not installed: install it, or "
        "leave the provider out"
    )
