"""Related records: those valid together with a version, and a timeline of all of them."""

import datetime as dt
import random
from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, ForeignKey, Table, and_, event, inspect
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import NullPool

from pgaudit_ctx import (
    AsyncAuditReader,
    AuditReader,
    HistoryUnknown,
    NotCaptured,
    Version,
)
from pgaudit_ctx.errors import Unsupported, UsageError
from support.database import Capture, Database
from support.handmade import HandmadeTrail, at


class Base(DeclarativeBase):
    pass


doctor_patient = Table(
    "doctor_patient",
    Base.metadata,
    Column("the_patient", ForeignKey("patient.id"), primary_key=True),
    Column("the_doctor", ForeignKey("doctor.id"), primary_key=True),
)
keyless = Table(
    "keyless",
    Base.metadata,
    Column("patient_id", ForeignKey("patient.id")),
    Column("ward_name", ForeignKey("ward.name")),
)


class Patient(Base):
    __tablename__ = "patient"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    referrer_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"))
    visits: Mapped[list["Visit"]] = relationship(back_populates="patient", order_by="Visit.room")
    bed: Mapped["Bed | None"] = relationship(back_populates="patient")
    doctors: Mapped[set["Doctor"]] = relationship(secondary=doctor_patient)
    wards: Mapped[list["Ward"]] = relationship(secondary=keyless)
    referrer: Mapped["Patient | None"] = relationship(
        remote_side="Patient.id", back_populates="referred"
    )
    referred: Mapped[list["Patient"]] = relationship(back_populates="referrer")
    first_floor: Mapped[list["Visit"]] = relationship(
        primaryjoin=lambda: and_(Patient.id == Visit.patient_id, Visit.room < 100), viewonly=True
    )


class Visit(Base):
    __tablename__ = "visit"
    id: Mapped[int] = mapped_column("visit_no", primary_key=True)
    patient_id: Mapped[int | None] = mapped_column("the patient", ForeignKey(Patient.id))
    room: Mapped[int]
    patient: Mapped[Patient | None] = relationship(back_populates="visits")


class Bed(Base):
    __tablename__ = "bed"
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int | None] = mapped_column(ForeignKey(Patient.id), unique=True)
    patient: Mapped[Patient | None] = relationship(back_populates="bed")


class Doctor(Base):
    """Joined inheritance, below."""

    __tablename__ = "doctor"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "doctor"}


class Surgeon(Doctor):
    __tablename__ = "surgeon"
    surgeon_id: Mapped[int] = mapped_column(ForeignKey(Doctor.id), primary_key=True)
    knife: Mapped[str]
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "surgeon"}


class Ward(Base):
    """Referred to by a name that is not its key."""

    __tablename__ = "ward"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


RELATIONSHIPS = ("visits", "bed", "doctors", "wards", "referrer", "referred")
MODELS = {m.__tablename__: m for m in (Patient, Visit, Bed, Doctor, Ward)}


def moment(capture: Capture) -> dt.datetime:
    ((found,),) = capture.source.execute("SELECT clock_timestamp() AS now")
    return found.astimezone(dt.UTC)


def picture(patient: Patient) -> dict[str, Any]:
    """What is related to a patient, and how it is, as the ORM loads it."""
    found = {}
    for name in RELATIONSHIPS:
        loaded = getattr(patient, name)
        records = [loaded] if isinstance(loaded, Base) else list(loaded or ())
        found[name] = [label(record) for record in records]
    # Only visits have an order of their own.
    return {name: value if name == "visits" else sorted(value) for name, value in found.items()}


def label(record: Any) -> str:
    values = {a.key: getattr(record, a.key) for a in inspect(record).mapper.column_attrs}
    return f"{type(record).__name__}{dict(sorted(values.items()))}"


