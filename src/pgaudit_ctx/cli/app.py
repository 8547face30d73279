"""The commands of ``pgaudit-ctx``; each is a thin shell around what it runs."""

from typing import Annotated

import typer

from pgaudit_ctx import __version__
from pgaudit_ctx.cli.demo import demo
from pgaudit_ctx.cli.doctor import doctor
from pgaudit_ctx.cli.handover import app as handover
from pgaudit_ctx.cli.options import out
from pgaudit_ctx.cli.prune import prune
from pgaudit_ctx.cli.read import history, log
from pgaudit_ctx.cli.rejected import app as rejected
from pgaudit_ctx.cli.setup import setup
from pgaudit_ctx.cli.snapshot import snapshot
from pgaudit_ctx.cli.status import status
from pgaudit_ctx.cli.teardown import teardown
from pgaudit_ctx.cli.trial import trial
from pgaudit_ctx.cli.work import worker

app = typer.Typer(
    name="pgaudit-ctx",
    help="A complete audit trail for applications on SQLAlchemy and PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - Typer's callback signature
    if wanted:
        out.print(f"pgaudit-ctx {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """A complete audit trail for applications on SQLAlchemy and PostgreSQL."""


for command in (setup, doctor, worker, status, snapshot, log, history, prune, teardown, demo):
    app.command()(command)
app.command("try")(trial)
app.add_typer(rejected)
app.add_typer(handover)
