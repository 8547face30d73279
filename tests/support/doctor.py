"""Asks the doctor, and follows its remedies to the letter."""

import re
from collections.abc import Mapping, Sequence

from typer.testing import CliRunner, Result

from pgaudit_ctx.cli.app import app
from pgaudit_ctx.doctor.examine import examine
from pgaudit_ctx.doctor.facts import Limits, Names
from pgaudit_ctx.doctor.finding import Finding, Group
from pgaudit_ctx.doctor.gather import gather
from support.command import urls_of
from support.database import Capture

_QUOTED = re.compile(r"`([^`]+)`")


def ask(capture: Capture, limits: Limits | None = None) -> dict[str, Finding]:
    """The findings by their names; those of the two connections by their group."""
    names = Names(capture.options.slot, capture.options.publication, "")
    facts = gather(
        capture.options.source, capture.options.destination, names, limits or Limits(), "test"
    )
    found = {}
    for finding in examine(facts):
        shared = finding.check in {"connection", "server_version", "tls"}
        name = f"{finding.group}_{finding.check}" if shared else finding.check
        assert name not in found, f"{name} was found twice"
        found[name] = finding
    return found


def command(capture: Capture, *arguments: str, more: Mapping[str, str] | None = None) -> Result:
    """Run ``pgaudit-ctx`` in this process, on a test's databases."""
    environment = {**urls_of(capture), "NO_COLOR": "1", "COLUMNS": "400", **(more or {})}
    return CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)


def steps(finding: Finding) -> Sequence[str]:
    """What a remedy tells to run, in order."""
    return _QUOTED.findall(finding.remedy)


def follow(capture: Capture, finding: Finding) -> None:
    """Run what a remedy tells to run, as it stands."""
    todo = steps(finding)
    assert todo, f"{finding.check} has no remedy that could be run: {finding.remedy}"
    for step in todo:
        run_step(capture, finding, step)


def run_step(capture: Capture, finding: Finding, step: str) -> None:
    if step.startswith("pgaudit-ctx "):
        words = step.split()[1:]
        if words[0] == "worker":  # else it would run for ever
            words.append("--until-caught-up")
        done = command(capture, *words)
        assert done.exit_code == 0, done.output
    elif finding.group is Group.DESTINATION:
        capture.destination.execute(step)
    else:
        capture.source.execute(step)
