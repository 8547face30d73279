"""The reference pages are complete: what the code has, they name."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
import typer

import pgaudit_ctx
from pgaudit_ctx import errors
from pgaudit_ctx.cli.app import app
from support.database import Database

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
COMMANDS = typer.main.get_command(app).commands


def sections(page: str) -> dict[str, str]:
    """The text of each section of a page, by the word in code type in its heading."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, content = part.partition("\n")
        named = re.search(r"`(?:pgaudit-ctx )?(\w+)`", heading)
        if named is not None:
            found[named[1]] = content
    return found


def parameters(name: str) -> list:
    """Those of a command, or of all commands below it."""
    command = COMMANDS[name]
    below = getattr(command, "commands", {}).values()
    return [parameter for one in (command, *below) for parameter in one.params]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_documented_with_all_its_options_and_their_variables(name: str) -> None:
    section = sections("cli.md")[name]
    for parameter in parameters(name):
        if parameter.param_type_name == "argument":
            assert f"`{parameter.name.upper()}" in section, parameter.name
            continue
        for option in parameter.opts:
            assert f"`{option}" in section, option
        if parameter.envvar:
            assert f"`{parameter.envvar}`" in section, parameter.envvar


def test_no_command_and_no_option_is_documented_that_does_not_exist() -> None:
    documented = sections("cli.md")
    assert set(documented) == set(COMMANDS)
    for name, section in documented.items():
        known = {option for parameter in parameters(name) for option in parameter.opts}
        rows = re.findall(r"^\| `(--[\w-]+)", section, flags=re.MULTILINE)
        assert set(rows) <= known | {"--help"}, name


def test_each_table_is_documented_with_all_its_columns_and_no_others(
    destination: Database,
) -> None:
    columns: dict[str, set[str]] = {}
    for table, column in destination.execute(
        "SELECT c.relname::text, a.attname::text FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relnamespace = 'pgaudit_ctx'::regnamespace AND c.relkind IN ('r', 'p', 'v')"
        " AND NOT c.relispartition"
    ):
        columns.setdefault(table, set()).add(column)
    documented = sections("tables.md")
    assert set(columns) == set(documented)
    for table, wanted in columns.items():
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", documented[table], flags=re.MULTILINE)
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        assert named == wanted, table


def test_each_public_name_is_in_the_api_reference() -> None:
    page = (REFERENCE / "api.md").read_text(encoding="utf-8")
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    for name in pgaudit_ctx.__all__:
        assert name in shown, name


def test_each_error_is_in_the_api_reference() -> None:
    page = (REFERENCE / "api.md").read_text(encoding="utf-8")
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.AuditError):
            assert f"::: pgaudit_ctx.errors.{name}\n" in page, name


def test_each_planted_bug_is_documented_with_its_test() -> None:
    page = (ROOT / "docs" / "explanation" / "testing.md").read_text(encoding="utf-8")
    planted = (ROOT / "tests" / "planted_bugs" / "bugs.toml").read_text(encoding="utf-8")
    bugs = tomllib.loads(planted)["bug"]
    rows = [f"| {bug['name']} | `{bug['test'].partition('::')[2]}` |" for bug in bugs]
    assert rows == re.findall(r"^\| [^|`]+ \| `test_\w+` \|$", page, flags=re.MULTILINE)


@pytest.mark.parametrize("word", ["tamper-proof", "provably"])
def test_nothing_is_promised_that_no_command_shows(word: str) -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert word not in path.read_text(encoding="utf-8").lower(), path
