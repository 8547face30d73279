"""The role that reads the log: what it lacks, and the statements that give it no more than that."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from pgaudit_ctx.source.catalog import SourceTable
from pgaudit_ctx.source.step import Step, Who

_STATE: Final = """
    SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s),
        EXISTS (SELECT FROM pg_roles r WHERE rolname = %(role)s
            AND (r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_roles m
                WHERE m.rolname = 'rds_replication' AND pg_has_role(r.oid, m.oid, 'MEMBER')))),
        EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication'),
        current_database()::text"""
_MAY_CONNECT: Final = "SELECT has_database_privilege(%(role)s, current_database(), 'CONNECT')"
_TABLES: Final = "SELECT oid FROM pg_class WHERE has_table_privilege(%(role)s, oid, 'SELECT')"
_SCHEMAS: Final = """
    SELECT nspname::text FROM pg_namespace WHERE has_schema_privilege(%(role)s, oid, 'USAGE')"""
_DEFAULTS: Final = """
    SELECT pg_get_userbyid(d.defaclrole)::text, n.nspname::text
    FROM pg_default_acl d JOIN pg_namespace n ON n.oid = d.defaclnamespace
    CROSS JOIN LATERAL aclexplode(d.defaclacl) a JOIN pg_roles r ON r.oid = a.grantee
    WHERE d.defaclobjtype = 'r' AND a.privilege_type = 'SELECT' AND r.rolname = %(role)s"""


class RoleState(NamedTuple):
    """What the role that replicates has already.

    Attributes:
        role: Its name.
        exists: Whether there is one.
        replicates: Whether it may replicate.
        by_membership: Whether that right is a membership of ``rds_replication`` here.
        database: The database it connects to.
        connects: Whether it may.
        reads: Oids of the tables it may read.
        uses: Schemas it may use.
        defaults: Owner and schema of the tables to come that it may read.
    """

    role: str
    exists: bool
    replicates: bool
    by_membership: bool
    database: str
    connects: bool = False
    reads: frozenset[int] = frozenset()
    uses: frozenset[str] = frozenset()
    defaults: frozenset[tuple[str, str]] = frozenset()


def read_role(connection: psycopg.Connection[Any], role: str) -> RoleState:
    """Look up what a role may do in this database."""
    given = {"role": role}
    row = connection.execute(_STATE, given).fetchone()
    assert row is not None  # noqa: S101 - SELECT without FROM gives one row
    state = RoleState(role, *row)
    if not state.exists:
        return state
    may_connect = connection.execute(_MAY_CONNECT, given).fetchone()
    return state._replace(
        connects=bool(may_connect and may_connect[0]),
        reads=frozenset(oid for (oid,) in connection.execute(_TABLES, given)),
        uses=frozenset(name for (name,) in connection.execute(_SCHEMAS, given)),
        defaults=frozenset(
            (owner, schema) for owner, schema in connection.execute(_DEFAULTS, given)
        ),
    )


def granting(state: RoleState, tables: Sequence[SourceTable]) -> Iterator[Step]:
    """Give the steps that are missing: the role, and the right to read these tables.

    Args:
        state: What there is.
        tables: What it has to be able to read, with those to come in the same schemas.

    Yields:
        Steps; all of them optional, because the trail needs them only where this role captures.
    """
    role = sql.Identifier(state.role)
    if not state.exists:
        yield from _making(state, role)
    elif not state.replicates:
        yield _step(_replication(state, role), f"{state.role} may replicate", Who.ADMINISTRATOR)
    if not state.connects:
        grant = sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(
            sql.Identifier(state.database), role
        )
        yield _step([grant], f"{state.role} may connect", Who.ADMINISTRATOR)
    for schema in sorted({table.schema for table in tables} - state.uses):
        grant = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), role)
        yield _step([grant], f"{state.role} may look into the schema {schema}")
    for table in tables:
        if table.oid not in state.reads:
            grant = sql.SQL("GRANT SELECT ON {} TO {}").format(
                sql.Identifier(table.schema, table.name), role
            )
            yield _step([grant], f"{state.role} may read {table.qualified}")
    for owner, schema in sorted({(table.owner, table.schema) for table in tables}):
        if owner and (owner, schema) not in state.defaults:
            alter = sql.SQL(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA {} GRANT SELECT ON TABLES TO {}"
            ).format(sql.Identifier(owner), sql.Identifier(schema), role)
            yield _step(
                [alter],
                f"{state.role} may read what {owner} will make in {schema} (default privileges of "
                f"{owner})",
            )


def _making(state: RoleState, role: sql.Identifier) -> Iterator[Step]:
    attributes = "LOGIN" if state.by_membership else "LOGIN REPLICATION"
    create = sql.SQL("CREATE ROLE {} {}").format(role, sql.SQL(attributes))
    statements = [create, *(_replication(state, role) if state.by_membership else ())]
    yield _step(statements, f"the role {state.role} replicates and nothing else", Who.ADMINISTRATOR)


def _replication(state: RoleState, role: sql.Identifier) -> list[sql.Composable]:
    if state.by_membership:
        return [sql.SQL("GRANT rds_replication TO {}").format(role)]
    return [sql.SQL("ALTER ROLE {} REPLICATION").format(role)]


def _step(statements: Sequence[sql.Composable], purpose: str, who: Who = Who.OWNER) -> Step:
    texts = tuple(statement.as_string(None) for statement in statements)
    return Step(texts, purpose, who=who, optional=True)