class Clinic:
    """Does one random thing at a time."""

    def __init__(self, session: Session, seed: int) -> None:
        self.session = session
        self.random = random.Random(seed)
        self.rooms = iter(self.random.sample(range(1000), 1000))

    def step(self) -> None:
        patients = self.session.query(Patient).order_by(Patient.id).all()
        things = [
            self.visit, self.move, self.remove, self.bed, self.doctors, self.wards, self.rename,
            self.refer,
        ]  # fmt: skip
        for thing in self.random.choices(things, k=self.random.choice([1, 1, 1, 2])):
            thing(patients)
            self.session.flush()
        self.session.commit()

    def visit(self, patients: list[Patient]) -> None:
        self.session.add(Visit(room=next(self.rooms), patient=self.random.choice(patients)))

    def _any(self, model: type[Any]) -> Any:
        found = self.session.query(model).order_by(model.id).all()
        return self.random.choice(found)

    def move(self, patients: list[Patient]) -> None:
        visit = self._any(Visit)
        visit.patient = self.random.choice([*patients, None])
        visit.room = next(self.rooms)

    def remove(self, patients: list[Patient]) -> None:
        if self.session.query(Visit).count() > 2:
            self.session.delete(self._any(Visit))

    def bed(self, patients: list[Patient]) -> None:
        for patient in patients:
            patient.bed = None
        self.session.flush()
        self.random.choice(patients).bed = self._any(Bed)

    def doctors(self, patients: list[Patient]) -> None:
        self.random.choice(patients).doctors ^= {self._any(Doctor)}
        self._any(Doctor).name += "'"

    def wards(self, patients: list[Patient]) -> None:
        wards, ward = self.random.choice(patients).wards, self._any(Ward)
        (wards.remove if ward in wards else wards.append)(ward)

    def rename(self, patients: list[Patient]) -> None:
        self.random.choice(patients).name += "'"

    def refer(self, patients: list[Patient]) -> None:
        referred = self.random.choice(patients[1:])
        referred.referrer = self.random.choice([patients[0], None])


@pytest.fixture(scope="module")
def lived(module_capture: Capture) -> tuple[Capture, list[tuple[dt.datetime, dict[int, Any]]]]:
    """A random life, and what the ORM loaded after each commit."""
    engine = module_capture.source.engine()
    Base.metadata.create_all(engine)
    module_capture.setup()
    pictures = []
    with Session(engine) as session:
        surgeon = Surgeon(id=2, name="s", knife="k")
        session.add_all([Patient(id=n, name="p", doctors={surgeon}) for n in (1, 2, 3)])
        session.add(Doctor(id=1, name="d"))
        session.add_all([Ward(name="w"), Ward(name="x"), Bed(id=1), Bed(id=2)])
        session.add_all([Visit(room=2000), Visit(room=2001)])
        session.commit()
        clinic = Clinic(session, seed=6)
        for _ in range(30):
            clinic.step()
            session.expire_all()
            loaded = {p.id: (label(p), picture(p)) for p in session.query(Patient)}
            session.rollback()
            pictures.append((moment(module_capture), loaded))
    module_capture.run()
    return module_capture, pictures


@pytest.fixture
def reader(lived: tuple[Capture, Any]) -> AuditReader:
    return AuditReader(lived[0].destination.engine(), source=lived[0].source.name)


def retold(versions: list[Version[Any]]) -> list[str]:
    return [label(version.instance()) for version in versions]


def test_related_gives_what_the_orm_would_have_loaded_at_each_moment(
    lived: tuple[Capture, list[tuple[dt.datetime, dict[int, Any]]]], reader: AuditReader
) -> None:
    _, pictures = lived
    seen: dict[str, set[str]] = {name: set() for name in RELATIONSHIPS}
    for patient in (1, 2, 3):
        history = reader.history(Patient, patient)
        for when, loaded in pictures:
            version = history.as_of(when)
            assert version is not None
            own, related = loaded[patient]
            assert label(version.instance()) == own
            for name, expected in related.items():
                found = retold(version.related(name))
                assert (found if name == "visits" else sorted(found)) == expected, (name, when)
                seen[name] |= set(expected)
    assert all(seen.values())
    assert any("Surgeon" in one for one in seen["doctors"])


