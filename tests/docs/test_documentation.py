"""Every code block of README.md and docs/ is executed, each document on databases of its own.

What a document may assume:

- ``setup()`` and ``capture()`` do what ``pgaudit-ctx setup`` and ``worker --until-caught-up`` do;
- the environment variables of the command line name source, destination and slot;
- any URL of a database ``clinic`` is the source's, of a database ``audit`` the destination's;
- ``redis://localhost`` is a real broker, which is started for the page that needs one;
- a Python block whose first line is the name of a file, ``# conftest.py``, is not run but saved;
  ``run_pytest("test_it.py")``, and the command ``pytest`` in a ``console`` block, run such files;
- a ``text`` block after code that printed something is what it printed, but for times and LSNs;
- in a table whose second column is called ``pgaudit-ctx`` each code in that column is executed.

Invisible code is written ``<!-- invisible-code-block: python … -->``.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import Engine
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.region import Lexeme

from pgaudit_ctx.cli.app import app
from pgaudit_ctx.reading import default
from support.database import Capture
from support.pages import sessions, steady

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BROKER = "redis://localhost"

# What a page is about, where that is in a dependency group of its own.
NEEDS = {"tutorial/fastapi.md": "fastapi_users", "tutorial/flask.md": "flask_appbuilder"}

_PLACEHOLDER = re.compile(r"postgresql(\+\w+)?://[\w.:@-]*/(clinic|audit)\b(?!\?)")
_FILE = re.compile(r"# (\w+\.py)\n")
_TABLE = re.compile(r"^\|[^|\n]+\| pgaudit-ctx \|.*\n(?:\|.*\n)+", re.MULTILINE)
_ROW = re.compile(r"^\|[^|\n]+\|([^|\n]+)\|.*$", re.MULTILINE)


class Stage:
    """One document, and the databases it is played on."""

    def __init__(
        self,
        path: Path,
        ends: Capture,
        *,
        run_commands: bool = False,
        pytester: pytest.Pytester | None = None,
        broker: str = _BROKER,
    ) -> None:
        self._ends = ends
        self._pytester = pytester
        self._run_commands = run_commands
        self._printed = ""
        self._python = PythonEvaluator()
        self.module = types.ModuleType("document")
        vars(self.module).update(setup=ends.setup, capture=ends.run, run_pytest=self._run_pytest)
        text = _PLACEHOLDER.sub(self._url, path.read_text(encoding="utf-8"))
        text = text.replace(_BROKER, broker)
        self.document = Document(text, str(path))
        self.document.namespace = vars(self.module)
        for parser in (
            SkipParser(),
            CodeBlockParser("python", self._evaluate_python),
            CodeBlockParser("text", self._compare_output),
            CodeBlockParser("sql", self._execute_sql),
            CodeBlockParser("console", self._try_console),
            CodeBlockParser("bash", check_commands),
            self._parse_tables,
        ):
            for region in parser(self.document):
                self.document.add(region)

    def play(self) -> None:
        for example in self.document.examples():
            example.evaluate()

    def _url(self, match: re.Match[str]) -> str:
        end = self._ends.source if match[2] == "clinic" else self._ends.destination
        return end.sqlalchemy_url(match[1][1:]) if match[1] else end.url

    def _run_pytest(self, *arguments: str) -> str:
        assert self._pytester is not None
        server = self._ends.source.server.url("postgres")
        with contextlib.redirect_stdout(io.StringIO()):
            result = self._pytester.runpytest_inprocess(
                f"--audit-postgres={server}", "-p", "no:randomly", *arguments
            )
        return result.stdout.str()

    def _parse_tables(self, document: Document) -> Iterator[Region]:
        for table in _TABLE.finditer(document.text):
            for row in _ROW.finditer(document.text, table.start(), table.end()):
                for code in re.findall(r"`([^`]+)`", row[1]):
                    yield Region(row.start(), row.end(), Lexeme(code, 0, 0), self._python)

    def _evaluate_python(self, example: Example) -> None:
        named = _FILE.match(example.parsed)
        if named is not None and self._pytester is not None:
            (self._pytester.path / named[1]).write_text(example.parsed)
            return
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self._python(example)
        self._printed = printed.getvalue() or self._printed

    def _compare_output(self, example: Example) -> None:
        printed, self._printed = self._printed, ""
        if printed:
            assert steady(example.parsed) == steady(printed), example.path

    def _execute_sql(self, example: Example) -> None:
        where = example.parsed.partition("\n")[0]
        ends = {"-- on the source": "source", "-- on the destination": "destination"}
        assert where in ends, f"{example.path}:{example.line}: the first line says where it runs"
        getattr(self._ends, ends[where]).execute(example.parsed)

    def _try_console(self, example: Example) -> None:
        check_commands(example)
        for command, output in sessions(example.parsed):
            words = shlex.split(command)
            if words[0] == "pytest" and self._pytester is not None:
                assert steady(self._run_pytest(*words[1:])) == steady(output), example.path
            if not self._run_commands:
                continue
            if words[0] == "pgaudit-ctx" and words[1] != "demo":
                done = subprocess.run(
                    [sys.executable, "-m", "pgaudit_ctx", *words[1:]],
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                )
                assert steady(done.stdout) == steady(output), f"{example.path}: {command}"
                assert done.returncode == 0


def check_commands(example: Example) -> None:
    """Check that each ``pgaudit-ctx`` command of a block exists, with the options it is given."""
    root = typer.main.get_command(app)
    for line in example.parsed.replace("\\\n", " ").splitlines():
        for words in invocations(line.removeprefix("$ ")):
            command, given = root, words
            if words and not words[0].startswith("-"):
                assert words[0] in root.commands, f"{example.path}: pgaudit-ctx {words[0]}"
                command, given = root.commands[words[0]], words[1:]
            if given and given[0] in getattr(command, "commands", {}):
                command, given = command.commands[given[0]], given[1:]
            known = {option for parameter in command.params for option in parameter.opts}
            named = {word.partition("=")[0] for word in given if word.startswith("--")}
            assert named <= known | {"--help"}, f"{example.path}: {line}"


def invocations(line: str) -> Iterator[Sequence[str]]:
    """The arguments of each ``pgaudit-ctx`` on a line of shell."""
    if "pgaudit-ctx" not in line:
        return
    for part in re.split(r"&&|\|\||[|;]", line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue  # output that happens to have an apostrophe
        if words and words[0] == "pgaudit-ctx":
            yield words[1:]


@pytest.fixture
def reset(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Put back what a document may change in the process."""
    monkeypatch.setattr(default, "_configured", None)
    for variable in [name for name in os.environ if name.startswith("PGAUDIT_CTX_")]:
        monkeypatch.delenv(variable)
    yield monkeypatch
    if default._configured is not None and isinstance(default._configured.destination, Engine):
        default._configured.destination.dispose()


