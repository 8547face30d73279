"""From a server as it comes to the first captured change, led by nothing but the doctor."""

import os
import pty
import select
import shlex
import socket
import subprocess
from collections.abc import Iterator

import psycopg
import pytest
import trustme

from pgaudit_ctx.doctor.finding import Finding, State
from pgaudit_ctx.embedded import EmbeddedPostgres
from support.clinic import Base
from support.command import command as terminal_command
from support.command import environment, start, urls_of
from support.database import Capture, create_database, drop_database
from support.doctor import ask, command, follow, run_step, steps
from support.server import Server, server_of_its_own
from support.waiting import eventually


class PlainServer:
    """A server of its own: wal_level as it comes, reachable from elsewhere, with TLS if it can."""

    def __init__(self, made: EmbeddedPostgres, address: str, port: int) -> None:
        self.made, self.address, self.port = made, address, port

    def url(self, database: str) -> str:
        return f"{self.made.url(database)}&port={self.port}"

    def remote_url(self, database: str, more: str = "") -> str:
        return f"postgresql://postgres@{self.address}:{self.port}/{database}?{more}"

    @property
    def data(self) -> str:
        return str(self.made._data)

    def pg_ctl(self, command: str) -> None:
        """Run a command of pg_ctl as the user that the server belongs to."""
        words = shlex.split(command)
        assert words[0] == "pg_ctl"
        subprocess.run(
            [str(self.made.binaries / words[0]), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.made.directory,
            check=True,
            timeout=60,
            start_new_session=True,
            **self.made._privileges(),
        )


def own_address() -> str:
    """An address of this machine that is not loopback, else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def speaks_tls(made: EmbeddedPostgres) -> bool:
    built = subprocess.run(
        [str(made.binaries / "pg_config"), "--configure"],
        capture_output=True,
        text=True,
        check=True,
    )
    return "openssl" in built.stdout


@pytest.fixture(scope="module")
def plain(server: Server) -> Iterator[PlainServer]:
    address, port = own_address(), free_port()
    with server_of_its_own(server, {"port": str(port)}) as made:
        made.stop()
        for name in ("wal_level", "max_replication_slots", "max_wal_senders"):
            made._settings.pop(name)
        authority = trustme.CA()
        certificate = authority.issue_cert(address)
        data = made._data
        certificate.private_key_pem.write_to_path(str(data / "server.key"))
        certificate.cert_chain_pems[0].write_to_path(str(data / "server.crt"))
        authority.cert_pem.write_to_path(str(made.directory / "authority.pem"))
        for name in ("server.key", "server.crt"):
            (data / name).chmod(0o600)
            if made._user is not None:
                os.chown(data / name, made._user.pw_uid, made._user.pw_gid)
        with (data / "pg_hba.conf").open("a") as hba:
            hba.write("host all all 0.0.0.0/0 trust\n")
        made._settings |= {"listen_addresses": address, "ssl": "on" if speaks_tls(made) else "off"}
        made.start()
        plain = PlainServer(made, address, port)
        yield plain
        if made._process is None or made._process.poll() is not None:
            plain.pg_ctl(f"pg_ctl stop -m immediate -D {plain.data}")


@pytest.fixture
def stranger(plain: PlainServer) -> Iterator[Capture]:
    """An application's database, and an empty one for the trail; nobody has set up anything."""
    source = create_database(plain)
    Base.metadata.create_all(source.engine())
    made = Capture(source, create_database(plain))
    made.options = made.options._replace(slot="pgaudit_ctx")
    yield made
    # Or the roles of the whole server could not be dropped by whoever comes next.
    for end in (source, made.destination):
        drop_database(end)


def first_problem(capture: Capture) -> Finding | None:
    return next((f for f in ask(capture).values() if f.state is State.PROBLEM), None)


def test_nothing_but_the_doctor_leads_from_a_plain_server_to_a_captured_change(
    plain: PlainServer, stranger: Capture
) -> None:
    stranger.source.execute("ALTER SYSTEM RESET wal_level")
    plain.pg_ctl(f"pg_ctl restart -D {plain.data}")
    seen = []
    while finding := first_problem(stranger):
        seen.append(finding.check)
        assert len(seen) == len(set(seen)), f"{finding} came back"
        for step in steps(finding):
            if step.startswith("pg_ctl "):
                plain.pg_ctl(step)
            else:
                run_step(stranger, finding, step)
    assert seen[0] == "wal_level"
    stranger.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'a', 'ACTIVE')")
    follow(stranger, ask(stranger)["worker"])
    (change,) = stranger.changes("patient")
    assert change.after["name"] == "a"
    worker = start("worker", env=urls_of(stranger))
    try:
        eventually(lambda: ask(stranger)["worker"].state is State.OK, "the worker reads the slot")
        tried = command(stranger, "try")
        assert tried.exit_code == 0, tried.output
    finally:
        worker.terminate()
        worker.communicate(timeout=30)


