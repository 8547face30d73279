"""FastAPI on a real server: each change carries the context of its own request, and of no other."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
import websockets
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Query, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgaudit_ctx import audit_context, bind_context, current_context, install
from pgaudit_ctx.errors import NoOpenScope
from pgaudit_ctx.integrations.asgi import AuditContextMiddleware
from pgaudit_ctx.integrations.fastapi import bind_from, reason_header
from support.clinic import Patient
from support.database import Capture
from support.serving import serving

User = Annotated[str, Header(alias="X-User")]


async def user_in_the_loop(x_user: User) -> str:
    bind_context(user=x_user)
    await asyncio.sleep(0)
    return x_user


def user_in_a_thread(x_user: User) -> str:
    bind_context(user=x_user)
    return x_user


def clinic(capture: Capture) -> FastAPI:  # noqa: C901, PLR0915 - one route after the other
    """Routes of every kind; each writes rows that bear the name of the user who asked."""
    pool = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 60}
    engine = create_engine(capture.source.sqlalchemy_url(), **pool)
    async_engine = create_async_engine(capture.source.sqlalchemy_url(), **pool)
    install(engine, require_context=True)
    install(async_engine, require_context=True)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await async_engine.dispose()
        engine.dispose()

    def write(name: str) -> None:
        with Session(engine) as session:
            session.add(Patient(name=name))
            session.commit()

    async def write_async(name: str) -> None:
        async with AsyncSession(async_engine) as session:
            session.add(Patient(name=name))
            await session.commit()

    async def session_in_the_loop() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(async_engine) as session:
            yield session
            await session.commit()

    def session_in_a_thread() -> Iterator[Session]:
        with Session(engine) as session:
            yield session
            session.commit()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(AuditContextMiddleware)
    by_loop = Annotated[str, Depends(user_in_the_loop)]
    by_thread = Annotated[str, Depends(user_in_a_thread)]

    @app.post("/async/{key}")
    async def in_the_loop(key: int, user: by_loop) -> None:
        await write_async(user)

    @app.post("/async-sync-dependency/{key}")
    async def in_the_loop_by_thread(key: int, user: by_thread) -> None:
        await write_async(user)

    @app.post("/sync/{key}")
    def in_a_thread(key: int, user: by_thread) -> None:
        write(user)

    @app.post("/sync-async-dependency/{key}")
    def in_a_thread_by_loop(key: int, user: by_loop) -> None:
        write(user)

    @app.post("/teardown/{key}")
    async def left_to_the_teardown(
        key: int, session: Annotated[AsyncSession, Depends(session_in_the_loop)], user: by_loop
    ) -> None:
        session.add(Patient(name=user))

    @app.post("/sync-teardown/{key}")
    def left_to_the_teardown_in_a_thread(
        key: int, session: Annotated[Session, Depends(session_in_a_thread)], user: by_thread
    ) -> None:
        session.add(Patient(name=user))

    @app.post("/background/{key}")
    async def in_the_background(key: int, tasks: BackgroundTasks, user: by_thread) -> None:
        tasks.add_task(write_async, user)
        tasks.add_task(write, user)

    @app.post("/stream/{key}")
    async def streamed(key: int, user: by_loop) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            await write_async(user)
            yield b"x"
            await write_async(user)

        return StreamingResponse(parts())

    @app.post("/sync-stream/{key}")
    def streamed_from_a_thread(key: int, user: by_thread) -> StreamingResponse:
        def parts() -> Iterator[bytes]:
            write(user)
            yield b"x"
            write(user)

        return StreamingResponse(parts())

    @app.post("/error/{key}")
    async def failing(key: int, user: by_loop) -> None:
        await write_async(user)
        raise HTTPException(418)

    @app.post("/crash/{key}")
    def crashing(key: int, user: by_thread) -> None:
        write(user)
        raise LookupError

    @app.post("/task/{key}")
    async def in_tasks(key: int, user: by_loop) -> None:
        await asyncio.gather(write_async(user), asyncio.to_thread(write, user))

    @app.websocket("/socket/{key}")
    async def talk(key: int, socket: WebSocket, user: by_thread) -> None:
        await socket.accept()
        async for message in socket.iter_text():
            with audit_context(reason=message):
                await write_async(user)
            await socket.send_text("done")

    return app


WRITES = {
    "async": 1,
    "async-sync-dependency": 1,
    "sync": 1,
    "sync-async-dependency": 1,
    "teardown": 1,
    "sync-teardown": 1,
    "background": 2,
    "stream": 2,
    "sync-stream": 2,
    "error": 1,
    "crash": 1,
    "task": 2,
}


async def storm(address: str, rounds: int) -> Counter[tuple[str, str]]:
    """Ask for everything at once as many users; gives how many rows each wrote through what."""
    numbers = itertools.count()
    asked = [
        (kind, f"{kind}-{next(numbers)}") for kind in (*WRITES, "socket") for _ in range(rounds)
    ]
    random.shuffle(asked)
    limits = httpx.Limits(max_connections=100)

    async def ask(client: httpx.AsyncClient, kind: str, user: str) -> None:
        headers = {"X-User": user, "X-Request-ID": user}
        if kind == "socket":
            url = f"ws://{address}/socket/1"
            async with websockets.connect(url, additional_headers=headers) as socket:
                for message in ("first", "second"):
                    await socket.send(message)
                    await socket.recv()
            return
        answer = await client.post(f"/{kind}/1", headers=headers)
        expected = {"error": 418, "crash": 500}.get(kind, 200)
        assert answer.status_code == expected, kind

    async with httpx.AsyncClient(base_url=f"http://{address}", limits=limits, timeout=60) as client:
        await asyncio.gather(*(ask(client, kind, user) for kind, user in asked))
    return Counter({(user, kind): {**WRITES, "socket": 2}[kind] for kind, user in asked})


def test_of_hundreds_of_requests_at_once_not_one_change_is_under_anothers_user(
    capture: Capture,
) -> None:
    with serving(clinic(capture)) as address:
        wanted = asyncio.run(storm(address, 25))
    found: Counter[tuple[str, str]] = Counter()
    for change in capture.changes("patient"):
        context = change.context
        user = change.after["name"]
        kind = user.rpartition("-")[0]
        assert context["user"] == context["request_id"] == user
        assert context["endpoint"] == f"/{kind}/{{key}}"
        found[user, kind] += 1
    assert found == wanted


async def ask(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        return await client.get(path, headers=headers)


async def test_what_other_dependencies_return_is_bound() -> None:
    calls = []

    def user_name(x_user: User, tenant: Annotated[str | None, Query()] = None) -> str:
        calls.append(x_user)
        return x_user

    async def role() -> None:
        return None

    app = FastAPI(dependencies=[Depends(bind_from(user=user_name, role=role))])
    app.add_middleware(AuditContextMiddleware)

    @app.get("/")
    def told(name: Annotated[str, Depends(user_name)]) -> Any:
        return {**(current_context() or {}), "name": name}

    context = (await ask(app, "/", **{"X-User": "dr.who"})).json()
    assert (context["user"], context["name"]) == ("dr.who", "dr.who")
    assert "role" not in context
    assert calls == ["dr.who"]
    assert (await ask(app, "/")).status_code == 422
    parameters = app.openapi()["paths"]["/"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == {"X-User", "tenant"}


async def test_the_reason_comes_from_a_header_that_may_be_required() -> None:
    app = FastAPI()
    app.add_middleware(AuditContextMiddleware)

    @app.get("/may", dependencies=[Depends(reason_header())])
    @app.get("/must", dependencies=[Depends(reason_header("X-Why", required=True, key="why"))])
    def told() -> Any:
        return dict(current_context() or {})

    assert (await ask(app, "/may", **{"X-Audit-Reason": "audit"})).json()["reason"] == "audit"
    assert "reason" not in (await ask(app, "/may")).json()
    assert (await ask(app, "/must", **{"X-Why": "audit"})).json()["why"] == "audit"
    assert (await ask(app, "/must")).status_code == 422
    (parameter,) = app.openapi()["paths"]["/must"]["get"]["parameters"]
    assert (parameter["name"], parameter["required"]) == ("X-Why", True)


async def test_without_the_middleware_the_error_names_it() -> None:
    app = FastAPI(dependencies=[Depends(bind_from(user=lambda: "dr.who"))])

    @app.get("/")
    def nothing() -> None: ...

    with pytest.raises(NoOpenScope, match="middleware"):
        await ask(app, "/")


async def test_the_endpoint_of_an_included_router_has_its_prefixes() -> None:
    from fastapi import APIRouter

    inner = APIRouter(prefix="/patients")
    outer = APIRouter(prefix="/v{version}")

    @inner.get("/{key}")
    def told(version: int, key: int) -> Any:
        return dict(current_context() or {})

    app = FastAPI()
    app.add_middleware(AuditContextMiddleware)
    outer.include_router(inner)
    app.include_router(outer)
    assert (await ask(app, "/v2/patients/42")).json()["endpoint"] == "/v{version}/patients/{key}"
