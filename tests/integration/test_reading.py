"""History gives back what was written, typed, with who and why, or says that it cannot know."""

import datetime as dt
import decimal
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import pgaudit_ctx
from pgaudit_ctx import AuditReader, Change, HistoryUnknown, NotCaptured, audit_context
from pgaudit_ctx.change import UNAVAILABLE, Operation
from pgaudit_ctx.errors import (
    DestinationNotReady,
    KeyMismatch,
    NaiveDatetime,
    NotConfigured,
    SourceAmbiguous,
    SourceUnknown,
    UsageError,
)
from pgaudit_ctx.reading import default
from support.clinic import SAMPLE, Dose, Patient, Sample, Status
from support.database import Capture, Database, create_database, drop_database
from support.server import Server

LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
DAY = dt.date(2024, 2, 29)


@pytest.fixture
def reader(capture: Capture) -> AuditReader:
    return AuditReader(capture.destination.engine())


def now(capture: Capture) -> dt.datetime:
    """The source's clock, between two transactions."""
    ((moment,),) = capture.source.execute("SELECT clock_timestamp() AS now")
    return moment.astimezone(dt.UTC)


def live(capture: Capture, engine: Engine) -> list[dt.datetime]:
    """Ann is admitted, noted, renamed by nobody, and gone; the moments in between."""
    moments = [now(capture)]
    with Session(engine) as session:
        with audit_context(user="r.tyler", reason="walk-in"):
            session.add(Patient(id=42, name="Ann", born=DAY))
            session.commit()
        moments.append(now(capture))
        with audit_context(user="dr.who", reason="allergy"):
            session.get_one(Patient, 42).notes = {"allergies": ["penicillin"]}
            session.commit()
        moments.append(now(capture))
        session.execute(text("UPDATE patient SET name = 'Eve', status = 'DISCHARGED'"))
        session.commit()
        moments.append(now(capture))
        with audit_context(user="dr.who", reason="moved"):
            session.delete(session.get_one(Patient, 42))
            session.commit()
        moments.append(now(capture))
    capture.run()
    return moments


