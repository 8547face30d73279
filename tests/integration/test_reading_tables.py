"""``select_as_of`` gives a whole table as it stood, in the model's types."""

import datetime as dt
import random
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from pgaudit_ctx import AsyncAuditReader, AuditReader, HistoryUnknown, select_as_of
from pgaudit_ctx.errors import NaiveDatetime, UsageError
from support.clinic import SAMPLE, Dose, Patient, Sample, Status
from support.database import Capture, Database
from support.handmade import HandmadeTrail, at

ANN = {"id": 1, "name": "Ann", "born": "2001-02-03", "status": "ACTIVE", "notes": None}


def moment(capture: Capture) -> dt.datetime:
    ((found,),) = capture.source.execute("SELECT clock_timestamp() AS now")
    return found


def test_it_is_what_the_table_was_after_every_step_of_a_random_life(
    capture: Capture, engine: Engine
) -> None:
    chance = random.Random(4)
    seen: list[tuple[dt.datetime, list[Any]]] = []
    ordered = select(*Patient.__table__.c).order_by(Patient.id)
    with Session(engine) as session:
        for step in range(40):
            ids = list(session.scalars(select(Patient.id)))
            what = chance.choice(["new", "new", "change", "move", "delete", "truncate"])
            if what == "truncate" and step % 8 == 0:
                session.execute(text("TRUNCATE patient CASCADE"))
            elif what in {"new", "truncate"} or not ids:
                status, notes = chance.choice(list(Status)), chance.choice([None, {"a": step}])
                session.add(
                    Patient(name=f"p{step}", status=status, notes=notes, born=SAMPLE["day"])
                )
            elif what == "change":
                session.get_one(Patient, chance.choice(ids)).name = f"c{step}"
            elif what == "move":
                session.get_one(Patient, chance.choice(ids)).id = chance.randint(1000, 9999)
            else:
                session.delete(session.get_one(Patient, chance.choice(ids)))
            session.commit()
            seen.append((moment(capture), list(session.connection().execute(ordered))))
            session.commit()
            session.expunge_all()
    capture.run()
    with Session(capture.destination.engine()) as session:
        for when, rows in seen:
            past = select_as_of(Patient, when).order_by(Patient.id)
            assert list(session.execute(past)) == rows


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_every_type_comes_back_as_the_model_has_it(
    capture: Capture, engine: Engine, driver: str
) -> None:
    with Session(engine) as session:
        session.add(Sample(**SAMPLE))
        session.commit()
    capture.run()
    url = capture.destination.sqlalchemy_url(driver)
    made = create_async_engine(url, poolclass=NullPool)
    statement = await AsyncAuditReader(made).select_as_of(Sample, moment(capture))
    async with made.connect() as connection:
        (row,) = (await connection.execute(statement)).mappings()
        assert dict(row) == SAMPLE
        narrowed = statement.where(
            Sample.tags.contains(["a,b"]),
            Sample.id == SAMPLE["id"],
            Sample.document["a"][0].as_integer() == 1,
            Sample.moment < SAMPLE["moment"] + dt.timedelta(seconds=1),
        )
        assert len((await connection.execute(narrowed)).all()) == 1
    await made.dispose()


@pytest.fixture(scope="module")
def trail(handmade: Database) -> HandmadeTrail:
    """Ann and Bob; Ann is discharged at 20, Bob gets a dose at 30, gap at 50."""
    trail = HandmadeTrail(handmade)
    trail.cover("patient")
    trail.cover("dose", "patient_id", "given_on")
    trail.change("INSERT", "patient", 10, after=ANN)
    bob = {**ANN, "id": 2, "name": "Bob", "notes": {"$pgaudit_ctx": "value", "value": None}}
    trail.change("INSERT", "patient", 11, key=("2",), after=bob)
    trail.change(
        "UPDATE",
        "patient",
        20,
        before={"status": "ACTIVE"},
        after={**ANN, "status": "DISCHARGED"},
    )
    dose = {"patient_id": 2, "given_on": "2024-02-29", "dose_mg": "2.500"}
    trail.change("INSERT", "dose", 30, key=("2", "2024-02-29"), after=dose)
    return trail


@pytest.fixture
def session(trail: HandmadeTrail) -> Session:
    return Session(trail.destination.engine())


