"""How a model, or a bare table name, meets keys and columns."""

import datetime as dt
from typing import ClassVar

import pytest
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgaudit_ctx.errors import KeyMismatch, Unsupported, UsageError
from pgaudit_ctx.reading.mapped import shape_of
from pgaudit_ctx.reading.shape import TableShape
from support.clinic import Patient

DAY = dt.date(2024, 2, 29)
COLUMNS = ["given_on", "patient_id"]


class Base(DeclarativeBase):
    pass


class Dose(Base):
    """A composite key, and an attribute that is not called like its column."""

    __tablename__ = "dose"
    patient_id: Mapped[int] = mapped_column(primary_key=True)
    given_on: Mapped[dt.date] = mapped_column(primary_key=True)
    milligrams: Mapped[int] = mapped_column("dose_mg")


class Animal(Base):
    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)


class Dog(Animal):
    __tablename__ = "dog"
    id: Mapped[int] = mapped_column(ForeignKey(Animal.id), primary_key=True)


@pytest.mark.parametrize(
    "key",
    [
        (7, DAY),
        [7, DAY],
        {"given_on": DAY, "patient_id": 7},
        Dose(patient_id=7, given_on=DAY),
    ],
)
def test_a_key_is_given_as_session_get_takes_it_and_printed_in_the_trails_order(key) -> None:
    assert shape_of(Dose, None).key(key, COLUMNS) == ("2024-02-29", "7")


@pytest.mark.parametrize(
    "key", [7, (7,), (7, DAY, 1), (7, None), {"patient_id": 7}, {"patient": 7, "given_on": DAY}]
)
def test_a_key_of_another_form_is_refused(key) -> None:
    with pytest.raises(KeyMismatch, match="consists of patient_id, given_on"):
        shape_of(Dose, None).key(key, COLUMNS)


@pytest.mark.parametrize("columns", [[], ["id"], ["patient_id", "given_on", "x"]])
def test_a_trail_that_knows_another_key_than_the_model_is_refused(columns) -> None:
    with pytest.raises(KeyMismatch, match="the trail knows Dose by the key"):
        shape_of(Dose, None).key((7, DAY), columns)


def test_columns_become_attributes_and_unknown_ones_are_left_out() -> None:
    shape = shape_of(Dose, None)
    assert shape.attributes({"patient_id": 7, "given_on": "2024-02-29", "gone": 1}) == {
        "patient_id": 7,
        "given_on": DAY,
    }
    assert shape.names(["gone", "dose_mg", "patient_id"]) == ("patient_id", "milligrams")


def test_a_model_knows_its_table_and_a_schema_can_be_given() -> None:
    assert shape_of(Patient, None).tables == (("public", "patient"),)
    assert shape_of(Patient, "tenant").tables == (("tenant", "patient"),)


def test_joined_inheritance_makes_one_record_of_several_tables() -> None:
    tables = (("public", "animal"), ("public", "dog"))
    assert shape_of(Dog, None).tables == shape_of(Animal, None).tables == tables
    keys = shape_of(Dog, None).keys(("7",), {tables[0]: ("id",), tables[1]: ("id",)})
    assert keys == {tables[0]: ("7",), tables[1]: ("7",)}


def test_a_mapping_to_a_select_is_refused_with_a_remedy() -> None:
    class Named(Base):
        __table__ = select(Animal.id).subquery()
        __mapper_args__: ClassVar = {"primary_key": [__table__.c.id]}

    with pytest.raises(Unsupported, match="Named is mapped to several tables or to a select"):
        shape_of(Named, None)


@pytest.mark.parametrize("model", [int, object(), None, Patient(id=1)])
def test_what_is_no_model_is_refused(model) -> None:
    with pytest.raises(UsageError, match="take a mapped class, a Table, or the name of a table"):
        shape_of(model, None)


@pytest.mark.parametrize(
    ("name", "schema", "expected"),
    [
        ("patient", None, ("public", "patient")),
        ("app.patient", None, ("app", "patient")),
        ("app.patient", "tenant", ("tenant", "patient")),
    ],
)
def test_a_table_may_be_named_with_or_without_its_schema(name, schema, expected) -> None:
    shape = shape_of(name, schema)
    assert isinstance(shape, TableShape)
    assert shape.tables == (expected,)


@pytest.mark.parametrize(
    ("key", "printed"),
    [((7, "x"), ("7", "x")), ({"b": "x", "a": 7}, ("7", "x")), ((True, False), ("t", "f"))],
)
def test_the_key_of_a_bare_table_is_taken_as_it_is(key, printed) -> None:
    assert TableShape("t", "public", {}).key(key, ["a", "b"]) == printed


@pytest.mark.parametrize("key", [7, (7,), (1, 2, 3), {"a": 7}])
def test_a_key_that_a_bare_table_does_not_have_is_refused(key) -> None:
    with pytest.raises(KeyMismatch, match="a, b"):
        TableShape("t", "public", {}).key(key, ["a", "b"])


def test_a_table_without_a_key_points_to_the_log() -> None:
    with pytest.raises(KeyMismatch, match="pgaudit-ctx log"):
        TableShape("t", "public", {}).key(7, [])
