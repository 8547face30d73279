"""An application's engine on any driver, driven alike."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Self, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgaudit_ctx import install
from support.database import address_for

T = TypeVar("T")

DRIVERS = ("psycopg", "psycopg2", "asyncpg")
ASYNCHRONOUS = ("asyncpg", "psycopg_async")
ALL_DRIVERS = ("psycopg", "psycopg_async", "psycopg2", "asyncpg", "pg8000")


class Client:
    """An engine that keeps one connection open, with the hook unless told otherwise."""

    def __init__(self, url: str, driver: str, *, hook: bool = True, **options: Any) -> None:
        address, fixed = address_for(url, driver)
        options = {"pool_size": 1, "max_overflow": 0, **fixed, **options}
        if driver in ASYNCHRONOUS:
            self._runner = asyncio.Runner()
            self._asynchronous = create_async_engine(address, **options)
            self.engine = self._asynchronous.sync_engine
        else:
            self._asynchronous = None
            self.engine = create_engine(address, **options)
        if hook:
            install(self.engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def transaction(self, work: Callable[[Session], T]) -> T:
        """Do something in one transaction of a session, in the current context, and commit."""
        if self._asynchronous is not None:
            # The runner would otherwise go on in the context that it was made in.
            return self._runner.run(self._transaction(work), context=contextvars.copy_context())
        with Session(self.engine) as session, session.begin():
            return work(session)

    async def _transaction(self, work: Callable[[Session], T]) -> T:
        async with AsyncSession(self._asynchronous) as session, session.begin():
            return await session.run_sync(work)

    def close(self) -> None:
        if self._asynchronous is not None:
            self._runner.run(self._asynchronous.dispose())
            self._runner.close()
        else:
            self.engine.dispose()
