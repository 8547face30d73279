"""What the pytest plugin keeps for a whole run: one server and one database, made when needed."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from pgaudit_ctx.errors import AuditError
from pgaudit_ctx.testbed.database import AuditDatabase, database_of_its_own
from pgaudit_ctx.testbed.server import URL_VARIABLE, choose, running_server
from pgaudit_ctx.urls import sqlalchemy_url


class Run:
    """The server and the database of one process.

    Args:
        wanted: What ``--audit-postgres`` says.
        environ: The environment.

    Attributes:
        database: The database that is watched now, if one is.
    """

    def __init__(self, wanted: str, environ: Mapping[str, str] = os.environ) -> None:
        self._wanted: Final = wanted
        self._environ: Final = environ
        self._opened = ExitStack()
        self._own_url: str | None = None
        self.database: AuditDatabase | None = None

    def own_url(self) -> str:
        """Give the URL of a database that is there for this run only; made at the first call.

        Returns:
            The URL in SQLAlchemy's form, for psycopg.

        Raises:
            AuditError: If there is no server to be had.
        """
        if self._own_url is None:
            kind = choose(self._wanted, self._environ)
            server = self._opened.enter_context(
                running_server(kind, or_embedded=self._wanted == "auto")
            )
            given = kind if "://" in kind else None
            url = self._opened.enter_context(database_of_its_own(server, given))
            self._own_url = sqlalchemy_url(url)
        return self._own_url

    def watch(self, url: str) -> AuditDatabase:
        """Begin to read what is committed in a database; ours, or one that tests bring."""
        own = self._own_url
        if self.database is None or self.database.url != url:
            self.unwatch()
            self.database = AuditDatabase(url, owned=own == url)
        return self.database

    def unwatch(self) -> None:
        """End that."""
        database, self.database = self.database, None
        if database is not None:
            database.close()

    def prepare(self) -> None:
        """Make database and slot ahead of the tests, where other processes use the same server.

        A slot waits for every transaction of the cluster that is writing, and theirs may be open
        for long. What goes wrong will be told by the fixtures.
        """
        given = self._environ.get(URL_VARIABLE, "") if self._wanted == "auto" else self._wanted
        if "://" in given:
            try:
                self.watch(self.own_url())
            except AuditError:
                self.close()

    def close(self) -> None:
        """Remove everything."""
        self.unwatch()
        self._own_url = None
        self._opened.close()
