"""The asynchronous reader: the same steps as the synchronous one, awaited.

A module of its own, because SQLAlchemy's asyncio extension needs greenlet.
"""

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, Unpack, overload

from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.reading.changes import ChangeFilters
from pgaudit_ctx.reading.history import History, HistoryFilters
from pgaudit_ctx.reading.shape import Renamed
from pgaudit_ctx.reading.steps import OF_THE_TRAIL, READ_ONLY, Steps, Verbs, explained
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.version import Version

M = TypeVar("M")
R = TypeVar("R")


class AsyncAuditReader(
    Verbs[AsyncEngine | AsyncConnection | AsyncSession | async_sessionmaker[Any]]
):
    """Reads one destination asynchronously; the same verbs as :class:`AuditReader`, awaited.

    Args:
        engine_or_session: An ``AsyncEngine``, ``AsyncConnection``, ``AsyncSession`` or
            ``async_sessionmaker`` of the destination.
        source: Which source to read; needed only where several hold the table.
        schema: The schema of models that name none, or another than theirs.
        user_key: Which context key says who; dots lead into objects.
        reason_key: Which context key says why.
        context_model: A pydantic model that ``Version.context`` is an instance of, where it fits.
        statement_timeout: Seconds after which the server gives a statement up; ``None`` leaves it
            to the server's own setting. Not applied to the caller's own connection or session.

    Raises:
        UsageError: If it is given something synchronous.
    """

    def __init__(
        self,
        engine_or_session: AsyncEngine | AsyncConnection | AsyncSession | async_sessionmaker[Any],
        *,
        source: str | None = None,
        schema: str | None = None,
        user_key: str = "user",
        reason_key: str = "reason",
        context_model: type[BaseModel] | None = None,
        statement_timeout: float | None = 60.0,
    ) -> None:
        if not isinstance(
            engine_or_session, AsyncEngine | AsyncConnection | AsyncSession | async_sessionmaker
        ):
            raise UsageError(
                f"AsyncAuditReader takes an AsyncEngine, AsyncConnection, AsyncSession or "
                f"async_sessionmaker, not {type(engine_or_session).__name__}. For synchronous "
                "ones use AuditReader"
            )
        super().__init__(
            engine_or_session,
            source=source,
            schema=schema,
            user_key=user_key,
            reason_key=reason_key,
            context_model=context_model,
            statement_timeout=statement_timeout,
        )

    @overload
    async def history(
        self, model: type[M], key: Any, **filters: Unpack[HistoryFilters]
    ) -> History[M]: ...

    @overload
    async def history(
        self, model: str, key: Any, **filters: Unpack[HistoryFilters]
    ) -> History[dict[str, Any]]: ...

    async def history(
        self, model: Any, key: Any, **filters: Unpack[HistoryFilters]
    ) -> History[Any]:
        """Rebuild the versions of one record; see :func:`pgaudit_ctx.history`."""
        return await self._run(self.history_steps(model, key, filters))

    @overload
    async def as_of(
        self, model: type[M], key: Any, when: dt.datetime, *, schema: str | None = None
    ) -> Version[M] | None: ...

    @overload
    async def as_of(
        self, model: str, key: Any, when: dt.datetime, *, schema: str | None = None
    ) -> Version[dict[str, Any]] | None: ...

    async def as_of(
        self, model: Any, key: Any, when: dt.datetime, *, schema: str | None = None
    ) -> Version[Any] | None:
        """Give the version valid at a moment; see :func:`pgaudit_ctx.as_of`."""
        return await self._run(self.as_of_steps(model, key, when, schema))

    async def select_as_of(
        self,
        model: type[Any],
        when: dt.datetime,
        *,
        schema: str | None = None,
        renamed: Renamed | None = None,
        despite_gaps: bool = False,
    ) -> Select[Any]:
        """Build what :func:`pgaudit_ctx.select_as_of` does, once the trail is seen to know it.

        Args:
            model: A mapped class.
            when: An aware datetime.
            schema: Another schema than the model's.
            renamed: Columns that had another name before: old column → attribute.
            despite_gaps: Also if changes before ``when`` are missing.

        Returns:
            The select, for any session of the destination.

        Raises:
            HistoryUnknown: Before capture began, or after a gap.
            NotCaptured: If the table was never captured.
            SourceAmbiguous: If several sources hold the table and none was named.
        """
        steps = self.select_as_of_steps(model, when, schema, renamed, despite_gaps=despite_gaps)
        return await self._run(steps)

    async def changes(
        self,
        model: Any = None,
        key: Any = None,
        *,
        limit: int | None = None,
        **filters: Unpack[ChangeFilters],
    ) -> list[Change]:
        """Run what ``select_changes`` builds; see :meth:`pgaudit_ctx.AuditReader.changes`."""
        return await self._run(self.changes_steps(model, key, limit, filters))

    async def _run(self, steps: Steps[R]) -> R:
        with explained():
            async with self._connected() as target:
                try:
                    statement = next(steps)
                    while True:
                        statement = steps.send((await target.execute(statement)).all())
                except StopIteration as done:
                    result: R = done.value
                    return result

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        """Give what runs statements; see :meth:`pgaudit_ctx.AuditReader._connected`."""
        destination = self.destination
        if isinstance(destination, AsyncConnection):
            yield destination
        elif isinstance(destination, AsyncSession):
            yield await destination.connection(OF_THE_TRAIL)
        elif isinstance(destination, AsyncEngine):
            async with destination.connect() as connection:
                yield await self._limited(await connection.execution_options(**READ_ONLY))
        else:
            async with destination() as session:
                yield await self._limited(await session.connection(OF_THE_TRAIL, READ_ONLY))

    async def _limited(self, connection: AsyncConnection) -> AsyncConnection:
        limit = self._limit()
        if limit is not None:
            await connection.execute(limit)
        return connection
