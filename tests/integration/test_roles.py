"""Each role can do its work and nothing else; one that is no superuser sets up what it owns."""

import re
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import errors

from pgaudit_ctx.doctor.finding import State
from support.command import run, start, urls_of
from support.database import Capture, Database, create_database, drop_database
from support.doctor import ask, command
from support.positions import insert
from support.server import Server
from support.waiting import eventually

ADD_CHANGE = (
    "INSERT INTO pgaudit_ctx.changes (source, epoch, commit_lsn, ordinal, transaction_id,"
    " committed_at, operation, schema_name, table_name, relation_oid)"
    " VALUES ('x', 1, '0/1', 1, 1, now(), 'INSERT', 's', 't', 1)"
)


@pytest.fixture(scope="module")
def made(server: Server, source_template: str) -> Iterator[Capture]:
    """The clinic after ``pgaudit-ctx setup`` with roles of this module's own."""
    capture = Capture(create_database(server, source_template), create_database(server))
    done = command(capture, "setup", "--roles", "clinic")
    assert done.exit_code == 0, done.output
    yield capture
    for end in (capture.source, capture.destination):
        drop_database(end)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for role in ("replication", "writer", "reader", "owner"):
            connection.execute(f"DROP ROLE clinic_{role}")


def as_role(database: Database, role: str) -> psycopg.Connection:
    connection = psycopg.connect(database.url, autocommit=True)
    connection.execute(f"SET ROLE {role}")
    return connection


def allowed(database: Database, role: str, statement: str) -> bool:
    with as_role(database, role) as connection:
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
        except errors.InsufficientPrivilege:
            return False
    return True


def worker_urls(capture: Capture) -> Capture:
    """The same capture as its worker sees it, under the roles that setup made."""
    seen = Capture(capture.source, capture.destination)
    seen.options = capture.options._replace(
        source=capture.source.url.replace("postgres@", "clinic_replication@"),
        destination=capture.destination.url.replace("postgres@", "clinic_writer@"),
    )
    return seen


def test_a_worker_does_all_its_work_under_the_two_roles_that_are_meant_for_it(
    made: Capture,
) -> None:
    seen = worker_urls(made)
    made.destination.execute(
        "DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT inhrelid FROM pg_inherits"
        " WHERE inhparent = 'pgaudit_ctx.changes'::regclass"
        " LOOP EXECUTE format('DROP TABLE %s', p); END LOOP; END $$"
    )
    made.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    made.source.execute("ALTER TABLE sample RENAME TO specimen")
    seen.run()
    made.source.execute("UPDATE patient SET name = 'b'")
    seen.run()
    rows = made.destination.execute(
        "SELECT operation FROM pgaudit_ctx.changes ORDER BY commit_lsn, ordinal"
    )
    assert [row.operation for row in rows] == ["INSERT", "UPDATE"]
    ((owner,),) = made.destination.execute(
        "SELECT DISTINCT pg_get_userbyid(c.relowner)::text FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'pgaudit_ctx.changes'::regclass"
    )
    assert owner == "clinic_owner"
    found = ask(seen)
    for check in ("role", "destination_role", "append_only", "checkpoint", "coverage_holes"):
        assert found[check].state is State.OK, found[check]


def test_a_worker_keeps_its_slot_back_under_these_roles_too(
    server: Server,
    source_template: str,
    made: Capture,
) -> None:
    ends = Capture(create_database(server, source_template), create_database(server))
    try:
        assert command(ends, "setup", "--roles", "clinic").exit_code == 0
        seen = worker_urls(ends)
        seen.options = seen.options._replace(ack_delay=3600.0)
        insert(ends.source, 1)
        seen.run()
        ends.destination.execute(
            "UPDATE pgaudit_ctx.captured_positions SET at = at - interval '2 h'"
        )
        for key in (2, 3):
            insert(ends.source, key)
            seen.run()
        ((old,),) = ends.destination.execute(
            "SELECT count(*) FROM pgaudit_ctx.captured_positions WHERE at < now() - interval '1 h'"
        )
        assert old == 1  # the one that the slot has been told last
    finally:
        drop_database(ends.source)
        drop_database(ends.destination)


