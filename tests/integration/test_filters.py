"""The worker's filters, and what the trail says about them."""

import hashlib

import pytest

from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.preflight import begin_capture
from pgaudit_ctx.wal.filters import Filters, Redaction
from support.command import run, urls_of
from support.database import Capture


def covered(capture: Capture, table: str) -> list[tuple]:
    return [
        (row.open, row.ignored, row.redacted, row.reason)
        for row in capture.destination.execute(
            "SELECT to_lsn IS NULL AS open, ignored, redacted, reason FROM pgaudit_ctx.coverage"
            " WHERE table_name = %s ORDER BY from_lsn",
            [table],
        )
    ]


@pytest.fixture
def clinic(blank: Capture) -> Capture:
    blank.source.execute(
        "CREATE TABLE patient (id int PRIMARY KEY, name text, ssn text, pin text, seen int);"
        "CREATE TABLE noise (id int PRIMARY KEY)"
    )
    blank.setup()
    return blank


def test_the_commands_options_leave_out_and_blank_what_they_name(clinic: Capture) -> None:
    clinic.source.execute(
        "INSERT INTO patient VALUES (1, 'Ann', '123-45', '9999', 1);"
        "INSERT INTO noise VALUES (1); UPDATE patient SET seen = 2; UPDATE patient SET pin = '1'"
    )
    done = run(
        "worker",
        "--until-caught-up",
        "--exclude-table=noise",
        "--ignore-column=patient.seen",
        "--redact-column=patient.ssn=hash",
        "--redact-column=*.pin=mask",
        env=urls_of(clinic),
    )
    assert done.returncode == 0, done.stderr
    assert "hash without --hash-key" in done.stderr
    rows = clinic.destination.execute(
        "SELECT * FROM pgaudit_ctx.changes ORDER BY commit_lsn, ordinal"
    )
    masked = {"$pgaudit_ctx": "redacted"}
    digest = hashlib.sha256(b"123-45").hexdigest()
    row = {"id": 1, "name": "Ann", "ssn": {**masked, "sha256": digest}, "pin": masked}
    assert [(r.operation, r.ordinal, r.before, r.after) for r in rows] == [
        ("INSERT", 1, None, row),
        ("UPDATE", 2, {"pin": masked}, row),
    ]
    assert covered(clinic, "patient")[-1] == (True, ["seen"], ["pin=mask", "ssn=hash"], None)
    assert covered(clinic, "noise")[-1] == (False, [], [], "excluded by a filter")


def test_a_filter_counts_from_the_checkpoint_on_where_it_begins_to_act(clinic: Capture) -> None:
    clinic.source.execute("INSERT INTO noise VALUES (1)")
    clinic.run()
    ((checkpoint,),) = clinic.destination.execute("SELECT end_lsn FROM pgaudit_ctx.checkpoints")
    clinic.source.execute("INSERT INTO noise VALUES (2)")
    clinic.options = clinic.options._replace(filters=Filters(exclude_tables=["noise"]))
    assert [row.primary_key for row in clinic.changes("noise")] == [["1"]]
    ((ended,),) = clinic.destination.execute(
        "SELECT to_lsn FROM pgaudit_ctx.coverage WHERE table_name = 'noise'"
    )
    assert ended == checkpoint


def test_setup_leaves_the_workers_filters_in_force(clinic: Capture) -> None:
    clinic.options = clinic.options._replace(
        filters=Filters(exclude_tables=["noise"], redact_columns={"*.ssn": Redaction.NULL})
    )
    clinic.run()
    before = covered(clinic, "patient"), covered(clinic, "noise")
    plain = clinic.options._replace(filters=Filters())
    with clinic.connections() as (source, destination):
        begin_capture(source, destination, plain, keep_filters=True)
    assert (covered(clinic, "patient"), covered(clinic, "noise")) == before


def test_a_filter_that_is_gone_is_gone_from_coverage_too(clinic: Capture) -> None:
    filters = Filters(exclude_tables=["noise"], ignore_columns=["patient.seen"])
    clinic.options = clinic.options._replace(filters=filters)
    clinic.run()
    clinic.options = clinic.options._replace(filters=Filters())
    clinic.source.execute("INSERT INTO noise VALUES (1)")
    assert len(clinic.changes("noise")) == 1
    assert covered(clinic, "noise")[-1] == (True, [], [], None)
    assert covered(clinic, "patient")[-1] == (True, [], [], None)


@pytest.mark.parametrize(
    "filters",
    [
        Filters(ignore_columns=["patient.id"]),
        Filters(redact_columns={"public.patient.i?": Redaction.HASH}),
    ],
)
def test_a_column_of_the_primary_key_cannot_be_blanked(clinic: Capture, filters) -> None:
    clinic.options = clinic.options._replace(filters=filters)
    with pytest.raises(UsageError, match=r"public\.patient.*--redact-column"):
        clinic.run()


def test_a_partition_goes_by_the_rules_of_its_root(blank: Capture) -> None:
    blank.source.execute(
        "CREATE TABLE visit (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);"
        "CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM (0) TO (10)"
    )
    blank.setup()
    blank.options = blank.options._replace(
        filters=Filters(exclude_tables=["visit_1"], redact_columns={"visit.a": Redaction.NULL})
    )
    blank.source.execute("INSERT INTO visit VALUES (1, 'x')")
    assert [row.after for row in blank.changes()] == [{"id": 1, "a": None}]


def test_a_pattern_that_fits_nothing_is_warned_of(
    clinic: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    clinic.options = clinic.options._replace(filters=Filters(exclude_tables=["nosie"]))
    clinic.run()
    assert "nosie" in caplog.text
