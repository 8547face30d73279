"""One step of setting up the source, and who has the right to take it."""

import enum
from typing import Final, NamedTuple

from pgaudit_ctx.source.catalog import SourceTable

LOCK_TIMEOUT: Final = "2s"
"""So long a step waits for a lock: whoever comes after us waits for us."""


class Who(enum.Enum):
    """Who runs a step of a printed plan."""

    OWNER = "the owner of the tables"
    ADMINISTRATOR = "an administrator (a superuser, or the service's master user)"


class Step(NamedTuple):
    """What is executed in one transaction, and what for.

    Attributes:
        statements: SQL, in order.
        purpose: For people.
        table: The table that it is about, where it is about only one.
        who: Who has the right to.
        waits: Whether it waits for transactions that are open.
        optional: Whether setup goes on without it.
        alone: Whether its statements cannot run inside of a transaction.
    """

    statements: tuple[str, ...]
    purpose: str
    table: SourceTable | None = None
    who: Who = Who.OWNER
    waits: bool = False
    optional: bool = False
    alone: bool = False

    @property
    def script(self) -> str:
        """The same for psql, as harmless to the application as setup itself."""
        if self.alone or self.waits or not self.statements[0].startswith(("ALTER", "LOCK")):
            return f"{'; '.join(self.statements)};"
        return "; ".join(
            ("BEGIN", f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'", *self.statements, "COMMIT;")
        )
