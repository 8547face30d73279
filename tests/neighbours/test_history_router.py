"""The routes of the trail: what they answer, whom they refuse, and what they promise in OpenAPI."""

import datetime as dt
import decimal
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Header, HTTPException, Request
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgaudit_ctx import AsyncAuditReader, AuditReader, audit_context
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.integrations.fastapi import history_router
from support.clinic import Dose, Patient
from support.database import Capture

MODELS = {"patients": Patient, "doses": Dose}
DAY = dt.date(2026, 11, 24)


def may_read(x_user: Annotated[str, Header()], request: Request) -> bool:
    if x_user == "stranger":
        raise HTTPException(403)
    return x_user == "auditor" or request.path_params.get("id") == 42


@pytest.fixture
def written(capture: Capture, engine: Engine) -> Capture:
    """Seven versions of one patient, the last one without context, and a dose."""
    for number in range(6):
        with Session(engine) as session, audit_context(user=f"u{number % 2}", reason="round"):
            session.merge(Patient(id=42, name=f"Ann {number}"))
            session.commit()
    with Session(engine) as session, audit_context(user="nurse"):
        session.add(Dose(patient_id=42, given_on=DAY, milligrams=decimal.Decimal("2.50")))
        session.commit()
    capture.source.execute("UPDATE patient SET name = 'Eve' WHERE id = 42")
    capture.run()
    return capture


@pytest.fixture(params=["sync", "async"])
async def client(request: Any, written: Capture) -> AsyncIterator[httpx.AsyncClient]:
    if request.param == "sync":
        reader: Any = AuditReader(written.destination.engine())
    else:
        url = written.destination.sqlalchemy_url()
        reader = AsyncAuditReader(create_async_engine(url, poolclass=NullPool))
    app = FastAPI()
    app.include_router(history_router(MODELS, reader=reader, authorize=may_read, prefix="/audit"))
    transport = httpx.ASGITransport(app)
    headers = {"X-User": "auditor"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://clinic/audit", headers=headers
    ) as made:
        yield made


async def test_a_history_is_answered_by_the_page_and_each_version_once(
    client: httpx.AsyncClient,
) -> None:
    first = (await client.get("patients/42/history", params={"limit": 3})).json()
    assert [version["number"] for version in first["items"]] == [5, 6, 7]
    assert first["items"][-1]["user"] is None
    assert first["items"][-1]["diff"] == {"name": {"old": "Ann 5", "new": "Eve"}}
    assert first["complete_up_to"] is not None
    assert first["gaps"] == []
    seen, older = [], first["older"]
    while older is not None:
        page = (
            await client.get("patients/42/history", params={"limit": 3, "before": older})
        ).json()
        seen = [version["number"] for version in page["items"]] + seen
        older = page["older"]
    assert seen == [1, 2, 3, 4]


async def test_a_history_is_filtered(client: httpx.AsyncClient) -> None:
    answer = await client.get("patients/42/history", params={"user": "u1"})
    assert [version["number"] for version in answer.json()["items"]] == [2, 4, 6]
    answer = await client.get("patients/42/history", params={"fields": "born"})
    assert [version["number"] for version in answer.json()["items"]] == [1]
    answer = await client.get("patients/42/history", params={"fields": "nonsense"})
    assert answer.status_code == 422
    answer = await client.get("patients/42/history", params={"since": "2026-01-01T00:00:00"})
    assert answer.status_code == 422


async def test_a_composite_key_has_a_part_of_the_path_for_each_attribute(
    client: httpx.AsyncClient,
) -> None:
    (version,) = (await client.get("doses/42/2026-11-24/history")).json()["items"]
    assert version["after"] == {
        "patient_id": 42,
        "given_on": "2026-11-24",
        "milligrams": "2.500",
    }
    assert (await client.get("doses/42/yesterday/history")).status_code == 422


