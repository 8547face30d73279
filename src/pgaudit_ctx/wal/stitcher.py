"""Joins each change with the context that was in force where it stands in the write-ahead log.

Order of arrival is not enough. A message carries the LSN at which its own record ends, which is
where the next record starts; where that record belongs to another subtransaction, PostgreSQL
merges both streams by LSN and may deliver the row before the message. So a change whose
``wal_start`` equals a message's LSN comes after that message, whichever arrives first. Changes
are therefore held until the position moves on: the rows of one WAL record at the most.
"""

from collections.abc import Callable, Sequence
from json.encoder import encode_basestring
from typing import Final, NamedTuple

from pgaudit_ctx.change import MARKER, Operation
from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.message import PREFIX
from pgaudit_ctx.wal.json_text import Refused, parse
from pgaudit_ctx.wal.pgoutput import (
    Begin,
    Delete,
    Insert,
    Message,
    PgOutputMessage,
    Relation,
    Truncate,
    Tuple,
    Update,
)
from pgaudit_ctx.wal.table import CapturedTable, Key, TableFacts, fill_unchanged

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
    """

    def __init__(self, describe: Callable[[Relation], TableFacts | None]) -> None:
        self._describe = describe
        self._tables: dict[int, CapturedTable] = {}
        self._held: list[CapturedChange] = []
        self._held_lsn = -1
        self._context: str | None = None
        self._ordinal = 0

    def receive(self, wal_start: int, message: PgOutputMessage) -> Sequence[CapturedChange]:
        """Take one message.

        Args:
            wal_start: The position of the ``XLogData`` frame it came in.
            message: The message.

        Returns:
            The changes that are complete now, in order. Those of a transaction are complete when
            its Commit has been received.

        Raises:
            ProtocolError: If a change names a relation that was not described before.
        """
        if isinstance(message, Insert | Update | Delete):
            return self._hold(wal_start, message)
        if isinstance(message, Message):
            return self._apply(message)
        if isinstance(message, Relation):
            self._tables[message.oid] = CapturedTable(message, self._describe(message))
            return ()
        if isinstance(message, Truncate):
            return self._hold(wal_start, message)
        ready = self._release()
        if isinstance(message, Begin):
            self._context = None
            self._ordinal = 0
        return ready

    def _hold(
        self, wal_start: int, message: Insert | Update | Delete | Truncate
    ) -> Sequence[CapturedChange]:
        ready: Sequence[CapturedChange] = ()
        if wal_start != self._held_lsn:
            ready = self._release()
            self._held_lsn = wal_start
        if isinstance(message, Truncate):
            for oid in message.relation_oids:
                self._held.append(self._change(Operation.TRUNCATE, self._table(oid)))
            return ready
        table = self._table(message.relation_oid)
        try:
            if isinstance(message, Insert):
                self._held.append(self._insert(table, message.new))
            elif isinstance(message, Update):
                self._held.append(self._update(table, message))
            else:
                self._held.append(self._delete(table, message))
        except (ValueError, IndexError):
            raise ProtocolError(
                f"a row of {table.schema}.{table.name} does not have the columns that the server "
                "described, or is not UTF-8"
            ) from None
        return ready

    def _release(self) -> Sequence[CapturedChange]:
        ready, self._held = self._held, []
        self._held_lsn = -1
        return ready

    def _apply(self, message: Message) -> Sequence[CapturedChange]:
        if not message.transactional or message.prefix != PREFIX:
            return ()
        context = context_json(message.content)
        ready: Sequence[CapturedChange] = ()
        if message.lsn == self._held_lsn:
            self._held = [change._replace(context=context) for change in self._held]
        else:
            ready = self._release()
        self._context = context
        return ready

    def _table(self, oid: int) -> CapturedTable:
        try:
            return self._tables[oid]
        except KeyError:
            raise ProtocolError(
                f"a change names relation {oid}, which the server has not described"
            ) from None

    def _change(
        self,
        operation: Operation,
        table: CapturedTable,
        *,
        key: Key | None = None,
        previous_key: Key | None = None,
        before: str | None = None,
        after: str | None = None,
    ) -> CapturedChange:
        self._ordinal += 1
        return CapturedChange(
            self._ordinal, operation, table, key, previous_key, before, after, self._context
        )

    def _insert(self, table: CapturedTable, new: Tuple) -> CapturedChange:
        return self._change(Operation.INSERT, table, key=table.key(new), after=table.render(new))

    def _update(self, table: CapturedTable, message: Update) -> CapturedChange:
        old = message.old
        new = fill_unchanged(message.new, old)
        key = table.key(new)
        identity = old if old is not None else message.key
        old_key = key if identity is None else table.key(identity)
        return self._change(
            Operation.UPDATE,
            table,
            key=key,
            previous_key=old_key if old_key != key else None,
            before=None if old is None else table.render_changed(old, new),
            after=table.render(new),
        )

    def _delete(self, table: CapturedTable, message: Delete) -> CapturedChange:
        if message.old is not None:
            return self._change(
                Operation.DELETE,
                table,
                key=table.key(message.old),
                before=table.render(message.old),
            )
        identity = message.key or []
        return self._change(
            Operation.DELETE,
            table,
            key=table.key(identity),
            before=table.render_identity(identity),
        )


def context_json(content: bytes) -> str | None:
    """Check the text of a message.

    Args:
        content: The message's bytes; ASCII by our contract, anything from others.

    Returns:
        The text as it was if ``jsonb`` takes it and it is an object, ``None`` for an empty object,
        else an object that marks the context as invalid and quotes the text's beginning.
    """
    text = content.decode("utf-8", errors="replace")
    try:
        value = parse(text, allow_duplicates=True)
    except Refused:
        value = None
    if isinstance(value, dict):
        return text if value else None
    quoted = text[:_QUOTED].replace("\0", "\ufffd")
    return f'{{"{MARKER}": "invalid", "text": {encode_basestring(quoted)}}}'
