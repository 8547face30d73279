"""How fast a backlog goes through to committed rows, beside COPY and pg_recvlogical.

A bare COPY stores the same rows, in the same table with the same indexes; pg_recvlogical writes the
same stream to a file, unread. All in one run, in turns:

    nox -s bench -- [--changes 300000] [--pairs 5] [--rows-per-transaction 10 [1 1000 ...]]
        [--rows narrow|usual]

``--changes 60000 --pairs 3 --rows-per-transaction 1 10 1000`` takes a few minutes. Several sizes of
transactions are measured one after the other, on new servers each, and shown in one table.

Goals: at least 0.9 of COPY at 10 and at 1,000 rows a transaction, at least as fast as
pg_recvlogical at 1 row a transaction, at least 40,000 changes a second, less than 120 MB of memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psycopg
from emission_figures import table

from pgaudit_ctx.cli.work import collect_rarely
from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from pgaudit_ctx.destination.copy_format import COLUMNS
from pgaudit_ctx.embedded import EmbeddedPostgres
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.source.stream import ReplicationStream
from pgaudit_ctx.wal.frames import PAYLOAD, Keepalive, parse_frame
from pgaudit_ctx.wal.pgoutput import Commit, decode
from pgaudit_ctx.worker import Worker

TABLE = """
    CREATE TABLE patients (
        id bigint PRIMARY KEY, ward integer, name text, address text, balance numeric(10, 2),
        active boolean, admitted_at timestamptz, record jsonb
    )"""

# What a row holds beside numbers and times: characters of text, and of JSON.
WIDTHS = {
    "narrow": ("'Ann Smith'", "'12 High Street'", """'{"triage": "urgent"}'"""),
    "usual": (
        "'Anneliese Smith-Winterbottom'",
        "'12 High Street, Flat 4b, Little Whinging, Surrey, GU25 4XY, United Kingdom'",
        """'{"triage": "urgent", "allergies": ["penicillin", "latex"], "contact": {"phone":
        "+44 20 7946 0958", "email": "anneliese@example.org", "relation": "daughter"},
        "notes": "walks with a stick; prefers morning appointments; letters in large print"}'""",
    ),
}

# 50 % INSERT, 35 % UPDATE, 15 % DELETE, in transactions of so many rows.
WORKLOAD = """
    CREATE PROCEDURE work(transactions int, size int) LANGUAGE plpgsql AS $$
    DECLARE
        next_id bigint := 1; victim bigint := 1; dice int; turn int := 0;
    BEGIN
        FOR t IN 1..transactions LOOP
            PERFORM pg_logical_emit_message(true, 'pgaudit_ctx',
                format('{"user":"user%s","reason":"ward round"}', t % 50));
            FOR r IN 1..size LOOP
                dice := (turn * 7) % 20; turn := turn + 1;
                IF dice < 10 OR victim >= next_id THEN
                    INSERT INTO patients VALUES (next_id, next_id % 40, {name}, {address},
                        next_id / 3.0, true, now(), {record});
                    next_id := next_id + 1;
                ELSIF dice < 17 THEN
                    UPDATE patients SET ward = ward + 1, balance = balance + 1
                    WHERE id = victim + (turn * 13) % (next_id - victim);
                ELSE
                    DELETE FROM patients WHERE id = victim;
                    victim := victim + 1;
                END IF;
            END LOOP;
            COMMIT;
        END LOOP;
    END $$"""


def peak_memory() -> float:
    """The most this process held; getrusage would count what its parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class Recorded:
    """A stream that has arrived already: its frames in a file, each behind its length."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb", buffering=1 << 20)  # noqa: SIM115 - lives as long as this

    def start(self, lsn: int) -> None: ...

    def read(self) -> list[bytes]:
        frames: list[bytes] = []
        while len(frames) < 100 and (length := self._file.read(4)):
            frames.append(self._file.read(int.from_bytes(length)))
        return frames

    def wait(self, *_: object) -> bool:
        return False

    def acknowledge(self, flushed: int, *, reply_requested: bool = False) -> None: ...

    def report(self, flushed: int) -> None: ...


def record(chosen: WorkerOptions, path: str) -> int:
    """Write the frames that wait in the slot to a file; give the position of the last commit."""
    end = 0
    with (
        ReplicationStream(chosen.source, chosen.slot, chosen.publication) as stream,
        Path(path).open("wb") as file,
        psycopg.connect(chosen.source, autocommit=True) as source,
    ):
        (target,) = source.execute("SELECT pg_current_wal_flush_lsn() - '0/0'").fetchone()
        stream.start(0)
        while True:
            frames = stream.read()
            if not frames:
                stream.acknowledge(0, reply_requested=True)
                stream.wait(0.1)
            for data in frames:
                frame = parse_frame(data)
                if isinstance(frame, Keepalive):
                    if frame.wal_end >= target:
                        return end
                    continue
                file.write(len(data).to_bytes(4) + data)
                message = decode(data, PAYLOAD)
                if isinstance(message, Commit):
                    end = message.end_lsn


