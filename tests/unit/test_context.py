"""Scopes: nesting, leaving, following threads of execution."""

import asyncio
import contextvars
import inspect
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel

from pgaudit_ctx import (
    audit_context,
    bind_context,
    current_context,
    dump_context,
    load_context,
)
from pgaudit_ctx.context import Scope, apart, current_scope
from pgaudit_ctx.errors import ContextInvalid, NoOpenScope


class Flushes:
    """Counts, and says which context was in force."""

    def __init__(self, error: Exception | None = None) -> None:
        self.contexts: list[object] = []
        self.error = error

    def flush(self) -> None:
        self.contexts.append(dict(current_context() or {}))
        if self.error is not None:
            raise self.error


class FlushesAsync:
    def __init__(self) -> None:
        self.contexts: list[object] = []

    async def flush(self) -> None:
        self.contexts.append(dict(current_context() or {}))


def scope() -> Scope:
    found = current_scope()
    assert found is not None
    return found


def test_outside_of_any_scope_there_is_no_context() -> None:
    assert current_context() is None
    assert dump_context() is None


def test_a_scope_gives_its_context_to_the_block() -> None:
    with audit_context(user="a") as context:
        assert context == current_context() == {"user": "a"}
    assert current_context() is None


def test_a_nested_scope_merges_and_the_inner_value_wins() -> None:
    with audit_context(user="a", reason="r"), audit_context(user="b", ticket=1):
        assert current_context() == {"user": "b", "reason": "r", "ticket": 1}


def test_leaving_restores_the_outer_scope() -> None:
    with audit_context(user="a"):
        with audit_context(user="b"):
            pass
        assert current_context() == {"user": "a"}


def test_leaving_by_an_exception_restores_the_outer_scope_too() -> None:
    with audit_context(user="a"):
        with pytest.raises(LookupError), audit_context(user="b"):
            raise LookupError
        assert current_context() == {"user": "a"}
    assert current_context() is None


def test_a_mapping_and_keywords_merge_and_the_keywords_win() -> None:
    with audit_context({"user": "a", "user id": 1}, user="b"):
        assert current_context() == {"user": "b", "user id": 1}


def test_a_pydantic_model_is_taken_as_its_fields() -> None:
    class Who(BaseModel):
        user: str
        tags: list[int] = [1]

    with audit_context(Who(user="a"), reason="r"):
        assert current_context() == {"user": "a", "tags": [1], "reason": "r"}


@pytest.mark.parametrize("given", ["text", 1, [("user", "a")], {"user"}])
def test_what_is_no_mapping_is_refused(given: object) -> None:
    with pytest.raises(ContextInvalid, match="must be a mapping"):
        audit_context(given)  # type: ignore[arg-type]


def test_a_refused_value_leaves_the_outer_scope_in_force() -> None:
    with audit_context(user="a"):
        with pytest.raises(ContextInvalid, match="'photo'"), audit_context(photo=b"x"):
            pass
        assert current_context() == {"user": "a"}


@pytest.mark.parametrize(
    "values", [{"a": "x" * 65_536}, {"a": ["x" * 65_536]}, {"a": "ä" * 11_000}]
)
def test_a_context_over_64_kib_is_refused_on_entering(values) -> None:
    with pytest.raises(ContextInvalid, match="more than the 65536 allowed"), audit_context(values):
        pass


def test_the_limit_is_that_of_the_merged_context() -> None:
    with audit_context(a="x" * 40_000):
        with pytest.raises(ContextInvalid, match="65536"), audit_context(b="x" * 40_000):
            pass
        with audit_context(a="y" * 40_000):
            assert len(scope().text) < 65_536


def test_a_bind_that_makes_the_context_too_large_changes_nothing() -> None:
    with audit_context(user="a"):
        with pytest.raises(ContextInvalid, match="65536"):
            bind_context(blob="x" * 70_000)
        assert current_context() == {"user": "a"}


def test_the_context_is_read_only() -> None:
    with audit_context(user="a"), pytest.raises(TypeError):
        current_context()["user"] = "b"  # type: ignore[index]


def test_later_changes_to_the_given_mapping_do_not_reach_the_scope() -> None:
    given = {"roles": ["nurse"]}
    with audit_context(given):
        given["roles"].append("admin")
        assert current_context() == {"roles": ["nurse"]}


def test_a_scope_may_be_entered_again_after_it_was_left() -> None:
    again = audit_context(user="a")
    for _ in range(2):
        with again:
            assert current_context() == {"user": "a"}
        assert current_context() is None


