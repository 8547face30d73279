"""The steps of each verb, pure: generators that yield selects and are sent their rows.

They do no I/O, so the synchronous and the asynchronous reader drive the very same code.
"""

import datetime as dt
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeAlias, TypeVar

from sqlalchemy import Executable
from sqlalchemy.exc import ProgrammingError

from pgaudit_ctx.errors import (
    DestinationNotReady,
    NotCaptured,
    SourceAmbiguous,
    SourceUnknown,
)
from pgaudit_ctx.reading import query
from pgaudit_ctx.reading.history import History, HistoryFilters, choose, version_at
from pgaudit_ctx.reading.shape import shape_of
from pgaudit_ctx.reading.version import CompleteUpTo, Gap, Trail, Version, build_trail, holes

R = TypeVar("R")
D = TypeVar("D")

_NO_SUCH_TABLE: Final = frozenset({"42P01", "42703", "3F000"})
_NOT_ALLOWED: Final = "42501"

Steps: TypeAlias = Generator[Executable, Sequence[Any], R]


@contextmanager
def explained() -> Iterator[None]:
    """Say what it means that the trail's tables are not there, or may not be read."""
    try:
        yield
    except ProgrammingError as error:
        state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
        if state in _NO_SUCH_TABLE:
            raise DestinationNotReady(
                "this database holds no trail: it has no table pgaudit_ctx.changes of this "
                "version. Remedy: check that the destination's URL is meant, or run pgaudit-ctx "
                "setup"
            ) from None
        if state == _NOT_ALLOWED:
            raise DestinationNotReady(
                "this role may not read the trail. Remedy, as its owner: GRANT USAGE ON SCHEMA "
                "pgaudit_ctx, and SELECT ON ALL TABLES IN SCHEMA pgaudit_ctx, to it"
            ) from None
        raise


class Verbs(Generic[D]):
    """What both readers are told, and the steps of each verb."""

    def __init__(
        self,
        destination: D,
        *,
        source: str | None = None,
        schema: str | None = None,
        user_key: str = "user",
        reason_key: str = "reason",
    ) -> None:
        self.destination = destination
        self._source = source
        self._schema = schema
        self._user_key = user_key
        self._reason_key = reason_key

    def _trail(self, model: Any, key: Any, schema: str | None) -> Steps[Trail[Any]]:
        shape = shape_of(model, schema or self._schema)
        covered = yield query.select_coverage(shape.schema, shape.table)
        chosen = self._of_one_source(covered, shape.label)
        first, last = chosen[0], chosen[-1]
        wanted = shape.key(key, last.key_columns)
        gaps = yield query.select_gaps(last.source)
        rows = yield query.select_record(last.source, shape.schema, shape.table, wanted)
        trail = Trail(
            shape,
            wanted,
            first.from_time,
            CompleteUpTo(str(last.end_lsn), last.complete_at),
            holes(chosen)
            + [
                Gap(
                    gap.epoch,
                    str(gap.from_lsn),
                    gap.to_epoch,
                    str(gap.to_lsn),
                    gap.from_time,
                    gap.to_time,
                    gap.cause,
                )
                for gap in gaps
            ],
            self._user_key,
            self._reason_key,
        )
        return build_trail(trail, rows)

    def _of_one_source(self, covered: Sequence[Any], label: str) -> Sequence[Any]:
        sources = sorted({row.source for row in covered})
        if self._source is not None:
            chosen = [row for row in covered if row.source == self._source]
            if covered and not chosen:
                raise SourceUnknown(
                    f"the trail holds {label} of {', '.join(sources)}, but not of the source "
                    f"{self._source!r}. Remedy: pass source= with one of these"
                )
            covered = chosen
        elif len(sources) > 1:
            raise SourceAmbiguous(
                f"the trail holds {label} of several sources: {', '.join(sources)}. Remedy: pass "
                "source= to the reader, or to configure()"
            )
        if not covered:
            raise NotCaptured(
                f"{label} was never captured. Remedy: run pgaudit-ctx setup, which adds new "
                "tables, or check the schema (schema=) and the destination"
            )
        return covered

    def history_steps(self, model: Any, key: Any, filters: HistoryFilters) -> Steps[History[Any]]:
        """Give the steps of ``history``."""
        return choose((yield from self._trail(model, key, filters.get("schema"))), filters)

    def as_of_steps(
        self, model: Any, key: Any, when: dt.datetime, schema: str | None
    ) -> Steps[Version[Any] | None]:
        """Give the steps of ``as_of``."""
        query.aware(when, "when")
        trail = yield from self._trail(model, key, schema)
        return version_at(trail, when)
