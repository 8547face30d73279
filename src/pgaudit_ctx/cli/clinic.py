"""The small clinic of ``pgaudit-ctx demo``: an application as users write them."""

import datetime as dt
import decimal
import enum
from typing import Any

from sqlalchemy import ForeignKey, Numeric, create_engine, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from pgaudit_ctx.context import audit_context
from pgaudit_ctx.hook import install


class Base(DeclarativeBase):
    """The clinic's declarative base."""


class Triage(enum.Enum):
    """How urgent a visit is."""

    ROUTINE = "routine"
    URGENT = "urgent"


class Patient(Base):
    """A patient; a trigger keeps ``open_prescriptions``."""

    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    born: Mapped[dt.date]
    allergies: Mapped[list[Any]] = mapped_column(JSONB, default=list)
    open_prescriptions: Mapped[int] = mapped_column(default=0)
    visits: Mapped[list["Visit"]] = relationship(back_populates="patient")


class Visit(Base):
    """One visit of a patient."""

    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id"))
    on: Mapped[dt.date]
    triage: Mapped[Triage]
    patient: Mapped[Patient] = relationship(back_populates="visits")


class Prescription(Base):
    """One prescription for a patient."""

    __tablename__ = "prescriptions"

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id"))
    drug: Mapped[str]
    dose_mg: Mapped[decimal.Decimal] = mapped_column(Numeric(8, 2))


_TRIGGER = """
    CREATE FUNCTION count_prescriptions() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE patients SET open_prescriptions = open_prescriptions + 1
        WHERE id = NEW.patient_id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER count_prescriptions AFTER INSERT ON prescriptions
        FOR EACH ROW EXECUTE FUNCTION count_prescriptions();"""


def create_schema(url: str) -> None:
    """Create the clinic's tables and its trigger."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(_TRIGGER)
    engine.dispose()


def live_through_a_day(url: str) -> dt.datetime:
    """Let two people work through the ORM, a bulk update run, and somebody use plain SQL.

    Args:
        url: Of the clinic's database, in SQLAlchemy's form.

    Returns:
        A moment in between, by the database's clock, before anybody made a mistake.
    """
    engine = create_engine(url)
    install(engine)
    with Session(engine) as session:
        with audit_context(user="r.tyler", reason="walk-in registration"):
            session.add(Patient(id=42, name="Ann Smith", born=dt.date(1980, 2, 29)))
            session.add(Patient(id=43, name="Bob Jones", born=dt.date(1955, 11, 5)))
            session.add(Visit(id=1, patient_id=42, on=dt.date(2026, 3, 2), triage=Triage.ROUTINE))
            session.commit()

        with audit_context(user="dr.who", reason="examination"):
            ann = session.get_one(Patient, 42)
            ann.visits[0].triage = Triage.URGENT
            # The trigger writes to patients; it happens in this transaction, so it is explained.
            session.add(
                Prescription(id=7, patient_id=42, drug="penicillin", dose_mg=decimal.Decimal(250))
            )
            session.commit()
        between: dt.datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
        session.rollback()

        with audit_context(user="dr.who", reason="allergy reported"):
            session.get_one(Patient, 42).allergies = ["penicillin"]
            session.commit()

        with audit_context(user="dr.who", reason="dose review"):
            session.execute(
                update(Prescription)
                .where(Prescription.drug == "penicillin")
                .values(dose_mg=Prescription.dose_mg / 2)
            )
            session.commit()

    somebody = create_engine(url)
    with somebody.begin() as connection:
        connection.exec_driver_sql("UPDATE patients SET name = 'Eve Smith' WHERE id = 42")
    somebody.dispose()
    engine.dispose()
    return between