def test_a_scope_may_be_entered_inside_itself() -> None:
    again = audit_context(user="a")
    with again, audit_context(user="b"):
        with again:
            assert current_context() == {"user": "a"}
        assert current_context() == {"user": "b"}
    assert current_context() is None


def test_binding_adds_to_the_innermost_scope_and_ends_with_it() -> None:
    with audit_context(user="a"):
        with audit_context(reason="r"):
            bind_context(user="b")
            assert current_context() == {"user": "b", "reason": "r"}
        assert current_context() == {"user": "a"}


def test_binding_outside_of_any_scope_says_how_to_open_one() -> None:
    with pytest.raises(NoOpenScope, match=r"with audit_context\(\.\.\.\)"):
        bind_context(user="a")


def test_binding_a_refused_value_changes_nothing() -> None:
    with audit_context(user="a"):
        with pytest.raises(ContextInvalid, match="'photo'"):
            bind_context(user="b", photo=b"x")
        assert current_context() == {"user": "a"}


def test_a_thread_that_copied_the_context_binds_to_the_same_scope() -> None:
    with audit_context(reason="r"):
        copied = contextvars.copy_context()
        thread = threading.Thread(target=copied.run, args=(lambda: bind_context(user="a"),))
        thread.start()
        thread.join()
        assert current_context() == {"reason": "r", "user": "a"}


async def test_asyncio_to_thread_binds_to_the_same_scope() -> None:
    async with audit_context(reason="r"):
        await asyncio.to_thread(bind_context, user="a")
        assert current_context() == {"reason": "r", "user": "a"}


def test_a_thread_without_a_copy_of_the_context_has_none() -> None:
    with audit_context(user="a"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_context).result() is None


def test_a_scope_left_in_another_copy_of_the_context_is_closed_there() -> None:
    # As frameworks do that run both halves of a generator in worker threads.
    opened = audit_context(user="a")
    first = contextvars.copy_context()
    first.run(opened.__enter__)
    second = first.copy()
    second.run(opened.__exit__, None, None, None)
    assert second.run(current_context) is None


async def test_tasks_that_interleave_keep_their_own_contexts() -> None:
    meet = asyncio.Barrier(3)
    seen: dict[str, list[object]] = {}

    async def task(name: str) -> None:
        seen[name] = []
        with audit_context(user=name):
            await meet.wait()
            seen[name].append(dict(current_context() or {}))
            bind_context(step=name)
            await meet.wait()
            seen[name].append(dict(current_context() or {}))
            await meet.wait()
        seen[name].append(dict(current_context() or {}))

    with audit_context(reason="r"):
        await asyncio.gather(*(task(name) for name in "abc"))
        assert current_context() == {"reason": "r"}
    for name in "abc":
        assert seen[name] == [
            {"reason": "r", "user": name},
            {"reason": "r", "user": name, "step": name},
            {"reason": "r"},
        ]


def test_a_decorated_function_runs_in_a_scope_of_its_own_each_time() -> None:
    @audit_context(user="a")
    def work(step: int) -> dict[str, object]:
        before = dict(current_context() or {})
        bind_context(step=step)
        return before

    with audit_context(reason="r"):
        assert work(1) == work(2) == {"user": "a", "reason": "r"}
        assert current_context() == {"reason": "r"}


def test_a_decorated_function_keeps_its_name_and_stays_reentrant() -> None:
    @audit_context(user="a")
    def work(depth: int) -> int:
        assert current_context() == {"user": "a"}
        return depth if depth == 3 else work(depth + 1)

    assert work.__name__ == "work"
    assert work(0) == 3
    assert current_context() is None


async def test_a_decorated_coroutine_function_stays_one_and_runs_in_a_scope() -> None:
    @audit_context(user="a")
    async def work() -> object:
        await asyncio.sleep(0)
        return dict(current_context() or {})

    assert inspect.iscoroutinefunction(work)
    assert await asyncio.gather(work(), work()) == [{"user": "a"}, {"user": "a"}]
    assert current_context() is None


def test_a_generator_cannot_be_decorated() -> None:
    def numbers():
        yield 1

    async def async_numbers():
        yield 1

    for function in (numbers, async_numbers):
        with pytest.raises(ContextInvalid, match=r"cannot decorate the generator .*numbers"):
            audit_context(user="a")(function)


