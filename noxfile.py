"""Everything that is run on this project: ``nox -l`` lists it."""

import platform
import re
import shlex
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint"]
nox.options.error_on_missing_interpreters = False
PYPROJECT = nox.project.load_toml("pyproject.toml")

# This interpreter and the others that the package is for; those that are missing are skipped.
PYTHONS = sorted({".".join(platform.python_version_tuple()[:2]), "3.12", "3.13", "3.14"})
# What depends on SQLAlchemy.
COMPAT = [
    "tests/unit",
    *(
        f"tests/integration/test_{name}.py"
        for name in ("attribution", "hook", "write_paths", "autocommit")
    ),
    *(str(path) for path in sorted(Path("tests", "integration").glob("test_reading*.py"))),
]
# The page of each extra, what only the checks on that page need, and where they end.
EXTRAS: dict[str, tuple[str, list[str], list[str]]] = {
    "fastapi": ("fastapi.md", ["httpx", "pytest"], []),
    "flask": ("flask.md", [], []),
    "celery": ("queues.md", [], ["## Threads and executors"]),
    "alembic": ("alembic.md", [], []),
    "pytest": ("pytest.md", [], []),
}
# As many processes as there are processors, each with a server of its own; -n0 is one for all.
PARALLEL = ["-n", "auto", "--maxprocesses=4", "--dist=worksteal"]


def group(name: str) -> list[str]:
    """The packages of one dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def bemi(session: nox.Session) -> str:
    """Bemi's adapter, apart from the environment: it listens to every engine of its process."""
    folder = str(Path(session.virtualenv.location, "bemi").absolute())
    wanted = ["--no-deps", "--target", folder, "--upgrade", "bemi-sqlalchemy==0.0.2"]
    session.run_install("python", "-m", "pip", "install", "--quiet", *wanted)
    return folder


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest (``-- --postgres=system``)."""
    session.install("-e", ".[all]", *group("test"), *group("examples"))
    environment = {"PGAUDIT_CTX_BEMI": bemi(session)}
    session.run("pytest", *PARALLEL, *session.posargs, env=environment)


@nox.session
def heavy(session: nox.Session) -> None:
    """Run the tests that take too much time and memory for every day."""
    session.install("-e", ".[all]", *group("test"))
    session.run("pytest", "-m", "heavy", *session.posargs)


@nox.session(python=PYTHONS)
@nox.parametrize("sqlalchemy", ["2.0", "2.1"], ids=["2.0", "2.1"])
def compat(session: nox.Session, sqlalchemy: str) -> None:
    """Run what depends on SQLAlchemy with another version of it, and of Python."""
    session.install("-e", ".[all]", *group("test"), f"sqlalchemy~={sqlalchemy}.0")
    session.run("pytest", *PARALLEL, *(session.posargs or COMPAT))


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz what reads bytes, guided by coverage; arguments go to libFuzzer."""
    session.install("-e", ".", "atheris>=3")
    arguments = session.posargs or ["-max_total_time=900", "-print_final_stats=1"]
    script = str(Path("tests", "fuzz", "fuzz_wal.py"))
    session.run("python", script, *arguments, env={"PYTHONPATH": "tests"})


@nox.session(name="public-apps")
def public_apps(session: nox.Session) -> None:
    """Add a trail to applications of others, and play the pages about them."""
    tools = [name for name in group("test") if not name.startswith("redis")]
    session.install("-e", ".[all]", *tools, *group("public-apps"))
    chosen = "public_apps or tutorial/fastapi or tutorial/flask or queues"
    paths = ["tests/public_apps", "tests/docs/test_documentation.py"]
    session.run("pytest", *paths, "-k", chosen, *session.posargs)


