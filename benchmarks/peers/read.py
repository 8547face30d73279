"""One process that asks another library's trail what reading.py asks ours, and times it.

Each question as the library's own documentation asks it, through the ORM.

    python read.py
"""

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

from serve import Process, main
from sqlalchemy import Select, create_engine, func, or_, select
from sqlalchemy.orm import Session

Question = Callable[[Session, Any], int]


class Continuum:
    """Its versions are rows of a class of their own; it knows times by their transaction only."""

    def __init__(self, patient: Any) -> None:
        from sqlalchemy_continuum import transaction_class, version_class  # in its environment only

        self._patient = patient
        self._version = version_class(patient)
        self._transaction = transaction_class(patient)

    def history(self, session: Session, key: int) -> int:
        return len(session.get(self._patient, key).versions.all())

    def as_of(self, session: Session, asked: tuple[int, dt.datetime]) -> int:
        key, when = asked
        version, transaction = self._version, self._transaction
        statement = (
            select(version)
            .join(transaction, version.transaction_id == transaction.id)
            .where(version.id == key, transaction.issued_at <= when)
            .order_by(version.transaction_id.desc())
            .limit(1)
        )
        return len(session.scalars(statement).all())

    def table(self, session: Session, when: dt.datetime) -> int:
        version, transaction = self._version, self._transaction
        newest = select(func.max(transaction.id)).where(transaction.issued_at <= when)
        number = session.scalar(newest)
        ends = version.end_transaction_id
        statement = select(*version.__table__.c).where(
            version.transaction_id <= number,
            or_(ends.is_(None), ends > number),
            version.operation_type != 2,
        )
        return len(session.execute(statement).all())


class PostgresqlAudit:
    """All changes of all tables are rows of one class; keys are in their data."""

    def __init__(self, patient: Any) -> None:  # noqa: ARG002
        from postgresql_audit import versioning_manager  # in its environment only

        self._activity = versioning_manager.activity_cls
        self._transaction = versioning_manager.transaction_cls

    def _of(self, key: int) -> Select[Any]:
        activity = self._activity
        return select(activity).where(
            activity.table_name == "patients", activity.data["id"].astext == str(key)
        )

    def history(self, session: Session, key: int) -> int:
        return len(session.scalars(self._of(key).order_by(self._activity.id)).all())

    def as_of(self, session: Session, asked: tuple[int, dt.datetime]) -> int:
        key, when = asked
        activity = self._activity
        statement = self._of(key).where(activity.issued_at <= when)
        return len(session.scalars(statement.order_by(activity.id.desc()).limit(1)).all())

    def user(self, session: Session, asked: tuple[str, dt.datetime]) -> int:
        user, since = asked
        activity, transaction = self._activity, self._transaction
        statement = (
            select(activity)
            .join(transaction, activity.transaction_id == transaction.id)
            .where(transaction.actor_id == user, activity.issued_at >= since)
            .order_by(activity.id.desc())
            .limit(50)
        )
        return len(session.scalars(statement).all())

    def table(self, session: Session, when: dt.datetime) -> int:
        activity = self._activity
        key = activity.data["id"].astext
        newest = (
            select(activity.verb, activity.data)
            .where(activity.table_name == "patients", activity.issued_at <= when)
            .distinct(key)
            .order_by(key, activity.id.desc())
            .subquery()
        )
        return len(session.execute(select(newest).where(newest.c.verb != "delete")).all())


LIBRARIES = {"continuum": Continuum, "postgresql-audit": PostgresqlAudit}


class Reading(Process):
    """Beside what makes the tables: opens databases, and asks them."""

    def __init__(self) -> None:
        super().__init__()
        self._engines: dict[str, Any] = {}
        self._libraries: dict[str, Any] = {}

    def look(self, library: str, url: str) -> dict[str, Any]:
        """Take a database from here on; says which questions the library can be asked."""
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        self._engines[url] = engine
        if library not in self._libraries:
            _, mapping = self.known(library)
            self._libraries[library] = LIBRARIES[library](mapping.patient)
        chosen = self._libraries[library]
        names = ("history", "as_of", "user", "table")
        return {"questions": [name for name in names if hasattr(chosen, name)]}

    def question(self, library: str, url: str, name: str, asked: list[Any]) -> dict[str, Any]:
        """Ask once for each of some things; milliseconds, and how many rows came each time."""
        engine, ask = self._engines[url], getattr(self._libraries[library], name)
        taken, rows = [], []
        for thing in map(_from_json, asked):
            started = time.perf_counter()
            with Session(engine) as session:
                rows.append(ask(session, thing))
            taken.append((time.perf_counter() - started) * 1000)
        return {"milliseconds": taken, "rows": rows}

    def first(self, library: str, url: str, asked: list[Any]) -> dict[str, Any]:
        """Ask for histories, each the first question of a connection that is open already."""
        taken = []
        for key in asked:
            self._engines[url].dispose()
            self._engines[url].connect().close()
            taken += self.question(library, url, "history", [key])["milliseconds"]
        return {"milliseconds": taken}


def _from_json(thing: Any) -> Any:
    """Take moments out of what JSON carried; these libraries' columns have no zone."""
    if isinstance(thing, list):
        return tuple(map(_from_json, thing))
    if isinstance(thing, str) and "T" in thing:
        return dt.datetime.fromisoformat(thing).astimezone(dt.UTC).replace(tzinfo=None)
    return thing


if __name__ == "__main__":
    main(Reading())
