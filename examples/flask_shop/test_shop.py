"""What the shop does is in the trail, with who and why, also what its tasks do."""

import time
from collections.abc import Callable
from pathlib import Path

import app as shop
import pytest
from celery.contrib.testing.worker import start_worker
from flask import Flask

from pgaudit_ctx import ContextRequired
from pgaudit_ctx.testing import AuditTrail

TILL = {"X-User": "till-7"}


def sell_the_last(app: Flask) -> int:
    client = app.test_client()
    added = client.post("/articles", data={"name": "pen", "in_stock": 1}, headers=TILL)
    article_id: int = added.get_json()["id"]
    sold = client.post(f"/articles/{article_id}/sold", headers=TILL)
    assert sold.get_json() == {"left": 0}
    return article_id


def check_reorder(audit_trail: AuditTrail, article_id: int) -> None:
    audit_trail.assert_changed(
        shop.Article,
        article_id,
        changed={"in_stock": (1, 0)},
        context={"user": "till-7", "reason": "sold", "endpoint": "/articles/<int:article_id>/sold"},
    )
    audit_trail.assert_changed(
        shop.Article,
        article_id,
        changed={"in_stock": (0, 10)},
        context={"user": "till-7", "reason": "sold out", "task": "app.reorder"},
    )
    audit_trail.assert_context_everywhere("user")


def test_an_eager_task_writes_in_the_name_of_who_asked(
    make_app: Callable[..., Flask], audit_trail: AuditTrail
) -> None:
    article_id = sell_the_last(make_app(task_always_eager=True))
    check_reorder(audit_trail, article_id)


def test_a_task_of_a_worker_writes_in_the_name_of_who_asked(
    make_app: Callable[..., Flask], audit_trail: AuditTrail, tmp_path: Path
) -> None:
    # A broker whose messages are files: it needs no server.
    folder = str(tmp_path)
    app = make_app(
        broker_url="filesystem://",
        broker_transport_options={
            "data_folder_in": folder,
            "data_folder_out": folder,
            "control_folder": folder,
        },
        worker_hijack_root_logger=False,
    )
    article_id = sell_the_last(app)
    assert list(tmp_path.glob("*.msg")), "the task waits for a worker"
    with start_worker(app.extensions["celery"], perform_ping_check=False, pool="solo"):
        deadline = time.monotonic() + 60
        while len(audit_trail.changes(shop.Article)) < 3:
            assert time.monotonic() < deadline, "the worker has not run the task"
            time.sleep(0.01)
    check_reorder(audit_trail, article_id)


def test_nobody_writes_without_saying_who(make_app: Callable[..., Flask]) -> None:
    with make_app().app_context():
        shop.db.session.add(shop.Article(name="pen"))
        with pytest.raises(ContextRequired):
            shop.db.session.commit()