def test_a_baseline_is_taken_beside_the_worker_under_the_same_two_roles(
    server: Server, source_template: str, made: Capture
) -> None:
    ends = Capture(create_database(server, source_template), create_database(server))
    try:
        done = command(ends, "setup", "--roles", "clinic")
        assert done.exit_code == 0, done.output
        ends.source.execute(
            "INSERT INTO patient (id, name, status) SELECT n, 'x', 'ACTIVE'"
            " FROM generate_series(1, 500) n"
        )
        seen = worker_urls(ends)
        urls = {
            **urls_of(ends),
            "PGAUDIT_CTX_SOURCE_URL": seen.options.source,
            "PGAUDIT_CTX_DESTINATION_URL": seen.options.destination,
        }
        worker = start("worker", env=urls)
        try:
            eventually(lambda: ask(seen)["worker"].state is State.OK, "the worker reads")
            ends.source.execute("UPDATE patient SET name = 'y' WHERE id = 1")
            taken = run("snapshot", "patient", env=urls)
            assert taken.returncode == 0, taken.stderr
            ends.source.execute("ALTER TABLE patient ADD email text")
            ends.source.execute("UPDATE patient SET email = 'e' WHERE id = 2")
            eventually(lambda: len(stored(ends, "UPDATE")) == 2, "the second change is stored")
        finally:
            worker.terminate()
            _, said = worker.communicate(timeout=30)
        assert worker.returncode == 0, said
        assert len(stored(ends, "SNAPSHOT")) == 500
        open_ = ends.destination.execute(
            "SELECT key_columns, identity FROM pgaudit_ctx.coverage"
            " WHERE table_name = 'patient' AND to_lsn IS NULL"
        )
        assert [tuple(row) for row in open_] == [(["id"], "FULL")]
        assert ask(seen)["coverage_holes"].state is State.OK
    finally:
        drop_database(ends.source)
        drop_database(ends.destination)


def stored(capture: Capture, operation: str) -> list:
    return capture.destination.execute(
        "SELECT primary_key FROM pgaudit_ctx.changes WHERE operation = %s", [operation]
    )


@pytest.mark.parametrize(
    ("role", "statement", "may"),
    [
        ("clinic_writer", ADD_CHANGE, True),
        ("clinic_writer", "SELECT source, ordinal FROM pgaudit_ctx.changes", True),
        ("clinic_writer", "SELECT pgaudit_ctx.ensure_partition('2031-01-01')", True),
        ("clinic_writer", "UPDATE pgaudit_ctx.checkpoints SET updated_at = now()", True),
        ("clinic_writer", "SELECT after FROM pgaudit_ctx.changes", False),
        ("clinic_writer", "SELECT context FROM pgaudit_ctx.change_log", False),
        ("clinic_writer", "UPDATE pgaudit_ctx.changes SET context = '{}'", False),
        ("clinic_writer", "DELETE FROM pgaudit_ctx.changes", False),
        ("clinic_writer", "TRUNCATE pgaudit_ctx.changes", False),
        ("clinic_writer", "DELETE FROM pgaudit_ctx.gaps", False),
        ("clinic_writer", "UPDATE pgaudit_ctx.gaps SET cause = 'none'", False),
        ("clinic_writer", "DELETE FROM pgaudit_ctx.rejected", False),
        ("clinic_writer", "DELETE FROM pgaudit_ctx.operations", False),
        ("clinic_writer", "UPDATE pgaudit_ctx.tracked SET identity = 'FULL'", False),
        ("clinic_writer", "DROP TABLE pgaudit_ctx.changes", False),
        ("clinic_writer", "ALTER TABLE pgaudit_ctx.changes DISABLE TRIGGER ALL", False),
        ("clinic_writer", "CREATE TABLE pgaudit_ctx.mine (id int)", False),
        ("clinic_writer", "CALL pgaudit_ctx.guard('pgaudit_ctx.gaps', false)", False),
        ("clinic_reader", "SELECT count(*) FROM pgaudit_ctx.changes", True),
        ("clinic_reader", "SELECT count(*) FROM pgaudit_ctx.change_log", True),
        ("clinic_reader", "SELECT count(*) FROM pgaudit_ctx.checkpoints", True),
        ("clinic_reader", ADD_CHANGE, False),
        ("clinic_reader", "UPDATE pgaudit_ctx.checkpoints SET updated_at = now()", False),
        ("clinic_reader", "INSERT INTO pgaudit_ctx.operations DEFAULT VALUES", False),
        ("clinic_reader", "SELECT pgaudit_ctx.ensure_partition('2032-01-01')", False),
        ("clinic_owner", "UPDATE pgaudit_ctx.changes SET context = '{}'", False),
    ],
)
def test_in_the_destination_a_role_may_do_what_it_is_for(
    made: Capture, role: str, statement: str, may: bool
) -> None:
    made.destination.execute("SELECT pgaudit_ctx.ensure_partition(now())")
    made.destination.execute(f"{ADD_CHANGE} ON CONFLICT DO NOTHING")
    if statement == ADD_CHANGE:
        statement = statement.replace("'x'", "'y'")
    assert allowed(made.destination, role, statement) is may


