"""The WSGI middleware: what the context of a request is, and that none is left in a thread."""

import contextvars
import threading
from collections.abc import Iterator
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from pgaudit_ctx import audit_context, bind_context, current_context
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.integrations.wsgi import AuditContextMiddleware

seen: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen_yet() -> None:
    seen.clear()


def look(environ: Any, start_response: Any) -> list[bytes]:
    seen.append(dict(current_context() or {}))
    start_response("200 OK", [])
    return [b""]


def ask(app: Any, path: str = "/", **options: Any) -> dict[str, Any]:
    environ = {"REMOTE_ADDR": "192.0.2.1", **options.pop("environ", {})}
    Client(app).get(path, environ_base=environ, **options)
    return seen[-1]


def test_a_request_says_where_it_came_from_and_what_it_asked_for() -> None:
    headers = {"User-Agent": "curl/8", "X-Request-ID": "abc-1", "X-Forwarded-For": "6.6.6.6"}
    assert ask(AuditContextMiddleware(look), "/päth", headers=headers) == {
        "method": "GET",
        "endpoint": "/päth",
        "request_id": "abc-1",
        "ip": "192.0.2.1",
        "user_agent": "curl/8",
    }
    assert current_context() is None


@pytest.mark.parametrize(
    ("header", "name"), [("X-Forwarded-For", {}), ("X-Real-IP", {"forwarded_header": "x-real-ip"})]
)
def test_the_forwarded_address_counts_if_the_proxy_is_trusted(
    header: str, name: dict[str, str]
) -> None:
    app = AuditContextMiddleware(look, trusted_proxies=["192.0.2.0/24"], **name)
    assert ask(app, headers={header: "198.51.100.7"})["ip"] == "198.51.100.7"
    assert ask(app, headers={"Forwarded": "for=6.6.6.6"})["ip"] == "192.0.2.1"


def test_get_context_goes_over_the_defaults_and_none_removes_one() -> None:
    app = AuditContextMiddleware(look, lambda environ: {"user": environ["HTTP_X_USER"], "ip": None})
    context = ask(app, headers={"X-User": "dr.who"})
    assert context["user"] == "dr.who"
    assert "ip" not in context


def test_an_inner_middleware_keeps_what_the_outer_one_said() -> None:
    inner = AuditContextMiddleware(look, lambda _: {"user": "inner"})
    outer = AuditContextMiddleware(
        inner, lambda _: {"user": "outer", "request_id": "fixed"}, ["192.0.2.1"]
    )
    context = ask(outer, headers={"X-Forwarded-For": "198.51.100.7"})
    assert (context["user"], context["ip"]) == ("inner", "198.51.100.7")
    assert context["request_id"] == "fixed"


def test_nothing_of_the_surroundings_is_inherited_and_nothing_is_left_in_the_thread() -> None:
    leaked: contextvars.ContextVar[str] = contextvars.ContextVar("leaked", default="clean")

    def careless(environ: Any, start_response: Any) -> list[bytes]:
        look(environ, start_response)
        audit_context(user="left open").__enter__()
        leaked.set("dirty")
        raise LookupError

    with audit_context(user="of the request before"):
        app = AuditContextMiddleware(careless)
        with pytest.raises(LookupError):
            run_wsgi_app(app, EnvironBuilder().get_environ())
        assert "user" not in seen[-1]
        assert current_context() == {"user": "of the request before"}
        assert leaked.get() == "clean"


def test_a_body_is_made_and_closed_inside_of_the_scope() -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            seen.append((current_context() or {}).get("user"))
            yield b"x"
            seen.append((current_context() or {}).get("user"))

        def close(self) -> None:
            seen.append((current_context() or {}).get("user"))

    def app(environ: Any, start_response: Any) -> Body:
        bind_context(user="dr.who")
        start_response("200 OK", [])
        return Body()

    with Client(AuditContextMiddleware(app)).get("/") as response:
        assert response.data == b"x"
    assert seen == ["dr.who"] * 3
    assert current_context() is None


def test_two_bodies_that_one_thread_makes_in_turns_are_not_confused() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        bind_context(user=environ["PATH_INFO"])
        start_response("200 OK", [])

        def parts() -> Iterator[bytes]:
            while True:
                yield current_context()["user"].encode()

        return parts()

    def begin(path: str) -> Any:
        environ = EnvironBuilder(path).get_environ()
        return AuditContextMiddleware(app)(environ, lambda *_: None)

    first, second = begin("/a"), begin("/b")
    assert [next(first), next(second), next(first), next(second)] == [b"/a", b"/b", b"/a", b"/b"]


def test_files_and_complete_bodies_are_given_to_the_server_as_they_are(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        for body in ([b"x"], (b"x",), FileWrapper(file)):
            environ = {**EnvironBuilder().get_environ(), "wsgi.file_wrapper": FileWrapper}
            app = AuditContextMiddleware(lambda *_, body=body: body)
            assert app(environ, lambda *_: None) is body


def test_threads_with_a_copied_context_reach_the_scope() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        copied = contextvars.copy_context()
        thread = threading.Thread(target=copied.run, args=(lambda: bind_context(user="dr.who"),))
        thread.start()
        thread.join()
        return look(environ, start_response)

    assert ask(AuditContextMiddleware(app))["user"] == "dr.who"


def test_a_proxy_that_is_no_address_is_refused_when_the_middleware_is_made() -> None:
    with pytest.raises(UsageError):
        AuditContextMiddleware(look, trusted_proxies=["proxy"])
