"""The command line."""

import io
import sys
from collections.abc import Sequence

from pgaudit_ctx.errors import AuditError, MissingExtra


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run ``pgaudit-ctx``; every error of ours becomes one line and an exit code.

    Args:
        arguments: What follows the program's name; the process's own by default.
        program: The name to show in messages.

    Raises:
        SystemExit: 0 if all is fine, 1 for a finding, 2 for wrong usage, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal cannot show
    try:
        try:
            # The library alone is installed without Typer and Rich, so this may fail.
            from pgaudit_ctx.cli.app import app
        except ImportError as error:
            # psycopg itself is there; what it lacks without its "binary" part has no name.
            missing = error.name or "psycopg[binary]"
            given = sys.argv[1:] if arguments is None else arguments
            # Who wants the demo is told once, and not again when its server is missing too.
            extra = "demo" if "demo" in given else "worker"
            raise MissingExtra(extra, "The command line", missing) from None
        app(arguments, prog_name=program)
    except AuditError as error:
        sys.stderr.write(f"pgaudit-ctx: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
