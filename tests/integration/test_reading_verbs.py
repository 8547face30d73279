"""blame, deleted, diff, revert, transaction and wait_for."""

import asyncio
import threading
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel
from sqlalchemy import Computed, ForeignKey
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool

import pgaudit_ctx
from pgaudit_ctx import AsyncAuditReader, AuditReader, HistoryUnknown, audit_context, diff, revert
from pgaudit_ctx.errors import NotCaptured, NotCaughtUp, TransactionAmbiguous, UsageError
from pgaudit_ctx.reading import default
from support.clinic import Patient
from support.database import Capture, Database
from support.handmade import HandmadeTrail, at

ANN = {"id": 1, "name": "Ann", "born": None, "status": "ACTIVE", "notes": None}
BOB = {**ANN, "id": 2, "name": "Bob"}


@pytest.fixture(scope="module")
def trail(handmade: Database) -> HandmadeTrail:
    """Ann changes name at 20 and status at 30; Bob is deleted at 40; 3 moves to 4 at 50."""
    trail = HandmadeTrail(handmade)
    trail.cover("patient")
    trail.change("INSERT", "patient", 10, after=ANN, context={"user": "a"}, xid=9)
    trail.change("INSERT", "patient", 10, ordinal=2, key=("2",), after=BOB, xid=9)
    eve = {**ANN, "name": "Eve"}
    trail.change("UPDATE", "patient", 20, before={"name": "Ann"}, after=eve, context={"user": "b"})
    gone = {**eve, "status": "DISCHARGED"}
    trail.change("UPDATE", "patient", 30, before={"status": "ACTIVE"}, after=gone)
    trail.change("DELETE", "patient", 40, key=("2",), before=BOB, context={"user": "c"})
    cay = {**ANN, "id": 3, "name": "Cay"}
    trail.change("INSERT", "patient", 45, key=("3",), after=cay)
    trail.change(
        "UPDATE",
        "patient",
        50,
        key=("4",),
        previous_key=("3",),
        before={"id": 3},
        after={**cay, "id": 4},
    )
    trail.change("INSERT", "patient", 60, key=("5",), after={**ANN, "id": 5}, xid=9)
    trail.change("DELETE", "patient", 61, key=("5",), before={**ANN, "id": 5})
    trail.change("INSERT", "patient", 62, key=("5",), after={**ANN, "id": 5})
    return trail


@pytest.fixture
def reader(trail: HandmadeTrail) -> AuditReader:
    return AuditReader(trail.destination.engine())


def test_blame_names_the_version_that_last_set_each_attribute(reader: AuditReader) -> None:
    found = reader.blame(Patient, 1)
    assert {name: version.number for name, version in found.items()} == {
        "id": 1,
        "name": 2,
        "born": 1,
        "status": 3,
        "notes": 1,
    }
    assert found["name"].user == "b"
    assert reader.blame(Patient, 4)["id"].number == 1
    assert reader.blame(Patient, 2)["name"].number == 1  # as it was before it was deleted
    assert dict(reader.blame(Patient, 99)) == {}


def test_blame_leaves_out_what_was_set_before_the_first_trace(destination: Database) -> None:
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.change("UPDATE", "patient", 1, before={"name": "A"}, after=ANN)
    trail.change("UPDATE", "patient", 2, after={**ANN, "status": "DISCHARGED"})
    found = AuditReader(destination.engine()).blame(Patient, 1)
    assert {name: version.number for name, version in found.items()} == {"name": 1, "status": 2}


def test_deleted_gives_the_versions_that_ended_records(reader: AuditReader) -> None:
    (bob,) = reader.deleted(Patient)
    assert (bob.number, bob.operation, bob.user, bob.instance().name) == (2, "DELETE", "c", "Bob")
    assert bob.previous.after["name"] == "Bob"
    assert reader.deleted(Patient, since=at(41)) == []
    assert reader.deleted(Patient, until=at(40)) == []
    assert reader.deleted(Patient, limit=0) == []


