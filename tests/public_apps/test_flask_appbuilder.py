"""Flask-AppBuilder: its pages and its REST routes, and who the trail says has written."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.database import Capture, create_database, drop_database

pytest.importorskip("flask_appbuilder", reason="the dependency group public-apps is not installed")

from pgaudit_ctx import audit_context
from public_apps import contacts

# Its own and those of the packages it builds on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def book(server: Any, destination: Any) -> Iterator[Capture]:
    """A source with its tables and those of its users."""
    source = create_database(server)
    contacts.Model.metadata.create_all(source.engine())
    made = Capture(source, destination)
    made.setup()
    yield made
    drop_database(source)


def sent(client: Any, path: str, form: dict[str, Any]) -> None:
    """Send a form as a browser does; it leads elsewhere if it was accepted."""
    assert client.post(path, data=form).status_code == 302, path


def work_in_pages(app: Any, name: str) -> None:
    browser = app.test_client()
    assert browser.post("/login/", data={"username": name, "password": "wrong"}).status_code == 302
    sent(browser, "/login/", {"username": name, "password": f"secret-{name}"})
    sent(browser, "/contactgroups/add", {"name": f"of {name}"})
    sent(browser, "/contacts/add", {"name": f"friend of {name}"})
    # Its own page for that, which writes into its own table.
    password = {"password": "another-1", "conf_password": "another-1"}
    sent(browser, "/resetmypassword/form", password)
    sent(browser, "/userinfoeditview/form", {"first_name": name.title(), "last_name": "Changed"})
    browser.get("/logout/")


def work_in_rest(app: Any, name: str) -> None:
    client = app.test_client()
    login = {"username": name, "password": "another-1", "provider": "db"}
    token = client.post("/api/v1/security/login", json=login).json["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    made = client.post("/api/v1/contact/", json={"name": f"new of {name}"}, headers=headers)
    assert made.status_code == 201, made.json
    path = f"/api/v1/contact/{made.json['id']}"
    changed = client.put(path, json={"name": f"old of {name}"}, headers=headers)
    assert changed.status_code == 200, changed.json
    assert client.delete(path, headers=headers).status_code == 200


def test_each_write_of_its_pages_and_routes_is_under_the_user_who_caused_it(book: Capture) -> None:
    app = contacts.create_app(book.source.sqlalchemy_url())
    names = ["ann", "bob", "eve"]
    with app.app_context(), audit_context(user="operator", reason="first users"):
        manager = app.appbuilder.sm
        role = manager.find_role("Admin")
        for name in names:
            mail = f"{name}@example.com"
            assert manager.add_user(name, name, "Smith", mail, role, f"secret-{name}")
        database = app.extensions["sqlalchemy"]
        database.session.remove()
    with ThreadPoolExecutor(3) as people:
        list(people.map(lambda name: work_in_pages(app, name), names))
        list(people.map(lambda name: work_in_rest(app, name), names))
    with app.app_context():
        database.engine.dispose()

    found: Counter[Any] = Counter()
    for change in book.changes():
        context, table = change.context, change.table_name
        row = change.after or change.before
        who = context["user"]
        if table in {"contact", "contact_group"}:
            assert row["name"].rpartition(" ")[2] == who
            found[table, change.operation, context["endpoint"]] += 1
        elif table == "ab_user" and change.operation == "UPDATE":
            assert who in {row["username"], "nobody"}
            why = context.get("reason", "by themselves")
            assert (who == "nobody") == (why == "login failed")
            found[table, why, context["endpoint"]] += 1
        elif who == "system":
            assert context["reason"] == "start"
        else:
            assert (who, context["reason"]) == ("operator", "first users")
    three = dict.fromkeys(
        [
            ("contact_group", "INSERT", "/contactgroups/add"),
            ("contact", "INSERT", "/contacts/add"),
            ("contact", "INSERT", "/api/v1/contact/"),
            ("contact", "UPDATE", "/api/v1/contact/<pk>"),
            ("contact", "DELETE", "/api/v1/contact/<pk>"),
            ("ab_user", "login failed", "/login/"),
            ("ab_user", "login", "/login/"),
            ("ab_user", "login", "/api/v1/security/login"),
            ("ab_user", "by themselves", "/resetmypassword/form"),
            ("ab_user", "by themselves", "/userinfoeditview/form"),
        ],
        3,
    )
    assert found == three
