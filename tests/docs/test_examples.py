"""The applications in examples/ do what they show."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.database import Capture, Database, create_database, drop_database

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own(server, destination: Database, monkeypatch: pytest.MonkeyPatch):
    """An empty source, and the destination, with the environment that names them."""
    source = create_database(server)
    capture = Capture(source, destination)
    monkeypatch.setenv("PGAUDIT_CTX_SOURCE_URL", source.url)
    monkeypatch.setenv("PGAUDIT_CTX_DESTINATION_URL", destination.url)
    yield capture
    drop_database(source)


def create_tables(capture: Capture, base) -> None:
    engine = capture.source.engine()
    base.metadata.create_all(engine)
    capture.setup()


@pytest.mark.filterwarnings("ignore:Using .httpx. with .starlette.testclient. is deprecated")
def test_the_fastapi_clinic_attributes_each_write_and_serves_the_history(
    own: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    example = load(monkeypatch, "fastapi_clinic")
    create_tables(own, example.Base)
    own.source.execute("INSERT INTO patients (id, name, allergies) VALUES (42, 'Ann', '[]')")
    with TestClient(example.create_app(), headers={"X-User": "dr.who"}) as client:
        answer = client.put("/patients/42/allergies", params={"allergy": "latex"})
        assert answer.json() == ["latex"]
        own.run()
        first, second = client.get("/patients/42/history").json()
    assert (first["operation"], first["user"]) == ("INSERT", None)
    assert (second["user"], second["reason"]) == ("dr.who", "allergy reported")
    assert second["changed"] == {"allergies": [[], ["latex"]]}


def test_the_flask_shop_attributes_each_write(
    own: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = load(monkeypatch, "flask_shop")
    create_tables(own, example.Base)
    own.source.execute("INSERT INTO articles (id, name, in_stock) VALUES (1, 'pen', 5)")
    app = example.create_app()
    answer = app.test_client().post("/articles/1/sold", headers={"X-User": "till-7"})
    app.extensions["engine"].dispose()
    assert answer.json == {"in_stock": 4}
    _, sold = own.changes("articles")
    assert sold.context == {
        "method": "POST",
        "path": "/articles/1/sold",
        "user": "till-7",
        "reason": "sold",
    }
