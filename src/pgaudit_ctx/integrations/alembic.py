"""Alembic: tables enter and leave the trail with their migrations, which are explained too.

Importing this module, best in ``env.py``, registers ``op.audit_table`` and ``op.unaudit_table``,
and lets autogenerate notice mapped tables that are not captured.

PostgreSQL documentation: "Publication" in the chapter on logical replication, and ``REPLICA
IDENTITY`` under "ALTER TABLE".
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from alembic import context, op
from alembic.autogenerate import comparators, renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import UpgradeOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Table, TextClause, text

from pgaudit_ctx.context import audit_context, current_scope
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.hook import emit_context
from pgaudit_ctx.integrations.request import merge
from pgaudit_ctx.message import PREFIX

log = logging.getLogger(__name__)

PUBLICATION: Final = "pgaudit_ctx"
"""The publication that ``pgaudit-ctx setup`` makes unless told otherwise."""

OPTION: Final = "pgaudit_ctx"
"""The key of ``Table.info`` under which ``False`` says that a table shall not be captured."""

_IMPORT: Final = "import pgaudit_ctx.integrations.alembic"

# Both find out by themselves what there is to do, so that the same text serves in offline mode.
# The strong lock of ALTER TABLE comes first: it waits for transactions that have written to the
# table, for what these wrote would never be sent.
_AUDIT: Final = """
DO $pgaudit_ctx$
DECLARE
    audited CONSTANT regclass := {table};
    part regclass;
BEGIN
    FOR part IN SELECT relid FROM pg_partition_tree(audited) UNION SELECT audited LOOP
        IF EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = part AND attgenerated = 'v' AND NOT attisdropped
        ) THEN
            -- FULL would make each UPDATE and DELETE fail.
            EXECUTE 'LOCK TABLE ' || part || ' IN SHARE ROW EXCLUSIVE MODE';
        ELSE
            EXECUTE 'ALTER TABLE ' || part || ' REPLICA IDENTITY FULL';
        END IF;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {name}) THEN
        RAISE WARNING USING MESSAGE =
            'the publication ' || {name} || ' does not exist, so ' || audited
            || ' is not captured before pgaudit-ctx setup is run';
    ELSIF NOT EXISTS (
        SELECT FROM pg_publication_tables t JOIN pg_class c ON c.relname = t.tablename
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schemaname
        WHERE c.oid = audited AND t.pubname = {name}
    ) THEN
        EXECUTE 'ALTER PUBLICATION ' || quote_ident({name}) || ' ADD TABLE ' || audited;
    END IF;
END $pgaudit_ctx$"""

_UNAUDIT: Final = """
DO $pgaudit_ctx$
DECLARE
    audited CONSTANT regclass := {table};
    part regclass;
BEGIN
    IF EXISTS (
        SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE r.prrelid = audited AND p.pubname = {name}
    ) THEN
        EXECUTE 'ALTER PUBLICATION ' || quote_ident({name}) || ' DROP TABLE ' || audited;
    END IF;
    FOR part IN SELECT relid FROM pg_partition_tree(audited) UNION SELECT audited LOOP
        EXECUTE 'ALTER TABLE ' || part || ' REPLICA IDENTITY DEFAULT';
    END LOOP;
END $pgaudit_ctx$"""

_CAPTURED: Final = text(
    "SELECT t.schemaname, t.tablename FROM pg_publication p"
    " LEFT JOIN pg_publication_tables t ON t.pubname = p.pubname WHERE p.pubname = :publication"
)


class _TableOp(MigrateOperation):
    """A table that enters the trail, or leaves it."""

    verb: str

    def __init__(
        self, table_name: str, *, schema: str | None = None, publication: str = PUBLICATION
    ) -> None:
        self.table_name = table_name
        self.schema = schema
        self.publication = publication

    def _arguments(self) -> dict[str, Any]:
        return {"schema": self.schema, "publication": self.publication}

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Say what it does, for ``alembic check``."""
        return (self.verb, self.schema, self.table_name)


