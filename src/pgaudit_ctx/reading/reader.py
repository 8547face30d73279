"""The synchronous reader: a thin shell that runs the steps of each verb."""

import datetime as dt
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, Unpack, overload

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, Select
from sqlalchemy.orm import QueryableAttribute, Session, sessionmaker

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
from pgaudit_ctx.reading.related_steps import related_steps
from pgaudit_ctx.reading.shape import Field, Renamed
from pgaudit_ctx.reading.steps import Pause, Steps, Verbs, arguments
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.transaction import Transaction
from pgaudit_ctx.reading.version import LoadsRelatives, Relatives, Trail, Version

M = TypeVar("M")
R = TypeVar("R")
S = TypeVar("S")


class AuditReader(Verbs[Engine | Connection | Session | sessionmaker[Any]]):
    """Reads one destination.

    Args:
        engine_or_session: An ``Engine``, ``Connection``, ``Session`` or ``sessionmaker`` of the
            destination. A transaction is ended at once, unless it is the caller's own connection
            or session.
        source: Which source to read; needed only where several hold the table.
        schema: The schema of models that name none, or another than theirs.
        user_key: Which context key says who; dots lead into objects.
        reason_key: Which context key says why.
        context_model: A pydantic model that ``Version.context`` is an instance of, where it fits.
        statement_timeout: Seconds after which the server gives a statement up; ``None`` leaves it
            to the server's own setting. Not applied to the caller's own connection or session.

    Raises:
        UsageError: If it is given something asynchronous.
    """

    def __init__(
        self,
        engine_or_session: Engine | Connection | Session | sessionmaker[Any],
        *,
        source: str | None = None,
        schema: str | None = None,
        user_key: str = "user",
        reason_key: str = "reason",
        context_model: type[BaseModel] | None = None,
        statement_timeout: float | None = 60.0,
    ) -> None:
        if not isinstance(engine_or_session, Engine | Connection | Session | sessionmaker):
            raise UsageError(
                f"AuditReader takes an Engine, Connection, Session or sessionmaker, not "
                f"{type(engine_or_session).__name__}. For asynchronous ones use AsyncAuditReader"
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
    def history(
        self, model: type[M], key: Any, **filters: Unpack[HistoryFilters]
    ) -> History[M]: ...

    @overload
    def history(
        self, model: str, key: Any, **filters: Unpack[HistoryFilters]
    ) -> History[dict[str, Any]]: ...

    @overload
    def history(
        self,
        model: type[M],
        key: Any,
        *,
        include: Sequence[Field],
        **filters: Unpack[HistoryFilters],
    ) -> Timeline[M]: ...

    def history(
        self,
        model: Any,
        key: Any,
        *,
        include: Sequence[Field] | None = None,
        **filters: Unpack[HistoryFilters],
    ) -> History[Any] | Timeline[Any]:
        """Rebuild the versions of one record; see :func:`pgaudit_ctx.history`."""
        if include is not None:
            return self._run(self.timeline_steps(model, key, include, filters), Plans.ONCE)
        return self._run(self.history_steps(model, key, filters), Plans.ONCE)

    @overload
    def as_of(
        self, model: type[M], key: Any, when: dt.datetime, *, schema: str | None = None
    ) -> Version[M] | None: ...

    @overload
    def as_of(
        self, model: str, key: Any, when: dt.datetime, *, schema: str | None = None
    ) -> Version[dict[str, Any]] | None: ...

    def as_of(
        self, model: Any, key: Any, when: dt.datetime, *, schema: str | None = None
    ) -> Version[Any] | None:
        """Give the version valid at a moment; see :func:`pgaudit_ctx.as_of`."""
        return self._run(self.as_of_steps(model, key, when, schema), Plans.ONCE)

    @overload
    def related(
        self,
        version: Version[Any],
        relationship: QueryableAttribute[list[S]] | QueryableAttribute[set[S]],
        when: dt.datetime | None = None,
    ) -> list[Version[S]]: ...

    @overload
    def related(
        self,
        version: Version[Any],
        relationship: QueryableAttribute[S | None],
        when: dt.datetime | None = None,
    ) -> list[Version[S]]: ...

    @overload
    def related(
        self, version: Version[Any], relationship: str, when: dt.datetime | None = None
    ) -> list[Version[Any]]: ...

    def related(
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
        return self._run(self.related_steps(version, relationship, when), Plans.ONCE)

    def select_as_of(
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
        return self._run(steps)

    @overload
    def blame(
        self,
        model: type[M],
        key: Any,
        *,
        schema: str | None = None,
        renamed: Renamed | None = None,
    ) -> Mapping[str, Version[M]]: ...

    @overload
    def blame(
        self, model: str, key: Any, *, schema: str | None = None, renamed: Renamed | None = None
    ) -> Mapping[str, Version[dict[str, Any]]]: ...

    def blame(
        self, model: Any, key: Any, *, schema: str | None = None, renamed: Renamed | None = None
    ) -> Mapping[str, Version[Any]]:
        """Find which version set each attribute last; see :func:`pgaudit_ctx.blame`."""
        return self._run(self.blame_steps(model, key, schema, renamed), Plans.ONCE)

    @overload
    def deleted(
        self,
        model: type[M],
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = None,
        schema: str | None = None,
    ) -> list[Version[M]]: ...

    @overload
    def deleted(
        self,
        model: str,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = None,
        schema: str | None = None,
    ) -> list[Version[dict[str, Any]]]: ...

    def deleted(
        self,
        model: Any,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = None,
        schema: str | None = None,
    ) -> list[Version[Any]]:
        """Find the records that are gone now; see :func:`pgaudit_ctx.deleted`."""
        return self._run(self.deleted_steps(model, since, until, limit, schema))

    def transaction(
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
        return self._run(self.transaction_steps(xid, commit_lsn, since, until))

    def wait_for(self, lsn: str | int, timeout: float = 10.0) -> CompleteUpTo:
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
        return self._run(self.wait_steps(lsn, timeout))

    def changes(
        self,
        model: Any = None,
        key: Any = None,
        *,
        limit: int | None = None,
        **filters: Unpack[ChangeFilters],
    ) -> list[Change]:
        """Run what :func:`pgaudit_ctx.select_changes` builds.

        Args:
            model: A mapped class, a ``Table``, or ``"schema.table"``; ``None`` for any.
            key: As for ``Session.get``.
            limit: The newest so many.
            **filters: As for :func:`pgaudit_ctx.select_changes`.

        Returns:
            The changes, newest first, as objects without a session.

        Raises:
            KeyMismatch: If the key does not fit the model.
            NaiveDatetime: If a time has no zone.
            UsageError: If a key or a field is given without a model, or something has no such name.
        """
        return self._run(self.changes_steps(model, key, limit, filters))

    def _loads_relatives(self) -> LoadsRelatives:
        def load(trail: Trail[Any], name: str) -> Relatives:
            return self._run(related_steps(trail, name), Plans.ONCE)

        return load

    def _run(self, steps: Steps[R], plans: Plans = Plans.ANY) -> R:
        answer: Any = None
        while True:
            with explained(), self._connected(plans) as target:
                try:
                    while not isinstance(asked := steps.send(answer), Pause):
                        answer = target.execute(*arguments(asked)).all()
                except StopIteration as done:
                    result: R = done.value
                    return result
            answer = None
            time.sleep(asked.seconds)

    @contextmanager
    def _connected(self, plans: Plans) -> Iterator[Connection]:
        """Give what runs statements; a transaction of ours is read-only, and ended at once."""
        destination = self.destination
        if isinstance(destination, Connection):
            yield destination
        elif isinstance(destination, Session):
            # Not the session itself, which would flush what the caller is still working on.
            yield self._of(destination)
        elif isinstance(destination, Engine):
            with ExitStack() as stack:
                with connecting(destination.url):
                    connection = stack.enter_context(destination.connect())
                yield self._set_up(connection.execution_options(**READ_ONLY), plans)
                # psycopg forgets what it has prepared at a ROLLBACK.
                connection.commit()
        else:
            with destination() as session:
                yield self._set_up(self._of(session, READ_ONLY), plans)

    @staticmethod
    def _of(session: Session, options: dict[str, Any] | None = None) -> Connection:
        with connecting(session.get_bind(**OF_THE_TRAIL).engine.url):
            return session.connection(OF_THE_TRAIL, options)

    def _set_up(self, connection: Connection, plans: Plans) -> Connection:
        settings = self._settings(plans)
        if settings is not None:
            connection.execute(settings)
        return connection
