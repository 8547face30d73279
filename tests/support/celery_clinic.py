"""Tasks that write rows with a name they are given.

``celery -A support.celery_clinic worker`` runs them, ``python -m support.celery_clinic USER...``
sends them.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery, chain, chord, group
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgaudit_ctx import audit_context, bind_context, current_context
from pgaudit_ctx import install as install_hook
from pgaudit_ctx.integrations.celery import install
from support.clinic import Patient

app = Celery("clinic")
app.conf.update(
    broker_url=os.environ.get("CLINIC_BROKER", "memory://"),
    result_backend=os.environ.get("CLINIC_BROKER", "cache+memory://"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    beat_schedule={"nightly": {"task": "write", "schedule": 0.2, "args": ("beat",)}},
    beat_schedule_filename=os.environ.get("CLINIC_SCHEDULE", "schedule"),
)
install(app)
install(app)  # again, as an application does that is imported twice

_engine = create_engine(
    os.environ.get("CLINIC_URL", "postgresql+psycopg://localhost/x"), poolclass=NullPool
)
install_hook(_engine)


def _write(name: str) -> None:
    with Session(_engine) as session:
        session.add(Patient(name=name))
        session.commit()


@app.task(name="write")
def write(name: str) -> str:
    _write(name)
    return name


@app.task(name="follow")
def follow(result: Any, name: str) -> str:
    _write(name)
    return name


@app.task(name="retry", bind=True, max_retries=2)
def retry(self: Any, name: str) -> None:
    _write(name)
    bind_context(attempt=self.request.retries)
    if self.request.retries == 0:
        raise self.retry(countdown=0)


@app.task(name="spawn")
def spawn(name: str) -> None:
    with audit_context(reason="spawned"):
        write.delay(name)


@app.task(name="fail")
def fail(name: str) -> None:
    audit_context(user="left open").__enter__()
    raise LookupError(name)


@app.task(name="told")
def told() -> dict[str, Any]:
    return dict(current_context() or {})


class LateTask(app.Task):  # type: ignore[name-defined, misc] # made by the application
    def on_success(self, retval: Any, *_: Any) -> None:
        _write(retval)


@app.task(name="late", base=LateTask)
def late(name: str) -> str:
    return name


ROWS = {"write": 8, "late": 1, "retry": 2, "follow": 3}
"""How many rows each task writes for one user."""


def send_all(user: str) -> None:
    """Send tasks of every kind as one user."""
    with audit_context(user=user):
        write.delay(user)
        app.send_task("write", (user,))
        late.delay(user)
        retry.delay(user)
        chain(write.s(user), follow.s(user), follow.s(user))()
        group(write.s(user), write.s(user))()
        chord([write.s(user), write.s(user)])(follow.s(user))
        spawn.delay(user)
        fail.delay(user)


if __name__ == "__main__":
    with ThreadPoolExecutor(4) as senders:
        list(senders.map(send_all, sys.argv[1:]))
    write.delay("nobody")
