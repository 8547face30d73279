"""What filters leave out and blank, and that nothing of it remains anywhere."""

import hashlib
import hmac
import json

import pytest

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.wal.filters import Filters, Redaction, parse_redaction
from pgaudit_ctx.wal.pgoutput import (
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    Truncate,
    Update,
)
from pgaudit_ctx.wal.stitcher import CapturedChange, Stitcher
from pgaudit_ctx.wal.table import TableFacts

PATIENT = Relation(
    1,
    "public",
    "patient",
    "f",
    (
        Column("id", 23, -1, True),
        Column("name", 25, -1, True),
        Column("ssn", 25, -1, True),
        Column("seen", 1184, -1, True),
    ),
)
OTHER = PATIENT._replace(oid=2, name="other")
ANN = [b"1", b"Ann", b"123-45", b"t1"]


def captured(filters: Filters, *messages, relation: Relation = PATIENT) -> list[CapturedChange]:
    stitcher = Stitcher(lambda r: TableFacts(r.oid, r.schema, r.name, ("id",), {}), filters=filters)
    stitcher.receive(0, Begin(999, 0, 1))
    for table in (relation, OTHER):
        stitcher.receive(0, table)
    changes = []
    for position, message in enumerate(messages, 1):
        changes += stitcher.receive(position, message)
    changes += stitcher.receive(999, Commit(999, 1000, 0))
    return changes


@pytest.mark.parametrize(
    ("filters", "excluded"),
    [
        (Filters(), False),
        (Filters(include_tables=["patient"]), False),
        (Filters(include_tables=["public.pat*"]), False),
        (Filters(include_tables=["other"]), True),
        (Filters(include_schemas=["public"]), False),
        (Filters(include_schemas=["sales"]), True),
        (Filters(include_schemas=["sales"], include_tables=["patient"]), False),
        (Filters(exclude_tables=["patient"]), True),
        (Filters(exclude_tables=["sales.patient"]), False),
        (Filters(exclude_schemas=["pub*"]), True),
        (Filters(include_tables=["patient"], exclude_schemas=["public"]), True),
        (Filters(exclude_tables=["Patient"]), False),
    ],
)
def test_tables_are_chosen_by_patterns_and_exclusion_wins(filters, excluded) -> None:
    assert filters.rules("public", "patient", ()).excluded is excluded
    assert len(captured(filters, Insert(1, ANN))) == (0 if excluded else 1)


def test_an_excluded_table_leaves_no_gap_in_the_numbers() -> None:
    changes = captured(
        Filters(exclude_tables=["patient"]),
        Insert(1, ANN),
        Insert(2, ANN),
        Update(1, None, ANN, ANN),
        Delete(1, None, ANN),
        Truncate(False, False, (1, 2)),
    )
    assert [(c.table.name, c.ordinal, c.operation) for c in changes] == [
        ("other", 1, "INSERT"),
        ("other", 2, "TRUNCATE"),
    ]


def test_a_message_of_bemi_for_a_row_that_is_left_out_does_not_cover_another_one() -> None:
    (change,) = captured(
        Filters(exclude_tables=["patient"]),
        Message(True, 0, "_bemi", b'{"n": 1}'),
        Insert(1, ANN),
        Insert(2, ANN),
    )
    assert change.context is None


def test_an_ignored_column_is_in_no_image() -> None:
    insert, update, delete = captured(
        Filters(ignore_columns=["patient.seen"]),
        Insert(1, ANN),
        Update(1, None, ANN, [b"1", b"Bea", b"123-45", b"t2"]),
        Delete(1, None, ANN),
    )
    kept = {"id": 1, "name": "Ann", "ssn": "123-45"}
    assert json.loads(insert.after) == kept
    assert json.loads(update.before) == {"name": "Ann"}
    assert json.loads(update.after) == {**kept, "name": "Bea"}
    assert json.loads(delete.before) == kept


