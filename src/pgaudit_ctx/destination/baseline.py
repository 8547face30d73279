"""Stores the rows of a snapshot as changes of the operation SNAPSHOT, and how far that is."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

from psycopg import sql

from pgaudit_ctx.change import Operation
from pgaudit_ctx.destination.copy_format import COLUMNS, HEADER, TRAILER, RowEncoder
from pgaudit_ctx.destination.schema import Connection
from pgaudit_ctx.source.catalog import Position
from pgaudit_ctx.wal.lsn import format_lsn, parse_lsn
from pgaudit_ctx.wal.pgoutput import Begin, Tuple
from pgaudit_ctx.wal.stitcher import CapturedChange
from pgaudit_ctx.wal.table import CapturedTable

_COPY: Final = sql.SQL("COPY pgaudit_ctx.changes ({}) FROM STDIN (FORMAT binary)").format(
    sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
)
_SNAPSHOT: Final = Operation.SNAPSHOT.value


class RecordedBaseline(NamedTuple):
    """The last baseline of a table.

    Attributes:
        lsn: Where it was taken.
        finished: Whether all of its rows are stored.
        last_key: How far it is, if it was interrupted; ``None`` if nothing is stored.
    """

    lsn: int
    finished: bool
    last_key: Sequence[str] | None


def read_baselines(connection: Connection, source: str, epoch: int) -> dict[int, RecordedBaseline]:
    """Give the last baseline of each table of an epoch, by its oid."""
    return {
        oid: RecordedBaseline(parse_lsn(lsn), finished, last_key)
        for oid, lsn, finished, last_key in connection.execute(
            "SELECT DISTINCT ON (relation_oid) relation_oid, lsn::text, finished_at IS NOT NULL,"
            " coalesce(last_key, after_key) FROM pgaudit_ctx.snapshots"
            " WHERE source = %s AND epoch = %s"
            # The rows of an older one are gone.
            " AND taken_at >= ALL (SELECT upper_bound FROM pgaudit_ctx.pruned)"
            " ORDER BY relation_oid, lsn DESC",
            [source, epoch],
        )
    }


class BaselineWriter:
    """Stores what one snapshot shows, table by table.

    Args:
        connection: To the destination, in autocommit mode.
        source: The source's name.
        epoch: The current epoch.
        position: Where the snapshot is consistent, and the source's clock then.
    """

    def __init__(self, connection: Connection, source: str, epoch: int, position: Position) -> None:
        self._connection = connection
        self._where = (source, epoch)
        # One byte before: after all that the snapshot shows, before all that it does not.
        self._lsn = position.lsn - 1
        self._time = position.time
        self._encoder = RowEncoder(source, epoch)
        self._encoder.begin(Begin(self._lsn, position.microseconds, 0))
        self._ordinal = 0
        connection.execute("SET synchronous_commit = on")
        connection.execute("SELECT pgaudit_ctx.ensure_partition(%s)", [position.time])

    def store(
        self,
        table: CapturedTable,
        batches: Iterable[list[Tuple]],
        after_key: Sequence[str] | None,
        *,
        resumable: bool,
    ) -> Iterator[int]:
        """Store a table's rows; what is stored of an interrupted one stays, if it can be resumed.

        Args:
            table: The table.
            batches: Its rows, in the order of its key.
            after_key: The key after which they begin.
            resumable: Commit each batch; else all are stored or none.

        Yields:
            How many rows each batch had.
        """
        connection = self._connection
        with ExitStack() as whole:
            if not resumable:
                whole.enter_context(connection.transaction())
            self._open(table, after_key)
            for rows in batches:
                with connection.transaction():
                    self._copy(table, rows)
                    self._advance(table, rows, resumable=resumable)
                yield len(rows)

    def finish(self, oid: int) -> None:
        """Write down that all rows of a table are stored."""
        self._connection.execute(
            "UPDATE pgaudit_ctx.snapshots SET finished_at = clock_timestamp()"
            " WHERE source = %s AND epoch = %s AND relation_oid = %s AND lsn = %s",
            [*self._where, oid, format_lsn(self._lsn)],
        )

    def _open(self, table: CapturedTable, after_key: Sequence[str] | None) -> None:
        self._connection.execute(
            "INSERT INTO pgaudit_ctx.snapshots (source, epoch, relation_oid, lsn, schema_name,"
            " table_name, taken_at, after_key) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                *self._where,
                table.oid,
                format_lsn(self._lsn),
                table.schema,
                table.name,
                self._time,
                None if after_key is None else list(after_key),
            ],
        )

    def _copy(self, table: CapturedTable, rows: list[Tuple]) -> None:
        changes = [
            CapturedChange(
                ordinal, _SNAPSHOT, table, table.key(row), None, None, table.render(row), None
            )
            for ordinal, row in enumerate(rows, self._ordinal + 1)
        ]
        self._ordinal += len(rows)
        with self._connection.cursor().copy(_COPY) as copy:
            copy.write(HEADER)
            copy.write(self._encoder.encode(changes)[1])
            copy.write(TRAILER)

    def _advance(self, table: CapturedTable, rows: list[Tuple], *, resumable: bool) -> None:
        key = table.key(rows[-1]) if resumable else None
        self._connection.execute(
            "UPDATE pgaudit_ctx.snapshots SET row_count = row_count + %s, last_key = %s"
            " WHERE source = %s AND epoch = %s AND relation_oid = %s AND lsn = %s",
            [
                len(rows),
                None if key is None else [value.decode() for value in key],
                *self._where,
                table.oid,
                format_lsn(self._lsn),
            ],
        )
