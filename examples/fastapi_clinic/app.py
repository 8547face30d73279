"""A clinic in FastAPI: who and why come from the request, and a record's history is an endpoint.

    PGAUDIT_CTX_SOURCE_URL=postgresql://app@localhost/clinic \\
    PGAUDIT_CTX_DESTINATION_URL=postgresql://app@localhost/audit \\
    uvicorn app:create_app --factory

Beside it runs the worker: ``pgaudit-ctx setup``, then ``pgaudit-ctx worker``.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgaudit_ctx import AsyncAuditReader, audit_context, bind_context, install
from pgaudit_ctx.urls import sqlalchemy_url


class Base(DeclarativeBase):
    """The clinic's declarative base."""


class Patient(Base):
    """A patient."""

    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    allergies: Mapped[list[str]] = mapped_column(JSONB, default=list)


async def audit_scope(request: Request) -> AsyncIterator[None]:
    """Open one scope for each request."""
    with audit_context(method=request.method, path=request.url.path):
        yield


def current_user(x_user: Annotated[str, Header()]) -> str:
    """Stand for your own authentication; the scope learns the user as soon as it is known."""
    bind_context(user=x_user)
    return x_user


def create_app() -> FastAPI:
    """Make the application from the environment."""
    source = create_async_engine(sqlalchemy_url(os.environ["PGAUDIT_CTX_SOURCE_URL"]))
    destination = create_async_engine(sqlalchemy_url(os.environ["PGAUDIT_CTX_DESTINATION_URL"]))
    install(source, require_context=True)
    reader = AsyncAuditReader(destination)
    sessions = async_sessionmaker(source, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await source.dispose()
        await destination.dispose()

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as opened:
            yield opened

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(audit_scope), Depends(current_user)])

    @app.put("/patients/{patient_id}/allergies")
    async def report_allergy(
        patient_id: int, allergy: str, opened: Annotated[AsyncSession, Depends(session)]
    ) -> list[str]:
        with audit_context(reason="allergy reported"):
            patient = await opened.get(Patient, patient_id)
            if patient is None:
                raise HTTPException(404)
            patient.allergies = [*patient.allergies, allergy]
            await opened.commit()
            return patient.allergies

    @app.get("/patients/{patient_id}/history")
    async def patient_history(patient_id: int) -> list[dict[str, Any]]:
        return [
            {
                "version": version.number,
                "operation": version.operation,
                "user": version.user,
                "reason": version.reason,
                "at": version.committed_at,
                "changed": {name: list(values) for name, values in version.diff.items()},
            }
            for version in await reader.history(Patient, patient_id)
        ]

    return app
