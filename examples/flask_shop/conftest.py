"""The application on the database that the pytest plugin has made."""

from collections.abc import Callable, Iterator
from typing import Any

import app as shop
import pytest
from flask import Flask
from sqlalchemy import MetaData


@pytest.fixture(scope="session")
def audit_metadata() -> MetaData:
    return shop.Base.metadata


@pytest.fixture
def make_app(audit_url: str, audit_database: object) -> Iterator[Callable[..., Flask]]:
    made = []

    def make(**celery: Any) -> Flask:
        app = shop.create_app({"SQLALCHEMY_DATABASE_URI": audit_url, "CELERY": celery})
        made.append(app)
        return app

    yield make
    for app in made:
        with app.app_context():
            shop.db.engine.dispose()
