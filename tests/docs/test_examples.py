"""The applications in examples/ do what they show."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
