"""For test suites: which changes a test has committed, and which contexts it has emitted.

The fixtures of ``pytest_plugin`` give these objects; they work without pytest as well.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack, overload

from pgaudit_ctx.change import Operation
from pgaudit_ctx.emission.composer import observers
from pgaudit_ctx.errors import NotCaptured, UsageError
from pgaudit_ctx.reading.history import History, HistoryFilters
from pgaudit_ctx.reading.mapped import shape_of
from pgaudit_ctx.reading.shape import Shape
from pgaudit_ctx.reading.version import ContextKeys, Version
from pgaudit_ctx.testbed.database import AuditDatabase
from pgaudit_ctx.testbed.expectation import (
    Expectation,
    context_misses,
    described,
    indented,
    nearest,
    shown,
)
from pgaudit_ctx.testbed.records import Recorded, Records

M = TypeVar("M")


class ExpectedChange(TypedDict, total=False):
    """What :meth:`AuditTrail.assert_changed` may expect of a change."""

    operation: str | None
    changed: Mapping[str, tuple[Any, Any]] | None
    context: Mapping[str, Any] | None


class AuditTrail:
    """What has been committed since it was made, whoever wrote it, with the context it carries.

    Each call reads the database's log up to that moment, through a replication slot: what was
    committed before the call is there, and what is not committed is not.

    Args:
        database: Where it looks.
        user_key: Which context key says who.
        reason_key: Which context key says why.
    """

    def __init__(
        self, database: AuditDatabase, *, user_key: str = "user", reason_key: str = "reason"
    ) -> None:
        self._database = database
        self._context_keys = ContextKeys(user_key, reason_key)
        self.clear()

    def clear(self) -> None:
        """Begin anew: forget what was committed until now, and take in tables that are new."""
        self._database.tail.publish_new_tables()
        self._start = len(self._database.changes())
        self._began = self._database.position()

    @overload
    def changes(
        self, model: type[M], key: Any = None, *, operation: str | None = None
    ) -> list[Version[M]]: ...

    @overload
    def changes(
        self, model: str | None = None, key: Any = None, *, operation: str | None = None
    ) -> list[Version[dict[str, Any]]]: ...

    def changes(
        self, model: Any = None, key: Any = None, *, operation: str | None = None
    ) -> list[Version[Any]]:
        """Give the changes in commit order.

        Args:
            model: A mapped class, or ``"schema.table"``; all tables by default, with their columns
                as they are stored.
            key: Only those of this record; as for ``Session.get``.
            operation: Only INSERT, UPDATE, DELETE or TRUNCATE.

        Returns:
            One version for each change, as ``history()`` would give it.

        Raises:
            NotCaptured: If the model's table was made after this trail began.
        """
        wanted = _operation(operation)
        return [
            recorded.version
            for recorded in self._recorded(model, key)
            if wanted is None or recorded.version.operation == wanted
        ]

    @overload
    def history(
        self, model: type[M], key: Any, **filters: Unpack[HistoryFilters]
    ) -> History[M]: ...

    @overload
    def history(
        self, model: str, key: Any, **filters: Unpack[HistoryFilters]
    ) -> History[dict[str, Any]]: ...

    def history(self, model: Any, key: Any, **filters: Unpack[HistoryFilters]) -> History[Any]:
        """Give the versions of one record, as :func:`pgaudit_ctx.history` would.

        Raises:
            NotCaptured: If the model's table was made after this trail began.
        """
        shape = self._shape(model, filters.get("schema"))
        return self._records().history(shape, self._key(shape, key), filters)

    @overload
    def assert_changed(
        self, model: type[M], key: Any = None, **expected: Unpack[ExpectedChange]
    ) -> Version[M]: ...

    @overload
    def assert_changed(
        self, model: str, key: Any = None, **expected: Unpack[ExpectedChange]
    ) -> Version[dict[str, Any]]: ...

    def assert_changed(
        self, model: Any, key: Any = None, **expected: Unpack[ExpectedChange]
    ) -> Version[Any]:
        """Check that a change was committed that is as described.

        Args:
            model: A mapped class, or ``"schema.table"``.
            key: Of this record; of any by default.
            **expected: ``operation``: INSERT, UPDATE, DELETE or TRUNCATE. ``changed``: attribute →
                old and new value, where ``None`` stands for the old values of an INSERT and the new
                ones of a DELETE; others may have changed too. ``context``: values that the context
                holds; it may hold others.

        Returns:
            The newest such change.

        Raises:
            AssertionError: If there is none; it shows the nearest, and what differs.
            NotCaptured: If the model's table was made after this trail began.
            UsageError: If the model has no such attribute.
        """
        __tracebackhide__ = True
        shape = self._shape(model, None)
        changed = expected.get("changed")
        if changed is not None:
            shape.known(list(changed))
        expectation = Expectation(
            _operation(expected.get("operation")), changed, expected.get("context")
        )
        candidates = self._recorded(model, key)
        for recorded in reversed(candidates):
            if not expectation.misses(recorded.version):
                return recorded.version
        subject = _subject(shape, None if key is None else self._key(shape, key))
        raise AssertionError(self._explain(expectation, subject, candidates, shape))

    def assert_unchanged(self, model: Any = None, key: Any = None) -> None:
        """Check that nothing of a record, a table or the whole database was changed.

        An UPDATE that wrote the values that were there by then counts as no change.

        Args:
            model: A mapped class, or ``"schema.table"``; all tables by default.
            key: Of this record; of any by default.

        Raises:
            AssertionError: If something was; it shows what.
            NotCaptured: If the model's table was made after this trail began.
        """
        __tracebackhide__ = True
        found = [each for each in self._recorded(model, key) if each.version.changed != ()]
        if found:
            shape = None if model is None else self._shape(model, None)
            subject = "nothing" if shape is None else f"no change of {_subject(shape, None)}"
            if shape is not None and key is not None:
                subject = f"no change of {_subject(shape, self._key(shape, key))}"
            raise AssertionError(
                "\n".join(
                    (
                        f"{subject} was expected, but there {_count(len(found), 'change')}:",
                        *_listed(found),
                    )
                )
            )

    def assert_context_everywhere(self, *keys: str) -> None:
        """Check that everything that was committed has a context.

        Args:
            *keys: What each context has to hold.

        Raises:
            AssertionError: If a change has none, or not these keys; it shows them.
        """
        __tracebackhide__ = True
        found = [each for each in self._recorded(None, None) if not _holds(each.version, keys)]
        if found:
            wanted = f"with {', '.join(keys)}" if keys else "with a context"
            there = _count(len(found), "change")
            raise AssertionError(
                "\n".join(
                    (
                        f"every change was expected {wanted}, but there {there} without:",
                        *_listed(found),
                    )
                )
            )

    def _records(self) -> Records:
        rows = self._database.changes()[self._start :]
        return Records(rows, self._began, self._database.tables(), self._context_keys)

    def _recorded(self, model: Any, key: Any) -> list[Recorded]:
        if model is None:
            if key is not None:
                raise UsageError("a key belongs to a model: pass both, changes(Patient, 42)")
            return self._records().all()
        shape = self._shape(model, None)
        return self._records().of(shape, None if key is None else self._key(shape, key))

    def _shape(self, model: Any, schema: str | None) -> Shape[Any]:
        shape = shape_of(model, schema)
        for name in shape.tables:
            if not self._database.is_captured(name):
                raise NotCaptured(
                    f"the table {'.'.join(name)} is not there, or was made after this trail began, "
                    "so that its changes are not known. Remedy: name it in the fixture "
                    "audit_metadata, or make it in a fixture that comes before audit_trail, or "
                    "call audit_trail.clear() once it is there"
                )
        return shape

    def _key(self, shape: Shape[Any], key: Any) -> tuple[str, ...]:
        return self._records().key(shape, key)

    def _explain(
        self,
        expectation: Expectation,
        subject: str,
        candidates: Sequence[Recorded],
        shape: Shape[Any],
    ) -> str:
        lines = [f"no change of {subject} is as expected", "  expected:"]
        lines += [f"    {line}" for line in expectation.lines()]
        if not candidates and self._records().of(shape):
            candidates = self._records().of(shape)
            lines.append(f"  nothing of {subject} was committed. Others of {shape.label}:")
        elif candidates:
            lines.append(f"  {len(candidates)} committed; the nearest, and what differs:")
        for recorded, misses in nearest(expectation, candidates):
            lines += indented(described(recorded), 8)
            lines += [f"      - expected {miss}" for miss in misses]
        if not candidates:
            lines += self._elsewhere(shape)
        return "\n".join(lines)

    def _elsewhere(self, shape: Shape[Any]) -> list[str]:
        everything = self._records().all()
        if everything:
            lines = [f"  nothing of {shape.label} was committed, but of other tables:"]
            lines += _listed(everything[-3:])
        else:
            lines = ["  nothing at all was committed"]
        unfinished = self._database.unfinished()
        if unfinished:
            lines.append(
                f"  still open after writing: {', '.join(unfinished)}. A change is there once it "
                "is committed; a suite that rolls back can use emitted_contexts"
            )
        return lines


class EmittedContext(NamedTuple):
    """The context of one write.

    Attributes:
        context: What was in force, ``None`` if nothing was.
        statement: The write as the driver got it, without parameters; ``None`` where it went past
            SQLAlchemy.
    """

    context: Mapping[str, Any] | None
    statement: str | None


class EmittedContexts(Sequence[EmittedContext]):
    """The context of each write of installed engines, in the order in which they were executed.

    It does not matter whether a write is committed, nor whether its transaction's log held the
    context by then, so that it needed not be emitted again.
    """

    def __init__(self) -> None:
        self._emitted: list[EmittedContext] = []

    @overload
    def __getitem__(self, index: int) -> EmittedContext: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[EmittedContext]: ...

    def __getitem__(self, index: int | slice) -> EmittedContext | Sequence[EmittedContext]:
        return self._emitted[index]

    def __len__(self) -> int:
        return len(self._emitted)

    def __repr__(self) -> str:
        return f"<EmittedContexts: {_count(len(self), 'write')}>"

    @property
    def contexts(self) -> list[Mapping[str, Any] | None]:
        """The contexts alone."""
        return [emitted.context for emitted in self._emitted]

    def clear(self) -> None:
        """Forget what was executed until now."""
        self._emitted.clear()

    def assert_emitted(self, context: Mapping[str, Any]) -> EmittedContext:
        """Check that there was a write whose context holds these values; it may hold others.

        Returns:
            The newest such write.

        Raises:
            AssertionError: If there was none; it shows the nearest, and what differs.
        """
        __tracebackhide__ = True
        judged: list[tuple[list[str], EmittedContext]] = [
            (context_misses(context, each.context), each) for each in reversed(self._emitted)
        ]
        for misses, each in judged:
            if not misses:
                return each
        lines = ["no write has the context that is expected"]
        if not judged:
            lines.append(
                "  no write was executed on an engine that pgaudit_ctx.install() was called for"
            )
        for misses, each in sorted(judged, key=lambda pair: len(pair[0]))[:3]:
            lines.append(f"    {shown(each.statement)}")
            lines += [f"      - expected {miss}" for miss in misses]
        raise AssertionError("\n".join(lines))

    def assert_context_everywhere(self, *keys: str) -> None:
        """Check that every write had a context, with these keys.

        Raises:
            AssertionError: If one had none; it shows which.
        """
        __tracebackhide__ = True
        found = [
            each
            for each in self._emitted
            if each.context is None or not set(keys) <= set(each.context)
        ]
        if found:
            wanted = f"with {', '.join(keys)}" if keys else "with a context"
            shown_ones = [
                f"    {shown(each.statement)}, context {shown(each.context)}" for each in found
            ]
            there = _count(len(found), "write")
            raise AssertionError(
                "\n".join(
                    (f"every write was expected {wanted}, but there {there} without:", *shown_ones)
                )
            )


@contextmanager
def emitted_contexts() -> Iterator[EmittedContexts]:
    """Record the context of each write that is executed inside, on every installed engine.

    For suites that roll back an outer transaction, whose changes never reach the log's reader::

        with emitted_contexts() as emitted:
            client.put("/patients/42", json={"name": "Anna"})
        emitted.assert_emitted({"user": "dr.who"})

    Yields:
        The record, which grows.
    """
    recorded = EmittedContexts()

    def observe(text: str, statement: str | None) -> None:
        recorded._emitted.append(EmittedContext(json.loads(text) or None, statement))  # noqa: SLF001 - filled here only

    observers.append(observe)
    try:
        yield recorded
    finally:
        observers.remove(observe)


def _operation(operation: str | None) -> str | None:
    if operation is None:
        return None
    try:
        return Operation(operation.upper()).value
    except ValueError:
        raise UsageError(f"operation={operation!r}: it is one of {', '.join(Operation)}") from None


def _subject(shape: Shape[Any], key: tuple[str, ...] | None) -> str:
    return " ".join((shape.label, *(key or ())))


def _count(number: int, word: str) -> str:
    return f"is 1 {word}" if number == 1 else f"are {number} {word}s"


def _listed(found: Sequence[Recorded]) -> list[str]:
    return [line for recorded in found for line in indented(described(recorded), 8)]


def _holds(version: Version[Any], keys: Sequence[str]) -> bool:
    return version.row.context is not None and set(keys) <= set(version.row.context)
