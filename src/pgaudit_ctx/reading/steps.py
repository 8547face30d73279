"""The steps of each verb, pure: generators that yield selects and are sent their rows.

They do no I/O, so the synchronous and the asynchronous reader drive the very same code.
"""

import datetime as dt
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel
from sqlalchemy import Executable, Select

from pgaudit_ctx.errors import (
    NotCaptured,
    NotCaughtUp,
    SourceAmbiguous,
    SourceUnknown,
    UsageError,
)
from pgaudit_ctx.reading import query, records
from pgaudit_ctx.reading.captured import select_covered, select_sources
from pgaudit_ctx.reading.changes import ChangeFilters, changes_of
from pgaudit_ctx.reading.compare import blame_of
from pgaudit_ctx.reading.connections import Plans, settings_of
from pgaudit_ctx.reading.extent import (
    CompleteUpTo,
    Extent,
    extent_of,
    never_captured,
    nothing_yet,
)
from pgaudit_ctx.reading.extent_facts import select_extent
from pgaudit_ctx.reading.history import (
    History,
    HistoryFilters,
    asked_at,
    check_filters,
    choose,
    version_at,
)
from pgaudit_ctx.reading.mapped import mapped_shape, shape_of
from pgaudit_ctx.reading.merged_timeline import Timeline, merge
from pgaudit_ctx.reading.plausible import refuse_strange_fields, refuse_strange_key
from pgaudit_ctx.reading.related_steps import related_steps
from pgaudit_ctx.reading.shape import ANY_SCHEMA, Field, Renamed, Shape, field_name
from pgaudit_ctx.reading.table_as_of import check_whole_table, select_table
from pgaudit_ctx.reading.timeline import build_trail
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.transaction import Transaction, one_transaction
from pgaudit_ctx.reading.version import (
    ContextKeys,
    LoadsRelatives,
    Trail,
    Version,
    trail_of,
)
from pgaudit_ctx.wal.lsn import format_lsn, parse_lsn

R = TypeVar("R")
D = TypeVar("D")

_BETWEEN_LOOKS: Final = 0.05


class Pause(NamedTuple):
    """What a step asks for instead of a statement: to end the transaction, and wait."""

    seconds: float


Steps: TypeAlias = Generator[Executable | records.Bound | Pause, Any, R]


