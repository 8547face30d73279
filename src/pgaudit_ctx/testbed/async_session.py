"""An asynchronous session for a fixture that is not asynchronous itself.

So it serves tests of pytest-asyncio and of AnyIO alike, whatever their mode. A module of its own,
because SQLAlchemy's asyncio extension needs greenlet.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.util import await_only


@contextmanager
def session_for_a_test(engine: AsyncEngine) -> Iterator[AsyncSession]:
    """Make a session, and close it in the event loop that it was used in.

    The loop of a test is mostly closed before the fixtures of the test are. What every runner of
    loops does before is to close the asynchronous generators that were begun in it, so one of them
    closes the session.

    Args:
        engine: One that keeps no connections (``NullPool``).
    """
    session = AsyncSession(engine, expire_on_commit=False)
    guards: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}

    def after_begin(*_: Any) -> None:
        loop = asyncio.get_running_loop()
        if loop not in guards:
            guards[loop] = _close_with_its_loop(session)
            await_only(anext(guards[loop]))

    event.listen(session.sync_session, "after_begin", after_begin)
    yield session
    for loop, guard in guards.items():
        if not loop.is_closed():
            loop.run_until_complete(guard.aclose())


async def _close_with_its_loop(session: AsyncSession) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await session.close()
