"""``pgaudit-ctx try``: three changes of a scratch table, from the application to the trail."""

import typer

from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import err, needed, out
from pgaudit_ctx.cli.render import print_changes
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.trial import EXPECTED, WAIT_SECONDS, run_trial


def trial(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Write to a scratch table of the source under a context, and show what the trail says.

    Needs a worker that runs. Exit code 1 if a change does not arrive within five seconds.
    """
    chosen = WorkerOptions(
        needed(source, "source"), needed(destination, "destination"), slot, publication, name
    )
    rows = run_trial(chosen)
    print_changes(out, rows)
    missing = [operation for operation in EXPECTED if operation not in {r.operation for r in rows}]
    unexplained = [row.operation for row in rows if row.context is None]
    if missing or unexplained:
        err.print(
            f"[bold red]missing[/bold red]      {', '.join(missing) or 'the context'}: did not "
            f"arrive within {WAIT_SECONDS:.0f} s. Remedy: pgaudit-ctx doctor says what is wrong"
        )
        raise typer.Exit(1)
    out.print("[bold green]it works[/bold green]     all three arrived, with who and why")
