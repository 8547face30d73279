"""Alembic: what its operations do to a real database, online, offline and by autogenerate."""

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, Table, Text

from support.database import Capture, Database, create_database, drop_database

ENV = """
from alembic import context
from pgaudit_ctx import install
from pgaudit_ctx.integrations.alembic import audit_migrations

options = context.config.attributes
if context.is_offline_mode():
    context.configure(
        url="postgresql+psycopg://", literal_binds=True, dialect_opts={"paramstyle": "named"}
    )
    with context.begin_transaction(), audit_migrations(user="it's\\\\Zo\\u00eb"):
        context.run_migrations()
else:
    engine = options["engine"]
    if options.get("hook"):
        install(engine)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=options.get("metadata"),
            include_schemas=True,
            include_object=options.get("include_object"),
            transaction_per_migration=options.get("each", False),
        )
        with context.begin_transaction(), audit_migrations(user="deploy"):
            context.run_migrations()
"""

REVISION = """
revision = "{revision}"
down_revision = {down!r}

from alembic import op
import pgaudit_ctx.integrations.alembic
from pgaudit_ctx import audit_context

def upgrade():
{up}

def downgrade():
{back}
"""

MAKO = """
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

def upgrade():
    ${upgrades if upgrades else "pass"}

def downgrade():
    ${downgrades if downgrades else "pass"}
"""

CREATE = "op.execute('CREATE TABLE visits (id int PRIMARY KEY, name text)')"


