"""The roles of a destination: one owns the trail, one writes it, one reads it."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import errors, sql

from pgaudit_ctx.connection import refusal

_MAKE: Final = sql.SQL(
    "DO $$BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {}) THEN"
    " CREATE ROLE {} {}; END IF; END$$"
)


class TrailRoles(NamedTuple):
    """Their names: ``owner`` and ``reader`` are for membership, ``writer`` is a worker's login."""

    owner: str
    writer: str
    reader: str

    @classmethod
    def with_prefix(cls, prefix: str) -> "TrailRoles":
        """Name them alike."""
        return cls(f"{prefix}_owner", f"{prefix}_writer", f"{prefix}_reader")


def statements(roles: TrailRoles, *, join: bool = False) -> Sequence[str]:
    """Give the statements that make the roles and assign them; safe to run again.

    Args:
        roles: Their names.
        join: Whether who runs this has to become a member of the owner, to give it the trail.

    Returns:
        SQL, in order.
    """
    kinds = (("NOLOGIN", roles.owner), ("LOGIN", roles.writer), ("NOLOGIN", roles.reader))
    found = [
        _MAKE.format(sql.Literal(name), sql.Identifier(name), sql.SQL(kind)) for kind, name in kinds
    ]
    if join:
        found.append(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(roles.owner)))
    assigning = sql.SQL("CALL pgaudit_ctx.assign_roles({}, {}, {})")
    found.append(assigning.format(*map(sql.Literal, roles)))
    # What a withheld slot has been told by now is forgotten: the one thing that a writer deletes.
    forgetting = sql.SQL("GRANT DELETE ON pgaudit_ctx.captured_positions TO {}")
    found.append(forgetting.format(sql.Identifier(roles.writer)))
    return [statement.as_string(None) for statement in found]


def assign(connection: psycopg.Connection[Any], roles: TrailRoles) -> str | None:
    """Make the roles that are missing, and give each what it needs of the trail.

    Args:
        connection: To the destination, whose schema is up to date.
        roles: Their names.

    Returns:
        ``None``, or the reason why this role may not do it.

    Raises:
        DatabaseError: If the server refuses for another reason than a missing right.
    """
    member = _is_member(connection, roles.owner)
    try:
        with connection.transaction():
            # Roles belong to the whole cluster, so two setups of two databases may meet here.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('pgaudit_ctx.migrate'))")
            for statement in statements(roles, join=not member):
                connection.execute(sql.SQL(statement))
    except errors.InsufficientPrivilege as error:
        return error.diag.message_primary or "the server refuses"
    except psycopg.Error as error:
        raise refusal(error, "assign the roles of the trail") from None
    return None


def _is_member(connection: psycopg.Connection[Any], role: str) -> bool:
    # A superuser needs no membership.
    row = connection.execute(
        "SELECT rolsuper OR EXISTS (SELECT FROM pg_roles o WHERE o.rolname = %s"
        " AND pg_has_role(o.oid, 'USAGE')) FROM pg_roles WHERE rolname = current_user",
        [role],
    ).fetchone()
    return row is not None and bool(row[0])
