"""Rebuilds the versions of one record from its changes; pure."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast, overload

from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import QueryableAttribute

from pgaudit_ctx.change import Operation
from pgaudit_ctx.errors import HistoryUnknown, UsageError
from pgaudit_ctx.reading.extent import Extent, Table
from pgaudit_ctx.reading.query import aware
from pgaudit_ctx.reading.shape import Field, Shape, field_name
from pgaudit_ctx.wal.lsn import parse_lsn

M = TypeVar("M")
R = TypeVar("R")

GONE = frozenset({Operation.DELETE, Operation.TRUNCATE})
"""The operations after which a record is not there any more."""


class Difference(NamedTuple):
    """One attribute on both sides of a change."""

    old: Any
    new: Any


class ContextKeys(NamedTuple):
    """How contexts are read: which keys say who and why, and what makes an object of them."""

    user: str = "user"
    reason: str = "reason"
    model: type[BaseModel] | None = None


class Relatives(Protocol):
    """The records that one relationship ever led to from a record, with all their versions."""

    def valid_with(self, version: "Version[Any]", when: dt.datetime | None) -> "list[Version[Any]]":
        """Give the versions valid at a moment of one of the record's own, or as it was made."""


class LoadsRelatives(Protocol):
    """Asks the trail for the records of a relationship."""

    def __call__(self, trail: "Trail[Any]", name: str) -> Relatives:
        """Give those of one record."""


@dataclass(frozen=True)
class Trail(Generic[M]):
    """What all versions of one record share.

    Attributes:
        shape: How its rows become attributes.
        keys: Its key in each of its tables.
        extent: What the trail can know of these.
        context_keys: How contexts are read.
        versions: In order, all of them.
        undone: Versions that a failover has undone, in order.
        load: Asks for related records; ``None`` where that has to be awaited.
        relatives: What relationships led to, as far as it was asked for.
    """

    shape: Shape[M]
    keys: Mapping[Table, tuple[str, ...]]
    extent: Extent
    context_keys: ContextKeys
    versions: "list[Version[M]]" = field(default_factory=list)
    undone: "list[Version[M]]" = field(default_factory=list)
    load: LoadsRelatives | None = None
    relatives: dict[str, Relatives] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """The record's key in its first table."""
        return self.keys[self.shape.tables[0]]