def test_records_that_a_truncate_took_are_deleted_too(destination: Database) -> None:
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.change("INSERT", "patient", 1, after=ANN)
    trail.change("INSERT", "patient", 2, key=("2",), after=BOB)
    trail.change("DELETE", "patient", 3, key=("2",), before=BOB)
    trail.change("TRUNCATE", "patient", 4)
    trail.change("INSERT", "patient", 5, key=("6",), after={**ANN, "id": 6})
    found = AuditReader(destination.engine()).deleted("patient")
    assert [(v.key, v.operation.value) for v in found] == [(("2",), "DELETE"), (("1",), "TRUNCATE")]


def test_diff_compares_any_two_versions(reader: AuditReader) -> None:
    first, _, third = reader.history(Patient, 1)
    assert dict(diff(first, third)) == {
        "name": ("Ann", "Eve"),
        "status": (first.after["status"], third.after["status"]),
    }
    assert diff(None, first)["name"] == (None, "Ann")
    (bob,) = reader.deleted(Patient)
    assert diff(bob.previous, bob)["name"] == ("Bob", None)
    assert dict(diff(first, first)) == {}


def test_a_transaction_tells_all_it_did_and_refuses_an_ambiguous_number(
    reader: AuditReader,
) -> None:
    done = reader.transaction(720)
    assert ([c.operation for c in done], done.contexts, done.committed_at) == (
        ["UPDATE"],
        [{"user": "b"}],
        at(20),
    )
    with pytest.raises(TransactionAmbiguous, match="commit_lsn="):
        reader.transaction(9)
    first = reader.transaction(9, commit_lsn="0/A")
    assert [c.ordinal for c in first] == [1, 2]
    assert (len(first), first[0].primary_key, first.contexts) == (2, ["1"], [{"user": "a"}])
    assert reader.transaction(9, since=at(30))[0].primary_key == ["5"]
    with pytest.raises(HistoryUnknown, match="no change of transaction 1:"):
        reader.transaction(1)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_asynchronous_reader_has_the_same_verbs(
    trail: HandmadeTrail, driver: str
) -> None:
    url = trail.destination.sqlalchemy_url(driver)
    engine = create_async_engine(url, poolclass=NullPool)
    reader = AsyncAuditReader(engine, source=trail.source)
    assert (await reader.blame(Patient, 1))["status"].number == 3
    assert [v.key for v in await reader.deleted(Patient)] == [("2",)]
    assert len(await reader.transaction(9, commit_lsn="0/A")) == 2
    assert (await reader.wait_for("0/100", timeout=1)).lsn == "0/FFFF"
    with pytest.raises(NotCaughtUp):
        await reader.wait_for("1/0", timeout=0.1)
    await engine.dispose()


def test_the_functions_read_what_was_configured(
    trail: HandmadeTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default, "_configured", None)
    pgaudit_ctx.configure(trail.destination.engine())
    assert pgaudit_ctx.blame(Patient, 1)["name"].number == 2
    assert len(pgaudit_ctx.deleted(Patient)) == 1


def test_wait_for_ends_once_the_trail_has_got_there(destination: Database) -> None:
    HandmadeTrail(destination)
    reader = AuditReader(destination.engine())
    assert reader.wait_for(0xFFFF, timeout=0) == ("0/FFFF", at(1000), 1)
    statement = "UPDATE pgaudit_ctx.checkpoints SET end_lsn = '0/20000'"
    later = threading.Timer(0.3, lambda: destination.execute(statement))
    later.start()
    assert reader.wait_for("0/10000", timeout=30).lsn == "0/20000"
    later.join()


def test_wait_for_says_what_keeps_it_waiting(destination: Database) -> None:
    trail = HandmadeTrail(destination)
    reader = AuditReader(destination.engine())
    with pytest.raises(TimeoutError, match=r"it is behind \(it is at 0/FFFF\)"):
        reader.wait_for("0/10000", timeout=0.1)
    trail.reject(5)
    with pytest.raises(NotCaughtUp, match="rejected"):
        reader.wait_for("0/100", timeout=0)
    with pytest.raises(NotCaptured, match="elsewhere"):
        AuditReader(destination.engine(), source="elsewhere").wait_for("0/1")