def test_clauses_take_the_models_own_attributes(session: Session) -> None:
    now = select_as_of(Patient, at(40))
    rows = session.execute(now.where(Patient.status == Status.DISCHARGED)).all()
    assert [(row.name, row.status) for row in rows] == [("Ann", Status.DISCHARGED)]
    assert session.execute(select_as_of(Patient, at(15)).where(Patient.status == "a")).all() == []
    listed = now.where(Patient.status.in_([Status.ACTIVE, Status.DISCHARGED]))
    by_name = listed.order_by(Patient.name.desc()).limit(1)
    assert session.execute(by_name).one().name == "Bob"
    counted = now.with_only_columns(Patient.status, func.count()).group_by(Patient.status)
    assert set(session.execute(counted.having(func.count(Patient.id) > 0)).all()) == {
        (Status.ACTIVE, 1),
        (Status.DISCHARGED, 1),
    }
    assert session.execute(now.filter_by(name="Ann")).one().id == 1
    assert session.execute(now.filter(func.lower(Patient.name) == "bob")).one().id == 2


def test_two_tables_as_they_stood_can_be_joined(session: Session) -> None:
    doses = select_as_of(Dose, at(40)).subquery()
    joined = select_as_of(Patient, at(40)).join(doses, doses.c.patient_id == Patient.id)
    (row,) = session.execute(joined.add_columns(doses.c.milligrams, Patient.born))
    assert (row.name, str(row.milligrams), row[-1]) == ("Bob", "2.500", dt.date(2001, 2, 3))
    left = select_as_of(Patient, at(25)).outerjoin(doses, doses.c.patient_id == Patient.id)
    assert len(session.execute(left).all()) == 2


def test_json_null_is_no_sql_null(session: Session) -> None:
    now = select_as_of(Patient, at(40))
    assert session.execute(now.where(Patient.notes.is_(None))).one().name == "Ann"
    assert session.execute(now.where(Patient.notes.is_not(None))).one().name == "Bob"


def test_it_can_be_used_like_any_select(session: Session) -> None:
    past = select_as_of(Patient, at(15)).subquery()
    now = select_as_of(Patient, at(40)).subquery()
    changed = (
        select(now.c.name).join(past, past.c.id == now.c.id).where(now.c.status != past.c.status)
    )
    assert session.scalars(changed).all() == ["Ann"]


def test_the_reader_says_what_the_trail_cannot_know(destination: Database) -> None:
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.change("INSERT", "patient", 10, after=ANN)
    trail.gap(20, 25)
    reader = AuditReader(destination.engine())
    with pytest.raises(HistoryUnknown, match="from 2024-02-29 11:00:00"):
        reader.select_as_of(Patient, at(-61))
    with pytest.raises(HistoryUnknown, match="despite_gaps"):
        reader.select_as_of(Patient, at(30))
    with Session(destination.engine()) as session:
        assert session.execute(reader.select_as_of(Patient, at(19))).one().name == "Ann"
        despite = reader.select_as_of(Patient, at(30), despite_gaps=True)
        assert session.execute(despite).one().name == "Ann"
    with pytest.raises(UsageError, match="mapped class"):
        reader.select_as_of("patient", at(30))
    with pytest.raises(NaiveDatetime):
        select_as_of(Patient, dt.datetime(2024, 1, 1))  # noqa: DTZ001 - that is the point


def test_without_a_source_the_server_refuses_a_table_of_several(destination: Database) -> None:
    for number, name in enumerate(("first", "second")):
        trail = HandmadeTrail(destination, name, number)
        trail.cover("patient")
        trail.change("INSERT", "patient", 10, after={**ANN, "name": name})
    with Session(destination.engine()) as session:
        chosen = select_as_of(Patient, at(20), source="second")
        assert session.execute(chosen).one().name == "second"
        with pytest.raises(DBAPIError, match="more than one row returned by a subquery"):
            session.execute(select_as_of(Patient, at(20)))


def test_what_a_failover_has_undone_is_not_in_it(destination: Database) -> None:
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.change("INSERT", "patient", 10, after=ANN)
    trail.change("DELETE", "patient", 30, before=ANN)
    trail.epoch(2, 25, "failover", fork=25)
    trail.cover("patient", epoch=2, since=25)
    reader = AuditReader(destination.engine())
    with Session(destination.engine()) as session:
        for statement in (select_as_of(Patient, at(40)), reader.select_as_of(Patient, at(40))):
            assert session.execute(statement).one().name == "Ann"