@nox.session
def extras(session: nox.Session) -> None:
    """Install the built wheel with each extra, or those named, and what its page asks for.

    Each gets an environment that has nothing else, and the code of the page is run there. The
    worker, which is another process, has its own.
    """
    own = Path(session.virtualenv.location).absolute()
    shutil.rmtree(own / "wheels", ignore_errors=True)
    wheels = ["--quiet", "--no-deps", "--wheel-dir", str(own / "wheels")]
    session.run("python", "-m", "pip", "wheel", *wheels, ".")
    (wheel,) = (own / "wheels").glob("*.whl")
    session.install(f"pgaudit-ctx[worker,embedded] @ {wheel.as_uri()}")
    for extra in session.posargs or EXTRAS:
        page, checks, heading = EXTRAS[extra]
        asked = re.findall(r"-m pip install (.*)", Path("docs", "how-to", page).read_text("utf-8"))
        packages = [
            re.sub(r"^(pgaudit-ctx\[.*\])$", rf"\1 @ {wheel.as_uri()}", package)
            for package in sorted({package for line in asked for package in shlex.split(line)})
        ]
        assert any(name.startswith(f"pgaudit-ctx[{extra}") for name in packages), page
        session.run("python", "-m", "venv", "--clear", str(own / "fresh"))
        python = str(own / "fresh" / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", *packages, *checks]
        session.run(*install, external=True)
        script = str(Path("tests", "extras", "stage.py"))
        session.run("python", script, python, str(Path("docs", "how-to", page)), *heading)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and layers."""
    session.install("-e", ".[all]", *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    # What users see of our types.
    session.run("mypy", "tests/typed")
    session.run("pyright", "tests/typed")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, warnings as errors; it is left in ``site/``."""
    session.install("-e", ".[all]", *group("docs"))
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(name="sqlalchemy-suite")
def sqlalchemy_suite(session: nox.Session) -> None:
    """Run SQLAlchemy's own tests without the hook and with it; arguments choose parts."""
    wanted = ("pytest>=", "asyncpg", "psycopg2", "pg8000")
    packages = [name for name in group("test") if name.startswith(wanted)]
    session.install("-e", ".[worker,embedded,asyncio]", "pip", "pytest-xdist>=3.6", *packages)
    kept = [f"--cache={session.cache_dir}", f"--results={session.virtualenv.location}/results"]
    script = str(Path("tests", "sqlalchemy_suite", "run.py"))
    session.run("python", script, *kept, *session.posargs)


@nox.session
def continuity(session: nox.Session) -> None:
    """Play the pages on loss, upgrades and moves; ``-- --write-pages`` renews what it shows."""
    session.install("-e", ".[all]", *group("test"))
    session.run("pytest", "-m", "continuity", "tests/continuity", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Bring about many faults: ``-- --rounds 20 --faults 30``."""
    session.install("-e", ".[all]", *group("test"))
    session.run("pytest", "tests/faults", "-s", "-p", "no:randomly", *session.posargs)


@nox.session(name="planted-bugs")
def planted_bugs(session: nox.Session) -> None:
    """Break the code on purpose, a guarantee at a time: a named test must fail each time."""
    session.install("-e", ".[all]", *group("test"))
    session.run("python", str(Path("tests", "planted_bugs", "run.py")), *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure capture beside a bare COPY; arguments go to the benchmark."""
    session.install("-e", ".[all]")
    session.run("python", str(Path("benchmarks", "capture.py")), *session.posargs)


@nox.session(name="bench-latency")
def bench_latency(session: nox.Session) -> None:
    """Measure how long after its commit a change can be read; arguments go to the benchmark."""
    session.install("-e", ".[worker,embedded]")
    session.run("python", str(Path("benchmarks", "latency.py")), *session.posargs)


@nox.session(name="bench-emission")
def bench_emission(session: nox.Session) -> None:
    """Measure what emission costs beside no audit and other libraries; arguments go to it."""
    drivers = [name for name in group("test") if name.startswith(("asyncpg", "psycopg2"))]
    session.install("-e", ".[worker,embedded,asyncio]", *drivers)
    measure_beside_peers(session, "emission.py")


@nox.session(name="bench-reading")
def bench_reading(session: nox.Session) -> None:
    """Measure how fast reading is beside other libraries; arguments go to the benchmark."""
    session.install("-e", ".[worker,embedded]")
    measure_beside_peers(session, "reading.py")


def measure_beside_peers(session: nox.Session, benchmark: str) -> None:
    """Run a benchmark that compares with libraries in an environment of their own.

    So that they may ask for what they want.
    """
    peers = Path(session.virtualenv.location, "peers").absolute()
    session.run("python", "-m", "venv", str(peers))
    python = str(peers / "bin" / "python")
    wanted = str(Path("benchmarks", "peers", "requirements.txt"))
    session.run(python, "-m", "pip", "install", "--quiet", "-r", wanted, external=True)
    session.run(
        "python",
        str(Path("benchmarks", benchmark)),
        "--peers",
        python,
        *session.posargs,
        env={"PYTHONPATH": "tests"},
    )


@nox.session(name="bench-audit-trail")
def bench_audit_trail(session: nox.Session) -> None:
    """Measure what a look of the pytest plugin costs; arguments go to the benchmark."""
    session.install("-e", ".[pytest]")
    session.run("python", str(Path("benchmarks", "audit_trail.py")), *session.posargs)


@nox.session(name="bench-captured")
def bench_captured(session: nox.Session) -> None:
    """Measure with pgbench what a captured database costs; arguments go to the benchmark."""
    session.install("-e", ".[worker,embedded]")
    session.run("python", str(Path("benchmarks", "captured_database.py")), *session.posargs)
