"""Frames of the streaming replication protocol.

PostgreSQL documentation: "Streaming Replication Protocol", the CopyData messages of
``START_REPLICATION``. Times are microseconds since 2000-01-01 00:00:00 UTC.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from pgaudit_ctx.errors import ProtocolError

_XLOG_DATA: Final = struct.Struct(">BQQq")
_KEEPALIVE: Final = struct.Struct(">BQqB")
_STATUS: Final = struct.Struct(">BQQQqB")
_unpack_position: Final = struct.Struct(">Q").unpack_from
_W: Final = ord("w")
_K: Final = ord("k")
_R: Final = ord("r")

PAYLOAD: Final = _XLOG_DATA.size
"""Where the payload of an ``XLogData`` frame begins."""


class XLogData(NamedTuple):
    """A piece of the stream: one pgoutput message.

    Its message begins at offset ``PAYLOAD`` of the frame's bytes and is not copied out of them.
    """

    wal_start: int
    wal_end: int
    sent_at: int


class Keepalive(NamedTuple):
    """The server tells how far it has sent, and may ask for an answer at once."""

    wal_end: int
    sent_at: int
    reply_requested: bool


def parse_frame(data: bytes) -> XLogData | Keepalive:
    """Take one frame apart.

    Args:
        data: The content of one CopyData message from the server.

    Returns:
        ``XLogData`` or ``Keepalive``.

    Raises:
        ProtocolError: If the bytes are neither.
    """
    try:
        kind = data[0]
        if kind == _W:
            return XLogData(*_XLOG_DATA.unpack_from(data)[1:])
        if kind == _K and len(data) == _KEEPALIVE.size:
            _, wal_end, sent_at, reply = _KEEPALIVE.unpack(data)
            return Keepalive(wal_end, sent_at, reply != 0)
    except (IndexError, struct.error):
        raise ProtocolError(
            f"a replication frame of {len(data)} bytes ends before its header does"
        ) from None
    raise ProtocolError(
        f"a replication frame of {len(data)} bytes and kind {kind:#04x} is neither XLogData nor a "
        "keepalive"
    )


def wal_starts(frames: Sequence[bytes]) -> list[int | None]:
    """Give the positions of ``XLogData`` frames, without taking the rest of their headers apart.

    Args:
        frames: The contents of CopyData messages from the server.

    Returns:
        For each its position; ``None`` for any other frame.

    Raises:
        ProtocolError: If a header is cut off.
    """
    unpack = _unpack_position
    try:
        return [unpack(data, 1)[0] if data[0] == _W else None for data in frames]
    except (IndexError, struct.error):
        raise ProtocolError(
            f"a replication frame of {min(map(len, frames))} bytes ends before its header does"
        ) from None


def standby_status(
    flushed: int, sent_at: int, *, written: int | None = None, reply_requested: bool = False
) -> bytes:
    """Make a standby status update, the acknowledgement.

    Args:
        flushed: Everything before this LSN is stored durably; reported as flushed and applied. 0
            says nothing of it, and leaves the slot where it is.
        sent_at: Microseconds since 2000-01-01 UTC.
        written: The LSN to report as written; the same by default.
        reply_requested: Ask the server for a keepalive at once.

    Returns:
        The content of one CopyData message to the server.
    """
    if written is None:
        written = flushed
    return _STATUS.pack(_R, written, flushed, flushed, sent_at, reply_requested)
