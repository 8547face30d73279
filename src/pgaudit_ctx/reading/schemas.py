"""What an API answers: pydantic models of versions and changes, with values any client can read."""

import datetime as dt
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic_core import to_jsonable_python

from pgaudit_ctx.change import MARKER, UNAVAILABLE, Operation
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.version import Version, look_up


def plain(value: Any) -> Any:
    """Make a value that JSON can carry of one that a model has.

    As pydantic does it (Decimal, UUID and dates as text, intervals as ISO 8601, NaN as text, bytes
    as base64); what it does not know, such as a range, as its text. What the log did not carry is
    ``{"$pgaudit_ctx": "unavailable"}``, as in the trail.
    """
    return to_jsonable_python(
        value, bytes_mode="base64", inf_nan_mode="strings", fallback=_plain_unknown
    )


def _plain_unknown(value: Any) -> Any:
    return {MARKER: "unavailable"} if value is UNAVAILABLE else str(value)


Value = Annotated[Any, PlainSerializer(plain, when_used="json")]
"""Any value of a model; in JSON as :func:`plain` gives it."""


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DifferenceOut(_Out):
    """One attribute on both sides of a change; ``None`` also stands for "not there"."""

    old: Value
    new: Value


class VersionOut(_Out):
    """A :class:`pgaudit_ctx.Version` for an API's answer; times are aware."""

    number: int = Field(description="From 1, the place in the whole history")
    operation: Operation
    committed_at: dt.datetime = Field(description="When it was committed, by the source's clock")
    valid_to: dt.datetime | None = Field(description="When a later change ended it")
    user: Value = Field(description="Who, as far as the context says")
    reason: Value = Field(description="Why, as far as the context says")
    context: dict[str, Value] | None = Field(description="Everything the application said")
    changed: list[str] | None = Field(description="Attributes that changed; null if unknown")
    diff: dict[str, DifferenceOut]
    after: dict[str, Value] | None = Field(description="Null after a DELETE or TRUNCATE")
    transaction_id: int
    epoch: int
    commit_lsn: str
    undone: bool = Field(default=False, description="Undone by a failover")

    @classmethod
    def of(cls, version: Version[Any]) -> Self:
        """Describe a version.

        Args:
            version: Of any history.
        """
        changed, after = version.changed, version.after
        return cls(
            number=version.number,
            operation=version.operation,
            committed_at=version.committed_at,
            valid_to=version.valid_to,
            user=version.user,
            reason=version.reason,
            context=version.row.context,
            changed=None if changed is None else list(changed),
            diff={
                name: DifferenceOut(old=old, new=new) for name, (old, new) in version.diff.items()
            },
            after=None if after is None else dict(after),
            transaction_id=version.transaction_id,
            epoch=version.epoch,
            commit_lsn=version.commit_lsn,
            undone=version.undone,
        )


class ChangeOut(_Out):
    """A :class:`pgaudit_ctx.Change` for an API's answer; columns, and values as they are stored."""

    source: str
    epoch: int
    commit_lsn: str
    ordinal: int
    transaction_id: int
    committed_at: dt.datetime = Field(description="When it was committed, by the source's clock")
    operation: Operation
    schema_name: str
    table_name: str
    primary_key: list[str] | None
    previous_key: list[str] | None = Field(description="The old key, where it changed")
    user: Value = Field(description="Who, as far as the context says")
    reason: Value = Field(description="Why, as far as the context says")
    context: dict[str, Value] | None = Field(description="Everything the application said")
    changed: list[str] | None = Field(description="Columns an UPDATE changed; null if unknown")
    before: dict[str, Value] | None = Field(description="The whole old row, as far as it is known")
    after: dict[str, Value] | None

    @classmethod
    def of(cls, change: Change, *, user_key: str = "user", reason_key: str = "reason") -> Self:
        """Describe a change.

        Args:
            change: As ``reader.changes()`` or a select of ``Change`` gives it.
            user_key: Which context key says who; dots lead into objects.
            reason_key: Which context key says why.
        """
        before = change.before
        is_update = change.operation == Operation.UPDATE
        changed = list(before) if is_update and before is not None else None
        if is_update and before is not None:
            before = {**(change.after or {}), **before}
        return cls(
            source=change.source,
            epoch=change.epoch,
            commit_lsn=str(change.commit_lsn),
            ordinal=change.ordinal,
            transaction_id=change.transaction_id,
            committed_at=change.committed_at,
            operation=Operation(change.operation),
            schema_name=change.schema_name,
            table_name=change.table_name,
            primary_key=change.primary_key,
            previous_key=change.previous_key,
            user=look_up(change.context, user_key),
            reason=look_up(change.context, reason_key),
            context=change.context,
            changed=changed,
            before=before,
            after=change.after,
        )
