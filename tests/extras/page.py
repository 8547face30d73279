"""Run the code of one page: ``python page.py PAGE [HEADING]``, up to that heading if one is given.

It needs nothing but what the page itself asks to be installed. Source and destination are named by
the environment; ``setup()`` and ``capture()`` run the commands of another environment's Python,
which has the worker.
"""

import io
import os
import re
import subprocess
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path

BLOCK = re.compile(
    r"^```python\n(?P<shown>.*?)^```$|^<!-- invisible-code-block: python\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# (\w+\.py)\n")
URL = re.compile(r"postgresql(\+\w+)?://[\w.:@-]*/(clinic|audit)\b")


def url(match: re.Match[str]) -> str:
    which = {"clinic": "SOURCE", "audit": "DESTINATION"}[match[2]]
    named = os.environ[f"PGAUDIT_CTX_{which}_URL"]
    return named.replace("postgresql:", f"postgresql{match[1] or ''}:", 1)


def command(*arguments: str) -> None:
    subprocess.run([os.environ["PAGE_WORKER"], "-m", "pgaudit_ctx", *arguments], check=True)


def run_pytest(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--audit-postgres=embedded", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stdout


def play(page: Path, until: str | None) -> int:
    text = page.read_text(encoding="utf-8")
    if until is not None:
        text = text[: text.index(f"\n{until}")]
    module = sys.modules["document"] = types.ModuleType("document")
    vars(module).update(
        setup=lambda: command("setup"),
        capture=lambda: command("worker", "--until-caught-up"),
        run_pytest=run_pytest,
    )
    number = 0
    for number, block in enumerate(BLOCK.finditer(URL.sub(url, text)), start=1):  # noqa: B007 - counted
        code = block["shown"] or block["hidden"]
        named = FILE.match(code)
        if named is not None:
            Path(named[1]).write_text(code, encoding="utf-8")
            continue
        with redirect_stdout(io.StringIO()):
            exec(compile(code, page.name, "exec"), vars(module))
    return number


if __name__ == "__main__":
    count = play(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    assert count, "the page has no code"
    print(f"{sys.argv[1]}: {count} blocks")  # noqa: T201 - whoever started it reads it
