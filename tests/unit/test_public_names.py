"""What ``import pgaudit_ctx`` gives, and what it does not load."""

import re
import subprocess
import sys

import pytest

import pgaudit_ctx
from pgaudit_ctx import errors
from pgaudit_ctx.reading.history import check_filters

PUBLIC = [
    "AsyncAuditReader",
    "AuditError",
    "AuditReader",
    "Change",
    "ChangeOut",
    "ContextInvalid",
    "ContextRequired",
    "History",
    "HistoryUnknown",
    "NotCaptured",
    "Timeline",
    "Version",
    "VersionOut",
    "as_of",
    "audit_context",
    "bind_context",
    "blame",
    "configure",
    "current_context",
    "deleted",
    "diff",
    "dump_context",
    "emit_context",
    "history",
    "install",
    "load_context",
    "revert",
    "select_as_of",
    "select_changes",
    "uninstall",
]
HEAVY = ["psycopg", "typer", "rich", "fastapi", "flask", "greenlet", "sqlalchemy.ext.asyncio"]


def test_the_exported_names_are_exactly_the_documented_ones_in_order() -> None:
    assert pgaudit_ctx.__all__ == PUBLIC == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_exported_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(pgaudit_ctx, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'historty'"):
        _ = pgaudit_ctx.historty


def test_the_package_lists_its_names_before_they_are_loaded() -> None:
    assert set(PUBLIC) <= set(dir(pgaudit_ctx))


def test_importing_the_package_loads_nothing_of_others_until_a_name_is_asked_for() -> None:
    script = (
        "import sys, pgaudit_ctx;"
        "print([m for m in ('sqlalchemy', 'pydantic', 'psycopg') if m in sys.modules]);"
        "pgaudit_ctx.install; print('sqlalchemy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["[]", "True", ""]


def test_the_names_load_no_driver_no_framework_and_no_command_line() -> None:
    # SQLAlchemy 2.0 loads greenlet by itself where it is installed.
    names = [name for name in PUBLIC if name != "AsyncAuditReader"]
    script = (
        "import sys, sqlalchemy.orm; before = set(sys.modules); import pgaudit_ctx;"
        f"[getattr(pgaudit_ctx, name) for name in {names}];"
        f"print([m for m in {HEAVY} if m in sys.modules and m not in before])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def drawn_tree() -> list[tuple[str, str]]:
    """Each error's name and its parent's, as the docstring of ``errors`` draws them."""
    path: list[tuple[int, str]] = []
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([ │├└─]*)([A-Z]\w+)", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        while path and path[-1][0] >= depth:
            path.pop()
        drawn.append((name, path[-1][1] if path else "Exception"))
        path.append((depth, name))
    return drawn


@pytest.mark.parametrize(("name", "parent"), drawn_tree())
def test_an_error_has_the_parent_that_is_drawn(name: str, parent: str) -> None:
    assert getattr(errors, name).__bases__[0].__name__ == parent


def test_every_error_is_drawn() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert {name for name, _ in drawn_tree()} == defined


def test_every_error_says_what_it_is_about() -> None:
    for name, _ in drawn_tree():
        assert getattr(errors, name).__doc__


def test_a_wrong_call_ends_a_command_with_2_and_everything_else_with_1() -> None:
    codes = {name: getattr(errors, name).exit_code for name, _ in drawn_tree()}
    assert {name for name, code in codes.items() if code == 2} == {
        "UsageError",
        "MissingExtra",
        "NotConfigured",
    }
    assert set(codes.values()) == {1, 2}


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = errors.MissingExtra("worker", "the worker", "typer")
    assert "python -m pip install 'pgaudit-ctx[worker]'" in str(error)


@pytest.mark.parametrize(
    "ask",
    [lambda: check_filters({"usr": "dr.who"}), lambda: pgaudit_ctx.select_changes(usr="dr.who")],
    ids=["history", "changes"],
)
def test_a_keyword_that_does_not_exist_is_refused_and_never_ignored(ask) -> None:
    with pytest.raises(errors.UsageError, match="no keyword usr"):
        ask()
