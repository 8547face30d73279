"""The worker's options that leave out or blank something."""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer

from pgaudit_ctx.cli.options import err
from pgaudit_ctx.wal.filters import Filters, Redaction, parse_redaction

IncludeTable: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--include-table",
        envvar="PGAUDIT_CTX_INCLUDE_TABLE",
        help="Capture only such tables; a pattern of TABLE or SCHEMA.TABLE. May be repeated.",
    ),
]
ExcludeTable: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-table",
        envvar="PGAUDIT_CTX_EXCLUDE_TABLE",
        help="Do not capture such tables. May be repeated.",
    ),
]
IncludeSchema: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--include-schema",
        envvar="PGAUDIT_CTX_INCLUDE_SCHEMA",
        help="Capture only tables of such schemas. May be repeated.",
    ),
]
ExcludeSchema: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-schema",
        envvar="PGAUDIT_CTX_EXCLUDE_SCHEMA",
        help="Do not capture tables of such schemas. May be repeated.",
    ),
]
IgnoreColumn: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-column",
        envvar="PGAUDIT_CTX_IGNORE_COLUMN",
        help="Leave out a column, and UPDATEs of nothing else: a pattern of TABLE.COLUMN or "
        "SCHEMA.TABLE.COLUMN. May be repeated.",
    ),
]
RedactColumn: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--redact-column",
        envvar="PGAUDIT_CTX_REDACT_COLUMN",
        help="Blank a column: TABLE.COLUMN=null, =hash or =mask. May be repeated.",
    ),
]
HashKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--hash-key",
        envvar="PGAUDIT_CTX_HASH_KEY",
        help="The key of hash. Without it whoever can guess a value can check the guess.",
    ),
]


def chosen_filters(
    include_tables: Sequence[str] | None,
    exclude_tables: Sequence[str] | None,
    include_schemas: Sequence[str] | None,
    exclude_schemas: Sequence[str] | None,
    ignore_columns: Sequence[str] | None,
    redact_columns: Sequence[str] | None,
    hash_key: str | None,
) -> Filters:
    """Make the rules of what was given on the command line.

    Raises:
        UsageError: If a redaction cannot be read.
    """
    redactions = dict(map(parse_redaction, redact_columns or ()))
    if Redaction.HASH in redactions.values() and not hash_key:
        err.print(
            "[yellow]note[/yellow]         hash without --hash-key: of a value that can be guessed "
            "the digest can be guessed as well"
        )
    return Filters(
        tuple(include_tables or ()),
        tuple(exclude_tables or ()),
        tuple(include_schemas or ()),
        tuple(exclude_schemas or ()),
        tuple(ignore_columns or ()),
        redactions,
        (hash_key or "").encode(),
    )
