"""``pgaudit-ctx setup --print-sql``: the statements, for whoever may run them."""

import typer

from pgaudit_ctx.destination import roles, schema
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.preparation import Choice, tracked_script, wishes_of
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.source.plan import plan, script
from pgaudit_ctx.source.step import Who


def print_statements(
    source: schema.Connection | None,
    destination: schema.Connection | None,
    chosen: WorkerOptions,
    choice: Choice,
    *,
    with_destination: bool,
) -> None:
    """Print what setup would run, for psql: no colours, no wrapping.

    Args:
        source: To the source, unless only the destination is wanted.
        destination: To the destination, if one was named: what it lacks depends on what it has.
        chosen: The names.
        choice: What was chosen.
        with_destination: Whether the destination's part is wanted.
    """
    done = set() if destination is None else schema.applied_migrations(destination)
    tracked = ""
    if source is not None:
        name = chosen.name or source.info.dbname
        state = source_setup.read_state(
            source, chosen.slot, chosen.publication, choice.replication_role
        )
        wishes = wishes_of(choice, destination, name, state.tables)
        planned = plan(state, chosen.slot, chosen.publication, wishes=wishes)
        tracked = tracked_script(name, planned, state.tables, wishes)
        typer.echo("-- source")
        typer.echo(script(planned.steps))
    if with_destination:
        typer.echo("-- destination")
        typer.echo(schema.script(choice.unit, done))
        if choice.trail_roles is not None:
            typer.echo(f"-- run by {Who.ADMINISTRATOR.value}:")
            typer.echo("\n".join(f"{line};" for line in roles.statements(choice.trail_roles)))
        if tracked:
            typer.echo(tracked)
