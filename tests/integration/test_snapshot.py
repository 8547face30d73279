"""A baseline: the rows that exist already, exactly consistent with what the stream brings."""

import random
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgaudit_ctx.baseline import Baseline, Failure
from pgaudit_ctx.errors import SourceNotReady, UsageError
from pgaudit_ctx.wal.filters import Filters, Redaction
from support.command import run, urls_of
from support.database import Capture, Database
from support.waiting import eventually


class Interrupted(Exception):
    pass


class Notes:
    """What a run reports; may do something at each batch."""

    def __init__(self, at_batch: Callable[[], object] = lambda: None) -> None:
        self.events: list[tuple] = []
        self._at_batch = at_batch

    def waiting(self, transactions) -> None:
        self.events.append(("waiting", [one.pid for one in transactions]))

    def begins(self, table, rows, *, resumed) -> None:
        self.events.append(("begins", table, resumed))

    def stored(self, rows) -> None:
        self._at_batch()

    def ends(self, table, rows) -> None:
        self.events.append(("ends", table, rows))

    def skips(self, table) -> None:
        self.events.append(("skips", table))


def interrupted_after(batches: int) -> Notes:
    left = iter(range(batches - 1))

    def at_batch() -> None:
        if next(left, None) is None:
            raise Interrupted

    return Notes(at_batch)


def take(capture: Capture, *names: str, notes: Notes | None = None, **options) -> list[Failure]:
    return list(Baseline(capture.options, notes or Notes()).run(names, **options))


def rows_of(capture: Capture) -> list[tuple]:
    return [
        (row.operation, row.primary_key, row.after)
        for row in capture.destination.execute(
            "SELECT operation, primary_key, after FROM pgaudit_ctx.changes"
            " ORDER BY epoch, commit_lsn, ordinal"
        )
    ]


@pytest.fixture
def filled(blank: Capture) -> Capture:
    blank.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a text);"
        r"INSERT INTO t VALUES (1, 'x'), (2, NULL), (10, E'tab\t, line\n, \\N and \\')"
    )
    blank.setup()
    return blank


BASELINE = [
    ("SNAPSHOT", ["1"], {"id": 1, "a": "x"}),
    ("SNAPSHOT", ["2"], {"id": 2, "a": None}),
    ("SNAPSHOT", ["10"], {"id": 10, "a": "tab\t, line\n, \\N and \\"}),
]


def test_existing_rows_are_stored_between_what_came_before_and_what_comes_after(
    filled: Capture,
) -> None:
    filled.source.execute("INSERT INTO t VALUES (11, 'before')")
    assert take(filled) == []
    filled.source.execute("UPDATE t SET a = 'after' WHERE id = 1")
    filled.run()
    assert rows_of(filled) == [
        ("INSERT", ["11"], {"id": 11, "a": "before"}),
        *BASELINE,
        ("SNAPSHOT", ["11"], {"id": 11, "a": "before"}),
        ("UPDATE", ["1"], {"id": 1, "a": "after"}),
    ]
    (taken,) = filled.destination.execute("SELECT * FROM pgaudit_ctx.snapshots")
    assert (taken.table_name, taken.row_count, taken.last_key) == ("t", 4, ["11"])
    assert taken.finished_at is not None
    ((lsns,),) = filled.destination.execute(
        "SELECT array_agg(DISTINCT commit_lsn::text) FROM pgaudit_ctx.changes"
        " WHERE operation = 'SNAPSHOT'"
    )
    assert lsns == [taken.lsn]


def test_the_command_stores_tells_and_skips_what_it_has(filled: Capture) -> None:
    first = run("snapshot", env=urls_of(filled))
    assert (first.returncode, first.stdout) == (0, "stored       public.t: 3 rows\n"), first.stderr
    again = run("snapshot", "public.t", env=urls_of(filled))
    assert "skipped      public.t" in again.stdout
    anew = run("snapshot", "t", "--again", env=urls_of(filled))
    assert "stored       public.t: 3 rows" in anew.stdout
    assert rows_of(filled) == BASELINE * 2
    operations = filled.destination.execute(
        "SELECT command, arguments -> 'tables' AS tables, result FROM pgaudit_ctx.operations"
    )
    assert [tuple(row) for row in operations] == [
        ("snapshot", [], "done"),
        ("snapshot", ["public.t"], "done"),
        ("snapshot", ["t"], "done"),
    ]


def write_at_random(source: Database, seed: int, done: threading.Event) -> None:
    rng = random.Random(seed)
    fresh = iter(range(100_000 * (seed + 1), 100_000 * (seed + 2)))
    with source.connect() as connection:
        while not done.is_set():
            try:
                with connection.transaction():
                    for _ in range(rng.randint(1, 4)):
                        write_one(connection, rng, fresh)
            except psycopg.errors.DeadlockDetected:
                continue


