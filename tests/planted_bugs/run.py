"""Breaks a copy of the package on purpose, bug by bug: the named test must fail each time.

    python tests/planted_bugs/run.py [arguments for pytest]

A test that passes although its guarantee is broken proves nothing; this is what shows that it does.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_TESTS_FAILED = 1  # pytest's exit code; 2 and more say that they could not run


def plant(bug: dict[str, Any], package: Path) -> None:
    """Change the copy of the package."""
    path = package / bug["file"]
    content = path.read_text(encoding="utf-8")
    if content.count(bug["code"]) != 1:
        sys.exit(
            f"{bug['name']}: its code stands {content.count(bug['code'])} times in {path.name}"
        )
    path.write_text(content.replace(bug["code"], bug["planted"]), encoding="utf-8")


def is_found(bug: dict[str, Any], arguments: list[str]) -> bool:
    """Run the bug's test on a broken copy; say whether it failed."""
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        source = Path(directory, "src")
        shutil.copytree(_ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        plant(bug, source / "pgaudit_ctx")
        # Before the editable installation, also in the processes that a test starts.
        environment = {**os.environ, "PYTHONPATH": str(source)}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                bug["test"],
                *arguments,
            ],
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode not in {0, _TESTS_FAILED}:
        sys.exit(f"{bug['name']}: the test could not run\n{done.stdout}{done.stderr}")
    return done.returncode == _TESTS_FAILED and f"FAILED {bug['test']}" in done.stdout


def main() -> None:
    """Plant each bug in turn."""
    missed = 0
    for bug in tomllib.loads((_HERE / "bugs.toml").read_text(encoding="utf-8"))["bug"]:
        found = is_found(bug, sys.argv[1:])
        missed += not found
        _, _, test = bug["test"].partition("::")
        verdict = "found " if found else "MISSED"
        print(f"{verdict}  {bug['name']}: {test}", flush=True)  # noqa: T201 - what this is run for
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
