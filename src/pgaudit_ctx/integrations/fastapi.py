"""For FastAPI: dependencies that tell a request's scope what it learns, and routes of the trail."""

import datetime as dt
import decimal
import inspect
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query
from pydantic import AwareDatetime, BaseModel, Field
from sqlalchemy.exc import ArgumentError, NoInspectionAvailable
from sqlalchemy.orm import class_mapper
from sqlalchemy.orm.exc import UnmappedClassError
from starlette.concurrency import run_in_threadpool

from pgaudit_ctx.context import bind_context
from pgaudit_ctx.errors import HistoryUnknown, KeyMismatch, UsageError
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.reading.schemas import ChangeOut, VersionOut

if TYPE_CHECKING:
    from pgaudit_ctx.reading.async_reader import AsyncAuditReader

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


class GapOut(BaseModel):
    """A range of the log that was lost."""

    from_time: dt.datetime
    to_time: dt.datetime | None
    cause: str


class HistoryPage(BaseModel):
    """A part of a record's history, oldest first."""

    items: list[VersionOut]
    older: int | None = Field(description="Pass it as `before` for what comes before; null if none")
    complete_up_to: dt.datetime | None = Field(description="Up to where the trail is complete")
    gaps: list[GapOut] = Field(description="Ranges of which nothing can be known")


class ChangesPage(BaseModel):
    """A part of the changes, newest first."""

    items: list[ChangeOut]
    older: str | None = Field(description="Pass it as `before` for what comes next; null if none")


_POSITION: Final = r"^\d{1,9}-[0-9A-F]{1,8}/[0-9A-F]{1,8}-\d{1,18}$"
_KEY_TYPES: Final = frozenset({bool, int, uuid.UUID, decimal.Decimal, dt.datetime, dt.date})

_Limit = Annotated[int, Query(ge=1, le=500, description="How many at most")]
_Since = Annotated[AwareDatetime | None, Query(description="Committed at or after this")]
_Until = Annotated[AwareDatetime | None, Query(description="Committed before this")]
_Before = Annotated[str | None, Query(pattern=_POSITION, description="`older` of a page")]
_User = Annotated[str | None, Query(description="Of this user only")]


def history_router(
    models: Mapping[str, type[Any]],
    *,
    reader: "AuditReader | AsyncAuditReader",
    authorize: Callable[..., Any],
    prefix: str = "",
    tags: Sequence[str] = ("audit",),
) -> APIRouter:
    """Make a router of read-only routes for the trail of some models.

    For ``{"patients": Patient}`` it has ``GET /patients/{id}/history``, ``/patients/{id}/as-of``,
    ``/patients/{id}/changes`` and ``/patients/changes``; a composite key has one part of the path
    for each of its attributes. Pages are asked for with ``limit`` and ``before``, and stay right
    while changes are captured. What the trail cannot know is answered with 409.

    Args:
        models: What they are called in the path, and the mapped classes. No other can be read.
        reader: A reader of the destination, of either kind. A synchronous one is asked in a thread.
        authorize: A dependency that is asked before each answer, and ends the request by raising.
            It may ask for the request, whose ``path_params`` have the key. Should it return
            ``False``, the answer is 403.
        prefix: Comes before all paths.
        tags: For the OpenAPI document.

    Returns:
        A router for ``app.include_router``.

    Raises:
        UsageError: If ``authorize`` is no callable, or a model is not mapped.
    """
    if not callable(authorize):
        raise UsageError(
            "history_router() needs authorize=, a dependency that decides who may read the trail: "
            "one that raises HTTPException(403), or returns False, for whoever may not"
        )

    def allowed(decision: Annotated[Any, Depends(authorize)]) -> None:
        if decision is False:
            raise HTTPException(403)

    router = APIRouter(prefix=prefix, tags=list(tags), dependencies=[Depends(allowed)])
    for name, model in models.items():
        routes = _Routes(model, reader)
        record = "".join(f"/{{{attribute}}}" for attribute in routes.key)
        unknown: dict[int | str, dict[str, Any]] = {409: {"description": "The trail cannot know"}}
        absent: dict[int | str, dict[str, Any]] = {404: {"description": "It did not exist then"}}
        # The one without a key first, or it would be taken for a record that is called "changes".
        for path, answer, responses in (
            ("/changes", routes.all_changes, unknown),
            (f"{record}/history", routes.history, unknown),
            (f"{record}/as-of", routes.as_of, {**unknown, **absent}),
            (f"{record}/changes", routes.changes, unknown),
        ):
            router.get(f"/{name}{path}", name=f"{name}_{answer.__name__}", responses=responses)(
                routes.endpoint(answer)
            )
    return router


