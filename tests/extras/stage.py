"""A server for one page: ``python stage.py PYTHON PAGE [HEADING]`` plays it with that Python.

This side has the worker and the server; that Python has only what the page asks for.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

from pgaudit_ctx.embedded import EmbeddedPostgres

python, page, *heading = sys.argv[1:]
with EmbeddedPostgres(in_memory=True) as server, tempfile.TemporaryDirectory() as folder:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name in ("clinic", "audit"):
            connection.execute(f"CREATE DATABASE {name}")
    named = {
        "PGAUDIT_CTX_SOURCE_URL": server.url("clinic"),
        "PGAUDIT_CTX_DESTINATION_URL": server.url("audit"),
        "PAGE_WORKER": sys.executable,
    }
    player = Path(__file__).with_name("page.py")
    done = subprocess.run(
        [python, str(player), str(Path(page).absolute()), *heading],
        cwd=folder,
        env={**os.environ, **named},
        check=False,
    )
sys.exit(done.returncode)
