"""The Flask extension on real servers, with threads and with gevent, and its commands."""

import itertools
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, request
from flask.signals import request_finished
from sqlalchemy import URL, create_engine
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.serving import make_server

from pgaudit_ctx import audit_context, bind_context, current_context
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.integrations.flask import PgAuditCtx
from support.database import Capture, Database, create_database, drop_database
from support.flask_shop import WRITES, Base, create_app, db


@pytest.fixture
def shop(server: Any, destination: Database) -> Iterator[Capture]:
    """A source with the shop's tables."""
    source = create_database(server)
    engine = source.engine()
    Base.metadata.create_all(engine)
    made = Capture(source, destination)
    made.setup()
    yield made
    drop_database(source)


@contextmanager
def threads(url: str) -> Iterator[str]:
    """Serve the shop with one thread for each request."""
    app = create_app(url)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
        with app.app_context():
            db.engine.dispose()


@contextmanager
def greenlets(url: str) -> Iterator[str]:
    """Serve the shop with one greenlet for each request."""
    with subprocess.Popen(
        [sys.executable, "-m", "support.gevent_server", url],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("serve", [threads, greenlets])
def test_of_many_requests_at_once_not_one_change_is_under_anothers_user(
    serve: Any, shop: Capture
) -> None:
    numbers = itertools.count()
    asked = [(kind, f"{kind}-{next(numbers)}") for kind in WRITES for _ in range(15)]
    random.shuffle(asked)
    with serve(shop.source.sqlalchemy_url()) as address, httpx.Client(base_url=address) as client:

        def ask(kind: str, user: str) -> None:
            headers = {"X-User": user, "X-Request-ID": user}
            answer = client.post(f"/{kind}/1", headers=headers, timeout=60)
            assert answer.status_code == {"error": 418, "crash": 500}.get(kind, 200), kind

        with ThreadPoolExecutor(20) as pool:
            for done in [pool.submit(ask, kind, user) for kind, user in asked]:
                done.result()
    found: Counter[str] = Counter()
    for change in shop.changes("articles"):
        context = change.context
        user = change.after["name"]
        assert context["user"] == context["request_id"] == user
        assert context["endpoint"] == f"/{user.rpartition('-')[0]}/<int:key>"
        found[user] += 1
    assert found == Counter({user: WRITES[kind] for kind, user in asked})


def small_app(**options: Any) -> Flask:
    app = Flask("small")

    @app.get("/items/<key>")
    def told(key: str) -> Any:
        return dict(current_context() or {})

    PgAuditCtx(app, **options)
    return app


def test_a_request_says_where_it_came_from_and_what_it_asked_for() -> None:
    app = small_app(trusted_proxies=["127.0.0.0/8"])
    headers = {"User-Agent": "curl/8", "X-Request-ID": "1", "X-Forwarded-For": "198.51.100.7"}
    assert app.test_client().get("/items/3", headers=headers).json == {
        "method": "GET",
        "endpoint": "/items/<key>",
        "request_id": "1",
        "ip": "198.51.100.7",
        "user_agent": "curl/8",
    }
    assert current_context() is None


@pytest.mark.parametrize("outside", [True, False])
def test_the_address_that_proxy_fix_finds_counts_on_whichever_side_it_is(outside: bool) -> None:
    app = Flask("proxied")

    @app.get("/")
    def told() -> Any:
        return dict(current_context() or {})

    if not outside:
        app.wsgi_app = ProxyFix(app.wsgi_app)
    PgAuditCtx(app)
    if outside:
        app.wsgi_app = ProxyFix(app.wsgi_app)
    forwarded = {"X-Forwarded-For": "6.6.6.6, 198.51.100.7"}
    assert app.test_client().get("/", headers=forwarded).json["ip"] == "198.51.100.7"
    junk = {"X-Forwarded-For": "\N{SNOWMAN}".encode().decode("latin-1")}
    assert "ip" not in app.test_client().get("/", headers=junk).json


def test_a_request_that_asks_its_own_application_leaves_its_scope_as_it_was() -> None:
    app = small_app()

    @app.get("/outer")
    def outer() -> Any:
        bind_context(user="outer")
        inner = app.test_client().get("/items/1", headers={"X-Request-ID": "inner"}).json
        return {"inner": inner, "outer": dict(current_context() or {})}

    found = app.test_client().get("/outer", headers={"X-Request-ID": "outer"}).json
    assert "user" not in found["inner"]
    assert found["inner"]["request_id"] == "inner"
    assert (found["outer"]["user"], found["outer"]["request_id"]) == ("outer", "outer")
    assert found["outer"]["endpoint"] == "/outer"


def test_get_context_goes_over_the_defaults_and_none_removes_one() -> None:
    def get_context(asked: Any) -> dict[str, Any]:
        assert asked.view_args == request.view_args == {"key": "3"}
        return {"user": asked.headers["X-User"], "ip": None, "endpoint": "mine"}

    headers = {"X-User": "dr.who"}
    context = small_app(get_context=get_context).test_client().get("/items/3", headers=headers).json
    assert (context["user"], context["endpoint"]) == ("dr.who", "mine")
    assert "ip" not in context


def test_a_request_without_a_route_is_told_by_its_path() -> None:
    app = small_app()
    seen = []

    @app.errorhandler(404)
    def missing(_: Any) -> Any:
        seen.append(current_context())
        return "", 404

    assert app.test_client().get("/nowhere").status_code == 404
    assert seen[0]["endpoint"] == "/nowhere"


def test_the_test_clients_kept_context_and_contexts_pushed_by_hand_do_no_harm() -> None:
    app = small_app()
    with app.test_client() as client:
        client.get("/items/1")
        assert request.view_args == {"key": "1"}
        assert current_context() is None
    with app.test_request_context("/items/2"):
        assert app.full_dispatch_request().status_code == 200
    with audit_context(user="test"), app.app_context():
        bind_context(reason="by hand")
        assert current_context() == {"user": "test", "reason": "by hand"}


def test_a_signals_receiver_is_inside_of_the_scope() -> None:
    app = small_app()
    seen = []

    def finished(_: Flask, **__: Any) -> None:
        seen.append((current_context() or {}).get("endpoint"))

    with request_finished.connected_to(finished, app):
        app.test_client().get("/items/1")
    assert seen == ["/items/<key>"]


def test_one_extension_serves_several_applications_and_each_only_once() -> None:
    audit = PgAuditCtx()
    for name in ("one", "two"):
        audit.init_app(Flask(name))
    app = Flask("three")
    audit.init_app(app)
    with pytest.raises(UsageError, match="twice"):
        PgAuditCtx(app)


def test_the_commands_know_the_urls_of_the_application(
    shop: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set and taken away again, so that what the command sets does not outlive the test.
    for name in ("SOURCE", "DESTINATION"):
        monkeypatch.setenv(f"PGAUDIT_CTX_{name}_URL", "")
        monkeypatch.delenv(f"PGAUDIT_CTX_{name}_URL")
    monkeypatch.setenv("PGAUDIT_CTX_SLOT", shop.options.slot)
    app = create_app(shop.source.sqlalchemy_url())
    app.config["PGAUDIT_CTX_DESTINATION_URL"] = shop.destination.url
    writer = app.test_client().post("/plain/1", headers={"X-User": "till-7"})
    assert writer.status_code == 200
    runner = app.test_cli_runner()
    assert "pgaudit" in runner.invoke(args=["--help"]).output
    helped = runner.invoke(args=["pgaudit", "--help"])
    assert (helped.exit_code, "flask pgaudit" in helped.output) == (0, True)
    captured = runner.invoke(args=["pgaudit", "worker", "--until-caught-up"])
    assert captured.exit_code == 0, captured.output
    shown = runner.invoke(args=["pgaudit", "history", "articles", "1", "--json"])
    assert '"user": "till-7"' in shown.output
    assert runner.invoke(args=["pgaudit", "history", "--nonsense"]).exit_code == 2
    with app.app_context():
        db.engine.dispose()


def test_a_url_of_sqlalchemy_keeps_its_password() -> None:
    from pgaudit_ctx.integrations.flask import _text

    url = URL.create("postgresql+psycopg", "app", "secret", "localhost", 5432, "shop")
    assert _text(url) == "postgresql+psycopg://app:secret@localhost:5432/shop"
    assert create_engine(_text(url)).url == url
