"""A clinic in FastAPI: who and why come from the request, and the history is an endpoint.

    PGAUDIT_CTX_SOURCE_URL=postgresql://app@localhost/clinic \\
    PGAUDIT_CTX_DESTINATION_URL=postgresql://app@localhost/audit \\
    uvicorn app:create_app --factory

Beside it runs the worker: ``pgaudit-ctx setup``, then ``pgaudit-ctx worker``. ``compose.yaml`` has
all of them.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, NamedTuple

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgaudit_ctx import AsyncAuditReader, audit_context, bind_context, install
from pgaudit_ctx.integrations.asgi import AuditContextMiddleware
from pgaudit_ctx.integrations.fastapi import history_router, reason_header
from pgaudit_ctx.urls import sqlalchemy_url


class Base(DeclarativeBase):
    """The clinic's declarative base."""


class Patient(Base):
    """A patient."""

    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    allergies: Mapped[list[str]] = mapped_column(JSONB, default=list)
    letters: Mapped[int] = mapped_column(default=0)


class User(NamedTuple):
    """Who has logged in."""

    name: str
    role: str


# Stands for your own authentication.
TOKENS = {
    "token-who": User("dr.who", "doctor"),
    "token-tyler": User("r.tyler", "nurse"),
    "token-auditor": User("a.uditor", "auditor"),
}
bearer = HTTPBearer()


def current_user(token: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> User:
    """Authenticate, and tell the request's scope who it is."""
    user = TOKENS.get(token.credentials)
    if user is None:
        raise HTTPException(401)
    bind_context(user=user.name, role=user.role)
    return user


def auditor(user: Annotated[User, Depends(current_user)]) -> bool:
    """Say who may read the trail."""
    return user.role == "auditor"


async def session(request: Request) -> AsyncIterator[AsyncSession]:
    """Give a session; routes commit it, so that no answer comes before its commit."""
    sessions: async_sessionmaker[AsyncSession] = request.app.state.sessions
    async with sessions() as opened:
        yield opened


Writing = Annotated[AsyncSession, Depends(session)]


def create_app(
    source: AsyncEngine | None = None, destination: AsyncEngine | None = None
) -> FastAPI:
    """Make the application, by default with the databases that the environment names."""
    source = source or engine_of("PGAUDIT_CTX_SOURCE_URL")
    destination = destination or engine_of("PGAUDIT_CTX_DESTINATION_URL")
    install(source, require_context=True)
    sessions = async_sessionmaker(source, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await source.dispose()
        await destination.dispose()

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(current_user)])
    app.state.sessions = sessions
    app.add_middleware(AuditContextMiddleware)
    reader = AsyncAuditReader(destination)
    app.include_router(history_router({"patients": Patient}, reader=reader, authorize=auditor))

    @app.post("/patients/{patient_id}", dependencies=[Depends(reason_header())])
    async def admit(patient_id: int, name: str, opened: Writing) -> None:
        opened.add(Patient(id=patient_id, name=name))
        await opened.commit()

    @app.put("/patients/{patient_id}/allergies")
    async def report_allergy(patient_id: int, allergy: str, opened: Writing) -> list[str]:
        patient = await opened.get(Patient, patient_id)
        if patient is None:
            raise HTTPException(404)
        patient.allergies = [*patient.allergies, allergy]
        with audit_context(reason="allergy reported"):
            await opened.commit()
        return patient.allergies

    @app.post("/patients/{patient_id}/letters")
    async def write_letter(patient_id: int, later: BackgroundTasks) -> None:
        later.add_task(count_letter, sessions, patient_id)

    return app


async def count_letter(sessions: async_sessionmaker[AsyncSession], patient_id: int) -> None:
    """Run after the response, and still in the scope of its request."""
    async with sessions() as opened, opened.begin():
        patient = await opened.get_one(Patient, patient_id, with_for_update=True)
        patient.letters += 1


def engine_of(variable: str) -> AsyncEngine:
    """Make an engine for the database that a variable names."""
    return create_async_engine(sqlalchemy_url(os.environ[variable]))
