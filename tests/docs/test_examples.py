"""The applications in examples/ do what they show."""

import datetime as dt
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pgaudit_ctx import AuditReader, audit_context
from support.clinic import Patient
from support.database import Capture, Database, create_database, drop_database
from support.server import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["fastapi_clinic", "flask_shop"])
def test_the_tests_of_an_example_pass(name: str, server: Server) -> None:
    own = {key: v for key, v in os.environ.items() if not key.startswith(("PGAUDIT", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--audit-postgres={server.url('postgres')}"],
        cwd=EXAMPLES / name,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own(server: Server, destination: Database, monkeypatch: pytest.MonkeyPatch):
    """An empty source, and the destination, with the environment that names them."""
    source = create_database(server)
    capture = Capture(source, destination)
    monkeypatch.setenv("PGAUDIT_CTX_SOURCE_URL", source.url)
    monkeypatch.setenv("PGAUDIT_CTX_DESTINATION_URL", destination.url)
    yield capture
    drop_database(source)


@pytest.mark.filterwarnings("ignore:Using .httpx. with .starlette.testclient. is deprecated")
def test_the_fastapi_clinic_serves_the_history_of_what_it_wrote(
    own: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    example = load(monkeypatch, "fastapi_clinic")
    example.Base.metadata.create_all(own.source.engine())
    own.setup()
    own.source.execute("INSERT INTO patients VALUES (42, 'Ann', '[]', 0)")
    with TestClient(example.create_app()) as client:
        doctor = {"Authorization": "Bearer token-who"}
        client.put("/patients/42/allergies", params={"allergy": "latex"}, headers=doctor)
        own.run()
        auditor = {"Authorization": "Bearer token-auditor"}
        first, second = client.get("/patients/42/history", headers=auditor).json()["items"]
    assert (first["operation"], first["user"]) == ("INSERT", None)
    assert (second["user"], second["reason"]) == ("dr.who", "allergy reported")
    assert second["diff"] == {"allergies": {"old": [], "new": ["latex"]}}


BEMI = """
    CREATE TABLE changes (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), database text, schema text, "table" text,
        primary_key text, operation text, before jsonb, after jsonb, context jsonb,
        committed_at timestamptz, queued_at timestamptz, created_at timestamptz,
        transaction_id bigint, position bigint
    );
    INSERT INTO changes (
        schema, "table", primary_key, operation, before, after, context, committed_at,
        transaction_id, position
    ) VALUES
    ('public', 'patient', '1', 'CREATE', '{}', '{"id": 1, "name": "Ann"}',
        '{"user": "r.tyler", "SQL": "INSERT"}', '2025-01-31 23:00Z', 700, 4000),
    ('public', 'patient', '2', 'CREATE', '{}', '{"id": 2, "name": "Bob"}',
        '{"user": "r.tyler", "SQL": "INSERT"}', '2025-01-31 23:00Z', 700, 4100),
    ('public', 'patient', '1', 'UPDATE', '{"id": 1, "name": "Ann"}', '{"id": 1, "name": "Anna"}',
        '{}', '2025-02-01 10:00Z', 701, 5000),
    ('public', 'patient', '2', 'DELETE', '{"id": 2, "name": "Bob"}', '{}',
        '{"user": "dr.who", "SQL": "DELETE"}', '2025-02-02 10:00Z', 702, 6000),
    ('public', 'gone', '7', 'DELETE', '{"id": 7}', '{}', '{}', '2025-02-02 10:00Z', 703, 7000),
    ('public', 'patient', NULL, 'MESSAGE', '{}', '{}', '{}', '2025-02-02 10:00Z', 703, 7100),
    ('public', 'patient', '1', 'UPDATE', '{"id": 1, "name": "Anna"}', '{"id": 1, "name": "late"}',
        '{}', now() + interval '1 hour', 704, 8000);
"""


@pytest.mark.parametrize("continuous", [True, False])
def test_what_bemi_has_stored_comes_before_what_is_captured(
    continuous: bool, capture: Capture, server: Server
) -> None:
    bemi = create_database(server)
    bemi.execute(BEMI)
    script = [sys.executable, str(EXAMPLES / "bemi_migration" / "import_bemi.py")]
    given = ["--bemi", bemi.url, "--destination", capture.destination.url]
    given += ["--source", capture.source.name] + ["--continuous"] * continuous
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'Anna', 'ACTIVE')")
    capture.run()
    for expected in ("4 changes imported", "0 changes imported"):
        done = subprocess.run([*script, *given], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == expected, done.stderr
    drop_database(bemi)
    reader = AuditReader(capture.destination.engine())
    history = reader.history(Patient, 1)
    assert [(one.operation, one.after["name"], one.user) for one in history] == [
        ("INSERT", "Ann", "r.tyler"),
        ("UPDATE", "Anna", None),
        ("INSERT", "Anna", None),
    ]
    assert history[1].diff == {"name": ("Ann", "Anna")}
    assert history[0].transaction_id == 700
    gone = reader.history(Patient, 2)
    assert [(one.operation, one.user) for one in gone] == [
        ("INSERT", "r.tyler"),
        ("DELETE", "dr.who"),
    ]
    assert gone[0].commit_lsn == history[0].commit_lsn
    noon = dt.datetime(2025, 2, 1, 12, tzinfo=dt.UTC)
    assert reader.as_of(Patient, 1, noon).after["name"] == "Anna"
    if continuous:
        assert list(history.gaps) == []
        assert reader.as_of(Patient, 2, dt.datetime.now(dt.UTC)) is None
    else:
        (gap,) = history.gaps
        assert (gap.epoch, gap.to_epoch) == (0, 1)


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    capture: Capture, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas", reason="the dependency group examples is not installed")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PGAUDIT_CTX_DESTINATION_URL", capture.destination.url)
    for user in ("dr.who", "r.tyler", "dr.who"):
        with Session(engine) as session, audit_context(user=user, reason="round"):
            session.merge(Patient(id=42, name=f"Ann of {user}"))
            session.commit()
    capture.source.execute("UPDATE patient SET name = 'Eve'")
    capture.run()
    notebook = json.loads((EXAMPLES / "notebook" / "who_changed_what.ipynb").read_text("utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert list(names["by_user"]["user"]) == ["nobody said", "dr.who", "r.tyler", "dr.who"]
    assert len(names["unexplained"]) == 1
    assert dict(names["fields"].explode("field")["field"].value_counts()) == {"name": 3}
    assert len(names["history"]) == 4
    assert names["per_hour"].to_numpy().sum() == 4
    names["axes"].figure.canvas.draw()