@pytest.mark.parametrize(
    ("statement", "may"),
    [
        ("SELECT count(*) FROM patient", True),
        ("INSERT INTO patient (id, name, status) VALUES (9, 'x', 'ACTIVE')", False),
        ("UPDATE patient SET name = 'x'", False),
        ("DELETE FROM patient", False),
        ("TRUNCATE patient CASCADE", False),
        ("CREATE TABLE mine (id int)", False),
        ("CREATE ROLE other", False),
        ("ALTER TABLE patient REPLICA IDENTITY DEFAULT", False),
        ("ALTER PUBLICATION pgaudit_ctx DROP TABLE patient", False),
    ],
)
def test_in_the_source_the_replication_role_may_only_read(
    made: Capture, statement: str, may: bool
) -> None:
    made.source.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as from 15 on
    assert allowed(made.source, "clinic_replication", statement) is may


def test_the_replication_role_may_read_tables_to_come(made: Capture) -> None:
    made.source.execute("CREATE TABLE to_come (id int PRIMARY KEY)")
    assert allowed(made.source, "clinic_replication", "SELECT * FROM to_come")
    made.source.execute("DROP TABLE to_come")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pgaudit_ctx.changes SET context = '{}'",
        "DELETE FROM pgaudit_ctx.changes",
        "TRUNCATE pgaudit_ctx.changes",
        "DELETE FROM pgaudit_ctx.{partition}",
        "UPDATE pgaudit_ctx.{partition} SET context = '{}'",
        "TRUNCATE pgaudit_ctx.{partition}",
        "SET session_replication_role = replica; DELETE FROM pgaudit_ctx.changes",
        "DELETE FROM pgaudit_ctx.operations",
    ],
)
def test_what_is_stored_cannot_be_changed_by_mistake_not_even_by_a_superuser(
    made: Capture, statement: str
) -> None:
    made.destination.execute("SELECT pgaudit_ctx.ensure_partition(now())")
    made.destination.execute(f"{ADD_CHANGE} ON CONFLICT DO NOTHING")
    ((partition,),) = made.destination.execute(
        "SELECT tableoid::regclass::text FROM pgaudit_ctx.changes WHERE source = 'x' LIMIT 1"
    )
    with pytest.raises(errors.InsufficientPrivilege, match="append-only"):
        made.destination.execute(
            statement.replace("pgaudit_ctx.{partition}", partition).replace("{}", "{}")
        )


def test_a_partition_still_leaves_the_trail_as_a_whole(made: Capture) -> None:
    made.destination.execute("SELECT pgaudit_ctx.ensure_partition('2033-01-01')")
    made.destination.execute(
        "ALTER TABLE pgaudit_ctx.changes DETACH PARTITION pgaudit_ctx.changes_2033q1"
    )
    made.destination.execute("DROP TABLE pgaudit_ctx.changes_2033q1")


