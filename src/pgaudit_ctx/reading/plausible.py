"""Whether a question that found nothing could have found something; pure.

Where only a table's name is known, the trail knows its columns from what it holds of it, and no
types. A slip of the pen would look like a record without changes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pgaudit_ctx.errors import KeyMismatch
from pgaudit_ctx.reading.shape import Shape, refuse_unknown

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]*")


def refuse_strange_key(
    label: str, key_columns: Sequence[str], key: Sequence[str], image: Mapping[str, Any]
) -> None:
    """Refuse a key that no row of a table can have.

    Args:
        label: The table, for the message.
        key_columns: Its key's columns in key order.
        key: The key as it was given, as text.
        image: A stored row; integers and booleans are native JSON there, all else is text.

    Raises:
        KeyMismatch: Naming the column; the value is not repeated.
    """
    for column, given in zip(key_columns, key, strict=True):
        stored = image.get(column)
        if isinstance(stored, bool):
            fits, kind = given in {"t", "f"}, "t or f"
        elif isinstance(stored, int):
            fits, kind = _INTEGER.fullmatch(given) is not None, "an integer"
        else:
            continue
        if not fits:
            raise KeyMismatch(
                f"the key column {column} of {label} holds {kind}, and what was given is not one. "
                "Remedy: give the key as PostgreSQL prints it"
            )


def refuse_strange_fields(
    shape: Shape[Any], fields: Iterable[str], images: Iterable[Mapping[str, Any]]
) -> None:
    """Refuse columns that no stored row of a table has.

    Args:
        shape: The table.
        fields: Columns under their present names.
        images: Stored rows of it.

    Raises:
        UsageError: Naming them, and the columns there are.
    """
    seen = {column for image in images for column in image}
    strange = {field for field in fields if seen.isdisjoint(shape.image_columns(field))}
    if seen and strange:
        refuse_unknown(shape.label, strange, shape.names(sorted(seen)))
