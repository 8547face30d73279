"""How changes and versions look on a terminal, and as JSON Lines."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from pgaudit_ctx.change import MARKER
from pgaudit_ctx.reading.version import Version, look_up

_STYLES: Final = {
    "INSERT": "green",
    "UPDATE": "yellow",
    "DELETE": "red",
    "TRUNCATE": "bold red",
    "SNAPSHOT": "blue",
}
_INDENT: Final = " " * 14
_LONGEST: Final = 60


def change_lines(row: Any, user_key: str, reason_key: str, number: int | None = None) -> Text:
    """Write one change for people: when, what, who, why, and old → new.

    Args:
        row: A row of ``changes``.
        user_key: Which context key says who.
        reason_key: Which context key says why.
        number: The version's number, in a history.

    Returns:
        Two or more lines.
    """
    text = Text(f"{row.committed_at:%H:%M:%S.%f}"[:-3] + "  ", end="")
    text.append(f"{row.operation:<9}", _STYLES[row.operation])
    key = f" {'/'.join(row.primary_key)}" if row.primary_key else ""
    lead = f"#{number} " if number is not None else ""
    schema = "" if row.schema_name == "public" else f"{row.schema_name}."
    text.append(f"{lead}{schema}{row.table_name}{key}", "bold")
    text.append("  ")
    text.append_text(_who_and_why(row.context, user_key, reason_key))
    for line in _what(row):
        text.append(f"\n{_INDENT}")
        text.append_text(line)
    return text


def print_changes(
    console: Console, rows: Iterable[Any], user_key: str = "user", reason_key: str = "reason"
) -> None:
    """Print changes, with a heading for each day."""
    _print(console, ((row, None) for row in rows), user_key, reason_key)


def print_versions(
    console: Console,
    versions: Iterable[Version[Any]],
    user_key: str = "user",
    reason_key: str = "reason",
) -> None:
    """Print the versions of one record with their numbers, with a heading for each day."""
    numbered = ((version.row, version.number) for version in versions)
    _print(console, numbered, user_key, reason_key)


def _print(
    console: Console, rows: Iterable[tuple[Any, int | None]], user_key: str, reason_key: str
) -> None:
    day = None
    for row, number in rows:
        if row.committed_at.date() != day:
            day = row.committed_at.date()
            console.print(f"[dim]{day:%A %d %B %Y}, {row.committed_at.tzname() or ''}[/dim]")
        console.print(change_lines(row, user_key, reason_key, number))


def json_line(row: Any, **more: object) -> str:
    """Write one change as a line of JSON.

    Args:
        row: A row of ``changes``.
        **more: Further members.

    Returns:
        An object with at least operation, table, before, after, context and timestamp; ``before``
        and ``after`` are whole rows, ``changed`` names what differs.
    """
    before = row.before
    if row.operation == "UPDATE" and before is not None:
        before = {**row.after, **before}
    return json.dumps(
        {
            "operation": row.operation,
            "table": f"{row.schema_name}.{row.table_name}",
            "key": row.primary_key,
            "before": before,
            "after": row.after,
            "changed": list(row.before)
            if row.operation == "UPDATE" and row.before is not None
            else None,
            "context": row.context,
            "timestamp": row.committed_at.isoformat(),
            "transaction_id": row.transaction_id,
            "source": row.source,
            "epoch": row.epoch,
            "commit_lsn": str(row.commit_lsn),
            "ordinal": row.ordinal,
            **more,
        }
    )


def _who_and_why(context: Mapping[str, Any] | None, user_key: str, reason_key: str) -> Text:
    if context is None:
        return Text("no context: nobody said who or why", "bold white on red")
    user, reason = look_up(context, user_key), look_up(context, reason_key)
    text = Text("by ")
    text.append("?" if user is None else str(user), "bold cyan")
    if reason is not None:
        text.append(f", {reason}", "italic")
    return text


def _what(row: Any) -> list[Text]:
    if row.operation == "UPDATE":
        if row.before is None:
            return [Text("(old values were not in the log)", "dim")]
        lines = []
        for name, old in row.before.items():
            line = Text(f"{name}: ")
            line.append(_shown(old), "red")
            line.append(" → ")
            line.append(_shown(row.after.get(name)), "green")
            lines.append(line)
        return lines or [Text("(nothing changed)", "dim")]
    image = row.after if row.after is not None else row.before
    if image is None:
        return []
    line = Text(
        ", ".join(f"{name}={_shown(v)}" for name, v in image.items() if v is not None), "dim"
    )
    return [line]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and MARKER in value:
        return f"<{value[MARKER]}>"
    text = json.dumps(value, ensure_ascii=False) if value is not None else "NULL"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
