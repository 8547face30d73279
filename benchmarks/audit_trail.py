"""What a look of the pytest plugin costs: each after one commit, through the slot and the decoder.

Prints median, 95th percentile and maximum in milliseconds of each call, as a test would make it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgaudit_ctx import audit_context, install
from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.testbed.database import AuditDatabase
from pgaudit_ctx.testing import AuditTrail


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


CALLS: dict[str, Callable[[AuditTrail], Any]] = {
    "changes(Patient)": lambda trail: trail.changes(Patient),
    "history(Patient, 42)": lambda trail: trail.history(Patient, 42),
    "assert_changed(…)": lambda trail: trail.assert_changed(
        Patient, 42, operation="UPDATE", context={"user": "dr.who"}
    ),
    "assert_unchanged(Patient, 7)": lambda trail: trail.assert_unchanged(Patient, 7),
    "assert_context_everywhere()": lambda trail: trail.assert_context_everywhere("user"),
}


def measure(database: AuditDatabase, rounds: int, changes: int) -> dict[str, list[float]]:
    engine = create_engine(database.sync_url())
    install(engine)
    taken: dict[str, list[float]] = {name: [] for name in CALLS}
    with Session(engine) as session, audit_context(user="dr.who", reason="measured"):
        session.add(Patient(id=42, name="Ann"))
        session.commit()
        for number in range(rounds):
            for name, call in CALLS.items():
                trail = AuditTrail(database)
                for change in range(changes):
                    session.get_one(Patient, 42).name = f"{name} {number} {change}"
                    session.commit()
                began = time.perf_counter()
                call(trail)
                taken[name].append((time.perf_counter() - began) * 1000)
    engine.dispose()
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--changes", type=int, default=3, help="commits before each look")
    given = parser.parse_args()
    with EmbeddedPostgres(in_memory=True) as server:
        database = AuditDatabase(server.url("postgres"), owned=True)
        try:
            database.create_tables(Base.metadata)
            found = measure(database, given.rounds, given.changes)
        finally:
            database.close()
    print(f"{'':30}{'median':>8}{'p95':>8}{'max':>8}   ms, of {given.rounds}")
    for name, each in found.items():
        spread = statistics.median(each), statistics.quantiles(each, n=20)[-1], max(each)
        print(f"{name:30}" + "".join(f"{value:8.2f}" for value in spread))