def capture(source: str, destination: str, slot: str, path: str, end_lsn: str) -> None:
    """One run of the worker, in a process of its own so that its memory can be told."""
    worker = Worker(WorkerOptions(source, destination, slot=slot))
    if path:
        worker._stream = Recorded(path)  # noqa: SLF001 - the same loop on the same frames
        worker._target = int(end_lsn)  # noqa: SLF001
    collect_rarely()
    before = time.process_time()
    started = time.perf_counter()
    progress = worker.run(until_caught_up=not path)
    seconds = time.perf_counter() - started
    worker.close()
    print(
        json.dumps(
            {
                "changes": progress.changes,
                "bytes": progress.bytes,
                "seconds": seconds,
                "cpu": time.process_time() - before,
                "megabytes": peak_memory(),
            }
        )
    )


def reset(destination: psycopg.Connection) -> None:
    """Empty the trail, which is append-only to everyone but a superuser who means it."""
    guards = destination.execute(
        "SELECT tgrelid::regclass::text FROM pg_trigger"
        " WHERE tgname = 'refuse_truncate' AND tgenabled <> 'D'"
    )
    for (guarded,) in guards.fetchall():
        destination.execute(f"ALTER TABLE {guarded} DISABLE TRIGGER refuse_truncate")
    destination.execute("TRUNCATE pgaudit_ctx.changes, pgaudit_ctx.checkpoints, pgaudit_ctx.epochs")
    destination.execute("TRUNCATE pgaudit_ctx.coverage")
    destination.execute("CHECKPOINT")


def dump(destination: psycopg.Connection, form: str) -> bytes:
    """The same rows as the worker sent, in the same columns."""
    rows = f"SELECT {', '.join(COLUMNS)} FROM pgaudit_ctx.changes ORDER BY commit_lsn, ordinal"
    with destination.cursor().copy(f"COPY ({rows}) TO STDOUT (FORMAT {form})") as copy:
        return b"".join(map(bytes, copy))


def bare_copy(destination: psycopg.Connection, rows: bytes, form: str) -> float:
    reset(destination)
    started = time.perf_counter()
    with (
        destination.transaction(),
        destination.cursor().copy(
            f"COPY pgaudit_ctx.changes ({', '.join(COLUMNS)}) FROM STDIN (FORMAT {form})"
        ) as copy,
    ):
        for start in range(0, len(rows), 64 * 1024):
            copy.write(rows[start : start + 64 * 1024])
    return time.perf_counter() - started