def test_an_update_of_ignored_columns_only_is_not_stored() -> None:
    update = Update(1, None, ANN, [*ANN[:3], b"t2"])
    assert captured(Filters(ignore_columns=["*.seen"]), update) == []
    (other,) = captured(Filters(ignore_columns=["patient.seen"]), update._replace(relation_oid=2))
    assert json.loads(other.before) == {"seen": "t1"}


def test_an_update_of_nothing_is_stored_also_beside_an_ignored_column() -> None:
    large = [*ANN[:3], UNAVAILABLE]
    for new in (ANN, large):
        (change,) = captured(Filters(ignore_columns=["*.seen"]), Update(1, None, ANN, list(new)))
        assert change.before == "{}"


def test_a_large_value_that_was_not_sent_again_is_no_change_beside_an_ignored_one() -> None:
    new = [b"1", UNAVAILABLE, b"123-45", b"t2"]
    assert captured(Filters(ignore_columns=["*.seen"]), Update(1, None, ANN, new)) == []


@pytest.mark.parametrize(
    ("how", "stored"),
    [
        ("null", None),
        ("mask", {"$pgaudit_ctx": "redacted"}),
        (
            "hash",
            {
                "$pgaudit_ctx": "redacted",
                "sha256": hmac.new(b"key", b"123-45", hashlib.sha256).hexdigest(),
            },
        ),
    ],
)
def test_a_redacted_value_is_in_no_image_but_its_change_is_seen(how, stored) -> None:
    filters = Filters(redact_columns={"patient.ssn": Redaction(how)}, hash_key=b"key")
    insert, update, delete = captured(
        filters,
        Insert(1, ANN),
        Update(1, None, ANN, [b"1", b"Ann", b"678-90", b"t1"]),
        Delete(1, None, ANN),
    )
    assert json.loads(insert.after)["ssn"] == stored
    assert json.loads(update.before) == {"ssn": stored}
    assert json.loads(delete.before)["ssn"] == stored
    assert not any(b"123-45" in repr(change).encode() for change in (insert, update, delete))


def test_hash_without_a_key_is_the_digest_of_the_value() -> None:
    (insert,) = captured(Filters(redact_columns={"*.ssn": Redaction.HASH}), Insert(1, ANN))
    assert json.loads(insert.after)["ssn"]["sha256"] == hashlib.sha256(b"123-45").hexdigest()


@pytest.mark.parametrize("how", list(Redaction))
def test_null_stays_null_and_what_was_not_sent_stays_unavailable(how: Redaction) -> None:
    filters = Filters(redact_columns={"*.ssn": how})
    null, absent = captured(
        filters,
        Insert(1, [b"1", b"Ann", None, b"t1"]),
        Update(1, None, None, [b"1", b"Ann", UNAVAILABLE, b"t1"]),
    )
    assert json.loads(null.after)["ssn"] is None
    assert json.loads(absent.after)["ssn"] == {"$pgaudit_ctx": "unavailable"}


def test_a_key_that_came_to_hold_a_blanked_column_is_left_out() -> None:
    filters = Filters(redact_columns={"*.id": Redaction.MASK})
    (insert,) = captured(filters, Insert(1, ANN))
    assert insert.key is None


def test_patterns_that_fit_nothing_are_named() -> None:
    filters = Filters(
        include_tables=["patient", "pateint"],
        exclude_schemas=["pbulic"],
        redact_columns={"patient.sn": Redaction.MASK, "public.patient.ssn": Redaction.MASK},
    )
    assert filters.unmatched([("public", "patient", ["id", "ssn"])]) == [
        "pateint",
        "pbulic",
        "patient.sn",
    ]


def test_a_redaction_is_a_column_and_how() -> None:
    assert parse_redaction("a.b=c=hash") == ("a.b=c", Redaction.HASH)
    for wrong in ("a.b", "=hash", "a.b=blur", ""):
        with pytest.raises(UsageError, match="=mask"):
            parse_redaction(wrong)
