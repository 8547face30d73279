"""Rows of ``changes`` made by hand, and trails built from them."""

import datetime as dt
from types import SimpleNamespace

from sqlalchemy import inspect

from pgaudit_ctx.reading.extent import CompleteUpTo, Extent, Gap
from pgaudit_ctx.reading.mapped import ModelShape
from pgaudit_ctx.reading.timeline import build_trail
from pgaudit_ctx.reading.version import ContextKeys, Trail
from support.clinic import Patient

NOON = dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)
BEGAN = NOON - dt.timedelta(hours=1)


def at(minutes: float) -> dt.datetime:
    return NOON + dt.timedelta(minutes=minutes)


def image(**values) -> dict[str, object]:
    return {"id": 1, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None, **values}


def change(operation: str, minutes: float, lsn: int, **fields) -> SimpleNamespace:
    """One row; a key, an image and an old image that fit the operation unless given."""
    defaults: dict[str, object] = {
        "source": "db",
        "epoch": 1,
        "ordinal": 1,
        "operation": operation,
        "committed_at": at(minutes),
        "commit_lsn": f"0/{lsn:X}",
        "transaction_id": 700 + lsn,
        "primary_key": None if operation == "TRUNCATE" else ["1"],
        "previous_key": None,
        "before": {"DELETE": image(), "UPDATE": {"name": "old"}}.get(operation),
        "after": None if operation in {"DELETE", "TRUNCATE"} else image(),
        "context": None,
    }
    return SimpleNamespace(**{**defaults, **fields})


def gap(minutes: float, lsn: int, *, epoch: int = 1) -> Gap:
    return Gap(epoch, f"0/{lsn:X}", epoch, f"0/{lsn + 1:X}", at(minutes), at(minutes + 1), "lost")


def trail_of(
    *rows, key=("1",), gaps=(), undone=None, user_key="user", reason_key="reason", model=None
) -> Trail[Patient]:
    extent = Extent(
        "db",
        {("public", "patient"): ("id",)},
        BEGAN,
        CompleteUpTo("0/FFFF", at(1000)),
        gaps,
        undone or {},
        {},
    )
    keys = {("public", "patient"): key}
    empty = Trail(
        ModelShape(inspect(Patient), None), keys, extent, ContextKeys(user_key, reason_key, model)
    )
    return build_trail(empty, rows)
