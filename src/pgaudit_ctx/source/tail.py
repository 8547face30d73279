"""What is committed in one database from now on, read in this process and stored nowhere.

For tests. It goes the worker's way (slot, decoder, stitcher), but through a temporary slot, which
is gone with its connection, and up to a message of its own, so that it needs to wait for nothing.
"""

import datetime as dt
import itertools
import json
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgaudit_ctx.connection import connect, refusal
from pgaudit_ctx.errors import ConnectionFailed, SourceNotReady
from pgaudit_ctx.source import catalog, setup
from pgaudit_ctx.source.keys import KeyHistory
from pgaudit_ctx.source.plan import SourceState, plan
from pgaudit_ctx.source.stream import ReplicationStream
from pgaudit_ctx.urls import libpq_url
from pgaudit_ctx.wal.encodings import codec_for
from pgaudit_ctx.wal.frames import PAYLOAD, XLogData, parse_frame
from pgaudit_ctx.wal.lsn import format_lsn
from pgaudit_ctx.wal.pgoutput import Begin, Commit, Message, Relation, decode
from pgaudit_ctx.wal.stitcher import CapturedChange, Stitcher
from pgaudit_ctx.wal.table import Key, TableFacts

_POSTGRES_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_MARK: Final = "SELECT pg_logical_emit_message(true, %s, %s)"
_END_WALSENDER: Final = """
    SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots
    WHERE slot_name = %s AND active_pid IS NOT NULL"""
_LIMIT_SECONDS: Final = 60.0
# Nobody reads between two tests, and a walsender must not take that for a lost connection.
_PATIENCE: Final = "-c wal_sender_timeout=0"


class TailedChange(NamedTuple):
    """What happened to one row, or to a table for TRUNCATE; the fields are those of ``changes``."""

    source: str
    epoch: int
    commit_lsn: str
    ordinal: int
    transaction_id: int
    committed_at: dt.datetime
    captured_at: dt.datetime
    operation: str
    schema_name: str
    table_name: str
    relation_oid: int
    primary_key: list[str] | None
    previous_key: list[str] | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    context: dict[str, Any] | None


