"""Dependencies for FastAPI that tell the request's scope what it learns."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Header

from pgaudit_ctx.context import bind_context

Dependency: TypeAlias = Callable[..., Awaitable[None]]


def bind_from(**dependencies: Callable[..., Any]) -> Dependency:
    """Make a dependency that binds what others return, such as the authenticated user.

    It needs the scope that
    :class:`AuditContextMiddleware <pgaudit_ctx.integrations.asgi.AuditContextMiddleware>` opens::

        app = FastAPI(dependencies=[Depends(bind_from(user=current_user_name))])

    FastAPI calls a dependency once for each request, so a route that asks for the same one gets the
    same value.

    Args:
        **dependencies: For each context key the dependency whose result is its value; ``None``
            binds nothing.

    Returns:
        A dependency, to be given to ``Depends``.

    Raises:
        NoOpenScope: In a request, if the middleware is missing.
        ContextInvalid: In a request, if a value cannot be carried.
    """

    async def bind(**values: Any) -> None:
        bind_context(**{key: value for key, value in values.items() if value is not None})

    # FastAPI asks for the signature to find out what to call.
    bind.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # unknown to its type
        [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=Depends(dependency))
            for key, dependency in dependencies.items()
        ]
    )
    return bind


def reason_header(
    name: str = "X-Audit-Reason", *, required: bool = False, key: str = "reason"
) -> Dependency:
    """Make a dependency that binds the reason which a client gives in a header.

    Args:
        name: The header; it appears in the OpenAPI document.
        required: Refuse a request without it, with status 422.
        key: The context key to bind.

    Returns:
        A dependency, to be given to ``Depends``.

    Raises:
        NoOpenScope: In a request that has the header, if the middleware is missing.
    """
    described = Header(alias=name, min_length=1, max_length=1000, description="Why, for the audit.")

    async def bind_reason(reason: Annotated[str, described]) -> None:
        bind_context(**{key: reason})

    async def bind_reason_if_given(reason: Annotated[str | None, described] = None) -> None:
        if reason is not None:
            bind_context(**{key: reason})

    return bind_reason if required else bind_reason_if_given
