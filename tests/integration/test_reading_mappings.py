"""Every way SQLAlchemy maps a class gives histories of the very objects it would load."""

import dataclasses
import datetime as dt
from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, ForeignKey, Integer, Table, Text, UniqueConstraint
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    column_property,
    deferred,
    mapped_column,
    registry,
    relationship,
    synonym,
)

from pgaudit_ctx import AuditReader, HistoryUnknown, audit_context, install, uninstall
from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.errors import UsageError
from support.database import Capture
from support.handmade import HandmadeTrail


class Base(DeclarativeBase):
    pass


class Employee(Base):
    """Joined inheritance, with a class below that has a table and one that has none."""

    __tablename__ = "employee"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar[dict[str, Any]] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "employee",
    }


class Manager(Employee):
    __tablename__ = "manager"
    manager_id: Mapped[int] = mapped_column(ForeignKey(Employee.id), primary_key=True)
    budget: Mapped[int | None]
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "manager"}


class Director(Manager):
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "director"}


class Pet(Base):
    """Single-table inheritance."""

    __tablename__ = "pet"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__: ClassVar[dict[str, Any]] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "pet",
    }


class Dog(Pet):
    tricks: Mapped[str | None]
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "dog"}


class Room(Base):
    """Concrete inheritance."""

    __tablename__ = "room"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str]


class Ward(Room):
    __tablename__ = "ward"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str]
    beds: Mapped[int]
    __mapper_args__: ClassVar[dict[str, Any]] = {"concrete": True}


link = Table(
    "employee_pet",
    Base.metadata,
    Column("employee_id", ForeignKey(Employee.id), primary_key=True),
    Column("pet_id", ForeignKey(Pet.id), primary_key=True),
)


class Odd(Base):
    """Names that need quotes, a prefix, a synonym, a deferred column, an expression."""

    __tablename__ = "Odd Table"
    __table_args__: ClassVar[Any] = (UniqueConstraint("Mixed Case"), {"schema": "My Schema"})
    id: Mapped[int] = mapped_column("odd_id", primary_key=True)
    mixed: Mapped[str] = mapped_column("Mixed Case")
    lazy: Mapped[str | None] = deferred(mapped_column("odd_lazy", Text))
    alias: Mapped[str] = synonym("mixed")
    double: Mapped[int] = column_property(id * 2)  # noqa: A003 - the column above


class DataclassBase(MappedAsDataclass, DeclarativeBase):
    metadata = Base.metadata


class Point(DataclassBase):
    __tablename__ = "point"
    id: Mapped[int] = mapped_column(primary_key=True)
    x: Mapped[int] = mapped_column(default=0)
    note: Mapped[str] = mapped_column(init=False, default="made by __init__")


class Imperative:
    def __init__(self, code: str, day: dt.date) -> None:
        self.code = code
        self.day = day


