"""The command line."""

import sys

from pgaudit_ctx.errors import AuditError, MissingExtra


def main() -> None:
    """Run ``pgaudit-ctx``; every error of ours becomes one line and an exit code.

    Raises:
        SystemExit: 0 if all is fine, 1 for a finding, 2 for wrong usage, 130 after Ctrl-C.
    """
    try:
        try:
            # The library alone is installed without Typer and Rich, so this may fail.
            from pgaudit_ctx.cli.app import app
        except ImportError as error:
            raise MissingExtra("worker", "The command line", error.name or "typer") from None
        app()
    except AuditError as error:
        sys.stderr.write(f"pgaudit-ctx: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
