"""A broker that ends with the tests."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from support.waiting import eventually


@contextmanager
def running_redis() -> Iterator[str]:
    """Start a server that keeps nothing on disk; gives its URL."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, cwd="/") as process:
        try:
            with redis.Redis(port=port) as client:

                def answers() -> bool:
                    try:
                        return bool(client.ping())
                    except redis.ConnectionError:
                        return False

                eventually(answers, "the broker answers")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