def test_a_context_model_makes_objects_of_contexts_that_fit_it(trail: HandmadeTrail) -> None:
    class Why(BaseModel):
        user: str
        model_config: ClassVar[Any] = {"extra": "forbid"}

    reader = AuditReader(trail.destination.engine(), context_model=Why)
    first, second, third = reader.history(Patient, 1)
    assert (first.context, second.context.user, third.context) == (Why(user="a"), "b", None)

    class Other(BaseModel):
        request: str

    other = AuditReader(trail.destination.engine(), context_model=Other).history(Patient, 1)[0]
    assert (dict(other.context), other.user) == ({"user": "a"}, "a")


class Base(DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)


class Account(Base):
    """What revert has to be careful with."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey(Owner.id))
    name: Mapped[str | None]
    document: Mapped[Any | None] = mapped_column(JSONB)
    loud: Mapped[str | None] = mapped_column(Computed("upper(name)", persisted=True))
    version: Mapped[int] = mapped_column()
    __mapper_args__: ClassVar[dict[str, Any]] = {"version_id_col": version}


@pytest.fixture(scope="module")
def accounts(module_capture: Capture) -> Capture:
    engine = module_capture.source.engine()
    Base.metadata.create_all(engine)
    module_capture.setup()
    return module_capture


def life(capture: Capture, key: int) -> Any:
    """An account that is changed twice and deleted; its history."""
    with Session(capture.source.engine()) as session:
        account = Account(id=key, name="a", document={"x": 1})
        session.add(account)
        session.commit()
        account.name, account.document = "b", None
        session.commit()
        account.name = "c"
        session.commit()
    capture.run()
    return AuditReader(capture.destination.engine(), source=capture.source.name).history(
        Account, key
    )


def test_revert_writes_an_old_version_as_one_more_change(accounts: Capture) -> None:
    versions = life(accounts, 1)
    engine = accounts.source.engine()
    pgaudit_ctx.install(engine)
    with Session(engine) as session, audit_context(reason="undo"):
        account = revert(session, versions[0])
        assert session.is_modified(account)
        session.commit()
        assert (account.name, account.document, account.loud) == ("a", {"x": 1}, "A")
        assert account.version == 4
    pgaudit_ctx.uninstall(engine)
    accounts.run()
    reader = AuditReader(accounts.destination.engine(), source=accounts.source.name)
    last = reader.history(Account, 1).latest
    assert (last.number, last.reason, last.after["name"]) == (4, "undo", "a")


def test_revert_takes_single_fields_and_knows_json_null_from_sql_null(accounts: Capture) -> None:
    versions = life(accounts, 2)
    with Session(accounts.source.engine()) as session:
        account = revert(session, versions[0], fields=["document"])
        session.commit()
        assert (account.name, account.document) == ("c", {"x": 1})
        revert(session, versions[1], fields=[Account.document, "name"])
        session.commit()
        assert account.name == "b"
    statement = "SELECT document::text AS text FROM account WHERE id = 2"
    assert accounts.source.execute(statement) == [("null",)]
    with Session(accounts.source.engine()) as session, pytest.raises(UsageError, match="surname"):
        revert(session, versions[0], fields=["surname"])


def test_revert_brings_a_deleted_record_back(accounts: Capture) -> None:
    life(accounts, 3)
    with Session(accounts.source.engine()) as session:
        session.delete(session.get_one(Account, 3))
        session.commit()
    accounts.run()
    reader = AuditReader(accounts.destination.engine(), source=accounts.source.name)
    gone = reader.deleted(Account)[0]
    with Session(accounts.source.engine()) as session:
        with pytest.raises(UsageError, match="leave fields out"):
            revert(session, gone, fields=["name"])
        account = revert(session, gone)
        session.commit()
        assert (account.id, account.name, account.version) == (3, "c", 1)


def test_revert_respects_the_optimistic_version_column(accounts: Capture) -> None:
    versions = life(accounts, 4)
    with Session(accounts.source.engine()) as session:
        revert(session, versions[0])
        accounts.source.execute("UPDATE account SET version = version + 1 WHERE id = 4")
        with pytest.raises(StaleDataError):
            session.commit()


def test_revert_refuses_what_it_cannot_write(reader: AuditReader) -> None:
    version = reader.history("patient", 1)[0]
    with pytest.raises(UsageError, match="mapped class"):
        revert(Session(), version)
    with pytest.raises(UsageError, match="run_sync"):
        revert(asyncio, reader.history(Patient, 1)[0])
