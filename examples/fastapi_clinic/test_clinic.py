"""What the clinic does is in the trail, with who and why."""

import httpx
from app import Patient

from pgaudit_ctx.testing import AuditTrail

WHO = {"Authorization": "Bearer token-who"}
TYLER = {"Authorization": "Bearer token-tyler"}


async def admit(client: httpx.AsyncClient, patient_id: int = 42) -> None:
    headers = {**TYLER, "X-Audit-Reason": "walk-in"}
    answer = await client.post(f"/patients/{patient_id}", params={"name": "Ann"}, headers=headers)
    answer.raise_for_status()


async def test_an_admission_says_who_and_why(
    client: httpx.AsyncClient, audit_trail: AuditTrail
) -> None:
    await admit(client)
    audit_trail.assert_changed(
        Patient,
        42,
        operation="INSERT",
        context={
            "user": "r.tyler",
            "role": "nurse",
            "reason": "walk-in",
            "method": "POST",
            "endpoint": "/patients/{patient_id}",
        },
    )


async def test_an_allergy_has_a_reason_of_its_own(
    client: httpx.AsyncClient, audit_trail: AuditTrail
) -> None:
    await admit(client)
    url = "/patients/42/allergies"
    answer = await client.put(url, params={"allergy": "latex"}, headers=WHO)
    assert answer.json() == ["latex"]
    audit_trail.assert_changed(
        Patient,
        42,
        operation="UPDATE",
        changed={"allergies": ([], ["latex"])},
        context={"user": "dr.who", "reason": "allergy reported"},
    )


async def test_a_background_task_writes_in_the_name_of_who_asked(
    client: httpx.AsyncClient, audit_trail: AuditTrail
) -> None:
    await admit(client)
    (await client.post("/patients/42/letters", headers=WHO)).raise_for_status()
    audit_trail.assert_changed(Patient, 42, changed={"letters": (0, 1)}, context={"user": "dr.who"})
    audit_trail.assert_context_everywhere("user")


async def test_what_is_refused_leaves_no_trace(
    client: httpx.AsyncClient, audit_trail: AuditTrail
) -> None:
    answer = await client.put("/patients/7/allergies", params={"allergy": "x"}, headers=WHO)
    assert answer.status_code == 404
    stranger = {"Authorization": "Bearer stolen"}
    answer = await client.post("/patients/7", params={"name": "Eve"}, headers=stranger)
    assert answer.status_code == 401
    assert audit_trail.changes() == []


async def test_only_auditors_read_the_history(client: httpx.AsyncClient) -> None:
    answer = await client.get("/patients/42/history", headers=WHO)
    assert answer.status_code == 403
