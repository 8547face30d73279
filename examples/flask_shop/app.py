"""A shop in Flask: one audit scope for each request, opened and closed by handlers of its own.

PGAUDIT_CTX_SOURCE_URL=postgresql://app@localhost/shop flask --app app:create_app run
"""

import os
from contextlib import ExitStack

from flask import Flask, g, request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgaudit_ctx import audit_context, bind_context, install
from pgaudit_ctx.urls import sqlalchemy_url


class Base(DeclarativeBase):
    """The shop's declarative base."""


class Article(Base):
    """Something that is sold."""

    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    in_stock: Mapped[int] = mapped_column(default=0)


def create_app() -> Flask:
    """Make the application from the environment."""
    engine = create_engine(sqlalchemy_url(os.environ["PGAUDIT_CTX_SOURCE_URL"]))
    install(engine)
    app = Flask(__name__)
    app.extensions["engine"] = engine

    @app.before_request
    def open_scope() -> None:
        g.audit_scope = ExitStack()
        g.audit_scope.enter_context(audit_context(method=request.method, path=request.path))
        if "X-User" in request.headers:  # stands for your own authentication
            bind_context(user=request.headers["X-User"])

    @app.teardown_request
    def close_scope(_: BaseException | None) -> None:
        g.pop("audit_scope", ExitStack()).close()

    @app.post("/articles/<int:article_id>/sold")
    def sell(article_id: int) -> dict[str, int]:
        with Session(engine) as session, audit_context(reason="sold"):
            article = session.get_one(Article, article_id, with_for_update=True)
            article.in_stock -= 1
            session.commit()
            return {"in_stock": article.in_stock}

    return app
