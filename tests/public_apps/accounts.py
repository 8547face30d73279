"""The application that the documentation of FastAPI Users describes, with an audit trail.

Tables, routes, hashing and tokens are that package's; what is said to the trail is said here.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi_users import BaseUserManager, FastAPIUsers, UUIDIDMixin, schemas
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, JWTStrategy
from fastapi_users.db import SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from pgaudit_ctx import audit_context, bind_context, current_context, install
from pgaudit_ctx.integrations.asgi import AuditContextMiddleware

SECRET = "of no worth, for tests only: 32 bytes and more"


class Base(DeclarativeBase):
    pass


class User(SQLAlchemyBaseUserTableUUID, Base):
    pass


class UserRead(schemas.BaseUser[uuid.UUID]):
    pass


class WithUser(BaseModel):
    """What each write has to say."""

    user: str
    request_id: str


class SelfService(SQLAlchemyUserDatabase[User, uuid.UUID]):
    """Who has not logged in acts on an account of their own."""

    async def create(self, create_dict: dict[str, Any]) -> User:
        with audit_context(acting(create_dict["email"])):
            return await super().create(create_dict)

    async def update(self, user: User, update_dict: dict[str, Any]) -> User:
        with audit_context(acting(user.email)):
            return await super().update(user, update_dict)


def acting(email: str) -> dict[str, str]:
    known = current_context() or {}
    return {} if "user" in known else {"user": email}


class UserManager(UUIDIDMixin, BaseUserManager[User, uuid.UUID]):
    reset_password_token_secret = SECRET
    verification_token_secret = SECRET

    async def on_after_forgot_password(
        self, user: User, token: str, request: Request | None = None
    ) -> None:
        request.app.state.mails.append(token)

    on_after_request_verify = on_after_forgot_password


def create_app(url: str) -> FastAPI:
    engine = create_async_engine(url, pool_size=2, max_overflow=0)
    install(engine, require_context=True, context_model=WithUser)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    async def manager() -> AsyncIterator[UserManager]:
        async with sessions() as session:
            yield UserManager(SelfService(session, User))

    backend = AuthenticationBackend(
        name="jwt",
        transport=BearerTransport(tokenUrl="auth/login"),
        get_strategy=lambda: JWTStrategy(secret=SECRET, lifetime_seconds=600),
    )
    users = FastAPIUsers[User, uuid.UUID](manager, [backend])

    async def tell_user(
        user: Annotated[User | None, Depends(users.current_user(optional=True))],
    ) -> None:
        if user is not None:
            bind_context(user=user.email)

    app = FastAPI(lifespan=lifespan, dependencies=[Depends(tell_user)])
    app.state.mails = []
    app.state.sessions = sessions
    app.add_middleware(AuditContextMiddleware)
    app.include_router(users.get_auth_router(backend), prefix="/auth")
    app.include_router(users.get_register_router(UserRead, schemas.BaseUserCreate), prefix="/auth")
    app.include_router(users.get_reset_password_router(), prefix="/auth")
    app.include_router(users.get_verify_router(UserRead), prefix="/auth")
    app.include_router(users.get_users_router(UserRead, schemas.BaseUserUpdate), prefix="/users")
    return app


async def appoint(session: AsyncSession, email: str) -> None:
    """Make somebody a superuser, as an operator does."""
    user = await SQLAlchemyUserDatabase(session, User).get_by_email(email)
    assert user is not None
    user.is_superuser = True
    with audit_context(user="operator", request_id="by hand", reason="first superuser"):
        await session.commit()
