"""Why a server cannot be reached is told with a remedy, and without any of a password."""

import pytest

from pgaudit_ctx.unreachable import why_unreachable


def told(said: str, host: str | None = "db.internal") -> str:
    return why_unreachable(said, "destination", host=host, database="audit", user="auditor")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('FATAL:  password authentication failed for user "auditor"', "check user and password"),
        ("fe_sendauth: no password supplied", "check user and password"),
        ("failed to resolve host 'db.internal': [Errno -2]", "check the host"),
        ("[Errno -2] Name or service not known", "check the host"),
        ("[Errno -3] Temporary failure in name resolution", "check the host"),
        ('invalid port number: "99999"', "check the port"),
        ("connect(): port must be 0-65535.", "check the port"),
        ('FATAL:  database "audit" does not exist', "createdb"),
        ('FATAL:  role "auditor" does not exist', "check the user"),
        ("no pg_hba.conf entry for host", "pg_hba.conf, and reload"),
        ("permission denied to start WAL sender", "REPLICATION"),
        ("Connection refused\n\tIs the server running?", "that the server runs"),
    ],
)
def test_each_cause_has_its_remedy_in_one_line_that_names_the_server(
    said: str, remedy: str
) -> None:
    line = told(said)
    assert line.startswith(
        "cannot connect to the destination (host db.internal, database audit, user auditor): "
    )
    assert remedy in line.partition("Remedy: ")[2]
    assert "\n" not in line


def test_a_server_without_a_name_is_the_default_one() -> None:
    line = why_unreachable("refused", "source", host=None, database=None, user=None)
    assert line.startswith("cannot connect to the source (the default server): refused.")


def test_what_a_driver_takes_for_a_host_but_is_half_a_password_is_not_shown() -> None:
    line = told("failed to resolve host 'hunter2@db.internal': [Errno -2]", "hunter2@db.internal")
    assert "hunter2" not in line
    assert "host db.internal" in line
    assert "%40" in line
