"""Database URLs in and out."""

import pytest
from sqlalchemy import make_url

from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.urls import libpq_url, sqlalchemy_url, without_password

REST = "u:p%40ss@h:5433/db?sslmode=require"


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg", "POSTGRESQL+psycopg2"],
)
def test_every_spelling_gives_a_url_for_libpq(scheme: str) -> None:
    assert libpq_url(f"{scheme}://{REST}") == f"postgresql://{REST}"


def test_key_value_pairs_are_what_libpq_takes_anyway() -> None:
    assert libpq_url("host=h dbname=db") == "host=h dbname=db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_without_a_driver_gets_one_for_sqlalchemy(scheme: str) -> None:
    assert sqlalchemy_url(f"{scheme}://{REST}") == f"postgresql+psycopg://{REST}"
    assert sqlalchemy_url(f"{scheme}://{REST}", "asyncpg") == f"postgresql+asyncpg://{REST}"


def test_a_driver_that_is_named_is_kept() -> None:
    url = f"postgresql+asyncpg://{REST}"
    assert sqlalchemy_url(url) == url
    assert make_url(url).drivername == "postgresql+asyncpg"


@pytest.mark.parametrize("convert", [libpq_url, sqlalchemy_url])
@pytest.mark.parametrize("scheme", ["mysql", "sqlite", "mysql+pymysql", "http", "xpostgresql", ""])
def test_another_kind_of_database_is_refused_without_showing_the_password(
    convert, scheme: str
) -> None:
    with pytest.raises(UsageError, match="must begin with postgresql://") as caught:
        convert(f"{scheme}://user:hunter2@h/db")
    assert "hunter2" not in str(caught.value)


def test_what_is_no_url_is_refused_without_being_shown() -> None:
    with pytest.raises(UsageError, match="must look like postgresql://") as caught:
        libpq_url("hunter2")
    assert "hunter2" not in str(caught.value)


def test_key_value_pairs_are_refused_for_sqlalchemy_without_being_shown() -> None:
    with pytest.raises(UsageError, match="needs a URL") as caught:
        sqlalchemy_url("host=h password=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "rest",
    [
        "u:hun@ter2@h/db",
        "u:@hunter2@h/db",
        "u:hun/ter2@h/db",
        "u:12/hunter2@h/db",
        "u:hun?ter/2@h/db",
        "u:hun@ter2@h?sslmode=require",
    ],
)
@pytest.mark.parametrize("convert", [libpq_url, sqlalchemy_url])
def test_a_password_that_could_be_taken_for_a_host_is_refused_without_being_shown(
    convert, rest: str
) -> None:
    with pytest.raises(UsageError, match="@ is %40") as caught:
        convert(f"postgresql://{rest}")
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize(
    "rest",
    [
        "u:p%40ss%2Fword@h/db",
        "u:a:b@h/db",
        "u:a?b@h/db",
        "/db?user=a@b",
        "u@/db?host=/run/x@y",
        "h?sslrootcert=/etc/a@b.pem",
        "u:p@h1:1,h2:2/db@x",
        "u:p@[::1]:5432/db",
    ],
)
def test_a_url_that_can_be_read_in_one_way_only_is_taken(rest: str) -> None:
    assert libpq_url(f"postgresql://{rest}") == f"postgresql://{rest}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://u:hunter2@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql+psycopg://u:hunter2@h/db", "postgresql+psycopg://u:***@h/db"),
        ("postgresql://u:hun@ter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:hun:ter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:hunter2@[::1]:5432/db", "postgresql://u:***@[::1]:5432/db"),
        ("postgresql://u:hunter2@h1:1,h2:2/db", "postgresql://u:***@h1:1,h2:2/db"),
        (
            "postgresql://u@/db?host=/run&password=hunter2&user=u",
            "postgresql://u@/db?host=/run&password=***&user=u",
        ),
        ("postgresql://h/db?sslpassword=hunter2", "postgresql://h/db?sslpassword=***"),
        ("postgresql://h/db?PASSWORD=hunter2", "postgresql://h/db?PASSWORD=***"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
