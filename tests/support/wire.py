"""A TCP proxy in front of a server: it delays what passes, counts the round trips, and can be cut.

``with Link.before(database.url, delay=0.001) as link:`` stands before whatever that URL names;
``link.url(database.url)`` goes through it.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

_HERE: Final = "127.0.0.1"
_CHUNK: Final = 64 * 1024
_MAX_WAITING: Final = 256

# When it is due, and what; nothing at the end.
_Passing: TypeAlias = "queue.Queue[tuple[float, bytes]]"


class Link:
    """Passes connections on, each way with a delay, any amount of bytes on the way at once.

    A round trip is counted whenever the client speaks for the first time, or again after it was
    given an answer: what it sends without waiting belongs to the same trip. A client that
    pipelines needs a delay, or the first answers may overtake the rest of what it sends.

    Args:
        host: The server's name or address, or the directory of its Unix socket.
        port: The server's port; it is part of the name of a Unix socket too.
        delay: Seconds that everything takes, in each direction.
    """

    def __init__(self, host: str, port: int = 5432, *, delay: float = 0.0) -> None:
        self._server = (host, port)
        self._delay = delay
        self._lock = threading.Lock()
        self._trips = 0
        self._until_cut: int | None = None
        self.cuts = 0
        self._closing = False
        self._open: list[_Connection] = []
        self._listener = socket.create_server((_HERE, 0))
        self.port: Final[int] = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @classmethod
    def before(cls, url: str, *, delay: float = 0.0) -> Self:
        """Stand before the server that a URL names."""
        return cls(*_address(url), delay=delay)

    def url(self, url: str) -> str:
        """Give the same URL, through this link."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        kept = [pair for pair in parse_qsl(parts.query) if pair[0] not in {"host", "port"}]
        query = urlencode(kept, quote_via=quote)  # libpq takes + as it is
        return urlunsplit(parts._replace(netloc=f"{user}{at}{_HERE}:{self.port}", query=query))

    @property
    def round_trips(self) -> int:
        """How many there were since the last reset, over all connections."""
        return self._trips

    def reset(self) -> None:
        """Count from zero again."""
        with self._lock:
            self._trips = 0

    def cut_after(self, size: int) -> None:
        """Cut the connection over which, from now on, byte number ``size`` passes, behind it."""
        with self._lock:
            self._until_cut = size

    def lead_to(self, url: str) -> None:
        """Stand before another server from now on, and end the connections to the old one."""
        self._server = _address(url)
        for connection in self._open:
            connection.close()

    def close(self) -> None:
        """End all connections, and take no more."""
        self._closing = True
        with suppress(OSError), socket.create_connection((_HERE, self.port)):
            pass  # accept() waits for somebody
        self._acceptor.join()
        self._listener.close()
        for connection in self._open:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closing:
                client.close()
                return
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            self._open.append(_Connection(client, server, self._delay, self._count, self._clip))

    def _connect(self) -> socket.socket:
        host, port = self._server
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return server

    def _clip(self, data: bytes) -> tuple[bytes, bool]:
        """Say how much of it still passes, and whether that was all."""
        if self._until_cut is None:
            return data, False
        with self._lock:
            if self._until_cut is None:
                return data, False
            if len(data) < self._until_cut:
                self._until_cut -= len(data)
                return data, False
            data = data[: self._until_cut]
            self._until_cut = None
            self.cuts += 1
            return data, True

    def _count(self) -> None:
        with self._lock:
            self._trips += 1


class _Connection:
    """One client's connection: two threads for each direction, so that nothing waits in line."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        delay: float,
        count: Callable[[], None],
        clip: Callable[[bytes], tuple[bytes, bool]],
    ) -> None:
        self._ends = (client, server)
        self._clip = clip
        self._delay = delay
        self._count = count
        self._was_answered = True
        for end in self._ends:
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there: _Passing = queue.Queue(_MAX_WAITING)
        back: _Passing = queue.Queue(_MAX_WAITING)
        self._threads = [
            threading.Thread(target=target, args=arguments, daemon=True)
            for target, arguments in (
                (self._receive, (client, there, self._client_spoke)),
                (self._send, (server, there, _nothing)),
                (self._receive, (server, back, _nothing)),
                (self._send, (client, back, self._client_is_answered)),
            )
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _client_spoke(self) -> None:
        if self._was_answered:
            self._was_answered = False
            self._count()

    def _client_is_answered(self) -> None:
        self._was_answered = True

    def _receive(self, end: socket.socket, passing: _Passing, note: Callable[[], None]) -> None:
        data = b"some"
        while data:
            try:
                data = end.recv(_CHUNK)
            except OSError:
                data = b""
            is_cut = False
            if data:
                data, is_cut = self._clip(data)
                note()
            if data:
                passing.put((time.monotonic() + self._delay, data))
            if is_cut:
                data = b""
                for one in self._ends:  # the other direction ends as well
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RD)
        passing.put((time.monotonic() + self._delay, b""))

    def _send(self, end: socket.socket, passing: _Passing, note: Callable[[], None]) -> None:
        is_open = True
        while True:
            due, data = passing.get()
            time.sleep(max(0.0, due - time.monotonic()))  # the delay itself; nobody waits by it
            if not data:
                break
            if is_open:
                # First, or the client could speak again before it is noted.
                note()
                try:
                    end.sendall(data)
                except OSError:
                    is_open = False  # goes on taking, or the other thread would wait for ever
        with suppress(OSError):
            end.shutdown(socket.SHUT_WR)


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query))
    host = asked.get("host") or parts.hostname or "localhost"
    return host, int(asked.get("port") or parts.port or 5432)


def _nothing() -> None:
    pass