def test_a_many_to_one_gives_a_list_of_at_most_one(
    lived: tuple[Capture, list[tuple[dt.datetime, dict[int, Any]]]], reader: AuditReader
) -> None:
    _, pictures = lived
    checked = 0
    for visit in (1, 2):
        history = reader.history(Visit, visit)
        for when, loaded in pictures:
            version = history.as_of(when)
            holders = [
                own
                for own, related in loaded.values()
                if any(f"'id': {visit}," in one for one in related["visits"])
            ]
            if version is not None:
                assert retold(version.related(Visit.patient)) == holders
                checked += bool(holders)
    assert checked > 10


def test_a_timeline_has_each_change_of_what_belonged_to_the_record(
    lived: tuple[Capture, Any], reader: AuditReader
) -> None:
    capture, _ = lived
    timeline = reader.history(
        Patient, 1, include=[Patient.visits, Patient.doctors, "wards", Patient.bed]
    )
    told = [
        (v.table.partition(".")[2], v.epoch, v.commit_lsn, v.row.ordinal)
        for v in timeline
        if v.table in {"public.patient", "public.visit", "public.doctor_patient", "public.bed"}
    ]
    # Foreign keys in the row itself can be asked for in SQL.
    rows = capture.destination.execute(
        """SELECT table_name, epoch, commit_lsn::text, ordinal FROM pgaudit_ctx.change_log
        WHERE (table_name = 'patient' AND primary_key = '{1}')
            OR (table_name = 'visit' AND '1' IN (before->>'the patient', after->>'the patient'))
            OR (table_name = 'bed' AND '1' IN (before->>'patient_id', after->>'patient_id'))
            OR (table_name = 'doctor_patient' AND '1' IN (before->>'the_patient',
                after->>'the_patient'))
        ORDER BY epoch, changes_order.commit_lsn, ordinal""".replace("changes_order.", "")
    )
    assert told == [tuple(row) for row in rows]
    assert {"public.doctor", "public.keyless"} <= {v.table for v in timeline}
    assert [v.position for v in timeline] == sorted(v.position for v in timeline)
    assert list(timeline.history) == [v for v in timeline if v.model is Patient]
    for history in timeline.related("doctors"):
        life = reader.history(Doctor, history[0].instance().id)
        for version in life:
            linked_after = 1 in linked(capture, version)
            if linked_after:
                assert version.position in {v.position for v in history}


def linked(capture: Capture, version: Version[Any]) -> set[int]:
    """Which patients a doctor was linked to right after a version's commit."""
    rows = capture.destination.execute(
        """SELECT DISTINCT ON (primary_key) operation, after->>'the_patient' AS patient
        FROM pgaudit_ctx.changes
        WHERE table_name = 'doctor_patient' AND primary_key[2] = %s AND commit_lsn <= %s::pg_lsn
        ORDER BY primary_key, commit_lsn DESC, ordinal DESC""",
        [version.key[0], version.commit_lsn],
    )
    return {int(row.patient) for row in rows if row.operation != "DELETE"}


@pytest.mark.parametrize("records", [1, 40])
def test_the_number_of_queries_does_not_depend_on_the_number_of_records(
    records: int, destination: Database
) -> None:
    trail = HandmadeTrail(destination)
    for table in ("patient", "doctor"):
        trail.cover(table)
    trail.cover("visit", "visit_no")
    trail.cover("surgeon", "surgeon_id")
    trail.cover("doctor_patient", "the_patient", "the_doctor")
    trail.change("INSERT", "patient", 1, after={"id": 1, "name": "Ann", "referrer_id": None})
    for n in range(records):
        visit = {"visit_no": n, "the patient": 1, "room": n}
        trail.change("INSERT", "visit", 10 + n, key=(str(n),), after=visit)
        doctor = {"id": n, "kind": "doctor", "name": "x"}
        trail.change("INSERT", "doctor", 60 + n, key=(str(n),), after=doctor)
        link = {"the_patient": 1, "the_doctor": n}
        trail.change("INSERT", "doctor_patient", 110 + n, key=("1", str(n)), after=link)
    asked = []
    engine = destination.engine()

    def count(*args: Any) -> None:
        if "set_config" not in args[2]:  # how to plan: no question, once in a transaction
            asked.append(args[2])

    event.listen(engine, "before_cursor_execute", count)
    reader = AuditReader(engine, statement_timeout=None)
    timeline = reader.history(Patient, 1, include=[Patient.visits, Patient.doctors])
    assert len(timeline) == 1 + 2 * records  # what the doctors were before is not hers
    assert len(asked) == 8
    version = timeline.history[0]
    assert (version.related(Patient.visits), len(asked)) == ([], 8)
    later = reader.as_of(Patient, 1, at(200))
    assert later is not None
    del asked[:]
    assert len(later.related(Patient.visits)) == len(later.related("doctors")) == records
    assert len(later.related("visits", at(10))) == 1
    assert len(asked) == 6