def test_a_history_tells_each_version_with_who_why_and_when(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    moments = live(capture, engine)
    versions = reader.history(Patient, 42)
    assert [
        (version.number, version.operation, version.user, version.reason) for version in versions
    ] == [
        (1, Operation.INSERT, "r.tyler", "walk-in"),
        (2, Operation.UPDATE, "dr.who", "allergy"),
        (3, Operation.UPDATE, None, None),
        (4, Operation.DELETE, "dr.who", "moved"),
    ]
    assert versions[2].context is None
    times = [version.committed_at for version in versions]
    assert all(a < time < b for a, time, b in zip(moments, times, moments[1:], strict=False))
    assert [version.valid_to for version in versions] == [*times[1:], None]
    assert all(time.utcoffset() == dt.timedelta() for time in times)


def test_versions_know_their_neighbours_and_what_changed(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    live(capture, engine)
    first, second, third, last = reader.history(Patient, 42)
    assert (first.previous, first.next, last.next) == (None, second, None)
    assert last.previous is third
    assert (second.changed, third.changed) == (("notes",), ("name", "status"))
    assert dict(second.diff) == {"notes": (None, {"allergies": ["penicillin"]})}
    assert dict(third.diff) == {
        "name": ("Ann", "Eve"),
        "status": (Status.ACTIVE, Status.DISCHARGED),
    }
    assert first.before is None
    assert last.after is None
    assert last.before == third.after
    assert first.diff["born"] == (None, DAY)
    assert last.diff["born"] == (DAY, None)


def test_an_instance_is_the_model_without_a_session(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    live(capture, engine)
    version = reader.history(Patient, 42)[1]
    ann = version.instance()
    assert isinstance(ann, Patient)
    assert inspect(ann).transient
    assert (ann.id, ann.name, ann.born, ann.status) == (42, "Ann", DAY, Status.ACTIVE)
    assert version.as_dict() == {
        "id": 42,
        "name": "Ann",
        "born": DAY,
        "status": Status.ACTIVE,
        "notes": {"allergies": ["penicillin"]},
    }
    assert reader.history(Patient, 42)[-1].instance().name == "Eve"


def test_filters_choose_versions_but_leave_their_numbers(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    moments = live(capture, engine)

    def numbers(**filters: Any) -> list[int]:
        return [version.number for version in reader.history(Patient, 42, **filters)]

    assert numbers(user="dr.who") == [2, 4]
    assert numbers(fields=["name"]) == [1, 3, 4]
    assert numbers(limit=2) == [3, 4]
    assert numbers(limit=0) == []
    assert numbers(since=moments[1], until=moments[3]) == [2, 3]
    times = [version.committed_at for version in reader.history(Patient, 42)]
    assert numbers(since=times[1], until=times[2]) == [2]
    (only,) = reader.history(Patient, 42, user="dr.who", until=moments[3])
    assert only.previous.number == 1


def test_a_history_can_be_sliced_and_knows_its_latest(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    live(capture, engine)
    versions = reader.history(Patient, 42)
    assert len(versions) == 4
    assert [version.number for version in versions[1:3]] == [2, 3]
    assert versions.latest is versions[-1]
    assert reader.history(Patient, 43).latest is None


def test_an_update_that_changed_nothing_is_left_out_unless_asked_for(
    capture: Capture, reader: AuditReader
) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    capture.source.execute("UPDATE patient SET name = name")
    capture.run()
    assert len(reader.history(Patient, 1)) == 1
    _, unchanged = reader.history(Patient, 1, include_unchanged=True)
    assert (unchanged.changed, dict(unchanged.diff)) == ((), {})


def test_every_type_comes_back_as_the_model_has_it(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    with Session(engine) as session:
        session.add(Sample(**SAMPLE))
        session.commit()
    capture.run()
    (version,) = reader.history(Sample, SAMPLE["id"])
    assert version.as_dict() == SAMPLE
    assert {name: type(value) for name, value in version.as_dict().items()} == {
        name: type(value) for name, value in SAMPLE.items()
    }
    with Session(engine) as session:
        loaded = session.get_one(Sample, SAMPLE["id"])
        assert version.as_dict() == {name: getattr(loaded, name) for name in SAMPLE}


def test_null_and_what_python_cannot_hold_are_told_apart(
    capture: Capture, reader: AuditReader
) -> None:
    capture.source.execute(
        "INSERT INTO sample (id, ratio, amount, day, moment, document)"
        f" VALUES ('{SAMPLE['id']}', 'NaN', 'NaN', '-infinity', 'infinity', 'null')"
    )
    capture.run()
    (version,) = reader.history(Sample, SAMPLE["id"])
    values = version.as_dict()
    assert values["ratio"] != values["ratio"]
    assert values["amount"].is_nan()
    assert (values["day"], values["moment"]) == ("-infinity", "infinity")
    assert (values["flag"], values["document"]) == (None, None)


def test_a_value_that_the_log_did_not_carry_is_never_none(
    capture: Capture, reader: AuditReader
) -> None:
    capture.source.execute("ALTER TABLE patient REPLICA IDENTITY DEFAULT")
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    capture.source.execute("UPDATE patient SET name = 'y'; DELETE FROM patient")
    capture.run()
    _, updated, deleted = reader.history(Patient, 1)
    assert (updated.before, updated.changed) == (None, None)
    assert deleted.before["name"] is UNAVAILABLE


def dose(capture: Capture, engine: Engine) -> None:
    with Session(engine) as session, audit_context(user="dr.who"):
        session.add(Patient(id=1, name="Ann"))
        session.flush()
        session.add(Dose(patient_id=1, given_on=DAY, milligrams=decimal.Decimal("12.5")))
        session.commit()
    capture.run()


@pytest.mark.parametrize(
    "key",
    [
        (1, DAY),
        [1, DAY],
        {"given_on": DAY, "patient_id": 1},
        Dose(patient_id=1, given_on=DAY),
    ],
    ids=["tuple", "list", "dict", "instance"],
)
def test_a_composite_key_is_taken_in_every_form(
    capture: Capture, engine: Engine, reader: AuditReader, key: Any
) -> None:
    dose(capture, engine)
    (version,) = reader.history(Dose, key)
    assert version.as_dict() == {
        "patient_id": 1,
        "given_on": DAY,
        "milligrams": decimal.Decimal("12.500"),
    }


@pytest.mark.parametrize(
    "key",
    [
        1,
        (1,),
        (1, DAY, 3),
        (1, None),
        ("1", DAY),
        {"patient_id": 1},
        {"patient_id": 1, "dose_mg": 2},
    ],
)
def test_a_key_that_does_not_fit_the_model_is_refused(
    capture: Capture, reader: AuditReader, key: Any
) -> None:
    with pytest.raises(KeyMismatch):
        reader.history(Dose, key)


def test_a_change_of_the_key_belongs_to_both_histories(
    capture: Capture, reader: AuditReader
) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    between = now(capture)
    capture.source.execute("UPDATE patient SET id = 2")
    capture.run()
    assert [version.number for version in reader.history(Patient, 1)] == [1, 2]
    (moved,) = reader.history(Patient, 2)
    assert moved.diff["id"] == (1, 2)
    assert reader.as_of(Patient, 1, between).after["id"] == 1
    assert reader.as_of(Patient, 1, now(capture)) is None
    assert reader.as_of(Patient, 2, between) is None


def test_as_of_gives_the_version_of_each_moment_and_none_where_there_was_none(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    moments = live(capture, engine)
    found = [reader.as_of(Patient, 42, moment) for moment in moments]
    assert found[0] is None
    assert [version.number for version in found[1:4]] == [1, 2, 3]
    assert found[4] is None
    versions = reader.history(Patient, 42, limit=1)
    assert versions.as_of(moments[1]).number == 1
    assert reader.as_of(Patient, 42, versions.latest.committed_at) is None


def test_as_of_cannot_know_before_capture_began_or_without_a_trace(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    live(capture, engine)
    with pytest.raises(HistoryUnknown):
        reader.as_of(Patient, 42, LONG_AGO)
    with pytest.raises(HistoryUnknown, match="no trace"):
        reader.as_of(Patient, 43, now(capture))


def test_as_of_cannot_know_what_was_before_a_first_trace_that_is_an_update(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 1)")
    blank.setup()
    before = now(blank)
    blank.source.execute("UPDATE t SET a = 2")
    blank.run()
    reader = AuditReader(blank.destination.engine())
    with pytest.raises(HistoryUnknown, match="first trace is UPDATE"):
        reader.as_of("t", 1, before)
    assert reader.as_of("t", 1, now(blank)).after == {"id": 1, "a": 2}


def test_a_truncate_ends_every_record_of_its_table(capture: Capture, reader: AuditReader) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    capture.source.execute("TRUNCATE patient CASCADE")
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (2, 'x', 'ACTIVE')")
    capture.run()
    _, end = reader.history(Patient, 1)
    assert (end.operation, end.after, end.before) == (Operation.TRUNCATE, None, None)
    with pytest.raises(HistoryUnknown, match="TRUNCATE"):
        end.instance()
    assert reader.as_of(Patient, 1, now(capture)) is None
    assert len(reader.history(Patient, 2)) == 1


def test_in_a_gap_the_state_is_unknown_until_the_next_change(
    capture: Capture, reader: AuditReader
) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    before = now(capture)
    ((from_lsn,),) = capture.source.execute("SELECT pg_current_wal_lsn()::text AS lsn")
    inside = now(capture)
    ((to_lsn,),) = capture.source.execute(
        "SELECT pg_logical_emit_message(true, 'x', 'y')::text AS lsn"
    )
    capture.source.execute("UPDATE patient SET name = 'y'")
    capture.run()
    capture.destination.execute(
        "INSERT INTO pgaudit_ctx.gaps"
        " (source, epoch, from_lsn, to_epoch, to_lsn, from_time, to_time, cause)"
        " VALUES (%s, 1, %s, 1, %s, %s, %s, 'slot lost')",
        [capture.source.name, from_lsn, to_lsn, inside, inside],
    )
    versions = reader.history(Patient, 1)
    (gap,) = versions.gaps
    assert (gap.cause, gap.from_lsn, gap.from_time) == ("slot lost", from_lsn, inside)
    assert versions.as_of(before).number == 1
    with pytest.raises(HistoryUnknown, match="slot lost"):
        versions.as_of(inside)
    assert versions.as_of(now(capture)).number == 2


def test_complete_up_to_says_how_far_the_trail_goes(capture: Capture, reader: AuditReader) -> None:
    before = now(capture)
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    capture.run()
    complete = reader.history(Patient, 1).complete_up_to
    (checkpoint,) = capture.destination.execute("SELECT * FROM pgaudit_ctx.checkpoints")
    assert complete.lsn == checkpoint.end_lsn
    assert complete.time >= before


def test_naive_moments_are_refused_everywhere(capture: Capture, reader: AuditReader) -> None:
    capture.run()
    naive = dt.datetime(2024, 2, 29)  # noqa: DTZ001 - that is the point
    for ask in (
        lambda: reader.as_of(Patient, 1, naive),
        lambda: reader.history(Patient, 1, since=naive),
        lambda: reader.history(Patient, 1, until=naive),
        lambda: reader.history(Patient, 1).as_of(naive),
    ):
        with pytest.raises(NaiveDatetime):
            ask()


def test_a_table_without_a_model_gives_dicts(
    capture: Capture, engine: Engine, reader: AuditReader
) -> None:
    dose(capture, engine)
    (version,) = reader.history("public.dose", (1, "2024-02-29"))
    assert version.instance() == {"patient_id": 1, "given_on": "2024-02-29", "dose_mg": "12.500"}
    (again,) = reader.history("dose", {"patient_id": 1, "given_on": DAY})
    assert again.as_dict() == version.as_dict()
    with pytest.raises(KeyMismatch):
        reader.history("dose", 1)


def test_a_table_without_primary_key_has_no_histories(blank: Capture) -> None:
    blank.source.execute("CREATE TABLE t (a int)")
    blank.setup()
    with pytest.raises(KeyMismatch, match="no primary key"):
        AuditReader(blank.destination.engine()).history("t", 1)


def test_a_table_that_was_never_captured_is_an_error(reader: AuditReader) -> None:
    with pytest.raises(NotCaptured, match=r"public\.nowhere"):
        reader.history("nowhere", 1)
    with pytest.raises(NotCaptured):
        reader.history(Patient, 1, schema="tenant_7")


def test_a_wrong_model_or_field_or_limit_is_wrong_usage(reader: AuditReader) -> None:
    for wrong in (dict, 5, None):
        with pytest.raises(UsageError):
            reader.history(wrong, 1)
    with pytest.raises(UsageError, match="surname"):
        reader.history(Patient, 1, fields=["surname"])
    with pytest.raises(UsageError, match="limit"):
        reader.history(Patient, 1, limit=-1)


def test_two_sources_of_one_table_must_be_told_apart(
    server: Server, capture: Capture, source_template: str
) -> None:
    second = create_database(server, source_template)
    try:
        other = Capture(second, capture.destination)
        other.setup()
        statement = "INSERT INTO patient (id, name, status) VALUES (1, '{}', 'ACTIVE')"
        capture.source.execute(statement.format("first"))
        second.execute(statement.format("second"))
        capture.run()
        other.run()
        engine = capture.destination.engine()
        with pytest.raises(SourceAmbiguous, match=second.name):
            AuditReader(engine).history(Patient, 1)
        with pytest.raises(SourceUnknown, match="third"):
            AuditReader(engine, source="third").history(Patient, 1)
        (version,) = AuditReader(engine, source=second.name).history(Patient, 1)
        assert version.after["name"] == "second"
    finally:
        drop_database(second)


def test_user_and_reason_are_read_by_the_keys_one_names(capture: Capture, engine: Engine) -> None:
    with Session(engine) as session, audit_context(actor={"id": 7}, why="x"):
        session.add(Patient(id=1, name="Ann"))
        session.commit()
    capture.run()
    reader = AuditReader(capture.destination.engine(), user_key="actor.id", reason_key="why")
    (version,) = reader.history(Patient, 1, user="7")
    assert (version.user, version.reason) == (7, "x")


def test_models_of_a_schema_are_read_from_the_schema_one_names(blank: Capture) -> None:
    blank.source.execute(
        "CREATE SCHEMA tenant; CREATE TABLE tenant.patient (id int PRIMARY KEY, name text,"
        " born date, status text, notes jsonb)"
    )
    blank.setup()
    blank.source.execute("INSERT INTO tenant.patient VALUES (1, 'Ann', NULL, 'ACTIVE', NULL)")
    blank.run()
    engine = blank.destination.engine()
    (version,) = AuditReader(engine, schema="tenant").history(Patient, 1)
    assert version.instance().status is Status.ACTIVE
    assert len(AuditReader(engine).history(Patient, 1, schema="tenant")) == 1
    assert AuditReader(engine).as_of(Patient, 1, now(blank), schema="tenant").number == 1


@pytest.mark.parametrize("kind", ["engine", "connection", "session", "sessionmaker", "psycopg2"])
def test_a_reader_takes_everything_that_runs_selects(
    capture: Capture, engine: Engine, kind: str
) -> None:
    live(capture, engine)
    destination = capture.destination.engine()
    if kind == "connection":
        with destination.connect() as connection:
            assert len(AuditReader(connection).history(Patient, 42)) == 4
            assert connection.in_transaction()  # it is the caller's to end
    elif kind == "session":
        with Session(destination) as session:
            assert len(AuditReader(session).history(Patient, 42)) == 4
    elif kind == "sessionmaker":
        assert len(AuditReader(sessionmaker(destination)).history(Patient, 42)) == 4
    elif kind == "psycopg2":
        other = create_engine(capture.destination.sqlalchemy_url("psycopg2"))
        (first, *_) = AuditReader(other).history(Patient, 42)
        assert first.committed_at.utcoffset() is not None
        other.dispose()
    else:
        assert len(AuditReader(destination).history(Patient, 42)) == 4


def test_a_reader_refuses_what_cannot_run_its_selects() -> None:
    asynchronous = create_async_engine("postgresql+asyncpg://h/db")
    with pytest.raises(UsageError, match="AsyncAuditReader"):
        AuditReader(asynchronous)
    with pytest.raises(UsageError):
        AuditReader("postgresql://h/db")


def test_a_database_without_trail_says_so(empty_database: Database) -> None:
    with pytest.raises(DestinationNotReady, match="pgaudit-ctx setup"):
        AuditReader(empty_database.engine()).history(Patient, 1)


def test_a_role_that_may_not_read_the_trail_is_told_what_to_grant(capture: Capture) -> None:
    capture.destination.execute("CREATE ROLE guest LOGIN")
    try:
        with capture.destination.engine().connect() as connection:
            connection.execute(text("SET ROLE guest"))
            with pytest.raises(DestinationNotReady, match="GRANT USAGE"):
                AuditReader(connection).history(Patient, 1)
    finally:
        capture.destination.execute("DROP ROLE guest")


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "_configured", None)
    monkeypatch.delenv("PGAUDIT_CTX_DESTINATION_URL", raising=False)


def test_without_a_destination_the_functions_say_how_to_name_one(unconfigured: None) -> None:
    with pytest.raises(NotConfigured, match="PGAUDIT_CTX_DESTINATION_URL"):
        pgaudit_ctx.history(Patient, 1)


def test_the_functions_read_what_was_configured(
    capture: Capture, engine: Engine, unconfigured: None
) -> None:
    moments = live(capture, engine)
    pgaudit_ctx.configure(capture.destination.engine(), reason_key="user")
    assert [version.reason for version in pgaudit_ctx.history(Patient, 42, limit=1)] == ["dr.who"]
    assert pgaudit_ctx.as_of(Patient, 42, moments[1]).number == 1


def test_the_functions_read_the_url_in_the_environment(
    capture: Capture, engine: Engine, unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(capture, engine)
    monkeypatch.setenv("PGAUDIT_CTX_DESTINATION_URL", capture.destination.url)
    assert len(pgaudit_ctx.history(Patient, 42)) == 4
    default._configured.destination.dispose()


def test_changes_are_a_mapped_class_for_any_select(capture: Capture, engine: Engine) -> None:
    live(capture, engine)
    with Session(capture.destination.engine()) as session:
        found = (
            session.query(Change)
            .where(Change.context["user"].astext == "dr.who")
            .order_by(Change.epoch, Change.commit_lsn, Change.ordinal)
        )
        assert [change.operation for change in found] == ["UPDATE", "DELETE"]