def write_one(connection: psycopg.Connection, rng: random.Random, fresh: Iterator[int]) -> None:
    key, kind = rng.randint(1, 25_000), rng.random()
    if kind < 0.2:
        connection.execute("DELETE FROM t WHERE id = %s", [key])
    elif kind < 0.3:
        connection.execute("UPDATE t SET id = %s WHERE id = %s", [next(fresh), key])
    else:
        connection.execute(
            "INSERT INTO t VALUES (%s, 1) ON CONFLICT (id) DO UPDATE SET a = t.a + 1", [key]
        )


def test_while_others_write_the_trail_replayed_from_the_baseline_is_the_table(
    blank: Capture,
) -> None:
    source = blank.source
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int);"
        "INSERT INTO t SELECT n, 0 FROM generate_series(1, 20000) n"
    )
    blank.setup()
    done = threading.Event()
    writers = [
        threading.Thread(target=write_at_random, args=(source, seed, done)) for seed in range(2)
    ]
    for writer in writers:
        writer.start()
    try:
        for _ in range(2):  # and once again, beside what the stream brought
            written = source.execute("SELECT sum(a) FROM t")[0][0]
            assert take(blank, again=True) == []
            eventually(
                lambda: source.execute("SELECT sum(a) FROM t")[0][0] > written + 50,  # noqa: B023
                "the writers go on",
            )
    finally:
        done.set()
        for writer in writers:
            writer.join()

    rows = blank.changes()
    first = next(i for i, row in enumerate(rows) if row.operation == "SNAPSHOT")
    replayed: dict[str, dict] = {}
    for row in rows[first:]:
        (key,) = row.primary_key
        if row.operation == "SNAPSHOT":
            assert replayed.get(key, row.after) == row.after
        else:
            old = row.previous_key[0] if row.previous_key else key
            assert replayed.pop(old, None) == row.before
        if row.after is not None:
            replayed[key] = row.after
    assert {int(key): row["a"] for key, row in replayed.items()} == dict(
        map(tuple, source.execute("SELECT id, a FROM t"))
    )