@pytest.fixture
def landlord(server: Server) -> Iterator[Callable[[Database], str]]:
    """A role as a managed service gives it: no superuser, with a stand-in for rds_replication."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "CREATE ROLE rds_replication;"
            "CREATE ROLE landlord LOGIN CREATEROLE CREATEDB REPLICATION;"
            "GRANT rds_replication TO landlord WITH ADMIN OPTION; CREATE ROLE neighbour"
        )
        yield lambda database: database.url.replace("postgres@", "landlord@")
        for name in ("replication", "writer", "reader", "owner"):
            connection.execute(f"DROP ROLE IF EXISTS rented_{name}")
        connection.execute("DROP ROLE neighbour; DROP ROLE landlord; DROP ROLE rds_replication")


def test_a_role_that_is_no_superuser_sets_up_what_it_owns_and_names_the_rest(
    server: Server, landlord: Callable[[Database], str]
) -> None:
    ends = [create_database(server), create_database(server)]
    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            for end in ends:
                connection.execute(f"ALTER DATABASE {end.name} OWNER TO landlord")
        source, destination = ends
        source.execute(
            "GRANT ALL ON SCHEMA public TO landlord, neighbour; SET ROLE landlord;"
            "CREATE TABLE mine (id int PRIMARY KEY); RESET ROLE; SET ROLE neighbour;"
            "CREATE TABLE theirs (id int PRIMARY KEY)"
        )
        capture = Capture(source, destination)
        capture.options = capture.options._replace(
            source=landlord(source), destination=landlord(destination)
        )
        environment = {
            "PGAUDIT_CTX_SOURCE_URL": capture.options.source,
            "PGAUDIT_CTX_DESTINATION_URL": capture.options.destination,
        }
        done = command(capture, "setup", "--roles", "rented", more=environment)
        assert done.exit_code == 1
        assert "not captured public.theirs: must be owner of table theirs" in done.output
        (by_hand,) = re.findall(r"or a superuser: (.*)", done.output)
        assert [row.tablename for row in published(source)] == ["mine"]
        source.execute("INSERT INTO mine VALUES (1)")
        seen = capture.changes("mine")
        assert len(seen) == 1
        source.execute(by_hand)
        again = command(capture, "setup", "--roles", "rented", more=environment)
        assert again.exit_code == 0, again.output
        assert [row.tablename for row in published(source)] == ["mine", "theirs"]
        ((owner,),) = destination.execute(
            "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'pgaudit_ctx'"
        )
        assert owner == "rented_owner"
        memberships = source.execute(
            "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member"
            " WHERE m.roleid = 'rds_replication'::regrole AND r.rolname LIKE 'rented%'"
        )
        assert [row.rolname for row in memberships] == ["rented_replication"]
        worker = start("worker", env={**urls_of(capture), **environment})
        try:
            eventually(lambda: ask(capture)["worker"].state is State.OK, "the worker reads")
            tried = command(capture, "try", more=environment)
            assert tried.exit_code == 0, tried.output
            assert [f for f in ask(capture).values() if f.state is State.PROBLEM] == []
        finally:
            worker.terminate()
            worker.communicate(timeout=30)
    finally:
        for end in ends:
            drop_database(end)


def published(database: Database) -> list:
    return database.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")


def test_a_role_that_may_make_no_roles_sets_up_all_the_same_and_says_what_is_left(
    server: Server, landlord: Callable[[Database], str]
) -> None:
    ends = [create_database(server), create_database(server)]
    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER ROLE landlord NOCREATEROLE")
            for end in ends:
                connection.execute(f"ALTER DATABASE {end.name} OWNER TO landlord")
        capture = Capture(*ends)
        capture.options = capture.options._replace(
            source=landlord(ends[0]), destination=landlord(ends[1])
        )
        environment = {
            "PGAUDIT_CTX_SOURCE_URL": capture.options.source,
            "PGAUDIT_CTX_DESTINATION_URL": capture.options.destination,
        }
        done = command(capture, "setup", "--roles", "rented", more=environment)
        assert done.exit_code == 0, done.output
        assert "the destination's roles were not assigned" in done.output
        assert 'CREATE ROLE "rented_replication" LOGIN' in done.output
        capture.run()
    finally:
        for end in ends:
            drop_database(end)
