"""Coverage-guided fuzzing of ``pgaudit_ctx.wal``: whatever the bytes, only ProtocolError is raised.

``nox -s fuzz -- -max_total_time=900`` runs it; arguments go to libFuzzer. The first byte of an
input chooses what is fed. Seeds are messages that were recorded from real servers.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pgaudit_ctx.wal"]):
    from pgaudit_ctx.wal.copy_text import parse_rows
    from pgaudit_ctx.wal.filters import Filters, Redaction
    from pgaudit_ctx.wal.frames import PAYLOAD, parse_frame, wal_starts
    from pgaudit_ctx.wal.json_text import Refused, parse
    from pgaudit_ctx.wal.lsn import format_lsn, parse_lsn
    from pgaudit_ctx.wal.pgoutput import Begin, Relation, decode
    from pgaudit_ctx.wal.stitcher import Stitcher, context_json
    from pgaudit_ctx.wal.table import TableFacts
    from pgaudit_ctx.wal.values import encoder_for

from pgaudit_ctx.errors import ProtocolError
from unit.recorded import POSTGRESQL_15, POSTGRESQL_18

RECORDED = [*POSTGRESQL_18.values(), *POSTGRESQL_15.values()]
RELATIONS = [
    decode(POSTGRESQL_18[name], PAYLOAD)
    for name in ("relation_full", "relation_default", "relation_child")
]
TYPES = (16, 20, 25, 114, 1700, 3802)
FILTERS = Filters(
    exclude_tables=["*child*"], ignore_columns=["*.n*"], redact_columns={"*.d*": Redaction.HASH}
)


def describe(relation: Relation) -> TableFacts:
    known = {16390: 23, 16385: 114}
    return TableFacts(relation.oid, relation.schema, relation.name, ("id",), known)


def fuzz_frames(data: bytes) -> None:
    parse_frame(data)
    wal_starts([data])


def fuzz_message(data: bytes) -> None:
    decode(data)


class Streams:
    """Two stitchers that stay for many inputs, because tables take long to make."""

    def __init__(self) -> None:
        self._left = 0

    def take(self, *, filtered: bool) -> Stitcher:
        if not self._left:
            self._left = 2000
            self._made = [Stitcher(describe, filters=filters) for filters in (None, FILTERS)]
            for stitcher in self._made:
                for relation in RELATIONS:
                    stitcher.receive(0, relation)
        self._left -= 1
        stitcher = self._made[filtered]
        stitcher.receive(0, Begin(1, 0, 1))
        return stitcher


streams = Streams()


def fuzz_stream(data: bytes) -> None:
    """Messages one after the other, each after its position and its length."""
    stitcher = streams.take(filtered=len(data) % 2 == 1)
    while len(data) > 2:
        position, length, rest = data[0], data[1], data[2:]
        with contextlib.suppress(ProtocolError):
            stitcher.receive(position, decode(rest[:length]))
        data = rest[length:]


def fuzz_context(data: bytes) -> None:
    text = context_json(data)
    assert text is None or isinstance(json.loads(text, parse_int=str, parse_float=str), dict)


def fuzz_value(data: bytes) -> None:
    """A value of a type whose text the server makes: UTF-8, and JSON where the type says so."""
    if not data:
        return
    kind, value = TYPES[data[0] % len(TYPES)], data[1:]
    with contextlib.suppress(UnicodeDecodeError):
        text = value.decode()
        if kind in (20, 1700, 3802):
            try:
                json.loads(text)
            except (ValueError, RecursionError):
                return
        with contextlib.suppress(RecursionError):
            encoder_for(kind)(value)


def fuzz_json(data: bytes) -> None:
    with contextlib.suppress(Refused, UnicodeDecodeError):
        parse(data.decode(), allow_duplicates=bool(len(data) % 2))


def fuzz_lsn(data: bytes) -> None:
    with contextlib.suppress(UnicodeDecodeError):
        lsn = parse_lsn(data.decode())
        assert parse_lsn(format_lsn(lsn)) == lsn


def fuzz_copy(data: bytes) -> None:
    parse_rows(data + b"\n", len(data) % 3)


TARGETS = (
    fuzz_frames,
    fuzz_message,
    fuzz_stream,
    fuzz_stream,
    fuzz_context,
    fuzz_value,
    fuzz_json,
    fuzz_lsn,
    fuzz_copy,
)


def one_input(data: bytes) -> None:
    if data:
        with contextlib.suppress(ProtocolError):
            TARGETS[data[0] % len(TARGETS)](data[1:])


def seeds(folder: Path) -> None:
    """Write each recorded message for each target that takes messages."""
    messages = [frame[PAYLOAD:] for frame in RECORDED if len(frame) < 250]
    for number, frame in enumerate(RECORDED):
        (folder / f"frame{number}").write_bytes(bytes([0]) + frame)
    for number, message in enumerate(messages):
        (folder / f"message{number}").write_bytes(bytes([1]) + message)
    stream = [bytes([i % 256, len(m)]) + m for i, m in enumerate(messages)]
    for number in range(0, len(stream), 3):
        piece = b"".join(stream[number : number + 3])
        (folder / f"stream{number}").write_bytes(bytes([2]) + piece)
    (folder / "context").write_bytes(bytes([4]) + b'{"user": "a", "b": [1.5e3, "\\ud800"]}')
    (folder / "json").write_bytes(bytes([5, 3]) + b'{"a": {"$pgaudit_ctx": [1, 2, null]}}')
    (folder / "copy").write_bytes(bytes([8]) + b"1\\t\\tx\t\\N\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as corpus:
        seeds(Path(corpus))
        atheris.Setup(
            [sys.argv[0], corpus, "-max_len=400", "-timeout=30", *sys.argv[1:]], one_input
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
