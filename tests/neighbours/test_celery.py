"""Celery with a real broker and real workers, and eagerly."""

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from pgaudit_ctx import audit_context, bind_context, current_context
from pgaudit_ctx.integrations.celery import HEADER, install
from support import celery_clinic as clinic
from support.database import Capture
from support.redis_server import running_redis
from support.waiting import eventually


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with running_redis() as url:
        yield url


class Clinic:
    """The processes of an application: senders, and a worker."""

    def __init__(self, capture: Capture, broker: str) -> None:
        self._environment = {
            **os.environ,
            "CLINIC_BROKER": broker,
            "CLINIC_URL": capture.source.sqlalchemy_url(),
            "CLINIC_SCHEDULE": f"/tmp/schedule_{capture.source.name}",
        }
        self._rows = capture.source.execute

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=self._environment,
            cwd=Path(__file__).parents[1],
        )

    @contextmanager
    def working(self, *options: str) -> Iterator[None]:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "critical"]
        worker = ["celery", "-A", "support.celery_clinic", "worker", *quiet, *options]
        with self.start(*worker) as process:
            try:
                yield
            finally:
                process.terminate()

    def wait_for(self, which: str, rows: int) -> None:
        written = f"SELECT count(*) >= {rows} FROM patient WHERE {which}"
        eventually(lambda: self._rows(written)[0][0], f"the tasks have written {rows} rows")


@pytest.mark.parametrize("options", [["--pool=prefork"], ["--pool=threads", "--beat"]])
def test_each_task_writes_under_the_user_who_sent_it_and_what_beat_sends_under_none(
    options: list[str], capture: Capture, broker: str
) -> None:
    users = [f"user-{number}" for number in range(6)]
    processes = Clinic(capture, broker)
    with processes.working("--concurrency=3", *options):
        with processes.start("support.celery_clinic", *users) as senders:
            assert senders.wait() == 0
        processes.wait_for("name <> 'beat'", len(users) * sum(clinic.ROWS.values()) + 1)
        if "--beat" in options:
            processes.wait_for("name = 'beat'", 1)
    found: dict[str, Counter[str]] = {}
    for change in capture.changes("patient"):
        name, context = change.after["name"], change.context
        assert context["task_id"]
        if name in {"nobody", "beat"}:
            assert set(context) == {"task", "task_id"}
        else:
            assert context["user"] == name
            assert context.get("reason") in {None, "spawned"}
        found.setdefault(name, Counter())[context["task"]] += 1
    assert found.pop("nobody") == {"write": 1}
    assert set(found.pop("beat", {})) == ({"write"} if "--beat" in options else set())
    assert found == {user: Counter(clinic.ROWS) for user in users}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(clinic.app.conf, "task_always_eager", True)
    return clinic


def test_an_eager_task_is_inside_of_the_callers_scopes(eager: ModuleType) -> None:
    with audit_context(user="dr.who"):
        result = eager.told.delay()
        assert result.get() == {"user": "dr.who", "task": "told", "task_id": result.id}
        bind_context(reason="afterwards")
        assert current_context() == {"user": "dr.who", "reason": "afterwards"}
    result = eager.told.delay()
    assert result.get() == {"task": "told", "task_id": result.id}
    assert current_context() is None


def traced(headers: dict[str, Any]) -> Any:
    """Run a task as a worker does, with the headers of a message."""
    from celery.app.trace import build_tracer

    tracer = build_tracer("told", clinic.told, app=clinic.app)
    return tracer("id-1", (), {}, {"id": "id-1", "delivery_info": {}, **headers}).retval


def test_nothing_that_a_task_before_has_left_open_is_inherited() -> None:
    with audit_context(user="left open"):
        assert "user" not in traced_result({})
        assert current_context() == {"user": "left open"}


def traced_result(headers: dict[str, Any]) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []
    run = clinic.told.run
    clinic.told.run = lambda: seen.append(run())
    try:
        traced(headers)
    finally:
        clinic.told.run = run
    return seen[0]


@pytest.mark.parametrize("wrong", ["no JSON", "[1]", json.dumps({"user": "\0"}), 7])
def test_a_context_that_cannot_be_used_never_stops_a_task_and_the_log_says_so(
    wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pgaudit_ctx"):
        assert traced_result({HEADER: wrong}) == {"task": "told", "task_id": "id-1"}
    assert "told[id-1]" in caplog.text


def test_a_header_given_by_hand_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        clinic.app.amqp, "send_task_message", lambda *_, **options: sent.append(options)
    )
    with audit_context(user="caller"):
        clinic.told.apply_async(headers={HEADER: '{"user": "by hand"}', "other": 1})
        clinic.told.apply_async(headers={"other": 1})
    clinic.told.apply_async()
    assert sent[0]["headers"] == {HEADER: '{"user": "by hand"}', "other": 1}
    assert sent[1]["headers"] == {HEADER: '{"user": "caller"}', "other": 1}
    assert HEADER not in (sent[2].get("headers") or {})


def test_another_application_in_the_process_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Celery("other", broker="memory://", set_as_current=False)
    seen = []

    @other.task
    def look() -> None:
        seen.append(current_context())

    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(other.amqp, "send_task_message", lambda *_, **given: sent.append(given))
    with audit_context(user="caller"):
        look.delay()
        look.apply()
    assert HEADER not in (sent[0].get("headers") or {})
    assert seen == [{"user": "caller"}]
    install(other)
    with audit_context(user="caller"):
        look.delay()
    assert HEADER in sent[1]["headers"]