@pytest.fixture
def tenant(plain: PlainServer, stranger: Capture) -> Iterator[Capture]:
    """The same as somebody sees it who is no superuser, but owns database and tables."""
    admin = stranger.source
    admin.execute(
        "CREATE ROLE tenant LOGIN CREATEROLE CREATEDB;"
        f"ALTER DATABASE {admin.name} OWNER TO tenant;"
        f"ALTER DATABASE {stranger.destination.name} OWNER TO tenant;"
        "ALTER TABLE patient OWNER TO tenant; ALTER TABLE dose OWNER TO tenant;"
        "ALTER TABLE sample OWNER TO tenant; GRANT ALL ON SCHEMA public TO tenant"
    )
    seen = Capture(stranger.source, stranger.destination)
    seen.options = stranger.options._replace(
        source=stranger.options.source.replace("postgres@", "tenant@"),
        destination=stranger.options.destination.replace("postgres@", "tenant@"),
    )
    yield seen
    names = ("replication", "writer", "reader", "owner")
    for end in (stranger.source, stranger.destination):
        for role in ("tenant", *(f"pgaudit_ctx_{name}" for name in names)):
            end.execute(
                f"DO $$ BEGIN IF to_regrole('{role}') IS NOT NULL THEN"
                f" REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; END IF; END $$"
            )
    for role in (*(f"pgaudit_ctx_{name}" for name in names), "tenant"):
        stranger.source.execute(f"DROP ROLE IF EXISTS {role}")


def test_nothing_but_the_doctor_leads_somebody_who_is_no_superuser_to_a_captured_change(
    plain: PlainServer, stranger: Capture, tenant: Capture
) -> None:
    stranger.source.execute("ALTER SYSTEM RESET wal_level")
    plain.pg_ctl(f"pg_ctl restart -D {plain.data}")
    urls = {
        "PGAUDIT_CTX_SOURCE_URL": tenant.options.source,
        "PGAUDIT_CTX_DESTINATION_URL": tenant.options.destination,
    }
    seen: list[str] = []
    while finding := first_problem(tenant):
        seen.append(finding.check)
        assert len(seen) == len(set(seen)), f"{finding} came back"
        for step in steps(finding):
            if step.startswith("pg_ctl "):
                plain.pg_ctl(step)
            elif step.startswith("pgaudit-ctx "):
                done = command(tenant, *step.split()[1:], more=urls)
                assert done.exit_code == 0, done.output
            else:
                # Only what the remedy says is for somebody else is run by somebody else.
                assert "as a superuser" in finding.remedy
                stranger.source.execute(step)
        if finding.remedy.endswith("restart the server"):  # whose place only it knows
            plain.pg_ctl(f"pg_ctl restart -D {plain.data}")
    assert seen[:2] == ["wal_level", "role"]
    worker = start("worker", env={**urls_of(tenant), **urls})
    try:
        eventually(lambda: ask(tenant)["worker"].state is State.OK, "the worker reads the slot")
        tried = command(tenant, "try", more=urls)
        assert tried.exit_code == 0, tried.output
    finally:
        worker.terminate()
        worker.communicate(timeout=30)


def test_whom_to_protect_is_asked_on_a_terminal_and_the_answer_is_in_force(
    plain: PlainServer, stranger: Capture
) -> None:
    logical(plain, stranger)
    stranger.source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
    stranger.source.execute("SELECT pg_reload_conf()")
    try:
        shown = answer_on_a_terminal(stranger, "64MB")
        assert "If the disk fills up, the application stops" in shown
        assert keep_size(stranger) == "64MB"
        again = answer_on_a_terminal(stranger, None)
        assert "If the disk fills up" not in again, "what was decided is not asked again"
        recorded = stranger.destination.execute(
            "SELECT arguments->>'max_slot_wal_keep_size' AS size FROM pgaudit_ctx.operations"
        )
        assert [row.size for row in recorded] == ["64MB", "64MB"]
    finally:
        stranger.source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        stranger.source.execute("SELECT pg_reload_conf()")


def keep_size(capture: Capture) -> str:
    ((size,),) = capture.source.execute("SHOW max_slot_wal_keep_size")
    return str(size)