async def test_the_state_at_a_moment_is_answered_or_what_is_known_of_it(
    client: httpx.AsyncClient,
) -> None:
    versions = (await client.get("patients/42/history")).json()["items"]
    when = versions[2]["committed_at"]
    found = (await client.get("patients/42/as-of", params={"when": when})).json()
    assert (found["number"], found["after"]["name"]) == (3, "Ann 2")
    born = dt.datetime.fromisoformat(versions[0]["committed_at"])
    just_before = {"when": (born - dt.timedelta(microseconds=1)).isoformat()}
    assert (await client.get("patients/42/as-of", params=just_before)).status_code == 404
    before_the_trail = {"when": "2001-01-01T00:00:00Z"}
    assert (await client.get("patients/42/as-of", params=before_the_trail)).status_code == 409
    assert (await client.get("patients/42/as-of")).status_code == 422


async def test_changes_are_answered_newest_first_by_the_page_also_while_more_are_captured(
    client: httpx.AsyncClient, written: Capture
) -> None:
    names, older = [], None
    for _ in range(4):
        params: dict[str, Any] = {"limit": 2} | ({} if older is None else {"before": older})
        page = (await client.get("patients/changes", params=params)).json()
        names += [change["after"]["name"] for change in page["items"]]
        older = page["older"]
        written.source.execute("UPDATE patient SET name = 'later' WHERE id = 42")
        written.run()
    assert names == ["Eve", "Ann 5", "Ann 4", "Ann 3", "Ann 2", "Ann 1", "Ann 0"]
    assert older is None
    of_one = (await client.get("patients/42/changes", params={"user": "u0"})).json()
    assert [change["after"]["name"] for change in of_one["items"]] == ["Ann 4", "Ann 2", "Ann 0"]
    (dose,) = (await client.get("doses/42/2026-11-24/changes")).json()["items"]
    assert dose["user"] == "nurse"
    assert (await client.get("patients/changes", params={"before": "nonsense"})).status_code == 422


async def test_whoever_may_not_read_is_refused_on_each_route(client: httpx.AsyncClient) -> None:
    for path in ("42/history", "42/as-of?when=2026-11-24T00:00:00Z", "42/changes", "changes"):
        refused = await client.get(f"patients/{path}", headers={"X-User": "stranger"})
        assert refused.status_code == 403, path
    clerk = {"X-User": "clerk"}
    assert (await client.get("patients/7/history", headers=clerk)).status_code == 403
    del client.headers["X-User"]
    assert (await client.get("patients/42/history")).status_code == 422


def test_nobody_gets_routes_without_saying_who_may_read() -> None:
    reader: Any = object()
    with pytest.raises(TypeError, match="authorize"):
        history_router(MODELS, reader=reader)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="authorize"):
        history_router(MODELS, reader=reader, authorize=None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="mapped"):
        history_router({"x": int}, reader=reader, authorize=may_read)


async def test_the_openapi_document_names_every_parameter_with_its_type(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("http://clinic/openapi.json")).json()
    paths = document["paths"]
    assert {path.removeprefix("/audit") for path in paths} == {
        "/patients/changes",
        "/patients/{id}/history",
        "/patients/{id}/as-of",
        "/patients/{id}/changes",
        "/doses/changes",
        "/doses/{patient_id}/{given_on}/history",
        "/doses/{patient_id}/{given_on}/as-of",
        "/doses/{patient_id}/{given_on}/changes",
    }
    assert {method for path in paths.values() for method in path} == {"get"}
    history = paths["/audit/doses/{patient_id}/{given_on}/history"]["get"]
    parameters = {found["name"]: found for found in history["parameters"]}
    assert set(parameters) == {
        "patient_id", "given_on", "before", "limit", "since", "until", "user", "fields", "x-user",
    }  # fmt: skip
    assert parameters["patient_id"]["schema"]["type"] == "integer"
    assert parameters["given_on"]["schema"]["format"] == "date"
    assert history["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/HistoryPage"
    }
    ids = [method["operationId"] for path in paths.values() for method in path.values()]
    assert len(ids) == len(set(ids))
