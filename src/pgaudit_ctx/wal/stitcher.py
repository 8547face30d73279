"""Joins each change with the context that was in force where it stands in the write-ahead log.

Order of arrival is not enough. A message carries the LSN at which its own record ends, which is
where the next record starts; where that record belongs to another subtransaction, PostgreSQL
merges both streams by LSN and may deliver the row before the message. So a change whose
``wal_start`` equals a message's LSN comes after that message, whichever arrives first. Changes
are therefore held until the position moves on: the rows of one WAL record at the most.
"""

from collections.abc import Callable, Sequence
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple

from pgaudit_ctx.change import MARKER, UNAVAILABLE, Operation
from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.message import PREFIX
from pgaudit_ctx.wal.filters import Filters, NotRecorded
from pgaudit_ctx.wal.json_text import parse
from pgaudit_ctx.wal.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    PgOutputMessage,
    Relation,
    Truncate,
    Type,
    Update,
)
from pgaudit_ctx.wal.table import CapturedTable, Key, TableFacts
from pgaudit_ctx.wal.values import MAX_VALUE, base_type

_INSERT: Final = Operation.INSERT.value
_UPDATE: Final = Operation.UPDATE.value
_DELETE: Final = Operation.DELETE.value
_TRUNCATE: Final = Operation.TRUNCATE.value
# What NamedTuple's own __new__ calls, without the Python function in between.
_new: Final = tuple.__new__
BEMI_PREFIX: Final = "_bemi"
"""Bemi's adapters emit one message for each row, right before it."""
_QUOTED: Final = 1024
"""Characters of an invalid context that are kept."""


class CapturedChange(NamedTuple):
    """What happened to one row, ready to be stored.

    Attributes:
        ordinal: 1, 2, 3 … within the transaction, in WAL order.
        operation: One of :class:`~pgaudit_ctx.change.Operation`, as text.
        table: The table as it was then.
        key: The primary key after the change (before it, for DELETE).
        previous_key: The old key, where an UPDATE changed it.
        before: JSON text; see ``changes.before``.
        after: JSON text; see ``changes.after``.
        context: JSON text of one object, or ``None``.
    """

    ordinal: int
    operation: str
    table: CapturedTable
    key: Key | None
    previous_key: Key | None
    before: str | None
    after: str | None
    context: str | None