def play(
    path: Path,
    ends: Capture,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> None:
    monkeypatch.setenv("PGAUDIT_CTX_SOURCE_URL", ends.source.url)
    monkeypatch.setenv("PGAUDIT_CTX_DESTINATION_URL", ends.destination.url)
    monkeypatch.setenv("PGAUDIT_CTX_SLOT", ends.options.slot)
    if ends.options.name is not None:
        monkeypatch.setenv("PGAUDIT_CTX_NAME", ends.options.name)
    stage = Stage(path, ends, **options)
    # SQLAlchemy and FastAPI look names of annotations up in the module of a class or function.
    monkeypatch.setitem(sys.modules, stage.module.__name__, stage.module)
    try:
        stage.play()
    finally:
        for value in list(vars(stage.module).values()):
            if isinstance(value, Engine):
                value.dispose()


# Only FastAPI's test client asks for another HTTP library; the application does not use one.
@pytest.mark.filterwarnings("ignore:Using .httpx. with .starlette.testclient. is deprecated")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_of_a_document_runs(
    path: Path, request: pytest.FixtureRequest, reset: pytest.MonkeyPatch
) -> None:
    needed = NEEDS.get("/".join(path.parts[-2:]))
    if needed is not None:
        pytest.importorskip(needed, reason="the dependency group public-apps is not installed")
    tutorial = path.parent.name == "tutorial"
    ends = request.getfixturevalue("kept_demo" if tutorial else "blank")
    options: dict[str, Any] = {"run_commands": tutorial}
    if path.name == "queues.md":
        options["broker"] = request.getfixturevalue("broker")
    if path.name == "pytest.md":
        pytester = options["pytester"] = request.getfixturevalue("pytester")
        pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    play(path, ends, reset, **options)


def test_the_first_code_of_the_readme_is_a_whole_program_on_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    first = "".join(blocks[:2])
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    for needed in ("class Patient", "create_engine(", "install(", "configure(", "history(Patient"):
        assert needed in first


@pytest.mark.parametrize(
    "wrong",
    [
        "```python\nassert capture().changes == 1\n```\n",
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "<!-- invisible-code-block: python\nraise LookupError\n-->\n",
        "| theirs | pgaudit-ctx |\n| --- | --- |\n| `1` | `1` |\n| `1` | `1 / 0` |\n",
        "```sql\n-- on the source\nSELEC 1;\n```\n",
        "```sql\nSELECT 1;\n```\n",
        "```console\n$ pgaudit-ctx worker --untill-caught-up\n```\n",
        "```bash\npip install . && pgaudit-ctx demonstrate\n```\n",
    ],
)
def test_a_document_that_is_wrong_fails(
    wrong: str, tmp_path: Path, blank: Capture, reset: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.md"
    path.write_text(f"# A document\n\n{wrong}")
    with pytest.raises(Exception):  # noqa: B017, PT011 - each is wrong in its own way
        play(path, blank, reset)
