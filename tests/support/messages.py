"""What an application writes into the log, read with PostgreSQL's own test_decoding."""

from support.database import Database

A, B = '{"user":"a"}', '{"user":"b"}'


class Messages:
    """What reaches the log of one database from now on."""

    def __init__(self, source: Database) -> None:
        self._source = source
        self._slot = f"messages_{source.name}"
        source.execute(
            f"SELECT pg_create_logical_replication_slot('{self._slot}', 'test_decoding')"
        )

    def all(self) -> list[str]:
        """Each message's text and each row's operation, in order of arrival."""
        found = []
        for row in self._source.execute(
            f"SELECT data FROM pg_logical_slot_get_changes('{self._slot}', NULL, NULL)"
        ):
            if row.data.startswith("message:"):
                found.append(row.data.split("content:", 1)[1])
            elif row.data.startswith("table "):
                found.append(row.data.split(": ")[1])
        return found

    def contexts(self) -> list[str]:
        return [entry for entry in self.all() if entry.startswith("{")]
