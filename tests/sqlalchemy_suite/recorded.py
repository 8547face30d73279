"""A pytest plugin that writes down how each test ended, one JSON object a line."""

import json
from pathlib import Path
from typing import TextIO

import pytest

_ORDER = ("error", "failed", "xpassed", "xfailed", "skipped", "passed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="the file that outcomes are written to")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers of pytest-xdist report to the one that has it
        config.pluginmanager.register(Recorder(config.option.record))


class Recorder:
    """Keeps the outcomes of the phases of each test until it has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._open: dict[str, list[tuple[str, str]]] = {}

    def pytest_sessionstart(self) -> None:
        self._file = self._path.open("w", encoding="utf-8")

    def pytest_sessionfinish(self) -> None:
        for nodeid in list(self._open):  # what a worker was at when it died
            self._write(nodeid)
        self._file.close()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        phases = self._open.setdefault(report.nodeid, [])
        said = "" if report.passed else _last_lines(report)
        phases.append((_outcome(report), said))
        if report.when == "teardown":
            self._write(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._open[f"{report.nodeid} (collection)"] = [("error", _last_lines(report))]

    def _write(self, nodeid: str) -> None:
        phases = self._open.pop(nodeid)
        outcome, said = min(phases, key=lambda phase: _ORDER.index(phase[0]))
        line = {"test": nodeid, "outcome": outcome, "said": said}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _outcome(report: pytest.TestReport) -> str:
    if report.failed:
        return "failed" if report.when == "call" else "error"
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    # The phases around a test have nothing to say unless they fail or skip it.
    return "passed" if report.passed else "skipped"


def _last_lines(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return "\n".join(report.longreprtext.splitlines()[-30:])
