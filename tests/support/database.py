"""One test's own source and destination, and what tests do with them."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import namedtuple_row
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.pool import NullPool

from pgaudit_ctx.connection import connect
from pgaudit_ctx.destination import schema
from pgaudit_ctx.preflight import WorkerOptions, begin_capture
from pgaudit_ctx.source import setup as source_setup
from pgaudit_ctx.urls import sqlalchemy_url
from pgaudit_ctx.worker import Progress, Worker
from support.server import Server

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """A database that is dropped after the test."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def sqlalchemy_url(self, driver: str = "psycopg") -> str:
        return sqlalchemy_url(self.url, driver)

    def engine(self, driver: str = "psycopg", **options: Any) -> Engine:
        address, fixed = address_for(self.url, driver)
        return create_engine(address, **{"poolclass": NullPool, **fixed, **options})

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, row_factory=namedtuple_row)

    def execute(self, statement: str, parameters: Sequence[object] | None = None) -> list[Any]:
        """Run a statement as psql would, without any hook."""
        with self.connect() as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


class Capture:
    """Source and destination together, with a slot of the test's own."""

    def __init__(self, source: Database, destination: Database) -> None:
        self.source = source
        self.destination = destination
        self.options = WorkerOptions(
            source.url, destination.url, slot=f"test_{source.name}", publication="pgaudit_ctx"
        )

    def setup(self) -> None:
        """What ``pgaudit-ctx setup`` does."""
        with self.connections() as (source, destination):
            source_setup.check_source(source, self.options.slot)
            _, failed = source_setup.run(source, self.options.slot, self.options.publication)
            assert failed == []
            schema.migrate(destination, "quarter")
            begin_capture(source, destination, self.options)

    @contextmanager
    def connections(self) -> Iterator[tuple[schema.Connection, schema.Connection]]:
        """Both ends, connected as the commands are."""
        with (
            connect(self.source.url, "source") as source,
            connect(self.destination.url, "destination") as destination,
        ):
            yield source, destination

    def run(self) -> Progress:
        """Capture everything that was committed until now."""
        worker = Worker(self.options)
        try:
            return worker.run(until_caught_up=True)
        finally:
            worker.close()

    def changes(self, table: str | None = None) -> list[Any]:
        """Capture, and give the rows of ``change_log`` in order."""
        self.run()
        return self.destination.execute(
            "SELECT * FROM pgaudit_ctx.change_log WHERE %s::text IS NULL OR table_name = %s"
            " ORDER BY epoch, commit_lsn, ordinal",
            [table, table],
        )


def address_for(url: str, driver: str) -> tuple[str | URL, dict[str, Any]]:
    """Give what create_engine() takes: the URL for a driver, and options that it needs."""
    if driver != "pg8000":
        return sqlalchemy_url(url, driver), {}
    # It takes the path of a Unix socket, but not in its URL.
    given = conninfo_to_dict(url)
    host, port = given["host"], given.get("port", 5432)
    address = URL.create(
        "postgresql+pg8000",
        given.get("user"),
        given.get("password"),
        database=given["dbname"],
    )
    if host.startswith("/"):
        return address, {"connect_args": {"unix_sock": f"{host}/.s.PGSQL.{port}"}}
    return address.set(host=host, port=int(port)), {}


def create_database(server: Server, template: str | None = None) -> Database:
    # Processes that test in parallel may have been given one server.
    name = f"db{os.environ.get('PYTEST_XDIST_WORKER', '')}{next(_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template or "template1")
        )
        connection.execute(statement)
    return Database(server, name)


def drop_database(database: Database) -> None:
    """Drop it with its slots, however a test left them."""
    with psycopg.connect(database.server.url("postgres"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE database = %s AND active_pid IS NOT NULL",
            [database.name],
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = %s AND NOT active",
            [database.name],
        )
        connection.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database.name))
        )