def receive(binaries: Path, chosen: WorkerOptions, slot: str, end: str) -> float:
    """Let pg_recvlogical write the frames that wait in a slot to a file; give the seconds."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                str(binaries / "pg_recvlogical"),
                f"--dbname={chosen.source}",
                f"--slot={slot}",
                "--start",
                f"--endpos={end}",
                "--no-loop",
                f"--file={folder}/stream",
                "--option=proto_version=1",
                f"--option=publication_names={chosen.publication}",
                "--option=messages=true",
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
    return time.perf_counter() - started


def spread(values: list[float], form: str = ",.0f") -> str:
    ordered = sorted(values)
    return (
        f"{statistics.median(ordered):{form}}  (from {ordered[0]:{form}} to {ordered[-1]:{form}})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=300_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows-per-transaction", type=int, nargs="+", default=[10])
    parser.add_argument("--rows", choices=WIDTHS, default="usual")
    parser.add_argument("--capture", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.capture:
        capture(*options.capture)
        return
    durable = {"fsync": "on", "full_page_writes": "on", "max_wal_size": "4GB"}
    found = {}
    for size in options.rows_per_transaction:
        # Two servers, or the source would have to read the destination's log as well.
        with EmbeddedPostgres(settings=durable) as one, EmbeddedPostgres(settings=durable) as other:
            chosen = prepare(one.url("postgres"), other.url("postgres"), size, options)
            found[size] = measure(one.binaries, chosen, options)
        report(size, found[size])
    compare(found)


def prepare(
    source_url: str, destination_url: str, size: int, options: argparse.Namespace
) -> WorkerOptions:
    chosen = WorkerOptions(source_url, destination_url)
    with psycopg.connect(chosen.source, autocommit=True) as application:
        application.execute(TABLE)
        name, address, record = WIDTHS[options.rows]
        workload = WORKLOAD
        for hole, value in (("name", name), ("address", address), ("record", record)):
            workload = workload.replace(f"{{{hole}}}", value)
        application.execute(workload)
        application.execute("SET synchronous_commit = off")
        with connect(chosen.source, "source") as source:
            source_setup.run(source, chosen.slot, chosen.publication)
        application.execute(f"CALL work({options.changes // size}, {size})")
    return chosen


class Measured(NamedTuple):
    """What was measured at one size of transactions; seconds in order of the rounds."""

    runs: dict[str, list[dict[str, float]]]
    copied: dict[str, list[float]]
    received: list[float]
    stored: int

    @property
    def changes(self) -> float:
        return self.runs["slot"][0]["changes"]

    def ratios(self, seconds: list[float]) -> list[float]:
        """How fast a capture from the slot was beside something else in the same round."""
        captured = self.runs["slot"]
        return [other / run["seconds"] for run, other in zip(captured, seconds, strict=True)]


def measure(binaries: Path, chosen: WorkerOptions, options: argparse.Namespace) -> Measured:
    runs: dict[str, list[dict[str, float]]] = {"slot": [], "frames": []}
    copied: dict[str, list[float]] = {"text": [], "binary": []}
    received: list[float] = []
    with (
        psycopg.connect(chosen.source, autocommit=True) as source,
        psycopg.connect(chosen.destination, autocommit=True) as destination,
        tempfile.NamedTemporaryFile() as frames,
    ):
        with connect(chosen.destination, "destination") as end:
            schema.migrate(end, "quarter")
        last = record(chosen, frames.name)
        (end,) = source.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        for pair in range(options.pairs):
            slot = f"run{pair}"
            for copy in (slot, f"{slot}_received"):
                arguments = [chosen.slot, copy]
                source.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", arguments)
            for kind, path in (("frames", frames.name), ("slot", "")):
                reset(destination)
                arguments = [chosen.source, chosen.destination, slot, path, str(last)]
                done = subprocess.run(
                    [sys.executable, __file__, "--capture", *arguments],
                    check=True,
                    capture_output=True,
                )
                runs[kind].append(json.loads(done.stdout))
            dumped = {form: dump(destination, form) for form in copied}
            size = destination.execute(
                "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits"
                " WHERE inhparent = 'pgaudit_ctx.changes'::regclass"
            ).fetchone()
            for form, rows in dumped.items():
                copied[form].append(bare_copy(destination, rows, form))
            received.append(receive(binaries, chosen, f"{slot}_received", end))
            for copy in (slot, f"{slot}_received"):
                source.execute("SELECT pg_drop_replication_slot(%s)", [copy])
    return Measured(runs, copied, received, int(size[0]))


def report(size: int, measured: Measured) -> None:
    runs, copied, received, stored = measured
    changes = measured.changes
    print(
        f"{changes:,} changes, {size:,} in a transaction, {len(runs['slot'])} rounds on "
        f"{sys.version.split()[0]}"
    )
    print("median and spread; changes a second unless said otherwise")
    for form, seconds in copied.items():
        print(f"bare COPY, {form}".ljust(34), spread([changes / s for s in seconds]))
    print("pg_recvlogical to a file".ljust(34), spread([changes / s for s in received]))
    for kind, label in (("slot", "from the slot"), ("frames", "from frames that have arrived")):
        speeds = [run["changes"] / run["seconds"] for run in runs[kind]]
        print(f"captured {label}".ljust(34), spread(speeds))
        for form, seconds in copied.items():
            ratios = [speed * s / changes for speed, s in zip(speeds, seconds, strict=True)]
            print(f"  as a share of COPY, {form}".ljust(34), spread(ratios, ".2f"))
        spent = [run["cpu"] / changes * 1e6 for run in runs[kind]]
        print("  CPU of the worker, µs each".ljust(34), spread(spent, ".1f"))
    print("memory of the worker, MB".ljust(34), spread([r["megabytes"] for r in runs["slot"]]))
    print(
        "bytes per change".ljust(34),
        f"{runs['slot'][0]['bytes'] / changes:,.0f} sent, "
        f"{stored / changes:,.0f} stored with indexes\n",
        flush=True,
    )


def compare(found: dict[int, Measured]) -> None:
    """All sizes in one table: median, and from the slowest to the fastest round."""
    head = [
        "rows in a transaction",
        "captured, changes a second",
        "of COPY, text",
        "of COPY, binary",
        "of pg_recvlogical",
    ]
    rows = []
    for size, measured in found.items():
        speeds = [run["changes"] / run["seconds"] for run in measured.runs["slot"]]
        compared = [*measured.copied.values(), measured.received]
        ratios = [spread(measured.ratios(seconds), ".2f") for seconds in compared]
        rows.append([f"{size:,}", spread(speeds), *ratios])
    print(table(head, rows))


if __name__ == "__main__":
    main()