def test_a_baseline_that_was_interrupted_goes_on_after_the_last_row_that_is_stored(
    blank: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.source.snapshot._BATCH_BYTES", 1000)
    blank.source.execute(
        "CREATE TABLE t (k text, n int, a text, PRIMARY KEY (k, n));"
        r"INSERT INTO t SELECT chr(97 + n % 3) || E'\'\\', n, repeat('x', 90)"
        " FROM generate_series(1, 60) n"
    )
    blank.setup()
    with pytest.raises(Interrupted):
        take(blank, notes=interrupted_after(3))
    assert 0 < len(rows_of(blank)) < 60
    blank.source.execute("UPDATE t SET a = 'new'; DELETE FROM t WHERE n IN (3, 59)")
    notes = Notes()
    assert take(blank, notes=notes) == []
    assert notes.events[0] == ("begins", "public.t", True)
    assert notes.events[-1][:2] == ("ends", "public.t")
    blank.run()
    known: dict[tuple, dict | None] = {}
    seen = []
    for operation, key, after in rows_of(blank):
        if operation == "SNAPSHOT":
            seen.append(tuple(key))
        known[tuple(key)] = after
    assert len(seen) == len(set(seen))
    left = {key: row["a"] for key, row in known.items() if row is not None}
    assert left == {(row.k, str(row.n)): row.a for row in blank.source.execute("SELECT * FROM t")}
    first, second = blank.destination.execute("SELECT * FROM pgaudit_ctx.snapshots ORDER BY lsn")
    assert (first.finished_at, second.after_key) == (None, first.last_key)


def test_without_a_key_an_interrupted_table_is_stored_from_the_beginning(
    blank: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.source.snapshot._BATCH_BYTES", 100)
    blank.source.execute(
        "CREATE TABLE t (a int); INSERT INTO t SELECT n FROM generate_series(1, 100) n"
    )
    blank.setup()
    with pytest.raises(Interrupted):
        take(blank, notes=interrupted_after(2))
    assert rows_of(blank) == []
    assert take(blank) == []
    assert [after["a"] for _, _, after in rows_of(blank)] == list(range(1, 101))


def test_a_table_that_is_truncated_before_it_is_read_is_not_taken_for_empty(
    blank: Capture,
) -> None:
    blank.source.execute(
        "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1);"
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (2), (3)"
    )
    blank.setup()
    once = iter(["TRUNCATE t; INSERT INTO t VALUES (7)"])
    notes = Notes(lambda: [blank.source.execute(statement) for statement in once])
    assert take(blank, notes=notes) == []
    blank.run()
    assert [row for row in rows_of(blank) if row[1] != ["1"]] == [
        ("TRUNCATE", None, None),
        ("INSERT", ["7"], {"id": 7}),
        ("SNAPSHOT", ["7"], {"id": 7}),
    ]


def test_a_row_of_the_baseline_looks_as_the_stream_would_bring_it(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE parent (id int PRIMARY KEY, gone int, a int,"
        " twice int GENERATED ALWAYS AS (a * 2) STORED); ALTER TABLE parent DROP COLUMN gone;"
        "CREATE TABLE child () INHERITS (parent); ALTER TABLE child ADD PRIMARY KEY (id);"
        "CREATE TABLE visit (id int PRIMARY KEY, j json) PARTITION BY RANGE (id);"
        "CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE nothing ();"
        "INSERT INTO parent VALUES (1, 5); INSERT INTO child VALUES (2, 6);"
        """INSERT INTO visit VALUES (3, '{"a": 1, "a": 2}'); INSERT INTO nothing DEFAULT VALUES"""
    )
    blank.setup()
    assert take(blank) == []
    blank.source.execute(
        "UPDATE parent SET id = id; UPDATE visit SET id = id; INSERT INTO nothing DEFAULT VALUES"
    )
    rows = blank.changes()
    shapes = [
        [
            (row.table_name, row.relation_oid, row.primary_key, row.after)
            for row in rows
            if (row.operation == "SNAPSHOT") is from_baseline
        ]
        for from_baseline in (True, False)
    ]
    assert len(shapes[0]) == 4
    assert sorted(shapes[0], key=str) == sorted(shapes[1], key=str)


def test_a_workers_filters_hold_for_the_baseline_too(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE s (id int PRIMARY KEY); INSERT INTO s VALUES (1);"
        "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'x'), (2, NULL)"
    )
    blank.setup()
    filters = Filters(exclude_tables=["s"], redact_columns={"t.a": Redaction.MASK})
    blank.options = blank.options._replace(filters=filters)
    blank.run()
    assert take(blank) == []
    assert [after for _, _, after in rows_of(blank)] == [
        {"id": 1, "a": {"$pgaudit_ctx": "redacted"}},
        {"id": 2, "a": None},
    ]
    with pytest.raises(UsageError, match=r"public\.s is not captured"):
        take(blank, "s")


def test_a_table_that_was_captured_with_a_hole_needs_a_new_baseline(filled: Capture) -> None:
    take(filled)
    filled.source.execute("ALTER PUBLICATION pgaudit_ctx DROP TABLE t")
    filled.run()
    with pytest.raises(UsageError, match="not captured"):
        take(filled, "t")
    filled.source.execute("ALTER PUBLICATION pgaudit_ctx ADD TABLE t")
    filled.run()
    notes = Notes()
    take(filled, notes=notes)
    assert notes.events[-1] == ("ends", "public.t", 3)


def test_row_level_security_never_hides_a_row_without_a_word(filled: Capture) -> None:
    source = filled.source
    role = f"limited_{source.name}"
    source.execute(
        f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret'; GRANT SELECT ON t TO {role};"
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON t USING (id = 1);"
        "CREATE TABLE s (id int PRIMARY KEY); INSERT INTO s VALUES (5)"
    )
    try:
        filled.setup()
        filled.run()
        url = make_conninfo(source.url, user=role, password="secret")
        filled.options = filled.options._replace(source=url)
        failures = dict(take(filled))
        assert "row-level security" in failures["public.t"]
        assert "BYPASSRLS" in failures["public.t"]
        assert "GRANT SELECT" in failures["public.s"]
        assert rows_of(filled) == []
        source.execute(f"ALTER ROLE {role} BYPASSRLS")
        assert take(filled, "t") == []
        assert rows_of(filled) == BASELINE
    finally:
        source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_transaction_that_stays_open_is_named_and_waited_for_only_so_long(
    filled: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgaudit_ctx.source.snapshot._TELL_SECONDS", 0.1)
    with filled.source.connect() as other, other.transaction():
        other.execute("INSERT INTO t VALUES (11, 'slow')")
        pid = other.info.backend_pid
        notes = Notes()
        with pytest.raises(SourceNotReady, match=rf"PID {pid} .*--wait"):
            take(filled, notes=notes, wait=0.5)
        assert notes.events == [("waiting", [pid])]
    assert rows_of(filled) == []
    ((slots,),) = filled.source.execute(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pgaudit_ctx_snapshot%'"
        " AND database = current_database()"
    )
    assert slots == 0


def test_a_source_that_is_not_captured_is_refused(blank: Capture) -> None:
    with pytest.raises(SourceNotReady, match="pgaudit-ctx setup"):
        take(blank)


def test_a_name_that_fits_no_table_or_several_is_refused(blank: Capture) -> None:
    blank.source.execute(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY); CREATE TABLE t (id int)"
    )
    blank.setup()
    for name, said in (("u", "no table"), ("t", r"a\.t, public\.t")):
        with pytest.raises(UsageError, match=said):
            take(blank, name)
    assert take(blank, "a.t") == []
