"""FastAPI Users: all of its flows, by many people at once, and who the trail says has written."""

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from support.database import Capture, create_database, drop_database
from support.serving import serving

pytest.importorskip("fastapi_users", reason="the dependency group public-apps is not installed")

from public_apps import accounts

FIRST, SECOND = "first-secret-1", "second-secret-2"


@pytest.fixture
def users(server: Any, destination: Any) -> Any:
    source = create_database(server)
    accounts.Base.metadata.create_all(source.engine())
    made = Capture(source, destination)
    made.setup()
    yield made
    drop_database(source)


async def sent(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> Any:
    answer = await client.request(method, path, **options)
    assert answer.is_success, (path, answer.text)
    return answer.json() if answer.content else None


async def log_in(client: httpx.AsyncClient, email: str, password: str) -> dict[str, str]:
    form = {"username": email, "password": password}
    token = (await sent(client, "POST", "/auth/login", data=form))["access_token"]
    return {"Authorization": f"Bearer {token}"}


async def mailed(client: httpx.AsyncClient, app: Any, path: str, email: str) -> str:
    """Ask for a mail and take the token out of it."""
    await sent(client, "POST", path, json={"email": email})
    return app.state.mails.pop()


async def live(client: httpx.AsyncClient, app: Any, email: str, mailbox: asyncio.Lock) -> None:
    """Everything that somebody can do with an account."""
    registration = {"email": email, "password": FIRST}
    await sent(client, "POST", "/auth/register", json=registration)
    token = await log_in(client, email, FIRST)
    await sent(client, "PATCH", "/users/me", json={"password": SECOND}, headers=token)
    async with mailbox:
        reset = await mailed(client, app, "/auth/forgot-password", email)
    await sent(client, "POST", "/auth/reset-password", json={"token": reset, "password": FIRST})
    await log_in(client, email, FIRST)
    async with mailbox:
        verify = await mailed(client, app, "/auth/request-verify-token", email)
    await sent(client, "POST", "/auth/verify", json={"token": verify})


async def play(app: Any, address: str, people: list[str]) -> None:
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client:
        mailbox = asyncio.Lock()
        await asyncio.gather(*(live(client, app, email, mailbox) for email in people))
        async with app.state.sessions() as session:
            await accounts.appoint(session, people[0])
        token = await log_in(client, people[0], FIRST)
        found = {}
        for email in people[1:3]:
            mine = await log_in(client, email, FIRST)
            found[email] = (await sent(client, "GET", "/users/me", headers=mine))["id"]
        (suspended, deleted) = found.values()
        path = f"/users/{suspended}"
        await sent(client, "PATCH", path, json={"is_active": False}, headers=token)
        await sent(client, "DELETE", f"/users/{deleted}", headers=token)


def test_each_write_of_each_flow_is_under_the_person_who_caused_it(users: Capture) -> None:
    people = [f"person-{number}@example.com" for number in range(4)]
    app = accounts.create_app(users.source.sqlalchemy_url())
    with serving(app) as address:
        asyncio.run(play(app, address, people))
    found: dict[str, Counter[Any]] = {}
    for change in users.changes("user"):
        row = change.after or change.before
        context = change.context
        who = "self" if context["user"] == row["email"] else context["user"]
        entry = (change.operation, context.get("endpoint"), who)
        found.setdefault(row["email"], Counter())[entry] += 1
    own = Counter(
        {
            ("INSERT", "/auth/register", "self"): 1,
            ("UPDATE", "/users/me", "self"): 1,
            ("UPDATE", "/auth/reset-password", "self"): 1,
            ("UPDATE", "/auth/verify", "self"): 1,
        }
    )
    superuser, suspended, deleted = people[:3]
    others = {
        superuser: Counter({("UPDATE", None, "operator"): 1}),
        suspended: Counter({("UPDATE", "/users/{id}", superuser): 1}),
        deleted: Counter({("DELETE", "/users/{id}", superuser): 1}),
    }
    assert found == {email: own + others.get(email, Counter()) for email in people}
