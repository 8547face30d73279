"""The libraries, each as its own documentation sets it up; imported only where they are used.

Each carries who and why as it can: a hand-written trigger and Continuum's core know neither,
postgresql-audit knows an actor, Bemi and pgaudit_ctx carry a dictionary.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase
from workload import user

REASON = "ward round"
PATH = "/patients/visits"


class Library:
    """No audit, and what the others differ from."""

    # Whose version belongs beside its figures.
    distribution: ClassVar[str | None] = None
    # How to tell that something was written: a table with one row for each change, or the prefix
    # of messages in the log and how many there are for each transaction.
    trail: ClassVar[str | None] = None
    messages: ClassVar[tuple[str, int] | None] = None

    def before_models(self, base: type[DeclarativeBase]) -> None: ...

    def before_tables(self, engine: Engine) -> None: ...

    def after_tables(self, engine: Engine) -> None: ...

    def attach(self, engine: Engine) -> None: ...

    def scope(self, number: int) -> AbstractContextManager[Any]:  # noqa: ARG002
        return nullcontext()


class Ours(Library):
    messages = ("pgaudit_ctx", 1)

    def attach(self, engine: Engine) -> None:
        from pgaudit_ctx import audit_context, install  # not in the peers' environment

        install(engine)
        self._scope = audit_context

    def scope(self, number: int) -> AbstractContextManager[Any]:
        return self._scope(user=user(number), reason=REASON, path=PATH)


class Trigger(Library):
    trail = "audit_log"

    def after_tables(self, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(
                text(
                    """
                    CREATE TABLE audit_log (
                        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                        at timestamptz NOT NULL DEFAULT now(),
                        who text NOT NULL DEFAULT current_user,
                        operation text NOT NULL, table_name text NOT NULL, old json, new json
                    );
                    CREATE FUNCTION write_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$
                    BEGIN
                        IF TG_OP = 'INSERT' THEN
                            INSERT INTO audit_log (operation, table_name, new)
                            VALUES (TG_OP, TG_TABLE_NAME, row_to_json(NEW));
                        ELSIF TG_OP = 'UPDATE' THEN
                            INSERT INTO audit_log (operation, table_name, old, new)
                            VALUES (TG_OP, TG_TABLE_NAME, row_to_json(OLD), row_to_json(NEW));
                        ELSE
                            INSERT INTO audit_log (operation, table_name, old)
                            VALUES (TG_OP, TG_TABLE_NAME, row_to_json(OLD));
                        END IF;
                        RETURN NULL;
                    END $$;
                    CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON patients
                    FOR EACH ROW EXECUTE FUNCTION write_audit_log()
                    """
                )
            )


class Continuum(Library):
    distribution = "sqlalchemy-continuum"
    trail = "patients_version"

    def before_models(self, base: type[DeclarativeBase]) -> None:  # noqa: ARG002
        from sqlalchemy_continuum import make_versioned  # only in the peers' environment

        make_versioned(user_cls=None)


class PostgresqlAudit(Library):
    distribution = "postgresql-audit"
    trail = "activity"

    def before_models(self, base: type[DeclarativeBase]) -> None:
        from postgresql_audit import versioning_manager  # only in the peers' environment

        versioning_manager.init(base)
        self._manager = versioning_manager

    def before_tables(self, engine: Engine) -> None:
        # Creating them makes the functions that an audited table's triggers call.
        self._manager.transaction_cls.__table__.create(engine)
        self._manager.activity_cls.__table__.create(engine)

    def scope(self, number: int) -> AbstractContextManager[Any]:
        self._manager.values = {"actor_id": user(number)}
        return nullcontext()


class Bemi(Library):
    distribution = "bemi-sqlalchemy"
    messages = ("_bemi", 2)

    def before_models(self, base: type[DeclarativeBase]) -> None:  # noqa: ARG002
        from bemi import Bemi  # listens to every engine from here on

        self._bemi = Bemi

    def after_tables(self, engine: Engine) -> None:
        from alembic.migration import MigrationContext  # comes with bemi-sqlalchemy
        from alembic.operations import Operations  # likewise

        with (
            engine.begin() as connection,
            Operations.context(MigrationContext.configure(connection)),
        ):
            self._bemi.migration_upgrade()

    def scope(self, number: int) -> AbstractContextManager[Any]:
        self._bemi.set_context({"user": user(number), "reason": REASON, "path": PATH})
        return nullcontext()


LIBRARIES: dict[str, type[Library]] = {
    "plain": Library,
    "pgaudit_ctx": Ours,
    "trigger": Trigger,
    "continuum": Continuum,
    "postgresql-audit": PostgresqlAudit,
    "bemi": Bemi,
}