@Operations.register_operation("audit_table")
class AuditTableOp(_TableOp):
    """Let a table enter the trail."""

    verb = "audit_table"

    @classmethod
    def audit_table(cls, operations: Operations, table_name: str, **arguments: Any) -> None:
        """See the function of this name."""
        operations.invoke(cls(table_name, **arguments))

    def reverse(self) -> "UnauditTableOp":
        """Give the operation of the downgrade."""
        return UnauditTableOp(self.table_name, **self._arguments())


@Operations.register_operation("unaudit_table")
class UnauditTableOp(_TableOp):
    """Let a table leave the trail."""

    verb = "unaudit_table"

    @classmethod
    def unaudit_table(cls, operations: Operations, table_name: str, **arguments: Any) -> None:
        """See the function of this name."""
        operations.invoke(cls(table_name, **arguments))

    def reverse(self) -> AuditTableOp:
        """Give the operation of the downgrade."""
        return AuditTableOp(self.table_name, **self._arguments())


def audit_table(
    table_name: str, *, schema: str | None = None, publication: str = PUBLICATION
) -> None:
    """Let a table enter the trail: REPLICA IDENTITY FULL, and membership in the publication.

    ``op.audit_table`` is the same, for those who do not check the types of their migrations. It
    works in offline mode too, and is without effect on what is in place. If the publication does
    not exist the server warns, and ``pgaudit-ctx setup`` takes the table later. A table with
    virtual generated columns keeps its identity, for FULL would break its UPDATEs.

    Args:
        table_name: The table, or the root of a partitioned one, with all its partitions.
        schema: Its schema; without it the search path decides.
        publication: What was given to ``setup`` as ``--publication``.

    Raises:
        sqlalchemy.exc.ProgrammingError: If the role does not own the table and the publication.
    """
    op.invoke(AuditTableOp(table_name, schema=schema, publication=publication))


def unaudit_table(
    table_name: str, *, schema: str | None = None, publication: str = PUBLICATION
) -> None:
    """Let a table leave the trail: out of the publication, and back to REPLICA IDENTITY DEFAULT.

    ``op.unaudit_table`` is the same. What was captured stays in the trail.

    Args:
        table_name: The table, or the root of a partitioned one.
        schema: Its schema; without it the search path decides.
        publication: What was given to ``setup`` as ``--publication``.

    Raises:
        sqlalchemy.exc.ProgrammingError: If the role does not own the table and the publication.
    """
    op.invoke(UnauditTableOp(table_name, schema=schema, publication=publication))


@Operations.implementation_for(AuditTableOp)
def _audit(operations: Operations, operation: AuditTableOp) -> None:
    operations.execute(_filled(_AUDIT, operation))


@Operations.implementation_for(UnauditTableOp)
def _unaudit(operations: Operations, operation: UnauditTableOp) -> None:
    operations.execute(_filled(_UNAUDIT, operation))


def _filled(template: str, operation: _TableOp) -> TextClause:
    qualified = [part for part in (operation.schema, operation.table_name) if part is not None]
    name = ".".join('"' + part.replace('"', '""') + '"' for part in qualified)
    filled = template.format(
        table=f"CAST({_literal(name)} AS regclass)", name=_literal(operation.publication)
    )
    return text(filled.strip().replace(":", r"\:"))


def _literal(content: str) -> str:
    # psycopg is loaded only here: the application may use another driver.
    from psycopg import sql

    return sql.Literal(content).as_string(None).strip()


@renderers.dispatch_for(AuditTableOp)
@renderers.dispatch_for(UnauditTableOp)
def _render(autogen_context: AutogenContext, operation: _TableOp) -> str:
    autogen_context.imports.add(_IMPORT)
    arguments = [repr(operation.table_name)]
    if operation.schema is not None:
        arguments.append(f"schema={operation.schema!r}")
    if operation.publication != PUBLICATION:
        arguments.append(f"publication={operation.publication!r}")
    return f"op.{operation.verb}({', '.join(arguments)})"


