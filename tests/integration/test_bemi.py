"""An application with Bemi's own adapter is captured as it is.

The adapter listens to every engine of its process, so it runs in one of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import environment
from support.database import Capture

APPLICATION = """
import sys
from alembic.migration import MigrationContext
from alembic.operations import Operations
from bemi import Bemi
from sqlalchemy import create_engine, text

engine = create_engine(sys.argv[1])
with engine.begin() as connection:
    with Operations.context(MigrationContext.configure(connection)):
        Bemi.migration_upgrade()
with engine.begin() as connection:
    Bemi.set_context({"user": "ann", "reason": "intake"})
    connection.execute(text("INSERT INTO t VALUES (1, 'x'), (2, 'y')"))
    connection.execute(text("UPDATE t SET a = 'z' WHERE id = 1"))
    Bemi.set_context({"user": "bob"})
    upsert = "INSERT INTO t VALUES (2, 'y') ON CONFLICT (id) DO UPDATE SET a = 'w'"
    connection.execute(text(upsert))
    connection.execute(text("WITH two(n) AS (VALUES (2)) DELETE FROM t USING two WHERE id = n"))
    connection.execute(text("DELETE FROM t"))
"""


@pytest.fixture(scope="module")
def adapter() -> Path:
    """Where ``bemi-sqlalchemy`` is, apart from everything else: it listens to all engines."""
    folder = os.environ.get("PGAUDIT_CTX_BEMI")
    if not folder:
        pytest.skip("PGAUDIT_CTX_BEMI does not name a folder with bemi-sqlalchemy; nox does it")
    return Path(folder)


def test_bemis_adapter_is_understood_as_it_is(blank: Capture, adapter: Path) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (0, 'nobody said why')")
    subprocess.run(
        [sys.executable, "-c", APPLICATION, blank.source.sqlalchemy_url()],
        env=environment({"PYTHONPATH": str(adapter)}),
        check=True,
        timeout=60,
    )
    rows = blank.changes("t")
    assert [(row.operation, row.primary_key[0]) for row in rows] == [
        ("INSERT", "0"),
        ("INSERT", "1"),
        ("INSERT", "2"),
        ("UPDATE", "1"),
        ("UPDATE", "2"),
        ("DELETE", "2"),
        ("DELETE", "0"),
        ("DELETE", "1"),
    ]
    users = [row.context and row.context["user"] for row in rows]
    # The adapter looks at how a statement begins: one that begins with WITH it leaves unexplained.
    assert users == [None, "ann", "ann", "ann", "bob", None, "bob", "bob"]
    assert rows[1].context["SQL"].startswith("INSERT INTO t")
