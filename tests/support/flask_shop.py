"""A Flask application whose every way of writing leaves rows that bear the name of who asked."""

import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, abort, g, request, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgaudit_ctx import bind_context
from pgaudit_ctx.integrations.flask import PgAuditCtx


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Article(db.Model):
    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


# How many rows each of the routes writes.
WRITES = {
    "plain": 1,
    "stream": 2,
    "stream-with-context": 2,
    "teardown": 1,
    "app-teardown": 1,
    "error": 1,
    "crash": 1,
    "thread": 2,
}


def create_app(url: str) -> Flask:  # noqa: C901, PLR0915 - one route after the other
    """The extension is initialised last, after other handlers and before its database."""
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 2, "max_overflow": 0}

    def write() -> None:
        db.session.add(Article(name=request.headers["X-User"]))
        db.session.commit()

    @app.before_request
    def tell_user() -> None:
        bind_context(user=request.headers["X-User"])
        time.sleep(0)  # others may come in between

    @app.teardown_request
    def write_late(_: Any) -> None:
        if g.pop("late", None):
            write()

    @app.teardown_appcontext
    def write_later(_: Any) -> None:
        user = g.pop("later", None)
        if user is not None:
            db.session.add(Article(name=user))
            db.session.commit()

    @app.post("/plain/<int:key>")
    def plain(key: int) -> str:
        write()
        return ""

    @app.post("/stream/<int:key>")
    def stream(key: int) -> Response:
        user = request.headers["X-User"]

        def parts() -> Iterator[bytes]:
            for _ in range(2):
                with app.app_context():
                    db.session.add(Article(name=user))
                    db.session.commit()
                yield b"x"

        return Response(parts())

    @app.post("/stream-with-context/<int:key>")
    def stream_in_context(key: int) -> Response:
        def parts() -> Iterator[bytes]:
            for _ in range(2):
                write()
                yield b"x"

        return Response(stream_with_context(parts()))

    @app.post("/teardown/<int:key>")
    def teardown(key: int) -> str:
        g.late = True
        return ""

    @app.post("/app-teardown/<int:key>")
    def app_teardown(key: int) -> str:
        g.later = request.headers["X-User"]
        return ""

    @app.post("/error/<int:key>")
    def error(key: int) -> str:
        write()
        abort(418)

    @app.post("/crash/<int:key>")
    def crash(key: int) -> str:
        write()
        raise LookupError

    @app.post("/thread/<int:key>")
    def thread(key: int) -> str:
        user = request.headers["X-User"]

        def work() -> None:
            with app.app_context():
                db.session.add(Article(name=user))
                db.session.commit()

        write()
        started = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        started.start()
        started.join()
        return ""

    PgAuditCtx(app, require_context=True)
    db.init_app(app)
    return app