@pytest.fixture
def trail(destination: Database) -> HandmadeTrail:
    """Visit 1 is Ann's from 10, Bob's from 20, and gone at 40; all is covered from -60 on."""
    trail = HandmadeTrail(destination)
    trail.cover("patient")
    trail.cover("visit", "visit_no")
    for n, name in ((1, "Ann"), (2, "Bob")):
        trail.change(
            "INSERT",
            "patient",
            n,
            key=(str(n),),
            after={"id": n, "name": name, "referrer_id": None},
            context={"user": "a"},
        )
    visit = {"visit_no": 1, "the patient": 1, "room": 7}
    trail.change("INSERT", "visit", 10, after=visit, context={"user": "b"})
    trail.change("UPDATE", "visit", 15, before={"room": 7}, after={**visit, "room": 8})
    moved = {**visit, "the patient": 2, "room": 8}
    trail.change("UPDATE", "visit", 20, before={"the patient": 1}, after=moved)
    trail.change("UPDATE", "visit", 30, before={"room": 8}, after={**moved, "room": 9})
    trail.change("DELETE", "visit", 40, before={**moved, "room": 9})
    return trail


def positions(versions: Any) -> list[int]:
    return [version.position[1] for version in versions]


def test_a_record_whose_foreign_key_moved_away_is_told_until_it_moved(
    trail: HandmadeTrail,
) -> None:
    reader = AuditReader(trail.destination.engine())
    ann = reader.history(Patient, 1, include=[Patient.visits])
    bob = reader.history(Patient, 2, include=[Patient.visits])
    assert (positions(ann), positions(bob)) == ([1, 10, 15, 20], [2, 20, 30, 40])
    (visit,) = ann.related(Patient.visits)
    assert (positions(visit), [v.number for v in visit]) == ([10, 15, 20], [1, 2, 3])
    assert (ann.latest.model, ann.latest.table, ann[1:3]) == (Visit, "public.visit", [*visit][:2])
    assert positions(reader.history(Visit, 1, include=["patient"])) == [10, 15, 20, 30, 40]
    assert ann.complete_up_to.lsn == "0/FFFF"


def test_filters_are_about_the_whole_timeline(trail: HandmadeTrail) -> None:
    reader = AuditReader(trail.destination.engine())

    def found(**filters: Any) -> list[int]:
        return positions(reader.history(Patient, 1, include=["visits"], **filters))

    assert found(user="b") == [10]
    assert found(since=at(10), until=at(20)) == [10, 15]
    assert found(limit=2) == [15, 20]
    assert found(limit=0) == []
    assert found(fields=["referrer_id"]) == [1, 10, 15, 20]


def test_related_is_about_the_moment_one_asked_for(trail: HandmadeTrail) -> None:
    reader = AuditReader(trail.destination.engine())
    ann = reader.history(Patient, 1)[0]
    assert ann.related("visits") == []  # when she was admitted
    (visit,) = ann.related("visits", at(16))
    assert visit.after["room"] == 8
    assert [p.instance().name for p in visit.related(Visit.patient)] == ["Ann"]
    assert positions(reader.as_of(Patient, 1, at(16)).related("visits")) == [15]
    assert reader.as_of(Patient, 1, at(25)).related("visits") == []
    assert positions(reader.related(ann, Patient.visits, at(12))) == [10]
    gone = reader.history(Visit, 1)[-1]
    assert gone.related("patient") == []
    with pytest.raises(UsageError, match="was not valid"):
        ann.related("visits", at(0))


