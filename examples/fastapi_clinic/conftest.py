"""The application on the database that the pytest plugin has made."""

from collections.abc import AsyncIterator

import app as clinic
import httpx
import pytest
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


@pytest.fixture(scope="session")
def audit_metadata() -> MetaData:
    return clinic.Base.metadata


@pytest.fixture
async def client(audit_url: str, audit_database: object) -> AsyncIterator[httpx.AsyncClient]:
    engine = create_async_engine(audit_url, poolclass=NullPool)
    transport = httpx.ASGITransport(clinic.create_app(engine, engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as made:
        yield made
