"""The models that most tests write."""

import datetime as dt
import decimal
import enum
import uuid
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, Interval, LargeBinary, Numeric, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Status(enum.Enum):
    ACTIVE = "a"
    DISCHARGED = "d"


class Patient(Base):
    __tablename__ = "patient"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    born: Mapped[dt.date | None]
    status: Mapped[Status] = mapped_column(default=Status.ACTIVE)
    notes: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class Dose(Base):
    """A composite key, and an attribute that is not called like its column."""

    __tablename__ = "dose"

    patient_id: Mapped[int] = mapped_column(ForeignKey(Patient.id), primary_key=True)
    given_on: Mapped[dt.date] = mapped_column(primary_key=True)
    milligrams: Mapped[decimal.Decimal] = mapped_column("dose_mg", Numeric(10, 3))


class Sample(Base):
    """One column of each type that history gives back typed."""

    __tablename__ = "sample"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    flag: Mapped[bool | None]
    big: Mapped[int | None] = mapped_column(BigInteger)
    ratio: Mapped[float | None]
    amount: Mapped[decimal.Decimal | None] = mapped_column(Numeric)
    day: Mapped[dt.date | None]
    moment: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))
    clock: Mapped[dt.time | None]
    span: Mapped[dt.timedelta | None] = mapped_column(Interval)
    blob: Mapped[bytes | None] = mapped_column(LargeBinary)
    tags: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    document: Mapped[Any | None] = mapped_column(JSONB)


SAMPLE: dict[str, Any] = {
    "id": uuid.UUID("7f3a1a5e-1111-4111-8111-111111111111"),
    "flag": True,
    "big": 2**62,
    "ratio": 0.1 + 0.2,
    "amount": decimal.Decimal("12345678901234567890.000100"),
    "day": dt.date(2024, 2, 29),
    "moment": dt.datetime(2024, 2, 29, 12, 30, 0, 500, tzinfo=dt.UTC),
    "clock": dt.time(23, 59, 59, 999_999),
    "span": dt.timedelta(days=-3, hours=4, microseconds=7),
    "blob": b"\x00\xff'\\",
    "tags": ["a,b", "NULL", '"', "", "日本"],
    "document": {"a": [1, None, {"b": "c"}], "$pgaudit_ctx": "mine"},
}