def test_where_the_trail_cannot_know_what_was_related_it_says_so(trail: HandmadeTrail) -> None:
    reader = AuditReader(trail.destination.engine())
    trail.change("INSERT", "visit", 50, key=("9",), after={"visit_no": 9, "the patient": 5})
    with pytest.raises(HistoryUnknown, match="no trace"):
        reader.history(Visit, 9)[0].related("patient")
    trail.gap(17, 18)
    ann = reader.history(Patient, 1)[0]
    assert positions(ann.related("visits", at(16))) == [15]
    with pytest.raises(HistoryUnknown, match="slot lost"):
        ann.related("visits", at(25))
    trail.snapshot("visit", 26)
    trail.snapshot("patient", 26)
    again = reader.history(Patient, 1)[0]
    assert again.related("visits", at(27)) == []
    assert len(reader.history(Patient, 1, include=["visits"]).gaps) == 1
    with pytest.raises(NotCaptured, match="Bed was never captured"):
        ann.related(Patient.bed)


def test_what_is_no_relationship_or_cannot_be_followed_is_refused(trail: HandmadeTrail) -> None:
    reader = AuditReader(trail.destination.engine())
    ann = reader.history(Patient, 1)[0]
    with pytest.raises(UsageError, match="no relationship name: it has bed, doctors"):
        ann.related("name")
    with pytest.raises(UsageError, match="bare table"):
        reader.history("patient", 1)[0].related("visits")
    with pytest.raises(UsageError, match="takes a list"):
        reader.history(Patient, 1, include="visits")
    with pytest.raises(Unsupported, match="select_as_of"):
        ann.related(Patient.first_floor)
    with pytest.raises(UsageError, match="doctors was not included"):
        reader.history(Patient, 1, include=["visits"]).related("doctors")


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_asynchronous_reader_has_the_same(trail: HandmadeTrail, driver: str) -> None:
    engine = create_async_engine(trail.destination.sqlalchemy_url(driver), poolclass=NullPool)
    reader = AsyncAuditReader(engine)
    timeline = await reader.history(Patient, 1, include=[Patient.visits])
    assert positions(timeline) == [1, 10, 15, 20]
    assert positions(timeline.history[0].related("visits", at(16))) == [15]
    ann = (await reader.history(Patient, 1))[0]
    with pytest.raises(UsageError, match="await reader"):
        ann.related(Patient.visits)
    assert positions(await reader.related(ann, Patient.visits, at(16))) == [15]
    assert positions(ann.related(Patient.visits, at(21))) == []
    await engine.dispose()


def test_a_change_of_the_key_and_a_truncate_are_told_once(trail: HandmadeTrail) -> None:
    reader = AuditReader(trail.destination.engine())
    visit = {"visit_no": 5, "the patient": 1, "room": 1}
    trail.change("INSERT", "visit", 50, key=("5",), after=visit)
    trail.change(
        "UPDATE",
        "visit",
        51,
        key=("6",),
        previous_key=("5",),
        before={"visit_no": 5},
        after={**visit, "visit_no": 6},
    )
    trail.change("TRUNCATE", "visit", 52)
    timeline = reader.history(Patient, 1, include=["visits"], since=at(50))
    assert positions(timeline) == [50, 51, 52]
    assert [v.operation.value for v in timeline] == ["INSERT", "UPDATE", "TRUNCATE"]
    ann = reader.history(Patient, 1)[0]
    assert [v.key for v in ann.related("visits", at(50))] == [("5",)]
    assert [v.key for v in ann.related("visits", at(51))] == [("6",)]
    assert ann.related("visits", at(52)) == []
