"""The options that several commands share, each with its environment variable."""

import datetime as dt
import enum
import logging
import re
from typing import Annotated, Final, TypeAlias

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


_SIZE: Final = re.compile(r"^(\d+)\s*(B|kB|MB|GB|TB)?$", re.IGNORECASE)
_SIZES: Final = {"b": 0, "kb": 10, "mb": 20, "gb": 30, "tb": 40}
_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|min|h|d)?$", re.IGNORECASE)
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def parse_size(text: str) -> int:
    """Read a number of bytes as PostgreSQL writes one: ``16MB``.

    Raises:
        UsageError: If it is none.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size: write it like 16MB or 10GB")
    return int(match[1]) << _SIZES[(match[2] or "B").lower()]


def parse_duration(text: str) -> float:
    """Read a number of seconds: ``90``, ``90s``, ``5min``, ``2h``.

    Raises:
        UsageError: If it is none.
    """
    match = _DURATION.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a time: write it like 30s, 5min or 2h")
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]


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
Wait: TypeAlias = Annotated[
    str,
    typer.Option(
        "--wait", metavar="TIME", help="How long to wait, at most, for transactions that are open."
    ),
]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="Do it without being asked.")]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="JSON Lines instead of text for people.")
]


def optional(url: str | None, option: str) -> str | None:
    """Give a URL as it was given, else from a secret's file, else ``None``."""
    return url or secret_url(option) or None


def needed(url: str | None, option: str) -> str:
    """Give a URL that a command cannot do without: as it was given, else from a secret's file.

    Raises:
        UsageError: If it is not to be had.
    """
    url = optional(url, option)
    if url is None:
        variable = f"PGAUDIT_CTX_{option.upper()}_URL"
        raise UsageError(
            f"no {option} was named. Remedy: pass --{option} postgresql://user@host/database, set "
            f"{variable}, or mount a secret with the file name {variable.lower()}"
        )
    return url