def arguments(asked: Executable | records.Bound) -> tuple[Executable, Mapping[str, Any] | None]:
    """Give what ``execute()`` takes."""
    return asked if isinstance(asked, records.Bound) else (asked, None)


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
        context_model: type[BaseModel] | None = None,
        statement_timeout: float | None = 60.0,
    ) -> None:
        self.destination = destination
        self.source = source
        self.schema = schema
        self.context_keys = ContextKeys(user_key, reason_key, context_model)
        self.statement_timeout = statement_timeout

    def _settings(self, plans: Plans) -> Executable | None:
        """Give the statement that bounds the others of its transaction, and says how to plan."""
        if self.statement_timeout is None:
            return settings_of(None, plans)
        return settings_of(max(1, round(self.statement_timeout * 1000)), plans)

    def _extent(self, shape: Shape[Any]) -> Steps[Extent]:
        facts = yield select_extent(shape.tables)
        return extent_of(facts, shape.tables, self.source, shape.label)

    def _trail(
        self, shape: Shape[Any], key: Any, *, include_undone: bool = False
    ) -> Steps[Trail[Any]]:
        extent = yield from self._extent(shape)
        keys = shape.keys(shape.key(key, extent.key_columns[shape.tables[0]]), extent.key_columns)
        rows = yield records.select_record(
            extent, shape.tables, keys, include_undone=include_undone
        )
        if not rows:
            if extent.untouched:
                raise nothing_yet([extent.source])
            image = yield from self._newest_image(shape, extent.source)
            first = shape.tables[0]
            refuse_strange_key(shape.label, extent.key_columns[first], keys[first], image)
        trail = Trail(shape, keys, extent, self.context_keys, load=self._loads_relatives())
        return build_trail(trail, rows)

    def _loads_relatives(self) -> LoadsRelatives | None:
        """Give what versions ask for related records, where that need not be awaited."""
        return None

    def _newest_image(self, shape: Shape[Any], source: str | None) -> Steps[Mapping[str, Any]]:
        """Show a table's columns where nothing but its name is known; else nothing."""
        if shape.typed:
            return {}
        newest = changes_of(shape, None, self.context_keys, {"source": source}).limit(1)
        rows = yield newest
        return (rows[0].after or rows[0].before or {}) if rows else {}

    def _shape(self, model: Any, schema: str | None, renamed: Renamed | None = None) -> Shape[Any]:
        return shape_of(model, schema or self.schema, renamed)

    def history_steps(self, model: Any, key: Any, filters: HistoryFilters) -> Steps[History[Any]]:
        """Give the steps of ``history``."""
        trail = yield from self._whole(model, key, filters)
        chosen = choose(trail, filters)
        if trail.versions and not chosen and (fields := filters.get("fields")):
            image = yield from self._newest_image(trail.shape, trail.extent.source)
            images = [v.row.after or v.row.before or {} for v in trail.versions]
            refuse_strange_fields(trail.shape, map(field_name, fields), [image, *images])
        return chosen

    def timeline_steps(
        self, model: Any, key: Any, include: Sequence[Field], filters: HistoryFilters
    ) -> Steps[Timeline[Any]]:
        """Give the steps of ``history`` with ``include``."""
        if isinstance(include, str):
            raise UsageError(f"include={include!r}: it takes a list of relationships")
        trail = yield from self._whole(model, key, filters)
        loaded = {}
        for name in map(field_name, include):
            loaded[name] = yield from related_steps(trail, name)
        return merge(trail, loaded, filters)

    def related_steps(
        self, version: Version[Any], relationship: Field, when: dt.datetime | None
    ) -> Steps[list[Version[Any]]]:
        """Give the steps of ``related``."""
        trail = trail_of(version)
        if field_name(relationship) not in trail.relatives:
            yield from related_steps(trail, field_name(relationship))
        return version.related(field_name(relationship), when)

    def _whole(self, model: Any, key: Any, filters: HistoryFilters) -> Steps[Trail[Any]]:
        check_filters(filters)
        shape = self._shape(model, filters.get("schema"), filters.get("renamed"))
        if (fields := filters.get("fields")) is not None:
            shape.known(fields)  # a mistake in the call is told before what the trail lacks
        undone = filters.get("include_undone", False)
        return (yield from self._trail(shape, key, include_undone=undone))

    def as_of_steps(
        self,
        model: Any,
        key: Any,
        when: dt.datetime,
        schema: str | None,
        renamed: Renamed | None = None,
    ) -> Steps[Version[Any] | None]:
        """Give the steps of ``as_of``."""
        query.aware(when, "when")
        trail = yield from self._trail(self._shape(model, schema, renamed), key)
        return asked_at(version_at(trail, when), when)

    def select_as_of_steps(
        self,
        model: Any,
        when: dt.datetime,
        schema: str | None,
        renamed: Renamed | None,
        *,
        despite_gaps: bool,
    ) -> Steps[Select[Any]]:
        """Give the steps of ``select_as_of``."""
        query.aware(when, "when")
        shape = mapped_shape(model, schema or self.schema, renamed)
        extent = yield from self._extent(shape)
        if extent.untouched and not extent.baselines:
            raise nothing_yet([extent.source])
        check_whole_table(shape, extent, when, despite_gaps=despite_gaps)
        return select_table(shape, when, extent=extent)

    def blame_steps(
        self, model: Any, key: Any, schema: str | None, renamed: Renamed | None
    ) -> Steps[Mapping[str, Version[Any]]]:
        """Give the steps of ``blame``."""
        return blame_of((yield from self._trail(self._shape(model, schema, renamed), key)))

    def deleted_steps(
        self,
        model: Any,
        since: dt.datetime | None,
        until: dt.datetime | None,
        limit: int | None,
        schema: str | None,
    ) -> Steps[list[Version[Any]]]:
        """Give the steps of ``deleted``."""
        shape = self._shape(model, schema)
        first = shape.tables[0]
        extent = yield from self._extent(shape)
        emptied = yield records.select_last_truncate(extent, first)
        last = tuple(emptied[0]) if emptied else None
        gone = yield records.select_gone(extent, first, last, since=since, until=until, limit=limit)
        if not gone and extent.untouched:
            raise nothing_yet([extent.source])
        found = [
            Trail(
                shape,
                shape.keys(tuple(row.primary_key), extent.key_columns),
                extent,
                self.context_keys,
                load=self._loads_relatives(),
            )
            for row in gone
        ]
        if not found:
            return []
        rows = yield records.select_records(
            extent, shape.tables, [key for trail in found for key in trail.keys.values()]
        )
        for trail in found:
            build_trail(trail, [row for row in rows if records.belongs(row, trail.keys)])
        return [trail.versions[-1] for trail in found if trail.versions]

    def transaction_steps(
        self, xid: int, commit_lsn: str | None, since: dt.datetime | None, until: dt.datetime | None
    ) -> Steps[Transaction]:
        """Give the steps of ``transaction``."""
        filters: ChangeFilters = {
            "transaction": xid,
            "source": self.source,
            "since": since,
            "until": until,
        }
        statement = changes_of(None, None, self.context_keys, filters)
        if commit_lsn is not None:
            statement = statement.where(Change.commit_lsn == commit_lsn)
        rows = yield statement
        return one_transaction([Change(**row._asdict()) for row in reversed(rows)], xid)

    def wait_steps(self, lsn: str | int, timeout: float) -> Steps[CompleteUpTo]:
        """Give the steps of ``wait_for``."""
        wanted = lsn if isinstance(lsn, int) else parse_lsn(lsn)
        deadline = time.monotonic() + timeout
        while True:
            rows = yield query.select_progress(self.source, format_lsn(wanted))
            if len(rows) > 1:
                raise SourceAmbiguous(
                    f"the trail holds several sources: {', '.join(row.source for row in rows)}. "
                    "Remedy: pass source= to the reader, or to configure()"
                )
            if not rows:
                raise NotCaptured(
                    f"the trail holds no source {self.source or ''}. Remedy: start pgaudit-ctx "
                    "worker, or check source="
                )
            if parse_lsn(rows[0].end_lsn) >= wanted and not rows[0].waiting:
                return CompleteUpTo(rows[0].end_lsn, rows[0].complete_at, rows[0].epoch)
            if time.monotonic() >= deadline:
                why = "a change was rejected" if rows[0].waiting else "it is behind"
                raise NotCaughtUp(
                    f"after {timeout} s the trail of {rows[0].source!r} does not hold everything "
                    f"up to {format_lsn(wanted)}: {why} (it is at {rows[0].end_lsn}). Remedy: see "
                    "that the worker runs, or wait longer"
                )
            yield Pause(_BETWEEN_LOOKS)

    def changes_steps(
        self, model: Any, key: Any, limit: int | None, filters: ChangeFilters
    ) -> Steps[list[Change]]:
        """Give the steps of ``changes``."""
        shape = None if model is None else self._shape(model, filters.get("schema"))
        wanted = None
        if shape is not None and key is not None:
            key_columns = None
            if shape.tables[0][0] != ANY_SCHEMA:
                extent = yield from self._extent(shape)
                key_columns = extent.key_columns[shape.tables[0]]
            wanted = shape.key(key, key_columns)
        elif key is not None:
            raise UsageError("key= belongs to a model: pass it, or the name of a table, first")
        given: ChangeFilters = {**filters}
        given.setdefault("source", self.source)
        statement = changes_of(shape, wanted, self.context_keys, given).limit(limit)
        rows = yield statement
        if not rows and limit != 0:
            yield from self._why_nothing(shape, wanted, given)
        return [Change(**row._asdict()) for row in rows]

    def _why_nothing(
        self, shape: Shape[Any] | None, key: tuple[str, ...] | None, filters: ChangeFilters
    ) -> Steps[None]:
        """Refuse a question for changes that could not have found any."""
        source = filters.get("source")
        sources = yield select_sources()
        own = [row for row in sources if source in {None, row.source}]
        if sources and not own:
            raise SourceUnknown(
                f"the trail holds nothing of the source {source!r}. Remedy: it holds "
                f"{', '.join(row.source for row in sources)}; pass source= with one of these"
            )
        if not any(row.captured for row in own):
            raise nothing_yet([row.source for row in own])
        if shape is None:
            return
        covered = yield select_covered(shape.tables)
        if not covered:
            raise never_captured(shape.label)
        image = yield from self._newest_image(shape, source)
        key_columns = covered[0].key_columns
        if key is not None and len(key) == len(key_columns):
            refuse_strange_key(shape.label, key_columns, key, image)
        field = filters.get("field")
        if field is not None:
            fields = field if isinstance(field, Mapping) else [field]
            refuse_strange_fields(shape, map(field_name, fields), [image])
