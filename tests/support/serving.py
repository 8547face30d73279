"""An application on a real server of its own, in this process, so that tests can look into it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from support.waiting import eventually


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve an ASGI application with uvicorn; gives its address, ``127.0.0.1:port``."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    # uvicorn's own handling of X-Forwarded-For would come before that of the application, and a
    # busy machine may let a connection rest for longer than uvicorn keeps one by itself.
    defaults = {"log_level": "critical", "lifespan": "on", "proxy_headers": False}
    options = {**defaults, "timeout_keep_alive": 60, **options}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive(), "the server has started")
        assert server.started, "the server did not start"
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
