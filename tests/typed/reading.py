"""What reading gives, as an application would use it: checked by mypy and pyright, not run."""

# pyright: strict

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, assert_type

from sqlalchemy import ForeignKey, Select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import pgaudit_ctx
from pgaudit_ctx import (
    AsyncAuditReader,
    AuditReader,
    Change,
    History,
    Timeline,
    Version,
    as_of,
    blame,
    deleted,
    diff,
    history,
    revert,
    select_as_of,
    select_changes,
)
from pgaudit_ctx.reading.version import Difference


class Base(DeclarativeBase):
    pass


class Doctor(Base):
    __tablename__ = "doctors"

    id: Mapped[int] = mapped_column(primary_key=True)


class Patient(Base):
    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    doctor_id: Mapped[int | None] = mapped_column(ForeignKey("doctors.id"))
    doctor: Mapped[Doctor | None] = relationship()
    visits: Mapped[list["Visit"]] = relationship(back_populates="patient")
    tags: Mapped[set["Tag"]] = relationship()


class Visit(Base):
    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id"))
    patient: Mapped[Patient] = relationship(back_populates="visits")


class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id"))


def read_one_record(yesterday: dt.datetime) -> None:
    versions = history(Patient, 42)
    assert_type(versions, History[Patient])
    assert_type(versions[0], Version[Patient])
    assert_type(versions[0].instance(), Patient)
    assert_type(versions[0].instance().name, str)
    assert_type(versions[-3:], History[Patient])
    assert_type(versions.latest, Version[Patient] | None)
    assert_type(versions.as_of(yesterday), Version[Patient] | None)
    assert_type(versions.complete_up_to.time, dt.datetime)
    for version in versions:
        assert_type(version, Version[Patient])
        assert_type(version.previous, Version[Patient] | None)
        assert_type(version.after, Mapping[str, Any] | None)
        assert_type(version.diff, Mapping[str, Difference])
        assert_type(version.committed_at, dt.datetime)
        assert_type(version.valid_to, dt.datetime | None)
        assert_type(version.model, type[Patient] | None)
    filtered = history(
        Patient, 42, since=yesterday, user="dr.who", fields=["name", Patient.doctor_id], limit=10
    )
    assert_type(filtered, History[Patient])
    found = as_of(Patient, 42, yesterday)
    assert_type(found, Version[Patient] | None)
    if found is not None:
        assert_type(found.instance(), Patient)
        assert_type(diff(found, versions[-1]), Mapping[str, Difference])
    assert_type(blame(Patient, 42), Mapping[str, Version[Patient]])
    assert_type(blame(Patient, 42)["name"].instance(), Patient)
    assert_type(deleted(Patient, since=yesterday), list[Version[Patient]])


def read_a_table_without_a_model(yesterday: dt.datetime) -> None:
    versions = history("clinic.patients", 42)
    assert_type(versions, History[dict[str, Any]])
    assert_type(versions[0].instance(), dict[str, Any])
    assert_type(as_of("clinic.patients", 42, yesterday), Version[dict[str, Any]] | None)
    assert_type(blame("clinic.patients", 42), Mapping[str, Version[dict[str, Any]]])
    assert_type(deleted("clinic.patients"), list[Version[dict[str, Any]]])


def read_related_records(version: Version[Patient], visit: Version[Visit]) -> None:
    assert_type(version.related(Patient.visits), list[Version[Visit]])
    assert_type(version.related(Patient.tags), list[Version[Tag]])
    assert_type(version.related(Patient.doctor), list[Version[Doctor]])
    assert_type(visit.related(Visit.patient), list[Version[Patient]])
    assert_type(version.related("visits"), list[Version[Any]])
    timeline = history(Patient, 42, include=[Patient.visits, "tags"])
    assert_type(timeline, Timeline[Patient])
    assert_type(timeline[0], Version[Any])
    assert_type(timeline[:2], Sequence[Version[Any]])
    assert_type(timeline.history, History[Patient])
    assert_type(timeline.related(Patient.visits), Sequence[History[Visit]])


def select_for_a_session(session: Session, yesterday: dt.datetime) -> None:
    changes = select_changes(Patient, user="dr.who", since=yesterday)
    assert_type(changes, Select[Change])
    assert_type(session.scalars(changes.limit(10)).all(), Sequence[Change])
    assert_type(select_as_of(Patient, yesterday), Select[Any])


def bring_back(session: Session, version: Version[Patient]) -> None:
    assert_type(revert(session, version), Patient)
    assert_type(revert(session, version, [Patient.name]), Patient)


def read_with_a_reader(reader: AuditReader, yesterday: dt.datetime) -> None:
    assert_type(reader.history(Patient, 42)[0].instance(), Patient)
    assert_type(reader.history(Patient, 42, include=[Patient.visits]), Timeline[Patient])
    assert_type(reader.as_of(Patient, 42, yesterday), Version[Patient] | None)
    assert_type(reader.changes(Patient, 42, limit=10), list[Change])
    assert_type(reader.blame(Patient, 42)["name"], Version[Patient])
    assert_type(reader.deleted(Patient), list[Version[Patient]])
    assert_type(list(reader.transaction(731)), list[Change])


async def read_asynchronously(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], yesterday: dt.datetime
) -> None:
    reader = AsyncAuditReader(engine)
    versions = await reader.history(Patient, 42)
    assert_type(versions, History[Patient])
    assert_type(versions[0].instance(), Patient)
    assert_type(await reader.history(Patient, 42, include=[Patient.visits]), Timeline[Patient])
    assert_type(await reader.history("clinic.patients", 42), History[dict[str, Any]])
    assert_type(await reader.as_of(Patient, 42, yesterday), Version[Patient] | None)
    assert_type(await reader.related(versions[0], Patient.visits), list[Version[Visit]])
    assert_type(await reader.related(versions[0], Patient.doctor), list[Version[Doctor]])
    assert_type(await reader.blame(Patient, 42), Mapping[str, Version[Patient]])
    assert_type(await reader.deleted(Patient), list[Version[Patient]])
    assert_type(await AsyncAuditReader(sessions).changes(Patient, 42), list[Change])


def misspell() -> None:
    # Strict mypy refuses an ignore that is not needed, so this says that the misspelling is seen.
    _ = pgaudit_ctx.histroy  # type: ignore[attr-defined]
