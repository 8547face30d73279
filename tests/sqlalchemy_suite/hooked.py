"""A pytest plugin: the hook on every engine that the suite makes, and a context in every test.

It must be loaded before anything makes an engine, as ``-p hooked`` does.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, util

from pgaudit_ctx import audit_context, bind_context, install


@util.decorator  # it keeps the signature, from which create_engine() tells its arguments
def _hooked(make: Callable[..., None], engine: Engine, *arguments: Any, **named: Any) -> None:
    make(engine, *arguments, **named)
    install(engine)


# Every engine passes here: async ones, those of fixtures, and those made past create_engine().
Engine.__init__ = _hooked(Engine.__init__)  # type: ignore[method-assign]

# The suite keeps one asyncio.Runner, which copies the context once, when it is made: a scope of
# each test's own would not reach its async tests. So there is one scope, open before that, and
# each test adds what is its own.
_scope = ExitStack()
_scope.enter_context(audit_context(user="suite", reason="outside of any test"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    bind_context(reason=item.nodeid)
    return (yield)


def pytest_unconfigure() -> None:
    _scope.close()
