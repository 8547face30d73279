"""The database of a test run: made, watched through its slot, and emptied between tests."""

import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import psycopg
from psycopg import sql
from sqlalchemy import MetaData, create_engine
from sqlalchemy.pool import NullPool

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.errors import DatabaseError, MissingExtra
from pgaudit_ctx.source.catalog import Position, read_position
from pgaudit_ctx.source.tail import Tail, TailedChange
from pgaudit_ctx.testbed.server import Server
from pgaudit_ctx.urls import libpq_url, sqlalchemy_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger(__name__)

TableName: TypeAlias = tuple[str, str]
"""Schema and name."""

_PATIENCE_SECONDS: Final = 30
_ASYNCHRONOUS: Final = frozenset({"asyncpg", "psycopg_async"})
_EXISTING: Final = """
    SELECT c.oid, n.nspname::text, c.relname::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest(%s::text[], %s::text[]) AS wanted(schema, name)
        ON wanted.schema = n.nspname AND wanted.name = c.relname"""
_RESTART_SEQUENCES: Final = """
    SELECT setval(s.seqrelid, s.seqstart, false)
    FROM pg_sequence s JOIN pg_depend d ON d.objid = s.seqrelid
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
        AND d.deptype IN ('a', 'i') AND d.refobjid = ANY(%s)"""
_IN_THE_WAY: Final = """
    SELECT pid, application_name, state FROM pg_stat_activity
    WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"""


@contextmanager
def database_of_its_own(server: Server, given: str | None = None) -> Iterator[str]:
    """Create a database, and drop it on leaving.

    Args:
        server: Where.
        given: The URL of a database to connect to for that; ``postgres`` by default.

    Yields:
        Its URL, in libpq's form.
    """
    name = f"pgaudit_ctx_test_{os.getpid()}_{secrets.token_hex(4)}"
    identifier = sql.Identifier(name)
    with closing(connect(given or server.url("postgres"), "source")) as connection:
        try:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(identifier)
            )
        except psycopg.Error as error:
            raise refusal(error, "create a database for the tests") from None
    try:
        yield server.url(name)
    finally:
        try:
            _drop(given or server.url("postgres"), identifier)
        except (DatabaseError, psycopg.Error) as error:
            log.warning("the database %s is left behind: %s", name, error)


def _drop(url: str, name: sql.Identifier) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with closing(connect(url, "source")) as connection:
        while True:
            try:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            except psycopg.errors.ObjectInUse:
                # Sessions and slots that have ended need a moment to be gone.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