class Stitcher:
    """Receives the messages of one stream in order and gives back whole changes.

    Args:
        describe: Looks up what the catalog knows of a relation; ``None`` if it is gone.
        codec: Python's codec for messages, which come in the encoding of their database.
        filters: What is left out or blanked.
    """

    def __init__(
        self,
        describe: Callable[[Relation], TableFacts | None],
        codec: str = "utf-8",
        filters: Filters | None = None,
    ) -> None:
        self._describe = describe
        self._codec = codec
        self._filters = filters or Filters()
        self._excluded: set[int] = set()
        self._tables: dict[int, CapturedTable] = {}
        self._base_types: dict[int, int] = {}
        self._held: list[CapturedChange] = []
        self._held_lsn = -1
        self._context: str | None = None
        self._ordinal = 0
        self._next_context: str | None = None
        self._covered_alone = 0
        self._lasting_makers: dict[type, Callable[[Any], None]] = {
            Insert: self._insert,
            Update: self._update,
            Delete: self._delete,
            Truncate: self._truncate,
        }
        # What makes a change is exchanged for one change only, so that all others cost no look.
        self._alone_makers: dict[type, Callable[[Any], None]] = dict.fromkeys(
            self._lasting_makers, self._make_covered_alone
        )
        self._makers = self._lasting_makers

    def receive(self, wal_start: int, message: PgOutputMessage) -> Sequence[CapturedChange]:
        """Take one message.

        Args:
            wal_start: The position of the ``XLogData`` frame it came in.
            message: The message.

        Returns:
            The changes that are complete now, in order. Those of a transaction are complete when
            its Commit has been received.

        Raises:
            ProtocolError: If a change names a relation that was not described before, or does not
                look like it.
        """
        make = self._makers.get(type(message))
        if make is None:
            return self._receive_other(message)
        ready: Sequence[CapturedChange] = ()
        if wal_start != self._held_lsn:
            ready = self._held
            self._held = []
            self._held_lsn = wal_start
        try:
            make(message)
        except NotRecorded:
            return ready
        except KeyError as missing:
            if missing.args[0] in self._excluded:
                return ready
            raise ProtocolError(
                f"a change names relation {missing}, which the server has not described"
            ) from None
        except (ValueError, IndexError):
            raise self._mangled(message) from None
        return ready

    def _receive_other(self, message: PgOutputMessage) -> Sequence[CapturedChange]:
        if isinstance(message, Message):
            return self._apply(message)
        if isinstance(message, Relation):
            self._describe_table(message)
            return ()
        if isinstance(message, Type):
            self._base_types[message.oid] = base_type(message)
        if isinstance(message, Begin):
            self._context = None
            self._ordinal = self._covered_alone = 0
            self._makers = self._lasting_makers
        return self._release() if isinstance(message, Begin | Commit) else ()

    def _describe_table(self, relation: Relation) -> None:
        facts = self._describe(relation)
        known = self._base_types
        columns = [
            column._replace(type_oid=known.get(column.type_oid, column.type_oid))
            for column in relation.columns
        ]
        table = self._filters.capture(relation._replace(columns=tuple(columns)), facts)
        if table is None:
            self._tables.pop(relation.oid, None)
            self._excluded.add(relation.oid)
        else:
            self._tables[relation.oid] = table
            self._excluded.discard(relation.oid)

    def _release(self) -> Sequence[CapturedChange]:
        ready, self._held = self._held, []
        self._held_lsn = -1
        return ready

    def _apply(self, message: Message) -> Sequence[CapturedChange]:
        if not message.transactional:
            return ()
        if message.prefix == BEMI_PREFIX:
            return self._apply_to_next(message)
        if message.prefix != PREFIX:
            return ()
        context = context_json(message.content, self._codec)
        ready: Sequence[CapturedChange] = ()
        if message.lsn == self._held_lsn:
            self._held = [
                change
                if change.ordinal == self._covered_alone
                else change._replace(context=context)
                for change in self._held
            ]
        else:
            ready = self._release()
        self._context = context
        return ready

    def _apply_to_next(self, message: Message) -> Sequence[CapturedChange]:
        context = context_json(message.content, self._codec)
        if message.lsn == self._held_lsn and self._held:
            first = self._held[0] = self._held[0]._replace(context=context)
            self._covered_alone = first.ordinal
            return ()
        self._next_context = context
        self._makers = self._alone_makers
        return self._release()

    def _insert(self, message: Insert) -> None:
        oid, new = message
        table = self._tables[oid]
        self._hold(_INSERT, table, table.key(new), None, None, table.render(new))

    def _update(self, message: Update) -> None:
        oid, old_key_values, old, new = message
        table = self._tables[oid]
        if old is None:
            key = table.key(new)
            old_key = key if old_key_values is None else table.key(old_key_values)
            previous_key = old_key if old_key != key else None
            after = table.render(new)
            self._hold(_UPDATE, table, key, previous_key, None, after)
            return
        changed = table.changed(old, new)
        for index in changed:
            if new[index] is UNAVAILABLE:
                # TOAST that did not change is not sent again, but under FULL the old tuple has it.
                new[index] = old[index]
                changed = table.changed(old, new)
        self._hold(
            _UPDATE,
            table,
            table.key(new),
            table.key(old) if table.touches_key(changed) else None,
            table.render_some(changed, old),
            table.render(new),
        )

    def _delete(self, message: Delete) -> None:
        old = message.old if message.old is not None else message.key
        if old is None:
            raise ProtocolError("a Delete message carries neither the old row nor its key")
        table = self._tables[message.relation_oid]
        before = table.render(old) if message.old is not None else table.render_identity(old)
        self._hold(_DELETE, table, table.key(old), None, before, None)

    def _truncate(self, message: Truncate) -> None:
        for oid in message.relation_oids:
            if oid not in self._excluded:
                self._hold(_TRUNCATE, self._tables[oid], None, None, None, None)

    def _make_covered_alone(self, message: Any) -> None:
        self._makers = self._lasting_makers
        lasting, self._context = self._context, self._next_context
        before = len(self._held)
        try:
            self._makers[type(message)](message)
        finally:
            self._context = lasting
        for index, change in enumerate(self._held[before:], before):
            if index == before:
                self._covered_alone = change.ordinal
            else:
                self._held[index] = change._replace(context=lasting)

    def _hold(
        self,
        operation: str,
        table: CapturedTable,
        key: Key | None,
        previous_key: Key | None,
        before: str | None,
        after: str | None,
    ) -> None:
        ordinal = self._ordinal = self._ordinal + 1
        fields = (ordinal, operation, table, key, previous_key, before, after, self._context)
        self._held.append(_new(CapturedChange, fields))

    def _mangled(self, message: Any) -> ProtocolError:
        table = self._tables[message.relation_oid]
        return ProtocolError(
            f"a row of {table.schema}.{table.name} has other columns than the server described, is "
            "not UTF-8, or has a jsonb that is no JSON"
        )


def context_json(content: bytes, codec: str = "utf-8") -> str | None:
    """Check the text of a message.

    Args:
        content: The message's bytes; ASCII by our contract, anything from others.
        codec: What they are in.

    Returns:
        The text as it was if ``jsonb`` takes it and it is an object, ``None`` for an empty object,
        else an object that marks the context as invalid and quotes the text's beginning.
    """
    text = content.decode(codec, errors="replace")
    try:
        content.decode(codec)
        # Each of its rows would carry one that is too large.
        value = parse(text, allow_duplicates=True) if len(content) <= MAX_VALUE else None
    except ValueError:
        value = None
    if isinstance(value, dict):
        return text if value else None
    quoted = text[:_QUOTED].replace("\0", "\ufffd")
    return f'{{"{MARKER}": "invalid", "text": {encode_basestring(quoted)}}}'