imperative = Table(
    "imperative",
    Base.metadata,
    Column("code", Text, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("the_day", Text),
    schema="My Schema",
)
registry().map_imperatively(
    Imperative, imperative, properties={"day": imperative.c.the_day, "place": imperative.c.seq}
)


@pytest.fixture(scope="module")
def written(module_capture: Capture) -> Capture:
    """A life for each of them."""
    module_capture.source.execute('CREATE SCHEMA "My Schema"')
    engine = module_capture.source.engine()
    Base.metadata.create_all(engine)
    module_capture.setup()
    install(engine)
    with Session(engine) as session:
        with audit_context(user="hr"):
            boss = Director(id=1, name="Ann", budget=5)
            session.add_all([boss, Employee(id=2, name="Bob"), Manager(id=3, name="Cay")])
            session.commit()
        boss.name, boss.budget = "Eve", 7
        session.commit()
        boss.budget = 8
        session.commit()
        boss.name = "Zoe"
        session.flush()
        boss.name = "Zoë"
        session.commit()
        session.delete(boss)
        session.commit()
        session.add_all([Dog(id=1, tricks="sit"), Pet(id=2), Room(id=1, number="a")])
        session.add(Ward(id=1, number="b", beds=4))
        session.add(Odd(id=7, mixed="x", lazy="y"))
        session.add_all([Point(id=1, x=5), Imperative("a", "Monday")])
        session.flush()
        session.execute(link.insert().values(employee_id=2, pet_id=1))
        session.commit()
    module_capture.run()
    uninstall(engine)
    return module_capture


@pytest.fixture
def reader(written: Capture) -> AuditReader:
    return AuditReader(written.destination.engine())


def test_a_version_merges_the_tables_of_one_identity(reader: AuditReader) -> None:
    versions = reader.history(Director, 1)
    assert [(v.operation.value, v.changed) for v in versions] == [
        ("INSERT", ("id", "kind", "name", "manager_id", "budget")),
        ("UPDATE", ("name", "budget")),
        ("UPDATE", ("budget",)),
        ("UPDATE", ("name",)),
        ("UPDATE", ("name",)),
        ("DELETE", ("id", "kind", "name", "manager_id", "budget")),
    ]
    assert versions[2].as_dict() == {
        "id": 1,
        "kind": "director",
        "name": "Eve",
        "manager_id": 1,
        "budget": 8,
    }
    assert dict(versions[1].diff) == {"name": ("Ann", "Eve"), "budget": (5, 7)}
    assert versions[0].user == "hr"
    assert versions[-1].before == versions[-2].after
    assert versions[-1].after is None


def test_a_record_is_an_instance_of_the_class_its_row_says(reader: AuditReader) -> None:
    assert type(reader.history(Employee, 1)[0].instance()) is Director
    assert type(reader.history(Employee, 3)[0].instance()) is Manager
    bob = reader.history(Employee, 2)[0]
    assert type(bob.instance()) is Employee
    assert bob.as_dict() == {"id": 2, "kind": "employee", "name": "Bob"}
    assert len(reader.history(Employee, 1)) == len(reader.history(Manager, 1)) == 6
    assert [v.number for v in reader.history(Employee, 1, fields=["budget"])] == [1, 2, 3, 6]


def test_single_table_inheritance_gives_the_class_below(reader: AuditReader) -> None:
    dog = reader.history(Pet, 1)[0].instance()
    assert (type(dog), dog.tricks) == (Dog, "sit")
    assert reader.history(Dog, 1)[0].as_dict() == {"id": 1, "kind": "dog", "tricks": "sit"}
    assert reader.history(Pet, 2)[0].as_dict() == {"id": 2, "kind": "pet"}


def test_classes_of_concrete_inheritance_have_histories_of_their_own(reader: AuditReader) -> None:
    assert reader.history(Room, 1)[0].as_dict() == {"id": 1, "number": "a"}
    assert reader.history(Ward, 1)[0].as_dict() == {"id": 1, "number": "b", "beds": 4}


def test_attributes_are_named_as_the_class_has_them(reader: AuditReader) -> None:
    (version,) = reader.history(Odd, 7, fields=["alias"])
    assert version.as_dict() == {"id": 7, "mixed": "x", "lazy": "y"}
    made = version.instance()
    assert (made.alias, made.lazy) == ("x", "y")
    assert len(reader.history(Odd, {"id": 7}, fields=[Odd.mixed])) == 1
    with pytest.raises(UsageError, match="double"):
        reader.history(Odd, 7, fields=["double"])
    (bare,) = reader.history("My Schema.Odd Table", 7)
    assert bare.as_dict() == {"odd_id": 7, "Mixed Case": "x", "odd_lazy": "y"}


def test_a_dataclass_is_made_without_its_init(reader: AuditReader) -> None:
    point = reader.history(Point, 1)[0].instance()
    assert dataclasses.asdict(point) == {"id": 1, "x": 5, "note": "made by __init__"}


def test_an_imperative_mapping_is_like_any_other(reader: AuditReader) -> None:
    (version,) = reader.history(Imperative, ("a", 1))
    assert version.as_dict() == {"code": "a", "day": "Monday", "place": 1}
    assert type(version.instance()) is Imperative


def test_an_association_table_is_read_typed_by_its_table(reader: AuditReader) -> None:
    (version,) = reader.history(link, (2, 1))
    assert version.instance() == {"employee_id": 2, "pet_id": 1}
    with pytest.raises(UsageError, match="employee_pet has no attribute"):
        reader.history(link, (2, 1), fields=["name"])


def test_of_a_table_that_was_not_seen_yet_the_attributes_are_unavailable(
    destination,
) -> None:
    trail = HandmadeTrail(destination)
    trail.cover("employee")
    trail.cover("manager", "manager_id")
    trail.change(
        "UPDATE",
        "manager",
        1,
        before={"budget": 1},
        after={"manager_id": 1, "budget": 2},
    )
    (version,) = AuditReader(destination.engine()).history(Manager, 1)
    assert version.as_dict() == {
        "id": UNAVAILABLE,
        "kind": UNAVAILABLE,
        "name": UNAVAILABLE,
        "manager_id": 1,
        "budget": 2,
    }
    assert (version.changed, dict(version.diff)) == (("budget",), {"budget": (1, 2)})


def test_a_truncate_ends_a_record_of_several_tables_once(destination) -> None:
    trail = HandmadeTrail(destination)
    trail.cover("employee")
    trail.cover("manager", "manager_id")
    whole = {"id": 1, "kind": "manager", "name": "Ann"}
    trail.change("INSERT", "employee", 1, after=whole)
    trail.change("INSERT", "manager", 1, ordinal=2, after={"manager_id": 1, "budget": 2})
    trail.change("TRUNCATE", "employee", 2)
    trail.change("TRUNCATE", "manager", 2, ordinal=2)
    first, last = AuditReader(destination.engine()).history(Manager, 1)
    assert (first.as_dict()["budget"], last.operation.value, last.after) == (2, "TRUNCATE", None)
    with pytest.raises(HistoryUnknown):
        last.instance()


class Renamed(Base):
    __tablename__ = "renamed"
    id: Mapped[int] = mapped_column(primary_key=True)
    full_name: Mapped[str | None] = mapped_column(info={"pgaudit_ctx_renamed_from": ["name"]})
    added: Mapped[int | None]


def test_columns_that_were_renamed_added_or_dropped_since(destination) -> None:
    trail = HandmadeTrail(destination)
    trail.cover("renamed")
    trail.change("INSERT", "renamed", 1, after={"id": 1, "name": "Ann", "dropped": True})
    trail.change(
        "UPDATE",
        "renamed",
        2,
        before={"name": "Ann"},
        after={"id": 1, "name": "Bea", "dropped": True},
    )
    trail.change(
        "UPDATE",
        "renamed",
        3,
        before={"full_name": "Bea"},
        after={"id": 1, "full_name": "Cay", "added": 5},
    )
    reader = AuditReader(destination.engine())
    versions = reader.history(Renamed, 1, fields=[Renamed.full_name])
    assert [v.as_dict() for v in versions] == [
        {"id": 1, "full_name": "Ann"},
        {"id": 1, "full_name": "Bea"},
        {"id": 1, "full_name": "Cay", "added": 5},
    ]
    assert versions[1].changed == ("full_name",)
    assert versions[0].instance().added is None
    assert len(reader.changes(Renamed, field={"full_name": {"from": "Ann"}})) == 1
    bare = reader.history("renamed", 1, renamed={"name": "full_name"}, fields=["full_name"])
    assert [v.after["full_name"] for v in bare] == ["Ann", "Bea", "Cay"]
    with pytest.raises(UsageError, match="surname"):
        reader.history(Renamed, 1, renamed={"name": "surname"})


def test_relationships_and_mappers_that_are_no_columns_are_left_out() -> None:
    class Owner(Base):
        __tablename__ = "owner"
        id: Mapped[int] = mapped_column(primary_key=True)
        pet_id: Mapped[int] = mapped_column(ForeignKey(Pet.id))
        pet: Mapped[Pet] = relationship()

    from pgaudit_ctx.reading.mapped import shape_of

    assert shape_of(Owner, None).attributes({"id": 1, "pet_id": 2}) == {"id": 1, "pet_id": 2}