@dataclass(frozen=True, eq=False, repr=False)
class Version(Generic[M]):
    """One state in a record's history: the change that made it, and who made it when and why.

    Attributes:
        number: From 1, the place in the whole history, whatever was filtered.
        committed_at: When the change was committed, by the source's clock; aware.
        valid_to: When a later change ended this state; ``None`` for the current one.
        transaction_id: The source's transaction id (xid).
        commit_lsn: The place of its commit in the log, with ``epoch``.
        epoch: See ``commit_lsn``; positions are comparable within one epoch only.
        row: The row of ``changes`` it was made from, or for a record of several tables, one that
            stands for theirs.
        undone: Whether a failover has undone it, so that it never happened on the server that went
            on. Its number is the one it had until then.
        asked_at: The moment that ``as_of`` was asked for, if it gave this version.
    """

    number: int
    operation: Operation
    committed_at: dt.datetime
    valid_to: dt.datetime | None
    transaction_id: int
    commit_lsn: str
    epoch: int
    row: Any
    _trail: Trail[M]
    _siblings: "Mapping[int, Version[M]]"
    undone: bool = False
    asked_at: dt.datetime | None = None

    def __repr__(self) -> str:
        return (
            f"<Version {self.number} of {self._trail.shape.label} {'/'.join(self._trail.key)}: "
            f"{self.operation} at {self.committed_at:%Y-%m-%d %H:%M:%S%z}>"
        )

    @property
    def position(self) -> tuple[int, int, int]:
        """Its place in the order of all changes of its source: epoch, commit LSN, ordinal."""
        return self.epoch, parse_lsn(self.commit_lsn), self.row.ordinal

    @property
    def valid_from(self) -> dt.datetime:
        """When this state began: ``committed_at``."""
        return self.committed_at

    @cached_property
    def before(self) -> Mapping[str, Any] | None:
        """The attributes before the change; ``None`` for INSERT and SNAPSHOT, and if unknown."""
        image = self.row.before
        if image is None:
            return None
        if self.operation is Operation.UPDATE:
            image = {**self.row.after, **image}
        return MappingProxyType(self._trail.shape.attributes(image))

    @cached_property
    def after(self) -> Mapping[str, Any] | None:
        """The attributes after the change; ``None`` for DELETE and TRUNCATE."""
        image = self.row.after
        return None if image is None else MappingProxyType(self._trail.shape.attributes(image))

    @cached_property
    def changed(self) -> tuple[str, ...] | None:
        """The attributes that changed; ``None`` if the log did not carry the old row."""
        if self.operation is Operation.UPDATE:
            before = self.row.before
            return None if before is None else self._trail.shape.names(list(before))
        return tuple(self.after or self.before or ())

    @cached_property
    def diff(self) -> Mapping[str, Difference]:
        """What changed: attribute → ``Difference(old, new)``; ``None`` stands for "not there"."""
        before, after = self.before or {}, self.after or {}
        return MappingProxyType(
            {name: Difference(before.get(name), after.get(name)) for name in self.changed or ()}
        )

    @cached_property
    def context(self) -> Any:
        """The context in force, or ``None`` if nobody explained the change.

        A read-only mapping, or an instance of the reader's ``context_model`` where the context fits
        it: changes that others explained, or that are older than the model, may not.
        """
        context = self.row.context
        if context is None:
            return None
        model = self._trail.context_keys.model
        if model is not None:
            try:
                return model.model_validate(context)
            except ValidationError:
                pass  # the change stays readable whatever its context says
        return MappingProxyType(context)

    @property
    def user(self) -> Any:
        """Who, by the reader's ``user_key``; ``None`` if the context does not say."""
        return look_up(self.row.context, self._trail.context_keys.user)

    @property
    def reason(self) -> Any:
        """Why, by the reader's ``reason_key``; ``None`` if the context does not say."""
        return look_up(self.row.context, self._trail.context_keys.reason)

    @property
    def key(self) -> tuple[str, ...]:
        """The record's key, each value as PostgreSQL prints it."""
        return self._trail.key

    @property
    def model(self) -> type[M] | None:
        """The mapped class that was asked for; ``None`` for a bare table."""
        return self._trail.shape.model

    @property
    def table(self) -> str:
        """Schema and name of the record's table; the first, if it has several."""
        return ".".join(self._trail.shape.tables[0])

    @property
    def previous(self) -> "Version[M] | None":
        """The version before, in the whole history."""
        return self._siblings.get(self.number - 1)

    @property
    def next(self) -> "Version[M] | None":
        """The version after, in the whole history."""
        return self._siblings.get(self.number + 1)

    @property
    def exists(self) -> bool:
        """Whether the record was there, under this key, after the change."""
        moved_away = tuple(self.row.primary_key or ()) != self._trail.key
        return self.operation not in GONE and not moved_away

    @overload
    def related(
        self,
        relationship: QueryableAttribute[list[R]] | QueryableAttribute[set[R]],
        when: dt.datetime | None = None,
    ) -> "list[Version[R]]": ...

    @overload
    def related(
        self, relationship: QueryableAttribute[R | None], when: dt.datetime | None = None
    ) -> "list[Version[R]]": ...

    @overload
    def related(
        self, relationship: str, when: dt.datetime | None = None
    ) -> "list[Version[Any]]": ...

    def related(self, relationship: Any, when: dt.datetime | None = None) -> "list[Version[Any]]":
        """Give the versions of related records that were valid together with this one.

        The first call for a relationship asks for the related records of the whole history, in a
        number of queries that does not depend on how many there are; each further call, of any of
        its versions, asks for nothing.

        Args:
            relationship: By name, or as ``Patient.visits``.
            when: A moment while this version was valid; aware. By default the one that ``as_of``
                was asked for, else the end of the transaction that made this version.

        Returns:
            Their versions, always as a list, of at most one for a many-to-one relationship; in the
            order in which the trail first saw the records. Empty for a DELETE and a TRUNCATE.

        Raises:
            HistoryUnknown: If the trail cannot know what was related then.
            NaiveDatetime: If ``when`` has no time zone.
            NotCaptured: If the related table was never captured.
            Unsupported: If the relationship compares more than columns that are equal.
            UsageError: If there is no such relationship, if ``when`` lies outside of the version's
                validity, or if the reader is asynchronous and the relationship not loaded yet:
                then ``await reader.related(version, relationship)``, or
                ``history(..., include=[...])``.
        """
        name = field_name(relationship)
        relatives = self._trail.relatives.get(name)
        if relatives is None:
            if self._trail.load is None:
                raise UsageError(
                    f"{name} is not loaded, and this version was read asynchronously. Remedy: "
                    "await reader.related(version, relationship), or history(include=[...])"
                )
            relatives = self._trail.load(self._trail, name)
        return relatives.valid_with(self, self._moment(when))

    def _moment(self, when: dt.datetime | None) -> dt.datetime | None:
        if when is None:
            return self.asked_at
        if aware(when, "when") < self.valid_from or (self.valid_to and when >= self.valid_to):
            raise UsageError(
                f"{self!r} was not valid at {when:%Y-%m-%d %H:%M:%S%z}. Remedy: ask the version "
                "that was, as as_of() gives it"
            )
        return when

    def fields(self, fields: Sequence[Field]) -> frozenset[str]:
        """Give the names of attributes, and refuse those that the record does not have."""
        return self._trail.shape.known(fields)

    def is_sql_null(self, field: str) -> bool:
        """Whether an attribute is NULL, and not the JSON value ``null``, which is ``None`` too."""
        image = self._image()
        found = [image[c] for c in self._trail.shape.image_columns(field) if c in image]
        return not found or found[0] is None

    def instance(self) -> M:
        """Make a transient instance of the model with this version's attributes.

        Returns:
            An object without a session, its ``__init__`` not called; for a DELETE as it was
            before. For a table without a model, a dict.

        Raises:
            HistoryUnknown: If the version carries no row (TRUNCATE).
        """
        return self._trail.shape.instance(self._image())

    def as_dict(self) -> dict[str, Any]:
        """Give this version's attributes, for a DELETE as they were before.

        Raises:
            HistoryUnknown: If the version carries no row (TRUNCATE).
        """
        values = self.after if self.after is not None else self.before
        if values is None:
            self._image()
        return dict(values or {})

    def _image(self) -> Mapping[str, Any]:
        image: Mapping[str, Any] | None = (
            self.row.after if self.row.after is not None else self.row.before
        )
        if image is None:
            raise HistoryUnknown(
                f"{self!r} carries no row: TRUNCATE does not write one to the log. Remedy: look at "
                "version.previous"
            )
        return image


def trail_of(version: Version[M]) -> Trail[M]:
    """Give what a version shares with the others of its record."""
    return version._trail  # noqa: SLF001 - hidden from users, not from the readers


def look_up(context: Mapping[str, Any] | None, path: str) -> Any:
    """Find a context value by a dotted path; a key that itself has dots is found first."""
    if context is None:
        return None
    if path in context:
        return context[path]
    value: Any = context
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = cast("Mapping[str, Any]", value)[part]
    return value