def _notice(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: set[str | None]
) -> None:
    """Let autogenerate add the mapped tables that are not captured."""
    connection = autogen_context.connection
    if connection is None or connection.dialect.name != "postgresql":
        return
    publication = autogen_context.opts.get("pgaudit_ctx_publication", PUBLICATION)
    rows = connection.execute(_CAPTURED, {"publication": publication})
    captured = {(row[0], row[1]) for row in rows}
    if not captured:
        log.info("there is no publication %r: nothing is captured, and nothing added", publication)
        return
    default = connection.dialect.default_schema_name
    for table in autogen_context.sorted_tables:
        if _wanted(autogen_context, table, schemas) and (
            (table.schema or default, table.name) not in captured
        ):
            added = AuditTableOp(table.name, schema=table.schema, publication=publication)
            upgrade_ops.ops.append(added)
            log.info("Detected table %r that is not captured", table.fullname)


def _wanted(autogen_context: AutogenContext, table: Table, schemas: set[str | None]) -> bool:
    return (
        table.info.get(OPTION) is not False
        and table.schema in schemas
        and autogen_context.run_object_filters(table, table.name, "table", False, None)
    )


def _register() -> None:
    try:
        from alembic.util import DispatchPriority
    except ImportError:  # before Alembic 1.18 the order of registration decides
        comparators.dispatch_for("schema")(_notice)
    else:
        # A table is created before it can be captured.
        comparators.dispatch_for("schema", priority=DispatchPriority.LAST)(_notice)


_register()


@contextlib.contextmanager
def audit_migrations(**values: Any) -> Iterator[None]:
    """Run migrations in a scope that names the revision; for ``env.py``.

    ``migration`` is ``upgrade``, ``downgrade`` or ``stamp``, and ``revision`` the revision that is
    run. The context is written before each of them, in offline mode too::

        with context.begin_transaction(), audit_migrations(user="deploy"):
            context.run_migrations()

    With the hook on the engine (:func:`pgaudit_ctx.install`) scopes inside of a migration count
    too, and what it writes after an ``autocommit_block()``.

    Args:
        **values: More of the context, such as who deploys.

    Raises:
        ContextInvalid: If a value cannot be carried.
    """
    running: MigrationContext = context.get_context()
    with audit_context(values):
        scope = current_scope()
        steps = running._migrations_fn  # noqa: SLF001 - Alembic tells of a step only afterwards

        def explained(*arguments: Any) -> Iterator[Any]:
            for step in steps(*arguments) if steps is not None else ():
                info = step.info
                direction = "upgrade" if info.is_upgrade else "downgrade"
                assert scope is not None  # noqa: S101 - it was opened above
                merge(
                    scope,
                    {
                        "migration": "stamp" if info.is_stamp else direction,
                        "revision": info.up_revision_id or ", ".join(info.up_revision_ids),
                    },
                )
                step.migration_fn = _explain_first(running, step.migration_fn)
                yield step

        running._migrations_fn = explained  # noqa: SLF001 - see there
        try:
            yield
        finally:
            running._migrations_fn = steps  # noqa: SLF001 - see there


def _explain_first(
    running: MigrationContext, migration: Callable[..., None]
) -> Callable[..., None]:
    @functools.wraps(migration)
    def explained(**arguments: Any) -> None:
        scope = current_scope()
        connection = running.connection
        if running.as_sql and scope is not None:
            running.impl.static_output(
                f"SELECT pg_catalog.pg_logical_emit_message(true, '{PREFIX}', "
                f"{_literal(scope.text)});"
            )
        elif connection is not None:
            with contextlib.suppress(UsageError):  # in AUTOCOMMIT mode it would explain nothing
                emit_context(connection)
        migration(**arguments)

    return explained
