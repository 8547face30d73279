"""The asynchronous reader: the same steps as the synchronous one, awaited.

A module of its own, because SQLAlchemy's asyncio extension needs greenlet. The signatures are those
of the other reader once more: that a verb gives ``History[M]`` there and an awaitable of it here
would take a type parameter that is itself generic, which Python does not have; and verbs made at
run time would be seen by no type checker, editor or documentation. Nothing else is repeated.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, Unpack, overload

from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import QueryableAttribute

from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.reading.changes import ChangeFilters
from pgaudit_ctx.reading.connections import (
    OF_THE_TRAIL,
    READ_ONLY,
    Plans,
    connecting,
    explained,
)
from pgaudit_ctx.reading.extent import CompleteUpTo
from pgaudit_ctx.reading.history import History, HistoryFilters
from pgaudit_ctx.reading.merged_timeline import Timeline
from pgaudit_ctx.reading.shape import Field, Renamed
from pgaudit_ctx.reading.steps import Pause, Steps, Verbs, arguments
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.transaction import Transaction
from pgaudit_ctx.reading.version import Version

M = TypeVar("M")
R = TypeVar("R")
S = TypeVar("S")


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

    @overload
    async def history(
        self,
        model: type[M],
        key: Any,
        *,
        include: Sequence[Field],
        **filters: Unpack[HistoryFilters],
    ) -> Timeline[M]: ...

    async def history(
        self,
        model: Any,
        key: Any,
        *,
        include: Sequence[Field] | None = None,
        **filters: Unpack[HistoryFilters],
    ) -> History[Any] | Timeline[Any]:
        """Rebuild the versions of one record; see :func:`pgaudit_ctx.history`."""
        if include is not None:
            return await self._run(self.timeline_steps(model, key, include, filters), Plans.ONCE)
        return await self._run(self.history_steps(model, key, filters), Plans.ONCE)

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
        return await self._run(self.as_of_steps(model, key, when, schema), Plans.ONCE)

    @overload
    async def related(
        self,
        version: Version[Any],
        relationship: QueryableAttribute[list[S]] | QueryableAttribute[set[S]],
        when: dt.datetime | None = None,
    ) -> list[Version[S]]: ...

    @overload
    async def related(
        self,
        version: Version[Any],
        relationship: QueryableAttribute[S | None],
        when: dt.datetime | None = None,
    ) -> list[Version[S]]: ...

    @overload
    async def related(
        self, version: Version[Any], relationship: str, when: dt.datetime | None = None
    ) -> list[Version[Any]]: ...

    async def related(
        self, version: Version[Any], relationship: Any, when: dt.datetime | None = None
    ) -> list[Version[Any]]:
        """Give what :meth:`pgaudit_ctx.Version.related` does, asking this reader's destination.

        Args:
            version: Of a mapped class, that a reader of the same trail gave.
            relationship: By name, or as ``Patient.visits``.
            when: A moment while the version was valid; aware.

        Returns:
            The versions of related records that were valid then.

        Raises:
            HistoryUnknown: If the trail cannot know what was related then.
            NotCaptured: If the related table was never captured.
            Unsupported: If the relationship compares more than columns that are equal.
            UsageError: If there is no such relationship, or ``when`` lies outside of the version's
                validity.
        """
        return await self._run(self.related_steps(version, relationship, when), Plans.ONCE)

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

    @overload
    async def blame(
        self,
        model: type[M],
        key: Any,
        *,
        schema: str | None = None,
        renamed: Renamed | None = None,
    ) -> Mapping[str, Version[M]]: ...

    @overload
    async def blame(
        self, model: str, key: Any, *, schema: str | None = None, renamed: Renamed | None = None
    ) -> Mapping[str, Version[dict[str, Any]]]: ...

    async def blame(
        self, model: Any, key: Any, *, schema: str | None = None, renamed: Renamed | None = None
    ) -> Mapping[str, Version[Any]]:
        """Find which version set each attribute last; see :func:`pgaudit_ctx.blame`."""
        return await self._run(self.blame_steps(model, key, schema, renamed), Plans.ONCE)

    @overload
    async def deleted(
        self,
        model: type[M],
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = None,
        schema: str | None = None,
    ) -> list[Version[M]]: ...

    @overload
    async def deleted(
        self,
        model: str,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = None,
        schema: str | None = None,
    ) -> list[Version[dict[str, Any]]]: ...

    async def deleted(
        self,
        model: Any,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = None,
        schema: str | None = None,
    ) -> list[Version[Any]]:
        """Find the records that are gone now; see :func:`pgaudit_ctx.deleted`."""
        return await self._run(self.deleted_steps(model, since, until, limit, schema))

    async def transaction(
        self,
        xid: int,
        *,
        commit_lsn: str | None = None,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
    ) -> Transaction:
        """Give what one commit did.

        The trail has no index on transaction numbers: with ``since`` and ``until`` it is looked for
        in the partitions of that time only.

        Args:
            xid: The source's transaction id, as ``version.transaction_id`` has it.
            commit_lsn: Where it was committed, if the number was used more than once.
            since: Committed at or after this; aware.
            until: Committed before this; aware.

        Returns:
            Its changes, in the order they were made.

        Raises:
            HistoryUnknown: If the trail has nothing of it.
            TransactionAmbiguous: If the number was used more than once.
        """
        return await self._run(self.transaction_steps(xid, commit_lsn, since, until))

    async def wait_for(
        self,
        lsn: str | int,
        timeout: float = 10.0,  # noqa: ASYNC109 - the verbs of both readers are the same
    ) -> CompleteUpTo:
        """Wait until the trail holds everything up to a position in the source's log.

        To read what one has just written, ask the source for
        ``SELECT pg_current_wal_flush_lsn()`` after the commit, and wait for that.

        Args:
            lsn: The position, as PostgreSQL prints it.
            timeout: Seconds.

        Returns:
            Up to where the trail is complete.

        Raises:
            NotCaughtUp: If it does not get there in time; a ``TimeoutError`` too.
            NotCaptured: If the trail holds no such source.
            SourceAmbiguous: If it holds several and none was named.
        """
        return await self._run(self.wait_steps(lsn, timeout))

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

    async def _run(self, steps: Steps[R], plans: Plans = Plans.ANY) -> R:
        answer: Any = None
        while True:
            with explained():
                async with self._connected(plans) as target:
                    try:
                        while not isinstance(asked := steps.send(answer), Pause):
                            answer = (await target.execute(*arguments(asked))).all()
                    except StopIteration as done:
                        result: R = done.value
                        return result
            answer = None
            await asyncio.sleep(asked.seconds)

    @asynccontextmanager
    async def _connected(self, plans: Plans) -> AsyncIterator[AsyncConnection]:
        """Give what runs statements; see :meth:`pgaudit_ctx.AuditReader._connected`."""
        destination = self.destination
        if isinstance(destination, AsyncConnection):
            yield destination
        elif isinstance(destination, AsyncSession):
            yield await self._of(destination)
        elif isinstance(destination, AsyncEngine):
            async with AsyncExitStack() as stack:
                with connecting(destination.url):
                    connection = await stack.enter_async_context(destination.connect())
                yield await self._set_up(await connection.execution_options(**READ_ONLY), plans)
                # psycopg forgets what it has prepared at a ROLLBACK.
                await connection.commit()
        else:
            async with destination() as session:
                yield await self._set_up(await self._of(session, READ_ONLY), plans)

    @staticmethod
    async def _of(session: AsyncSession, options: dict[str, Any] | None = None) -> AsyncConnection:
        with connecting(session.get_bind(**OF_THE_TRAIL).engine.url):
            return await session.connection(OF_THE_TRAIL, options)

    async def _set_up(self, connection: AsyncConnection, plans: Plans) -> AsyncConnection:
        settings = self._settings(plans)
        if settings is not None:
            await connection.execute(settings)
        return connection
