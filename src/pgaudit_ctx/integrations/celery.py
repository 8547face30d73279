"""Who and why travel with a Celery task, in a header of its message."""

import contextlib
import functools
import json
import logging
import weakref
from collections.abc import Mapping
from typing import Any, Final

from celery import Celery, Task
from celery.signals import task_postrun, task_prerun

from pgaudit_ctx.context import apart, audit_context, dump_context
from pgaudit_ctx.errors import ContextInvalid

log = logging.getLogger(__name__)

HEADER: Final = "pgaudit_ctx"
"""The message header that carries a context, as JSON text: not every broker takes more."""

_OPENED: Final = "_pgaudit_ctx_opened"

_installed: "weakref.WeakSet[Celery]" = weakref.WeakSet()


def install(celery_app: Celery) -> None:
    """Let tasks run in the context of whoever sent them.

    Call it in the process that sends tasks and in the worker alike, best where the application is
    made; again is without effect. A message carries the context that is open where it is sent:
    ``delay``, ``apply_async``, ``send_task``, and the next task of a chain too. The task runs in a
    scope of that, with ``task`` (its name) and ``task_id`` added, also if the sender had no
    context, as beat. A retry keeps the context of the first try. A task that is run eagerly is
    inside of the caller's scopes.

    Args:
        celery_app: The Celery application; others in the process are left alone.
    """
    app: Celery = getattr(celery_app, "_get_current_object", lambda: celery_app)()
    if app in _installed:
        return
    _installed.add(app)
    send_task = app.send_task

    @functools.wraps(send_task)
    def send_with_context(*args: Any, **options: Any) -> Any:
        context = dump_context()
        headers = options.get("headers") or {}
        if context is not None and HEADER not in headers:
            options["headers"] = {**headers, HEADER: json.dumps(context)}
        return send_task(*args, **options)

    # Everything is sent through this method, and the signals of sending do not say by which app.
    app.send_task = send_with_context  # type: ignore[method-assign] # see there
    # Without effect from the second application on.
    task_prerun.connect(_open, dispatch_uid=f"{__name__}.open")
    task_postrun.connect(_close, dispatch_uid=f"{__name__}.close")


def _open(task: "Task[Any, Any]", task_id: str, **_: Any) -> None:
    if task.app not in _installed:
        return
    opened = contextlib.ExitStack()
    if not task.request.is_eager:
        opened.enter_context(apart())  # whatever a task before this one may have left open
    own = {"task": task.name, "task_id": task_id}
    try:
        opened.enter_context(audit_context({**_told(task.request), **own}))
    except ContextInvalid as error:
        log.warning(
            "the context that came with task %s[%s] cannot be used: %s", task.name, task_id, error
        )
        opened.enter_context(audit_context(own))
    setattr(task.request, _OPENED, opened)


def _close(task: "Task[Any, Any]", **_: Any) -> None:
    opened = vars(task.request).pop(_OPENED, None)
    if opened is not None:
        opened.close()


def _told(request: Any) -> Mapping[str, Any]:
    """Give the context that came with a task's message."""
    headers = request.headers or {}
    carried = headers.get(HEADER) or getattr(request, HEADER, None)
    if isinstance(carried, str):
        with contextlib.suppress(ValueError):
            carried = json.loads(carried)
    if carried is None:
        return {}
    if not isinstance(carried, Mapping):
        raise ContextInvalid(f"the header {HEADER} is no JSON object")
    return carried
