"""How fast a backlog goes through to committed rows, beside a bare COPY of the same rows.

Both in one run, in interleaved pairs, on the same table with the same indexes:

    python benchmarks/capture.py [--changes 300000] [--pairs 5]
        [--rows-per-transaction 10] [--rows narrow|usual]

Goals: at least 0.75 of COPY, at least 40,000 changes a second, less than 120 MB of memory.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

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
    for (table,) in guards.fetchall():
        destination.execute(f"ALTER TABLE {table} DISABLE TRIGGER refuse_truncate")
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


def spread(values: list[float], form: str = ",.0f") -> str:
    ordered = sorted(values)
    return (
        f"{statistics.median(ordered):{form}}  (from {ordered[0]:{form}} to {ordered[-1]:{form}})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=300_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows-per-transaction", type=int, default=10)
    parser.add_argument("--rows", choices=WIDTHS, default="usual")
    parser.add_argument("--capture", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.capture:
        capture(*options.capture)
        return
    durable = {"fsync": "on", "full_page_writes": "on", "max_wal_size": "4GB"}
    # Two servers, or the source would have to read the destination's log as well.
    with EmbeddedPostgres(settings=durable) as one, EmbeddedPostgres(settings=durable) as other:
        measure(prepare(one.url("postgres"), other.url("postgres"), options), options)


def prepare(source_url: str, destination_url: str, options: argparse.Namespace) -> WorkerOptions:
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
        size = options.rows_per_transaction
        application.execute(f"CALL work({options.changes // size}, {size})")
    return chosen


def measure(chosen: WorkerOptions, options: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {"slot": [], "frames": []}
    copied: dict[str, list[float]] = {"text": [], "binary": []}
    with (
        psycopg.connect(chosen.source, autocommit=True) as source,
        psycopg.connect(chosen.destination, autocommit=True) as destination,
        tempfile.NamedTemporaryFile() as frames,
    ):
        with connect(chosen.destination, "destination") as end:
            schema.migrate(end, "quarter")
        last = record(chosen, frames.name)
        for pair in range(options.pairs):
            slot = f"run{pair}"
            source.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [chosen.slot, slot])
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
            source.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    report(runs, copied, int(size[0]))


def report(
    runs: dict[str, list[dict[str, float]]], copied: dict[str, list[float]], size: int
) -> None:
    changes = runs["slot"][0]["changes"]
    print(f"{changes:,} changes, {len(runs['slot'])} rounds on {sys.version.split()[0]}")
    print("median and spread; changes a second unless said otherwise")
    for form, seconds in copied.items():
        print(f"bare COPY, {form}".ljust(34), spread([changes / s for s in seconds]))
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
        f"{size / changes:,.0f} stored with indexes",
    )


if __name__ == "__main__":
    main()