def test_a_clean_exit_flushes_inside_the_scope() -> None:
    session = Flushes()
    with audit_context(user="a", flush=session):
        assert session.contexts == []
    assert session.contexts == [{"user": "a"}]


def test_an_exit_by_an_exception_does_not_flush() -> None:
    session = Flushes()
    with pytest.raises(LookupError), audit_context(user="a", flush=session):
        raise LookupError
    assert session.contexts == []


def test_a_flush_that_fails_leaves_the_scope_and_shows_its_error() -> None:
    with pytest.raises(LookupError), audit_context(user="a", flush=Flushes(LookupError())):
        pass
    assert current_context() is None


async def test_an_async_session_is_flushed_on_a_clean_exit_only() -> None:
    session = FlushesAsync()
    async with audit_context(user="a", flush=session):
        pass
    with pytest.raises(LookupError):
        async with audit_context(user="b", flush=session):
            raise LookupError
    assert session.contexts == [{"user": "a"}]


async def test_a_sync_session_is_flushed_by_async_with_too() -> None:
    session = Flushes()
    async with audit_context(user="a", flush=session):
        pass
    assert session.contexts == [{"user": "a"}]


def test_an_async_session_needs_async_with() -> None:
    with (
        pytest.raises(ContextInvalid, match="async with"),
        audit_context(user="a", flush=FlushesAsync()),
    ):
        pass
    assert current_context() is None


def test_a_decorator_flushes_after_each_call() -> None:
    session = Flushes()

    @audit_context(user="a", flush=session)
    def work() -> None:
        bind_context(step=1)

    work()
    work()
    assert session.contexts == [{"user": "a", "step": 1}] * 2


def test_a_dumped_context_is_json_and_loads_elsewhere() -> None:
    with audit_context(user="a"), audit_context(reason="ä"):
        dumped = json.loads(json.dumps(dump_context()))
    assert dumped == {"user": "a", "reason": "ä"}
    with load_context(dumped):
        assert current_context() == dumped


def test_loading_merges_over_an_open_scope() -> None:
    with audit_context(user="worker", host="h"), load_context({"user": "a"}):
        assert current_context() == {"user": "a", "host": "h"}


def test_loading_none_opens_a_scope_without_values() -> None:
    with load_context(None):
        assert current_context() == {}
        bind_context(user="a")
        assert current_context() == {"user": "a"}


def test_loading_what_is_no_dump_is_refused() -> None:
    with pytest.raises(ContextInvalid):
        load_context("{}")  # type: ignore[arg-type]


def test_the_text_of_a_scope_is_built_once() -> None:
    with audit_context(user="ä"):
        first = scope().text
        assert first == '{"user":"\\u00e4"}'
        assert scope().text is first


def test_binding_renews_the_text() -> None:
    with audit_context(user="a"):
        assert scope().text == '{"user":"a"}'
        bind_context(user="b")
        assert scope().text == '{"user":"b"}'


def test_binding_to_an_outer_scope_renews_the_text_of_the_inner_one() -> None:
    with audit_context(user="a"):
        outer = scope()
        with audit_context(reason="r"):
            assert json.loads(scope().text) == {"user": "a", "reason": "r"}
            outer.bind({"user": "b"}, 20)
            assert json.loads(scope().text) == {"user": "b", "reason": "r"}


def test_an_empty_scope_has_the_text_that_clears() -> None:
    with audit_context():
        assert scope().text == "{}"


def test_what_is_nested_in_the_context_cannot_be_changed_from_outside() -> None:
    with audit_context(request={"ip": "::1"}, tags=["a"]) as entered:
        for shown in (entered, current_context()):
            shown["request"]["ip"] = "forged"
            shown["tags"].append("forged")
        assert current_context() == {"request": {"ip": "::1"}, "tags": ["a"]}


def test_work_that_is_done_apart_inherits_no_scope_and_leaves_none() -> None:
    with audit_context(user="outer"):
        with apart():
            assert current_context() is None
            with pytest.raises(NoOpenScope):
                bind_context(user="x")
            with audit_context(reason="inner"):
                assert current_context() == {"reason": "inner"}
        assert current_context() == {"user": "outer"}


def test_values_are_taken_away_from_a_scope_but_not_from_those_around_it() -> None:
    with audit_context(user="outer"), audit_context(user="inner", reason="r"):
        current_scope().unbind(["user", "unknown"])
        assert current_context() == {"user": "outer", "reason": "r"}