class _Routes:
    """What is answered about one model."""

    def __init__(self, model: type[Any], reader: "AuditReader | AsyncAuditReader") -> None:
        self._model = model
        self._reader = reader
        self.key = _key_attributes(model)

    def endpoint(self, answer: Callable[..., Awaitable[BaseModel]]) -> Callable[..., Any]:
        """Give the function that FastAPI calls, with one parameter for each part of the key."""
        signature = inspect.signature(answer)
        takes_key = "key" in signature.parameters
        own = [parameter for name, parameter in signature.parameters.items() if name != "key"]
        # By an alias, for an attribute may be called like one of the parameters of a query.
        names = {f"key_{place}": attribute for place, attribute in enumerate(self.key)}
        of_key = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[self.key[attribute], Path(alias=attribute)],
            )
            for name, attribute in names.items()
            if takes_key
        ]

        async def endpoint(**given: Any) -> Any:
            key = {attribute: given.pop(name) for name, attribute in names.items() if takes_key}
            return await answer(**({"key": key} if takes_key else {}), **given)

        endpoint.__signature__ = signature.replace(parameters=[*own, *of_key])  # type: ignore[attr-defined] # unknown to its type
        endpoint.__name__ = answer.__name__
        endpoint.__doc__ = answer.__doc__
        return endpoint

    async def history(
        self,
        *,
        key: dict[str, Any],
        before: Annotated[int | None, Query(ge=1, description="Of lower numbers only")] = None,
        limit: _Limit = 50,
        since: _Since = None,
        until: _Until = None,
        user: _User = None,
        fields: Annotated[list[str] | None, Query(description="Changes of these only")] = None,
    ) -> HistoryPage:
        """Give the versions of one record, oldest first."""
        filters = {"since": since, "until": until, "user": user, "fields": fields}
        found = await self._ask("history", key, **filters)
        chosen = [version for version in found if before is None or version.number < before]
        gaps = [
            GapOut(from_time=gap.from_time, to_time=gap.to_time, cause=gap.cause)
            for gap in found.gaps
        ]
        return HistoryPage(
            items=[VersionOut.of(version) for version in chosen[-limit:]],
            older=chosen[-limit].number if len(chosen) > limit else None,
            complete_up_to=found.complete_up_to.time,
            gaps=gaps,
        )

    async def as_of(
        self,
        *,
        key: dict[str, Any],
        when: Annotated[AwareDatetime, Query(description="With a time zone")],
    ) -> VersionOut:
        """Give the version of one record that was valid at a moment."""
        version = await self._ask("as_of", key, when)
        if version is None:
            raise HTTPException(404, "it did not exist then")
        return VersionOut.of(version)

    async def changes(
        self,
        *,
        key: dict[str, Any],
        before: _Before = None,
        limit: _Limit = 50,
        since: _Since = None,
        until: _Until = None,
        user: _User = None,
    ) -> ChangesPage:
        """Give the changes of one record, newest first."""
        filters = {"since": since, "until": until, "user": user}
        return await self._changes(key, before, limit, filters)

    async def all_changes(
        self,
        *,
        before: _Before = None,
        limit: _Limit = 50,
        since: _Since = None,
        until: _Until = None,
        user: _User = None,
    ) -> ChangesPage:
        """Give the changes of all records, newest first."""
        filters = {"since": since, "until": until, "user": user}
        return await self._changes(None, before, limit, filters)

    async def _changes(
        self, key: dict[str, Any] | None, before: str | None, limit: int, filters: dict[str, Any]
    ) -> ChangesPage:
        if before is not None:
            epoch, lsn, ordinal = before.split("-")
            filters["older_than"] = (int(epoch), lsn, int(ordinal))
        found = await self._ask("changes", key, limit=limit + 1, **filters)
        keys = self._reader.context_keys
        page = [
            ChangeOut.of(change, user_key=keys.user, reason_key=keys.reason)
            for change in found[:limit]
        ]
        last = page[-1] if len(found) > limit else None
        older = None if last is None else f"{last.epoch}-{last.commit_lsn}-{last.ordinal}"
        return ChangesPage(items=page, older=older)

    async def _ask(self, verb: str, *arguments: Any, **filters: Any) -> Any:
        asked = getattr(self._reader, verb)
        try:
            if isinstance(self._reader, AuditReader):
                return await run_in_threadpool(asked, self._model, *arguments, **filters)
            return await asked(self._model, *arguments, **filters)
        except HistoryUnknown as error:
            raise HTTPException(409, str(error)) from None
        except (KeyMismatch, UsageError) as error:
            raise HTTPException(422, str(error)) from None


def _key_attributes(model: type[Any]) -> dict[str, type[Any]]:
    """Give the attributes of a model's key, in order, with the types to read from a path."""
    try:
        mapper = class_mapper(model)
    except (UnmappedClassError, NoInspectionAvailable, ArgumentError):
        raise UsageError(f"history_router() takes mapped classes, and {model!r} is none") from None
    found: dict[str, type[Any]] = {}
    for column in mapper.primary_key:
        try:
            kind = column.type.python_type
        except NotImplementedError:
            kind = str
        attribute = mapper.get_property_by_column(column).key
        found[attribute] = kind if kind in _KEY_TYPES else str
    return found
