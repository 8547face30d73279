"""A suite as its authors would write it: checked by mypy and pyright, not run."""

# pyright: strict

from collections.abc import Iterator
from typing import Any, assert_type

import pytest
from sqlalchemy import Engine, MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgaudit_ctx import History, Version, audit_context, bind_context, install
from pgaudit_ctx.testbed.database import AuditDatabase
from pgaudit_ctx.testing import AuditTrail, EmittedContexts, emitted_contexts


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture(scope="session")
def audit_metadata() -> MetaData:
    return Base.metadata


@pytest.fixture(scope="session")
def engine(audit_url: str, audit_database: AuditDatabase) -> Iterator[Engine]:
    made = create_engine(audit_url)
    install(made, require_context=True)
    yield made
    made.dispose()


def test_sync(audit_engine: Engine, audit_session: Session, audit_trail: AuditTrail) -> None:
    with audit_context(user="dr.who"):
        bind_context(reason="walk-in")
        audit_session.add(Patient(id=42, name="Ann"))
        audit_session.commit()
    version = audit_trail.assert_changed(
        Patient,
        42,
        operation="INSERT",
        changed={"name": (None, "Ann")},
        context={"user": "dr.who"},
    )
    assert_type(version, Version[Patient])
    assert_type(version.instance(), Patient)
    assert_type(audit_trail.changes(Patient), list[Version[Patient]])
    assert_type(audit_trail.history(Patient, 42), History[Patient])
    for change in audit_trail.changes(operation="INSERT"):
        assert_type(change, Version[dict[str, Any]])
    audit_trail.assert_unchanged("visits")
    audit_trail.assert_context_everywhere("user")


async def test_async(
    async_audit_engine: AsyncEngine, async_audit_session: AsyncSession, audit_trail: AuditTrail
) -> None:
    async with audit_context(user="dr.who", flush=async_audit_session):
        async_audit_session.add(Patient(id=42, name="Ann"))
    await async_audit_session.commit()
    audit_trail.assert_context_everywhere()


def test_rolled_back(audit_session: Session, emitted_contexts: EmittedContexts) -> None:
    with audit_context(user="dr.who"):
        audit_session.add(Patient(id=42, name="Ann"))
        audit_session.flush()
    emitted = emitted_contexts.assert_emitted({"user": "dr.who"})
    assert_type(emitted.statement, str | None)
    assert [context for context in emitted_contexts.contexts if context is None] == []


def test_by_hand(engine: Engine) -> None:
    with emitted_contexts() as emitted, Session(engine) as session:
        session.add(Patient(id=42, name="Ann"))
        session.flush()
    emitted.assert_context_everywhere()
