"""The ASGI middleware, without any database: what it says of a request, and where that ends."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import websockets
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from pgaudit_ctx import ContextInvalid, audit_context, bind_context, current_context
from pgaudit_ctx.errors import NoOpenScope, UsageError
from pgaudit_ctx.integrations.asgi import AuditContextMiddleware
from support.serving import serving


async def told(request: Request) -> JSONResponse:
    return JSONResponse(dict(current_context() or {}))


async def answer(
    app: Any, path: str = "/", headers: Any = (), client: Any = ("192.0.2.1", 1)
) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=client)
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as asked:
        return await asked.get(path, headers=headers)


async def test_a_request_says_where_it_came_from_and_what_it_asked_for() -> None:
    app = AuditContextMiddleware(Starlette(routes=[Route("/patients/{key:int}", told)]))
    headers = {"User-Agent": "curl/8", "X-Request-ID": "abc-1", "X-Forwarded-For": "6.6.6.6"}
    assert (await answer(app, "/patients/42", headers)).json() == {
        "method": "GET",
        "endpoint": "/patients/{key}",
        "request_id": "abc-1",
        "ip": "192.0.2.1",
        "user_agent": "curl/8",
    }
    assert current_context() is None


async def test_two_requests_without_an_id_get_two() -> None:
    app = AuditContextMiddleware(Starlette(routes=[Route("/", told)]))
    first, second = (await answer(app)).json(), (await answer(app)).json()
    assert first["request_id"] != second["request_id"]


async def test_the_forwarded_address_counts_if_the_proxy_is_trusted() -> None:
    routes = [Route("/", told)]
    app = AuditContextMiddleware(Starlette(routes=routes), trusted_proxies=["10.0.0.0/8"])
    headers = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "198.51.100.7, 10.0.0.2")]
    asked = await answer(app, headers=headers, client=("10.0.0.1", 1))
    assert asked.json()["ip"] == "198.51.100.7"


async def test_the_proxies_header_can_be_named() -> None:
    routes = [Route("/", told)]
    app = AuditContextMiddleware(
        Starlette(routes=routes), trusted_proxies=["10.0.0.1"], forwarded_header="Forwarded"
    )
    headers = [("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=198.51.100.7")]
    asked = await answer(app, headers=headers, client=("10.0.0.1", 1))
    assert asked.json()["ip"] == "198.51.100.7"


async def test_a_route_that_is_not_found_is_told_by_its_path_without_what_cannot_be_stored() -> (
    None
):
    async def missing(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse(dict(current_context() or {}))(scope, receive, send)

    asked = await answer(AuditContextMiddleware(missing), "/nowhere/%00x")
    assert asked.json()["endpoint"] == "/nowhere/\N{REPLACEMENT CHARACTER}x"


async def test_a_mounted_route_has_the_path_of_its_mount() -> None:
    inner = Starlette(routes=[Route("/items/{key}", told)])
    app = AuditContextMiddleware(Starlette(routes=[Mount("/shop", inner)]))
    assert (await answer(app, "/shop/items/1")).json()["endpoint"] == "/shop/items/{key}"


async def test_get_context_goes_over_the_defaults_and_none_removes_one() -> None:
    def get_context(request: Request) -> dict[str, Any]:
        assert isinstance(request, Request)
        bind_context(tenant="north")
        return {"user": request.headers["X-User"], "ip": None, "method": "read", "reason": None}

    app = AuditContextMiddleware(Starlette(routes=[Route("/", told)]), get_context)
    context = (await answer(app, headers={"X-User": "dr.who", "X-Request-ID": "1"})).json()
    del context["user_agent"]
    assert context == {
        "method": "read",
        "endpoint": "/",
        "request_id": "1",
        "user": "dr.who",
        "tenant": "north",
    }


@pytest.mark.parametrize("said", [None, "by hand"])
async def test_an_endpoint_that_get_context_says_or_removes_stays_so(said: str | None) -> None:
    async def get_context(request: Request) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"endpoint": said}

    app = AuditContextMiddleware(Starlette(routes=[Route("/", told)]), get_context)
    assert (await answer(app)).json().get("endpoint") == said


async def test_an_error_of_get_context_ends_the_request() -> None:
    def get_context(request: Request) -> dict[str, Any]:
        raise LookupError("no such token")

    app = AuditContextMiddleware(Starlette(routes=[Route("/", told)]), get_context)
    with pytest.raises(LookupError):
        await answer(app)
    with pytest.raises(ContextInvalid):
        await answer(AuditContextMiddleware(app.app, lambda _: {"user": object()}))
    assert current_context() is None


async def test_an_inner_middleware_keeps_what_the_outer_one_said() -> None:
    inner = AuditContextMiddleware(
        Starlette(routes=[Route("/{key}", told)]), lambda _: {"user": "inner"}
    )
    outer = AuditContextMiddleware(
        inner, lambda _: {"user": "outer", "tenant": "north"}, ["10.0.0.1"]
    )
    headers = {"X-Forwarded-For": "198.51.100.7"}
    context = (await answer(outer, "/1", headers, ("10.0.0.1", 1))).json()
    alone = (await answer(AuditContextMiddleware(inner), "/1")).json()
    assert (context["user"], context["tenant"]) == ("inner", "north")
    assert context["ip"] == "198.51.100.7"
    assert context["endpoint"] == "/{key}"
    assert alone["request_id"] != context["request_id"]


async def test_the_id_is_the_outer_ones_also_if_it_was_made() -> None:
    seen = []

    class Look:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, *connection: Any) -> None:
            seen.append((current_context() or {})["request_id"])
            await self.app(*connection)

    inner = AuditContextMiddleware(Look(Starlette(routes=[Route("/", told)])))
    await answer(AuditContextMiddleware(Look(inner)))
    assert seen[0] == seen[1]


async def test_nothing_of_the_surroundings_is_inherited() -> None:
    app = AuditContextMiddleware(Starlette(routes=[Route("/", told)]))
    with audit_context(user="somebody else", reason="the request before"):
        assert set((await answer(app)).json()) <= {
            "method", "endpoint", "request_id", "ip", "user_agent",
        }  # fmt: skip
        assert current_context() == {"user": "somebody else", "reason": "the request before"}


async def test_bind_context_reaches_the_request_through_base_http_middleware_and_threads() -> None:
    class Login(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            bind_context(user="dr.who")
            return await call_next(request)

    async def route(request: Request) -> Response:
        await run_in_threadpool(lambda: bind_context(reason="from a thread"))
        await asyncio.create_task(asyncio.to_thread(lambda: bind_context(deep=True)))
        return await told(request)

    app = AuditContextMiddleware(
        Starlette(routes=[Route("/{x}", route)], middleware=[Middleware(Login)])
    )
    context = (await answer(app, "/1")).json()
    assert (context["user"], context["reason"], context["deep"]) == (
        "dr.who",
        "from a thread",
        True,
    )
    assert context["endpoint"] == "/{x}"


async def test_streamed_bodies_and_background_tasks_are_inside_of_the_scope() -> None:
    seen: list[Any] = []

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(2):
            await asyncio.sleep(0)
            seen.append((current_context() or {}).get("user"))
            yield b"x"

    def sync_parts() -> Iterator[bytes]:
        seen.append((current_context() or {}).get("user"))
        yield b"x"

    async def stream(request: Request) -> Response:
        bind_context(user="dr.who")
        body = parts() if request.url.path == "/async" else sync_parts()
        after = BackgroundTask(lambda: seen.append((current_context() or {}).get("user")))
        return StreamingResponse(body, background=after)

    routes = [Route("/async", stream), Route("/sync", stream)]
    app = AuditContextMiddleware(Starlette(routes=routes))
    await answer(app, "/async")
    await answer(app, "/sync")
    assert seen == ["dr.who"] * 5


async def test_an_exception_leaves_nothing_behind_and_its_handler_is_inside() -> None:
    seen: list[Any] = []

    async def fail(request: Request) -> Response:
        bind_context(user="dr.who")
        raise LookupError

    async def handler(request: Request, error: Exception) -> Response:
        seen.append((current_context() or {}).get("user"))
        return Response(status_code=500)

    app = AuditContextMiddleware(
        Starlette(routes=[Route("/", fail)], exception_handlers={LookupError: handler})
    )
    assert (await answer(app)).status_code == 500
    assert seen == ["dr.who"]
    with pytest.raises(LookupError):
        await answer(AuditContextMiddleware(Starlette(routes=[Route("/", fail)])))
    assert current_context() is None


@pytest.mark.parametrize("junk", ["dr.who", 7])
async def test_get_context_that_returns_no_mapping_is_told(junk: Any) -> None:
    app = Starlette(routes=[Route("/", told)])
    with pytest.raises(ContextInvalid, match="get_context returned"):
        await answer(AuditContextMiddleware(app, lambda _: junk))


def test_a_client_that_goes_away_ends_its_scope_and_no_other() -> None:
    seen: list[Any] = []
    gone = threading.Event()

    async def parts(user: str) -> AsyncIterator[bytes]:
        try:
            while True:
                await asyncio.sleep(0.01)
                yield b"x" * 65_536
        finally:
            seen.append((current_context() or {}).get("user"))
            gone.set()

    async def stream(request: Request) -> Response:
        bind_context(user=request.query_params["user"])
        return StreamingResponse(parts(request.query_params["user"]))

    routes = [Route("/stream", stream), Route("/", told)]
    with serving(AuditContextMiddleware(Starlette(routes=routes))) as address:
        with httpx.stream("GET", f"http://{address}/stream?user=ann") as answered:
            next(answered.iter_raw())
        assert gone.wait(30)
        assert "user" not in httpx.get(f"http://{address}/").json()
    assert seen == ["ann"]


async def test_each_of_two_mounted_applications_says_its_own_and_both_what_is_outside() -> None:
    def tenant(name: str) -> Any:
        inner = Starlette(routes=[Route("/{key}", told)])
        return AuditContextMiddleware(inner, lambda _: {"tenant": name})

    mounts = [Mount(f"/{name}", tenant(name)) for name in ("north", "south")]
    app = AuditContextMiddleware(Starlette(routes=mounts), lambda _: {"user": "dr.who"})
    for name in ("north", "south"):
        context = (await answer(app, f"/{name}/1")).json()
        assert (context["user"], context["tenant"]) == ("dr.who", name)
        assert context["endpoint"] == f"/{name}/{{key}}"


def test_the_lifespan_has_no_scope() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], current_context() is None))
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"].endswith("shutdown"):
                return

    with serving(AuditContextMiddleware(app)):
        pass
    assert seen == [("lifespan", True)]


async def test_a_websocket_has_one_scope_from_its_handshake_on() -> None:
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        bind_context(user=await websocket.receive_text())
        while (message := await websocket.receive_text()) != "bye":
            with audit_context(reason=message):
                await websocket.send_json(dict(current_context() or {}))
        await websocket.close()

    def get_context(connection: HTTPConnection) -> dict[str, Any]:
        return {"room": connection.query_params["room"]}

    app = AuditContextMiddleware(
        Starlette(routes=[WebSocketRoute("/chat/{key}", chat)]), get_context
    )
    with serving(app) as address:
        talks = []
        for user in ("ann", "bob"):
            talk = await websockets.connect(f"ws://{address}/chat/1?room={user}s")
            await talk.send(user)
            talks.append(talk)
        contexts = []
        for talk in (*talks, *talks):
            await talk.send("hello")
            contexts.append(json.loads(await talk.recv()))
        for talk in talks:
            await talk.send("bye")
            await talk.close()
    assert [context["user"] for context in contexts] == ["ann", "bob", "ann", "bob"]
    assert [context["room"] for context in contexts] == ["anns", "bobs", "anns", "bobs"]
    ids = [context["request_id"] for context in contexts]
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    for context in contexts:
        assert (context["method"], context["endpoint"]) == ("WEBSOCKET", "/chat/{key}")
        assert context["reason"] == "hello"


@pytest.mark.parametrize("protocol", ["h11", "httptools"])
def test_of_two_pipelined_requests_the_second_inherits_nothing(protocol: str) -> None:
    async def route(request: Request) -> Response:
        before = dict(current_context() or {})
        bind_context(user=request.query_params["user"])
        await asyncio.sleep(0.01)  # so that the other one has arrived
        return JSONResponse({"before": before.get("user"), "after": current_context()["user"]})

    app = AuditContextMiddleware(Starlette(routes=[Route("/", route)]))
    one = "GET /?user={} HTTP/1.1\r\nHost: clinic\r\n{}\r\n"
    with serving(app, http=protocol) as address, socket.socket() as client:
        host, _, port = address.partition(":")
        client.connect((host, int(port)))
        client.sendall(
            (one.format("ann", "") + one.format("bob", "Connection: close\r\n")).encode()
        )
        answered = b""
        while data := client.recv(65536):
            answered += data
    assert answered.count(b'"before":null') == 2
    assert b'"after":"ann"' in answered
    assert b'"after":"bob"' in answered


def test_a_proxy_that_is_no_address_is_refused_when_the_middleware_is_made() -> None:
    with pytest.raises(UsageError, match="neither an address nor a network"):
        AuditContextMiddleware(Starlette(), trusted_proxies=["proxy"])


async def test_outside_of_the_middleware_bind_context_says_what_to_do() -> None:
    with pytest.raises(NoOpenScope, match="middleware"):
        bind_context(user="x")
