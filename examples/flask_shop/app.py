"""A shop in Flask: requests and the tasks they send are attributed alike.

    SQLALCHEMY_DATABASE_URI=postgresql+psycopg://app@localhost/shop \\
    CELERY_BROKER_URL=redis://localhost flask --app app run
    celery -A app:celery_app worker

Beside it runs the worker of the trail: ``flask --app app pgaudit setup``, then ``flask --app app
pgaudit worker``.
"""

import os
from typing import Any

from celery import Celery, shared_task
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgaudit_ctx import audit_context, bind_context
from pgaudit_ctx.integrations import celery as celery_audit
from pgaudit_ctx.integrations.flask import PgAuditCtx


class Base(DeclarativeBase):
    """The shop's declarative base."""


db = SQLAlchemy(model_class=Base)
audit = PgAuditCtx(require_context=True)


class Article(db.Model):
    """Something that is sold."""

    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    in_stock: Mapped[int] = mapped_column(default=0)


@shared_task
def reorder(article_id: int, number: int) -> None:
    """Order an article again, in the name of whoever sold the last one."""
    article = db.session.get_one(Article, article_id, with_for_update=True)
    article.in_stock += number
    db.session.commit()


def create_app(config: dict[str, Any] | None = None) -> Flask:
    """Make the application, configured by the environment unless told otherwise."""
    app = Flask("shop")
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=os.environ.get("SQLALCHEMY_DATABASE_URI"),
        CELERY={"broker_url": os.environ.get("CELERY_BROKER_URL")},
    )
    app.config.update(config or {})
    db.init_app(app)
    audit.init_app(app)
    app.extensions["celery"] = make_celery(app)

    @app.before_request
    def tell_user() -> None:
        # Stands for your own authentication.
        if "X-User" in request.headers:
            bind_context(user=request.headers["X-User"])

    @app.post("/articles")
    def add() -> dict[str, int]:
        article = Article(name=request.form["name"], in_stock=int(request.form["in_stock"]))
        db.session.add(article)
        db.session.commit()
        return {"id": article.id}

    @app.post("/articles/<int:article_id>/sold")
    def sell(article_id: int) -> dict[str, int]:
        with audit_context(reason="sold"):
            article = db.session.get_one(Article, article_id, with_for_update=True)
            article.in_stock -= 1
            left = article.in_stock
            db.session.commit()
        if left == 0:
            with audit_context(reason="sold out"):
                reorder.delay(article_id, 10)
        return {"left": left}

    return app


def make_celery(app: Flask) -> Celery:
    """Make the Celery application; its tasks run in the context of the Flask application."""
    celery_app = Celery(app.name)

    class FlaskTask(celery_app.Task):  # type: ignore[name-defined, misc] # made by the application
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            with app.app_context():
                return self.run(*arguments, **keywords)

    celery_app.Task = FlaskTask
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    celery_audit.install(celery_app)
    return celery_app


if "SQLALCHEMY_DATABASE_URI" in os.environ:  # as flask and celery run it
    flask_app = create_app()
    celery_app = flask_app.extensions["celery"]
