"""What every library is measured on: an INSERT and an UPDATE in a transaction, through the ORM."""

import datetime as dt
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

KEPT = 100
USERS = 1_000  # more than any cache of statements holds, for what pastes the user into the text


class Mapping:
    """A base and a model; libraries that must be there before the model are asked in between."""

    def __init__(self, before_models: Callable[[type[DeclarativeBase]], None]) -> None:
        class Base(DeclarativeBase):
            pass

        before_models(Base)

        class Patient(Base):
            __tablename__ = "patients"
            __versioned__: dict[str, Any] = {}  # noqa: RUF012 - how two of the peers are told

            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]
            address: Mapped[str]
            ward: Mapped[int]
            visits: Mapped[int]
            admitted_at: Mapped[dt.datetime]

        configure_mappers()
        self.base = Base
        self.patient = Patient

    def new(self, number: int) -> Any:
        return self.patient(
            name=f"Patient {number}",
            address="12 High Street, Little Whinging, Surrey",
            ward=number % 40,
            visits=0,
            admitted_at=dt.datetime(2026, 1, 1),  # noqa: DTZ001 - the column has no zone
        )

    def fill(self, engine: Engine) -> None:
        """The rows that UPDATE changes."""
        with Session(engine) as session:
            session.add_all(self.new(number) for number in range(KEPT))
            session.commit()

    def kept(self, engine: Engine) -> list[Any]:
        """The same as objects that belong to no session, so that no SELECT is measured."""
        with Session(engine) as session:
            found = select(self.patient).order_by(self.patient.id).limit(KEPT)
            return list(session.scalars(found))


def user(number: int) -> str:
    return f"user{number * 7919 % USERS}"
