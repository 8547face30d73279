"""The options that several commands share, each with its environment variable."""

import datetime as dt
import enum
import logging
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.logging import RichHandler

from pgaudit_ctx.cli.secrets import secret_url
from pgaudit_ctx.errors import UsageError

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)


class Level(enum.StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _set_up_logging(level: Level) -> Level:
    logging.basicConfig(
        level=level.upper(),
        format="%(message)s",
        datefmt="[%Y-%m-%d %H:%M:%S]",
        handlers=[RichHandler(console=err, show_path=False, markup=False)],
        force=True,
    )
    return level


def parse_moment(text: str) -> dt.datetime:
    """Read an aware moment from the command line.

    Raises:
        UsageError: If it is no ISO 8601 moment, or has no time zone.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is not a moment: write it like 2026-11-24T10:00:00+00:00"
        ) from None
    if moment.tzinfo is None:
        raise UsageError(f"{text!r} has no time zone: append Z for UTC, or an offset like +02:00")
    return moment


LogLevel: TypeAlias = Annotated[
    Level,
    typer.Option(
        "--log-level",
        envvar="PGAUDIT_CTX_LOG_LEVEL",
        callback=_set_up_logging,
        help="How much to log, on standard error.",
    ),
]
Source: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--source",
        envvar="PGAUDIT_CTX_SOURCE_URL",
        show_envvar=True,
        help="URL of the audited database.",
    ),
]
Destination: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--destination",
        envvar="PGAUDIT_CTX_DESTINATION_URL",
        help="URL of the database that holds the trail; may be the same.",
    ),
]
Slot: TypeAlias = Annotated[
    str,
    typer.Option("--slot", envvar="PGAUDIT_CTX_SLOT", help="The replication slot."),
]
Publication: TypeAlias = Annotated[
    str,
    typer.Option("--publication", envvar="PGAUDIT_CTX_PUBLICATION", help="The publication."),
]
Name: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--name",
        envvar="PGAUDIT_CTX_NAME",
        help="What the source is called in the trail.  [default: its database's name]",
    ),
]
UserKey: TypeAlias = Annotated[
    str,
    typer.Option(
        "--user-key", envvar="PGAUDIT_CTX_USER_KEY", help="The context key that says who."
    ),
]
ReasonKey: TypeAlias = Annotated[
    str,
    typer.Option(
        "--reason-key", envvar="PGAUDIT_CTX_REASON_KEY", help="The context key that says why."
    ),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="JSON Lines instead of text for people.")
]


def needed(url: str | None, option: str) -> str:
    """Give a URL that a command cannot do without: as it was given, else from a secret's file.

    Raises:
        UsageError: If it is not to be had.
    """
    url = url or secret_url(option)
    if not url:
        variable = f"PGAUDIT_CTX_{option.upper()}_URL"
        raise UsageError(
            f"no {option} was named. Remedy: pass --{option} postgresql://user@host/database, set "
            f"{variable}, or mount a secret with the file name {variable.lower()}"
        )
    return url