class Tail:
    """Reads what is committed in a database after it was made.

    Every table is given REPLICA IDENTITY FULL and published, as ``pgaudit-ctx setup`` does it. Slot
    and publication have a name of their own; both are gone after :meth:`close`.

    Args:
        url: The database, as a role that may replicate and owns the tables.

    Raises:
        SourceNotReady: If the server cannot be captured; the message names the setting.
        ConnectionFailed: If no connection can be made.
    """

    def __init__(self, url: str) -> None:
        self.name = f"pgaudit_ctx_test_{os.getpid()}_{secrets.token_hex(4)}"
        self._marks = itertools.count(1)
        with ExitStack() as opened:
            self._control = opened.enter_context(closing(connect(url, "source")))
            self._source = self._control.info.dbname
            setup.check_source(self._control, self.name)
            # What we wait for is that others see it, and not that a standby has it.
            self._control.execute("SET synchronous_commit = local")
            self._stream = opened.enter_context(
                ReplicationStream(_patient(url), self.name, self.name)
            )
            self._begin_capture()
            self._opened = opened.pop_all()
        encoding = self._control.info.parameter_status("server_encoding") or "UTF8"
        self._stitcher = Stitcher(self._describe, codec_for(encoding))
        self._transaction = Begin(0, 0, 0)
        self._ready: list[CapturedChange] = []
        self._passing = self._reached = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin_capture(self) -> None:
        # As in setup: first the publication, then the slot, which decodes with what was there then,
        # and only then the tables. But this slot is not one that stays.
        bare = SourceState(self._control.info.server_version, [], None, has_slot=True)
        try:
            for step in plan(bare, self.name, self.name).steps:
                for statement in step.statements:
                    self._control.execute(sql.SQL(statement))
            self._stream.create_temporary_slot()
            self._stream.start(0)
            self.publish_new_tables()
        except psycopg.Error as error:
            raise refusal(error, "make a publication") from None
        except BaseException:
            self._stream.close()
            self._drop_publication()
            raise

    def close(self) -> None:
        """Drop what was made for the capture, and close both connections."""
        self._stream.close()
        # The server needs a moment to notice, and a database with a slot cannot be dropped.
        with suppress(psycopg.Error):
            self._control.execute(_END_WALSENDER, [self.name])
            self._drop_publication()
        self._opened.close()

    def _drop_publication(self) -> None:
        drop = sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(self.name))
        self._control.execute(drop)

    def publish_new_tables(self) -> None:
        """Take in the tables that were made since, as ``pgaudit-ctx setup`` would.

        Raises:
            SourceNotReady: If one of them cannot be taken in.
        """
        _, failed = setup.run(self._control, self.name, self.name)
        if failed:
            step, reason = failed[0]
            raise SourceNotReady(f"cannot run {step.script!r}: {reason}")

    def tables(self) -> Sequence[catalog.SourceTable]:
        """List the tables as they are now; the changes of those that are published arrive here."""
        return catalog.read_tables(self._control, self.name)

    def read(self) -> list[TailedChange]:
        """Give everything that has been committed and was not given before, in commit order.

        Raises:
            ConnectionFailed: If the server ends the stream, or sends nothing for a minute.
        """
        mark = str(next(self._marks))
        try:
            self._control.execute(_MARK, [self.name, mark])
        except psycopg.Error as error:
            raise refusal(error, "write a mark into the log") from None
        deadline = time.monotonic() + _LIMIT_SECONDS
        found: list[TailedChange] = []
        # What others commit after the mark may come along with it, even in part.
        while self._reached != mark:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise ConnectionFailed(
                    f"the source has sent nothing for {_LIMIT_SECONDS:.0f} seconds of what was "
                    "committed. Remedy: look at its log"
                )
            frames = self._stream.read()
            if not frames:
                self._stream.wait(remaining)
            for data in frames:
                found += self._take(data)
        return found

    def _take(self, data: bytes) -> list[TailedChange]:
        """Take one frame; gives the changes of a transaction with its Commit."""
        frame = parse_frame(data)
        if not isinstance(frame, XLogData):
            return []
        message = decode(data, PAYLOAD)
        self._ready += self._stitcher.receive(frame.wal_start, message)
        if isinstance(message, Begin):
            self._transaction = message
        elif isinstance(message, Message) and message.prefix == self.name:
            self._passing = message.content.decode()
        elif isinstance(message, Commit):
            self._reached = self._passing
            self._stream.acknowledge(message.end_lsn)
            ready, self._ready = self._ready, []
            return [_row(self._source, self._transaction, change) for change in ready]
        return []

    def _describe(self, relation: Relation) -> TableFacts | None:
        # What is read was written a moment ago: the key that the catalog has is the one it had.
        return catalog.describe(self._control, KeyHistory({}), relation)


def _patient(url: str) -> str:
    conninfo = libpq_url(url)
    options = conninfo_to_dict(conninfo).get("options") or ""
    return make_conninfo(conninfo, options=f"{options} {_PATIENCE}")


def _row(source: str, transaction: Begin, change: CapturedChange) -> TailedChange:
    return TailedChange(
        source,
        1,
        format_lsn(transaction.final_lsn),
        change.ordinal,
        transaction.xid,
        _POSTGRES_EPOCH + dt.timedelta(microseconds=transaction.committed_at),
        dt.datetime.now(dt.UTC),
        change.operation,
        change.table.schema,
        change.table.name,
        change.table.oid,
        _texts(change.key),
        _texts(change.previous_key),
        _parsed(change.before),
        _parsed(change.after),
        _parsed(change.context),
    )


def _texts(key: Key | None) -> list[str] | None:
    return None if key is None else [value.decode() for value in key]


def _parsed(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    parsed: dict[str, Any] = json.loads(text)
    return parsed