class AuditDatabase:
    """A database whose committed changes are read through a replication slot of its own.

    Args:
        url: In libpq's or SQLAlchemy's form.
        owned: Whether it exists for the tests only, so that its tables may be emptied.
    """

    def __init__(self, url: str, *, owned: bool) -> None:
        self.url: Final = url
        self.owned: Final = owned
        self._kept: Counter[TableName] = Counter()
        self._written: set[TableName] = set()
        self._changes: list[TailedChange] = []
        self._tables: Mapping[TableName, Sequence[str]] = {}
        self._opened = ExitStack()
        self.tail: Final = self._opened.enter_context(Tail(url))
        self._control = self._opened.enter_context(closing(connect(url, "source")))

    def close(self) -> None:
        """Drop slot and publication, and close all connections."""
        self._opened.close()

    def sync_url(self) -> str:
        """Give the URL for ``create_engine``; psycopg is the driver unless it names another."""
        url = sqlalchemy_url(self.url)
        driver = url.partition("://")[0].partition("+")[2]
        return sqlalchemy_url(libpq_url(url)) if driver in _ASYNCHRONOUS else url

    def async_url(self) -> str:
        """Give the URL for ``create_async_engine``; psycopg unless it names another async one."""
        url = sqlalchemy_url(self.url)
        driver = url.partition("://")[0].partition("+")[2]
        return url if driver in _ASYNCHRONOUS else sqlalchemy_url(libpq_url(url))

    def async_engine(self) -> "AsyncEngine":
        """Make an asynchronous engine that keeps no connection, for each test has its own loop.

        Raises:
            MissingExtra: If greenlet is not installed.
        """
        try:
            from sqlalchemy.ext.asyncio import create_async_engine  # needs greenlet from 2.1 on

            return create_async_engine(self.async_url(), poolclass=NullPool)
        except ImportError as error:
            raise MissingExtra(
                "asyncio", "an asynchronous engine", error.name or "greenlet"
            ) from None

    def create_tables(self, metadata: MetaData | Iterable[MetaData] | None) -> None:
        """Create the tables that are not there yet, and their schemas, and capture them."""
        if metadata is None:
            return
        metadata = [metadata] if isinstance(metadata, MetaData) else metadata
        engine = create_engine(self.sync_url(), poolclass=NullPool)
        for each in metadata:
            for schema in sorted({table.schema for table in each.tables.values() if table.schema}):
                self._control.execute(
                    sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
                )
            each.create_all(engine)
        engine.dispose()
        self.tail.publish_new_tables()

    def changes(self) -> list[TailedChange]:
        """Give everything that was committed since :meth:`forget`; the list grows."""
        for change in self.tail.read():
            self._changes.append(change)
            self._written.add((change.schema_name, change.table_name))
        return self._changes

    def forget(self) -> None:
        """Begin anew: a test that still holds the list keeps what it has."""
        self.changes()
        self._changes = []

    @contextmanager
    def keeping(self) -> Iterator[set[TableName]]:
        """Keep what is written inside from being deleted by :meth:`empty`.

        Yields:
            A set, filled on leaving: the tables that were written, to be given to :meth:`release`.
        """
        self.changes()
        before, self._written = self._written, set()
        kept: set[TableName] = set()
        try:
            yield kept
        finally:
            self.changes()
            kept |= self._written
            self._kept.update(kept)
            self._written = before

    def release(self, tables: Iterable[TableName]) -> None:
        """Let tables be emptied again that :meth:`keeping` has named."""
        tables = set(tables)
        self._kept.subtract(tables)
        self._kept = +self._kept
        self._written |= tables

    def empty(self) -> None:
        """Delete the rows of every table that was written, and start their sequences anew.

        By DELETE, which need not wait for sessions that have only read; without triggers and
        foreign keys, which takes a superuser. Nothing happens to a database that is not ours, and
        to tables that :meth:`keeping` named.

        Raises:
            DatabaseError: If a transaction that is still open keeps rows locked for two seconds.
        """
        self.forget()
        tables = self._written - set(self._kept)
        if not self.owned or not tables:
            return
        schemas, names = zip(*sorted(tables), strict=True)
        try:
            existing = self._control.execute(_EXISTING, [list(schemas), list(names)]).fetchall()
            with self._control.transaction():
                self._control.execute("SET LOCAL session_replication_role = replica")
                self._control.execute("SET LOCAL lock_timeout = '2s'")
                for _, schema, name in existing:
                    delete = sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, name))
                    self._control.execute(delete)
                oids = [oid for oid, _, _ in existing]
                self._control.execute(_RESTART_SEQUENCES, [oids])
        except psycopg.errors.LockNotAvailable:
            raise DatabaseError(
                "the tables that the test has written cannot be emptied for the next one: "
                f"{', '.join(self.unfinished()) or 'another session'} keeps rows locked. Remedy: "
                "end its transaction in the test or in the fixture that began it"
            ) from None
        except psycopg.Error as error:
            raise refusal(error, "empty the tables that the test has written") from None
        self._written -= tables
        self.tail.read()

    def unfinished(self) -> list[str]:
        """Name the transactions that have written and are neither committed nor rolled back."""
        return [
            f"process {pid} ({application or 'no application_name'}, {state})"
            for pid, application, state in self._control.execute(_IN_THE_WAY)
        ]

    def tables(self) -> Mapping[TableName, Sequence[str]]:
        """Give the primary key of each table whose changes arrive here, as last looked up."""
        return self._tables

    def is_captured(self, name: TableName) -> bool:
        """Say whether a table's changes arrive here."""
        if name not in self._tables:
            self._tables = {
                (each.schema, each.name): each.key_columns
                for each in self.tail.tables()
                if each.published
            }
        return name in self._tables

    def position(self) -> Position:
        """Say up to where something has been written to the log by now."""
        return read_position(self._control)