class Project:
    """An application's migrations, in a directory of their own."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory / "migrations"
        (self.directory / "versions").mkdir(parents=True)
        (self.directory / "env.py").write_text(ENV)
        (self.directory / "script.py.mako").write_text(MAKO)
        self.config = Config(output_buffer=io.StringIO(), stdout=io.StringIO())
        self.config.set_main_option("script_location", str(self.directory))
        self.config.set_main_option("path_separator", "os")
        self.config.attributes["engine"] = database.engine()
        self._last: str | None = None

    def add(self, revision: str, up: str, back: str = "pass") -> None:
        filled = REVISION.format(
            revision=revision,
            down=self._last,
            up=textwrap.indent(textwrap.dedent(up).strip(), "    "),
            back=textwrap.indent(textwrap.dedent(back).strip(), "    "),
        )
        (self.directory / "versions" / f"{revision}.py").write_text(filled)
        self._last = revision

    def upgrade(self, to: str = "head") -> None:
        command.upgrade(self.config, to)

    def downgrade(self, to: str) -> None:
        command.downgrade(self.config, to)

    def offline(self, what: Any, revisions: str) -> str:
        self.config.output_buffer = io.StringIO()
        what(self.config, revisions, sql=True)
        return self.config.output_buffer.getvalue()


@pytest.fixture
def empty(server: Any, destination: Database) -> Iterator[Capture]:
    source = create_database(server)
    made = Capture(source, destination)
    made.setup()
    yield made
    drop_database(source)


@pytest.fixture
def project(tmp_path: Path, empty: Capture) -> Project:
    return Project(tmp_path, empty.source)


def state(database: Database, table: str = "visits") -> tuple[str, bool]:
    """The replica identity of a table, and whether it is in the publication."""
    (found,) = database.execute(
        "SELECT relreplident::text, EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = c.oid)"
        " FROM pg_class c WHERE oid = %s::regclass",
        [table],
    )
    return tuple(found)


def test_an_audited_table_is_captured_from_its_migration_on_and_the_downgrade_ends_that(
    project: Project, empty: Capture
) -> None:
    project.add("a1", f"{CREATE}\nop.audit_table('visits')", "op.unaudit_table('visits')")
    project.upgrade()
    assert state(empty.source) == ("f", True)
    empty.source.execute("INSERT INTO visits VALUES (1, 'Ann')")
    empty.source.execute("UPDATE visits SET name = 'Anna'")
    assert [change.before for change in empty.changes("visits")] == [
        None,
        {"id": 1, "name": "Ann"},
    ]
    project.downgrade("base")
    assert state(empty.source) == ("d", False)


def test_a_table_in_another_schema_with_a_difficult_name_is_found(
    project: Project, empty: Capture
) -> None:
    empty.source.execute(
        'CREATE SCHEMA "north:ward"; CREATE TABLE "north:ward"."it\'s 100%" (id int)'
    )
    given = '"it\'s 100%", schema="north:ward"'
    project.add("a1", f"op.audit_table({given})", f"op.unaudit_table({given})")
    project.upgrade()
    name = '"north:ward"."it\'s 100%"'
    assert state(empty.source, name) == ("f", True)
    project.downgrade("base")
    assert state(empty.source, name) == ("d", False)


def test_all_partitions_get_the_identity_and_the_root_alone_is_published(
    project: Project, empty: Capture
) -> None:
    empty.source.execute(
        "CREATE TABLE visits (id int) PARTITION BY LIST (id);"
        "CREATE TABLE visits_1 PARTITION OF visits FOR VALUES IN (1);"
    )
    project.add("a1", "op.audit_table('visits')", "op.unaudit_table('visits')")
    project.upgrade()
    assert (state(empty.source), state(empty.source, "visits_1")) == (("f", True), ("f", False))
    project.downgrade("base")
    assert (state(empty.source), state(empty.source, "visits_1")) == (("d", False), ("d", False))


def test_a_table_with_virtual_columns_keeps_its_identity(project: Project, empty: Capture) -> None:
    (version,) = empty.source.execute("SELECT current_setting('server_version_num')::int")
    if version[0] < 18_00_00:
        pytest.skip("virtual columns came with PostgreSQL 18")
    empty.source.execute(
        "CREATE TABLE visits (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)"
    )
    project.add("a1", "op.audit_table('visits')")
    project.upgrade()
    assert state(empty.source) == ("d", True)


def test_a_migration_that_runs_twice_changes_nothing_more(project: Project, empty: Capture) -> None:
    project.add("a1", f"{CREATE}\nop.audit_table('visits')\nop.audit_table('visits')")
    project.add("a2", "op.unaudit_table('visits')\nop.unaudit_table('visits')")
    project.upgrade("a1")
    assert state(empty.source) == ("f", True)
    project.upgrade("a2")
    assert state(empty.source) == ("d", False)


def test_without_the_publication_the_table_waits_for_setup(
    project: Project, empty: Capture
) -> None:
    project.add("a1", f"{CREATE}\nop.audit_table('visits', publication='other')")
    project.upgrade()
    assert state(empty.source) == ("f", False)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("hook", [False, True])
def test_a_data_migration_is_captured_with_its_revision(
    project: Project, empty: Capture, hook: bool, each: bool
) -> None:
    project.config.attributes.update(hook=hook, each=each)
    project.add("a1", f"{CREATE}\nop.audit_table('visits')")
    insert = "op.execute(\"INSERT INTO visits VALUES ({}, 'Ann')\")"
    project.add("a2", insert.format(1), "op.execute('DELETE FROM visits')")
    nested = f"with audit_context(reason='cleaning'):\n    {insert.format(3)}"
    project.add("a3", f"{insert.format(2)}\n{nested}\n{insert.format(4)}")
    project.upgrade()
    project.downgrade("a1")
    contexts = {c.primary_key[0]: c.context for c in empty.changes("visits") if c.after}
    told = {"user": "deploy", "migration": "upgrade"}
    assert contexts["1"] == {**told, "revision": "a2"}
    assert contexts["2"] == contexts["4"] == {**told, "revision": "a3"}
    if hook:
        assert contexts["3"] == {**told, "revision": "a3", "reason": "cleaning"}
    deleted = [change for change in empty.changes("visits") if change.operation == "DELETE"]
    assert len(deleted) == 4
    for change in deleted:
        assert change.context == {"user": "deploy", "migration": "downgrade", "revision": "a2"}


def test_after_a_migration_that_fails_no_scope_is_left(project: Project, empty: Capture) -> None:
    from pgaudit_ctx import current_context

    project.add("a1", "raise LookupError")
    with pytest.raises(LookupError):
        project.upgrade()
    assert current_context() is None


def test_the_script_of_offline_mode_does_the_same(project: Project, empty: Capture) -> None:
    project.add("a1", f"{CREATE}\nop.audit_table('visits')", "op.unaudit_table('visits')")
    project.add("a2", "op.execute(\"INSERT INTO visits VALUES (1, 'Ann')\")")
    script = project.offline(command.upgrade, "head")
    empty.source.execute(script)
    assert state(empty.source) == ("f", True)
    (inserted,) = empty.changes("visits")
    assert inserted.context == {"user": "it's\\Zoë", "migration": "upgrade", "revision": "a2"}
    empty.source.execute(project.offline(command.downgrade, "a2:base"))
    assert state(empty.source) == ("d", False)


def test_autogenerate_notices_what_is_mapped_and_not_captured(
    project: Project, empty: Capture
) -> None:
    empty.source.execute("CREATE SCHEMA ward; CREATE TABLE ward.beds (id int PRIMARY KEY)")
    metadata = MetaData()
    Table("visits", metadata, Column("id", Integer, primary_key=True), Column("name", Text))
    Table("beds", metadata, Column("id", Integer, primary_key=True), schema="ward")
    Table("cache", metadata, Column("id", Integer, primary_key=True), info={"pgaudit_ctx": False})
    Table("elsewhere", metadata, Column("id", Integer, primary_key=True))
    project.config.attributes.update(
        metadata=metadata,
        include_object=lambda _, name, kind, *__: (kind, name) != ("table", "elsewhere"),
    )
    command.revision(project.config, "tables", autogenerate=True, rev_id="a1")
    (script,) = ScriptDirectory.from_config(project.config).walk_revisions()
    source = Path(script.path).read_text()
    assert "import pgaudit_ctx.integrations.alembic" in source
    up, _, back = source.partition("def downgrade")
    assert up.index("op.create_table('visits'") < up.index("op.audit_table('visits')")
    assert "op.audit_table('beds', schema='ward')" in up
    assert back.index("op.unaudit_table('visits')") < back.index("op.drop_table('visits')")
    assert "audit_table('cache')" not in source
    assert "elsewhere" not in source
    project.upgrade()
    assert state(empty.source) == state(empty.source, "ward.beds") == ("f", True)
    assert state(empty.source, "cache") == ("d", False)
    command.check(project.config)
    project.downgrade("base")
    assert state(empty.source, "ward.beds") == ("d", False)


def test_autogenerate_adds_nothing_where_nothing_is_captured(
    project: Project, empty: Capture
) -> None:
    empty.source.execute("DROP PUBLICATION pgaudit_ctx; CREATE TABLE visits (id int PRIMARY KEY)")
    metadata = MetaData()
    Table("visits", metadata, Column("id", Integer, primary_key=True))
    project.config.attributes.update(metadata=metadata)
    command.upgrade(project.config, "head")
    command.check(project.config)


def test_the_typed_functions_do_the_same(project: Project, empty: Capture) -> None:
    module = "from pgaudit_ctx.integrations import alembic as audit"
    project.add(
        "a1",
        f"{CREATE}\n{module}\naudit.audit_table('visits')",
        f"{module}\naudit.unaudit_table('visits')",
    )
    project.upgrade()
    assert state(empty.source) == ("f", True)
    project.downgrade("base")
    assert state(empty.source) == ("d", False)
