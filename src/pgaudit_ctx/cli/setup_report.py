"""What ``pgaudit-ctx setup`` tells of its work, and of what it could not do."""

from collections.abc import Sequence

from pgaudit_ctx.cli.options import err, out
from pgaudit_ctx.destination.gap import Lost
from pgaudit_ctx.destination.roles import TrailRoles
from pgaudit_ctx.source.plan import SourcePlan, by_hand, script
from pgaudit_ctx.source.setup import Session
from pgaudit_ctx.source.step import Step


def tell_lost(lost: Lost) -> None:
    """Say what a new slot leaves out."""
    err.print(
        f"[bold red]lost[/bold red]         what was written from "
        f"{lost.since:%Y-%m-%d %H:%M:%S %Z} to {lost.until:%Y-%m-%d %H:%M:%S %Z} "
        f"({lost.hours:.1f} hours) will be missing for ever, of {len(lost.tables)} "
        f"table(s): {', '.join(lost.tables) or 'none'}"
    )


def tell_destination(applied: Sequence[str], refused: str | None, names: TrailRoles | None) -> None:
    """Say what was done to the destination.

    Args:
        applied: The migrations.
        refused: Why the roles could not be assigned, if so.
        names: The roles, if some were wanted.
    """
    out.print(
        "[bold]destination[/bold]  "
        + (f"schema pgaudit_ctx: {', '.join(applied)}" if applied else "schema is up to date")
    )
    if names is not None and refused is None:
        out.print(
            f"[bold]destination[/bold]  {names.owner} owns the trail, {names.writer} may only add "
            f"to it, {names.reader} reads it"
        )
    elif names is not None:
        err.print(
            f"[yellow]note[/yellow]         the destination's roles were not assigned: {refused}. "
            "An administrator can run setup --only destination, or what --print-sql prints"
        )


def tell_step(step: Step) -> None:
    """Say what is done now."""
    if not step.optional:  # those are told together when they are done
        out.print(f"[bold]source[/bold]       {step.purpose}")


def tell_waiting(sessions: Sequence[Session]) -> None:
    """Say whose transactions the slot waits for."""
    err.print(
        "[yellow]waiting[/yellow]      the slot waits for transactions that are open: "
        + ", ".join(map(str, sessions))
    )


def tell_source(done: SourcePlan, failed: Sequence[tuple[Step, str]], publication: str) -> None:
    """Say what is captured now, and what is not, with what is left to run."""
    refused = [step for step, _ in failed]
    granted = [step for step in done.steps if step.optional and step not in refused]
    if granted:
        out.print("[bold]source[/bold]       a role of its own may replicate and read all this")
    for step in granted:
        if step.statements[0].startswith("ALTER DEFAULT PRIVILEGES"):
            out.print(f"[bold]source[/bold]       {step.purpose}")
    if not done.steps:
        out.print("[bold]source[/bold]       nothing to do")
    out.print(f"[bold]captured[/bold]     {len(done.captured)} table(s)")
    # Beside a slot that was there already a table is added by a step of its own.
    added = [step.table for step in done.steps if step.table and step.statements[0][:4] == "LOCK"]
    if added:
        names = " ".join(table.qualified for table in added)
        out.print(f"next         pgaudit-ctx snapshot {names}, for the rows they hold already")
    for table, reason in done.left_out:
        err.print(f"[yellow]not captured[/yellow] {table}: {reason}")
    for table, note in done.notes:
        err.print(f"[yellow]note[/yellow]         {table}: {note}")
    _tell_failed(failed, publication)


def _tell_failed(failed: Sequence[tuple[Step, str]], publication: str) -> None:
    left = [(step, reason) for step, reason in failed if step.table is None]
    if left:
        err.print(
            f"[yellow]note[/yellow]         the role that replicates lacks something "
            f"({left[0][1]}); without it a worker needs another. What is left to run:"
        )
        err.print(script([step for step, _ in left]), markup=False)
    for step, reason in failed:
        if step.table is not None:
            err.print(
                f"[red]not captured[/red] {step.table.qualified}: {reason}. Run setup again, or as "
                "its owner, who must own the publication too, or a superuser: "
                f"{by_hand(step, publication)}"
            )
