"""A request to stop, made by a signal handler and noticed by whatever waits."""

import contextlib
import selectors
import socket
from types import TracebackType
from typing import Self


class StopRequest:
    """Is made once, from a signal handler or another thread, and stays made.

    A socket becomes readable then, so that a selector that waits for a server wakes up as well. No
    lock is taken: a signal handler that takes one can wait for itself.
    """

    def __init__(self) -> None:
        self._made = False
        self._waker, self._wakeable = socket.socketpair()
        for end in (self._waker, self._wakeable):
            end.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets; the request itself stays as it is."""
        self._waker.close()
        self._wakeable.close()

    def __bool__(self) -> bool:
        return self._made

    def make(self) -> None:
        """Ask for it."""
        self._made = True
        with contextlib.suppress(OSError):  # it is about to wake up anyway, or has ended
            self._waker.send(b"\0")

    def fileno(self) -> int:
        """Give what a selector can wait for."""
        return self._wakeable.fileno()

    def noticed(self) -> None:
        """Make the socket wait for the next request, so that what must still be done can wait."""
        with contextlib.suppress(BlockingIOError):
            self._wakeable.recv(4096)

    def wait(self, seconds: float) -> None:
        """Sleep, but not past the request."""
        if self._made:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            selector.select(seconds)