def answer_on_a_terminal(capture: Capture, answer: str | None) -> str:
    """What ``setup`` shows on a terminal of its own where this is typed when it asks."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        terminal_command("setup", "--no-roles"),
        env=environment(urls_of(capture)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # on Linux the other end of a terminal is gone like this
                break
            if answer is not None and b"or unlimited)" in shown:
                os.write(ours, f"{answer}\n".encode())
                answer = None
        assert process.wait(timeout=60) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown.decode()


def logical(plain: PlainServer, capture: Capture, **settings: str) -> None:
    for name, value in {"wal_level": "logical", **settings}.items():
        capture.source.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    plain.pg_ctl(f"pg_ctl restart -D {plain.data}")


def test_a_server_without_a_free_slot_or_walsender_is_named(
    plain: PlainServer, stranger: Capture
) -> None:
    logical(plain, stranger, max_replication_slots="1", max_wal_senders="0")
    stranger.source.execute("SELECT pg_create_physical_replication_slot('theirs')")
    for check in ("max_replication_slots", "max_wal_senders"):
        finding = ask(stranger)[check]
        assert finding.state is State.PROBLEM, finding
        for step in steps(finding):
            if step.startswith("pg_ctl "):
                plain.pg_ctl(step)
            else:
                run_step(stranger, finding, step)
        assert ask(stranger)[check].state is State.OK
    stranger.source.execute("SELECT pg_drop_replication_slot('theirs')")


def test_a_slot_that_was_lost_to_the_disk_limit_is_named_and_replaced_with_a_gap(
    plain: PlainServer, stranger: Capture
) -> None:
    logical(plain, stranger, max_slot_wal_keep_size="1MB", max_replication_slots="10")
    stranger.setup()
    stranger.run()
    for _ in range(3):
        stranger.source.execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 2000000))")
        stranger.source.execute("SELECT pg_switch_wal()")
    stranger.source.execute("CHECKPOINT")
    finding = ask(stranger)["slot_wal_status"]
    assert finding.evidence.startswith("lost")
    follow(stranger, finding)
    assert ask(stranger)["slot_wal_status"].state is State.OK
    assert len(stranger.destination.execute("SELECT 1 FROM pgaudit_ctx.gaps")) == 1
    stranger.source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
    stranger.source.execute("SELECT pg_reload_conf()")


def test_a_wrong_password_is_a_finding_that_names_the_url(
    plain: PlainServer, stranger: Capture
) -> None:
    hba = plain.made._data / "pg_hba.conf"
    before = hba.read_text()
    stranger.source.execute("DROP ROLE IF EXISTS locked; CREATE ROLE locked LOGIN PASSWORD 'right'")
    hba.write_text(f"local all locked scram-sha-256\n{before}")
    stranger.source.execute("SELECT pg_reload_conf()")
    try:
        good = stranger.options.source.replace("postgres@", "locked:right@")
        eventually(lambda: not connects(good.replace("right", "wrong")), "the server reloads")
        stranger.options = stranger.options._replace(source=good.replace("right", "wrong"))
        finding = ask(stranger)["source_connection"]
        assert finding.state is State.PROBLEM
        assert "check user and password" in finding.remedy
        assert "wrong" not in finding.evidence.replace("wrong password", "")
        stranger.options = stranger.options._replace(source=good)
        assert ask(stranger)["source_connection"].state is State.OK
    finally:
        hba.write_text(before)
        stranger.source.execute("SELECT pg_reload_conf()")


def connects(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_plain_text_to_another_machine_is_a_problem_and_an_unchecked_server_a_warning(
    plain: PlainServer, stranger: Capture
) -> None:
    if plain.address.startswith("127."):
        pytest.skip("this machine has no other address than loopback")
    local = stranger.options

    def seen(more: str) -> Finding:
        url = plain.remote_url(stranger.source.name, more)
        stranger.options = local._replace(source=url)
        return ask(stranger)["source_tls"]

    found = seen("sslmode=disable")
    assert found.state is State.PROBLEM
    assert "sslmode=verify-full" in found.remedy
    if speaks_tls(plain.made):
        found = seen("sslmode=require")
        assert found.state is State.WARNING
        assert "sslmode=verify-full" in found.remedy
        authority = plain.made.directory / "authority.pem"
        assert seen(f"sslmode=verify-full&sslrootcert={authority}").state is State.OK
    stranger.options = local
    assert ask(stranger)["source_tls"].state is State.OK
