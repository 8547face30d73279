"""``pgaudit-ctx doctor``: what is well, what is not, and what to do about it."""

import itertools
import json
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from rich.text import Text

from pgaudit_ctx import __version__
from pgaudit_ctx.cli import options
from pgaudit_ctx.cli.options import optional, out, parse_size
from pgaudit_ctx.doctor.examine import examine
from pgaudit_ctx.doctor.facts import Limits, Names
from pgaudit_ctx.doctor.finding import Finding, State
from pgaudit_ctx.doctor.gather import gather

_STYLES: Final = {State.OK: "green", State.WARNING: "yellow", State.PROBLEM: "bold red"}


def doctor(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    max_lag: Annotated[
        str, typer.Option("--max-lag", metavar="SIZE", help="More than this behind is a problem.")
    ] = "16MB",
    max_retained_wal: Annotated[
        str,
        typer.Option(
            "--max-retained-wal",
            metavar="SIZE",
            help="More log than this kept for the slot is a problem.",
        ),
    ] = "10GB",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count like problems.")] = False,
    as_json: options.AsJson = False,
    log_level: options.LogLevel = options.Level.WARNING,  # noqa: ARG001 - its callback acts
) -> None:
    """Check everything the trail depends on, and say what to do; changes nothing.

    Exit code 1 if there is a problem.
    """
    limits = Limits(parse_size(max_lag), parse_size(max_retained_wal))
    source_url, destination_url = optional(source, "source"), optional(destination, "destination")
    if source_url is None and destination_url is None:
        options.needed(None, "source")
    names = Names(slot, publication, name or "", named=name is not None)
    findings = examine(gather(source_url, destination_url, names, limits, __version__))
    if as_json:
        for finding in findings:
            typer.echo(json.dumps(finding.as_dict()))
    else:
        _show(findings)
    bad = {State.PROBLEM, State.WARNING} if strict else {State.PROBLEM}
    if any(finding.state in bad for finding in findings):
        raise typer.Exit(1)


def _show(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for group, members in itertools.groupby(findings, key=lambda finding: finding.group):
        out.print(f"[bold]{group}[/bold]")
        for finding in members:
            line = Text("  ")
            line.append(f"{finding.state.value:<8}", _STYLES[finding.state])
            line.append(f" {finding.check:<{width}}  ")
            line.append(finding.evidence)
            if finding.remedy:
                line.append(f"\n           {'':<{width}}  → {finding.remedy}", "bold")
            out.print(line)
    counts = {state: sum(f.state is state for f in findings) for state in State}
    out.print(
        f"{counts[State.PROBLEM]} problem(s), {counts[State.WARNING]} warning(s), "
        f"{counts[State.OK]} ok"
    )
