"""What is committed, read in this process and stored nowhere."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgaudit_ctx.errors import SourceNotReady
from pgaudit_ctx.source.tail import Tail
from pgaudit_ctx.wal.lsn import parse_lsn
from support.database import Database
from support.server import Server, server_of_its_own


def test_what_several_sessions_commit_at_once_is_read_once_and_in_order(source: Database) -> None:
    def write(first: int) -> None:
        with source.connect() as connection:
            for number in range(first, first + 100):
                with connection.transaction():
                    connection.execute(
                        "INSERT INTO patient (id, name, status) VALUES (%s, 'x', 'ACTIVE')",
                        [number],
                    )
                    connection.execute("UPDATE patient SET name = 'y' WHERE id = %s", [number])

    with Tail(source.url) as tail, ThreadPoolExecutor() as pool:
        writing = [pool.submit(write, first) for first in (0, 1000, 2000)]
        found = []
        while not all(future.done() for future in writing):
            found += tail.read()
        found += tail.read()
        for future in writing:
            future.result()
    positions = [(parse_lsn(change.commit_lsn), change.ordinal) for change in found]
    assert positions == sorted(set(positions))
    assert len(positions) == 600
    assert [change.operation for change in found] == ["INSERT", "UPDATE"] * 300


def test_what_was_committed_before_the_call_is_there_and_what_was_not_is_not(
    source: Database,
) -> None:
    insert = "INSERT INTO patient (id, name, status) VALUES (%s, 'x', 'ACTIVE')"
    with Tail(source.url) as tail, psycopg.connect(source.url) as open_one:
        open_one.execute(insert, [1])
        source.execute(insert, [2])
        assert [change.primary_key for change in tail.read()] == [["2"]]
        assert tail.read() == []
        open_one.commit()
        assert [change.primary_key for change in tail.read()] == [["1"]]


def test_it_leaves_neither_slot_nor_publication_also_if_it_cannot_begin(server: Server) -> None:
    with server_of_its_own(server, {"max_replication_slots": "1"}) as small:
        url = small.url("postgres")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE patient (id int PRIMARY KEY)")
            with Tail(url):
                with pytest.raises(SourceNotReady, match="all replication slots are in use"):
                    Tail(url)
                assert len(connection.execute("SELECT FROM pg_publication").fetchall()) == 1
            assert connection.execute("SELECT FROM pg_publication").fetchall() == []
            assert connection.execute("SELECT FROM pg_replication_slots").fetchall() == []


def test_the_owner_of_the_database_who_may_replicate_needs_no_more_rights(
    empty_database: Database,
) -> None:
    role = f"owner_{empty_database.name}"
    empty_database.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'owner'")
    empty_database.execute(f"ALTER DATABASE {empty_database.name} OWNER TO {role}")
    url = psycopg.conninfo.make_conninfo(empty_database.url, user=role, password="owner")
    try:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute("CREATE SCHEMA own")
            owner.execute("CREATE TABLE own.patient (id int PRIMARY KEY)")
            with Tail(url) as tail:
                owner.execute("INSERT INTO own.patient VALUES (1)")
                assert [change.after for change in tail.read()] == [{"id": 1}]
    finally:
        empty_database.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER")
        empty_database.execute(f"DROP OWNED BY {role}")
        empty_database.execute(f"DROP ROLE {role}")
