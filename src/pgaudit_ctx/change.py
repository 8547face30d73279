"""The words of a change: operations, and the marker that stands for what JSON cannot say."""

import enum
from typing import Final

MARKER: Final = "$pgaudit_ctx"
"""The key of every object in ``before``, ``after`` and ``context`` that is a marker of ours."""


class Operation(enum.StrEnum):
    """What happened to one row; TRUNCATE happens to a whole table."""

    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    TRUNCATE = "TRUNCATE"
    SNAPSHOT = "SNAPSHOT"


class Unavailable:
    """Stands for a value that the write-ahead log did not carry. Never equal to ``None``."""

    def __repr__(self) -> str:
        return "UNAVAILABLE"

    def __bool__(self) -> bool:
        return False


UNAVAILABLE: Final = Unavailable()
