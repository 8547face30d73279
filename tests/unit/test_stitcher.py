"""Each change gets the context that was in force where it stands in the log."""

import json

import pytest

from pgaudit_ctx.change import UNAVAILABLE
from pgaudit_ctx.errors import ProtocolError
from pgaudit_ctx.wal.frames import PAYLOAD, parse_frame
from pgaudit_ctx.wal.pgoutput import (
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    Update,
    decode,
)
from pgaudit_ctx.wal.stitcher import CapturedChange, Stitcher, context_json
from pgaudit_ctx.wal.table import TableFacts
from unit.recorded import POSTGRESQL_15, POSTGRESQL_18

OID = 100
NOWHERE = {"$pgaudit_ctx": "unavailable"}


def relation(oid: int = OID, name: str = "t", *, keys: str = "id") -> Relation:
    columns = [("id", 23), ("name", 25), ("doc", 25)]
    return Relation(
        oid,
        "public",
        name,
        "f",
        tuple(Column(n, type_, -1, n in keys.split()) for n, type_ in columns),
    )


def facts(of: Relation) -> TableFacts:
    return TableFacts(of.oid, of.schema, of.name, ("id",), {})


def context(lsn: int, text: str | bytes, **other) -> Message:
    content = text if isinstance(text, bytes) else text.encode()
    return Message(True, lsn, "pgaudit_ctx", content)._replace(**other)


def row(key: int) -> Insert:
    return Insert(OID, [str(key).encode(), None, None])


def stitched(*stream, describe=facts, relations=None) -> list[CapturedChange]:
    """Feed positions and messages as one transaction, and give what came out."""
    stitcher = Stitcher(describe)
    changes = []
    for position, message in (
        (0, Begin(999, 0, 7)),
        *((0, one) for one in ([relation()] if relations is None else relations)),
        *stream,
        (999, Commit(999, 1000, 0)),
    ):
        changes += stitcher.receive(position, message)
    return changes


def contexts(*stream) -> list[object]:
    return [one.context for one in stitched(*stream)]


A, B = '{"user":"a"}', '{"user":"b"}'


def test_a_row_without_a_message_has_no_context() -> None:
    assert contexts((10, row(1))) == [None]


def test_a_message_covers_the_rows_after_it() -> None:
    assert contexts((10, context(20, A)), (20, row(1)), (30, row(2))) == [A, A]


def test_a_message_does_not_cover_the_rows_before_it() -> None:
    assert contexts((10, row(1)), (20, context(30, A)), (30, row(2))) == [None, A]


def test_a_message_covers_a_row_at_its_own_position_that_came_first() -> None:
    assert contexts((10, row(1)), (30, row(2)), (30, context(30, A))) == [None, A]


def test_a_message_covers_every_row_of_a_copy_at_its_position_that_came_first() -> None:
    rows = [(30, row(key)) for key in range(3)]
    assert contexts((10, row(9)), *rows, (30, context(30, A))) == [None, A, A, A]


def test_a_message_in_the_midst_of_a_copy_at_its_position_covers_all_of_it() -> None:
    assert contexts((30, row(1)), (30, context(30, A)), (30, row(2)), (40, row(3))) == [A, A, A]


def test_a_message_covers_a_truncate_at_its_position_that_came_first() -> None:
    assert contexts((30, Truncate(False, False, (OID, OID))), (30, context(30, A))) == [A, A]


def test_the_order_of_the_design_gives_each_row_its_own_person() -> None:
    assert contexts(
        (10, context(20, A)),
        (20, row(1)),
        (30, row(2)),
        (50, row(3)),
        (40, context(50, B)),
        (60, row(4)),
    ) == [A, A, B, B]


def test_an_empty_object_clears_the_context() -> None:
    assert contexts((10, context(20, A)), (20, row(1)), (30, context(40, "{}")), (40, row(2))) == [
        A,
        None,
    ]


def test_an_empty_object_clears_a_row_at_its_position_that_came_first() -> None:
    assert contexts((10, context(20, A)), (40, row(1)), (40, context(40, "{}"))) == [None]


def test_a_relation_between_rows_at_one_position_does_not_part_them() -> None:
    assert contexts(
        (30, row(1)),
        (0, relation(200)),
        (30, row(2)),
        (30, context(30, A)),
    ) == [A, A]


@pytest.mark.parametrize("prefix", ["other", "pgaudit_ctx2", "PGAUDIT_CTX", ""])
def test_messages_with_other_prefixes_are_ignored(prefix: str) -> None:
    assert contexts((10, context(20, A, prefix=prefix)), (20, row(1))) == [None]


def test_messages_outside_of_transactions_are_ignored() -> None:
    assert contexts((10, context(20, A, transactional=False)), (20, row(1))) == [None]


def test_a_context_ends_with_its_transaction() -> None:
    stitcher = Stitcher(facts)
    stream = (
        Begin(99, 0, 1),
        relation(),
        context(20, A),
        row(1),
        Commit(99, 100, 0),
        Begin(199, 0, 2),
        Origin(5, "elsewhere"),
        row(2),
        Commit(199, 200, 0),
    )
    changes = [change for message in stream for change in stitcher.receive(50, message)]
    assert [(change.ordinal, change.context) for change in changes] == [(1, A), (1, None)]


def test_changes_are_numbered_from_one_in_the_order_of_the_log() -> None:
    stream = ((10, row(1)), (20, Truncate(False, False, (OID, OID))), (30, row(2)))
    assert [(one.ordinal, str(one.operation)) for one in stitched(*stream)] == [
        (1, "INSERT"),
        (2, "TRUNCATE"),
        (3, "TRUNCATE"),
        (4, "INSERT"),
    ]


def test_no_more_than_the_rows_of_one_position_are_held() -> None:
    stitcher = Stitcher(facts)
    stitcher.receive(0, relation())
    released = [len(stitcher.receive(lsn, row(lsn))) for lsn in (10, 10, 20, 30)]
    assert released == [0, 0, 2, 1]


def test_a_row_of_an_unknown_relation_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="relation 100, which the server has not described"):
        stitched((10, row(1)), relations=())


@pytest.mark.parametrize("width", [0, 1, 2, 4])
def test_a_row_that_does_not_have_its_relations_columns_is_a_protocol_error(width: int) -> None:
    with pytest.raises(ProtocolError, match="columns"):
        stitched((10, Insert(OID, [None] * width)))


def test_a_value_that_is_not_utf_8_is_a_protocol_error_that_does_not_show_it() -> None:
    with pytest.raises(ProtocolError) as caught:
        stitched((10, Insert(OID, [b"1", b"secret\xff", None])))
    assert "secret" not in str(caught.value)


def test_an_insert_has_its_key_and_its_whole_new_image() -> None:
    (change,) = stitched((10, Insert(OID, [b"1", "Änn".encode(), None])))
    assert (change.key, change.previous_key, change.before) == ((b"1",), None, None)
    assert json.loads(change.after) == {"id": 1, "name": "Änn", "doc": None}


def test_an_update_under_full_has_only_the_old_values_that_changed() -> None:
    (change,) = stitched(
        (10, Update(OID, None, [b"1", b"a", b"d"], [b"1", b"b", b"d"])),
    )
    assert (change.key, change.previous_key) == ((b"1",), None)
    assert json.loads(change.before) == {"name": "a"}
    assert json.loads(change.after) == {"id": 1, "name": "b", "doc": "d"}


def test_an_update_from_and_to_null_is_a_change() -> None:
    (change,) = stitched((10, Update(OID, None, [b"1", None, b""], [b"1", b"", None])))
    assert json.loads(change.before) == {"name": None, "doc": ""}


def test_an_update_under_full_that_changes_nothing_has_an_empty_before() -> None:
    same = [b"1", b"a", None]
    (change,) = stitched((10, Update(OID, None, same, list(same))))
    assert change.before == "{}"


def test_an_unchanged_long_value_is_taken_from_the_old_row_under_full() -> None:
    (change,) = stitched(
        (10, Update(OID, None, [b"1", b"a", b"long"], [b"1", b"b", UNAVAILABLE])),
    )
    assert json.loads(change.before) == {"name": "a"}
    assert json.loads(change.after) == {"id": 1, "name": "b", "doc": "long"}


def test_an_unchanged_long_value_is_marked_under_a_weaker_identity() -> None:
    (change,) = stitched((10, Update(OID, None, None, [b"1", b"b", UNAVAILABLE])))
    assert change.before is None
    assert json.loads(change.after) == {"id": 1, "name": "b", "doc": NOWHERE}


def test_a_key_that_changes_under_full_is_kept_as_the_previous_key() -> None:
    (change,) = stitched((10, Update(OID, None, [b"1", b"a", None], [b"2", b"a", None])))
    assert (change.key, change.previous_key) == ((b"2",), (b"1",))
    assert json.loads(change.before) == {"id": 1}


def test_a_key_that_changes_under_default_is_kept_as_the_previous_key() -> None:
    (change,) = stitched((10, Update(OID, [b"1", None, None], None, [b"2", b"a", None])))
    assert (change.key, change.previous_key, change.before) == ((b"2",), (b"1",), None)


def test_a_delete_under_full_has_the_whole_old_image() -> None:
    (change,) = stitched((10, Delete(OID, None, [b"1", b"a", None])))
    assert (change.key, change.after) == ((b"1",), None)
    assert json.loads(change.before) == {"id": 1, "name": "a", "doc": None}


def test_a_delete_under_default_has_the_key_and_marks_the_rest() -> None:
    (change,) = stitched((10, Delete(OID, [b"1", None, None], None)))
    assert (change.key, change.after) == ((b"1",), None)
    assert json.loads(change.before) == {"id": 1, "name": NOWHERE, "doc": NOWHERE}


def test_a_truncate_has_neither_key_nor_images() -> None:
    (change,) = stitched((10, Truncate(True, True, (OID,))))
    assert change[3:] == (None, None, None, None, None)


def test_the_parts_of_a_key_stand_in_the_order_of_the_key() -> None:
    def describe(of: Relation) -> TableFacts:
        return TableFacts(of.oid, of.schema, of.name, ("name", "id"), {})

    (change,) = stitched((10, Insert(OID, [b"1", b"a", None])), describe=describe)
    assert change.key == (b"a", b"1")


@pytest.mark.parametrize("wanted", [(), ("id", "gone")])
def test_a_table_without_a_usable_primary_key_gives_changes_without_key(wanted) -> None:
    def describe(of: Relation) -> TableFacts:
        return TableFacts(of.oid, of.schema, of.name, wanted, {})

    assert stitched((10, row(1)), describe=describe)[0].key is None


def test_a_table_that_the_catalog_has_lost_keeps_its_own_name() -> None:
    (change,) = stitched((10, row(1)), describe=lambda _: None)
    assert (change.table.schema, change.table.name, change.key) == ("public", "t", None)


def test_a_partition_is_named_after_its_root() -> None:
    def describe(_: Relation) -> TableFacts:
        return TableFacts(7, "app", "root", ("id",), {})

    (change,) = stitched((10, row(1)), describe=describe)
    assert (change.table.oid, change.table.schema, change.table.name) == (7, "app", "root")


def test_a_table_is_named_as_it_was_then_not_as_the_catalog_names_it_now() -> None:
    def describe(of: Relation) -> TableFacts:
        return TableFacts(of.oid, "public", "renamed_since", ("id",), {})

    assert stitched((10, row(1)), describe=describe)[0].table.name == "t"


def test_a_second_description_replaces_the_first() -> None:
    wider = relation()._replace(columns=(*relation().columns, Column("new", 16, -1, False)))
    changes = stitched((10, row(1)), (0, wider), (20, Insert(OID, [b"2", None, None, b"t"])))
    assert json.loads(changes[1].after) == {"id": 2, "name": None, "doc": None, "new": True}


def test_a_domain_is_written_as_its_base_type() -> None:
    domain = relation()._replace(columns=(Column("id", 5555, -1, True),))

    def describe(of: Relation) -> TableFacts:
        return TableFacts(of.oid, of.schema, of.name, ("id",), {5555: 23})

    (change,) = stitched((10, Insert(OID, [b"5"])), describe=describe, relations=[domain])
    assert change.after == '{"id": 5}'


def test_a_column_may_be_named_anything() -> None:
    name = '100% "of" %s\n\\ä'
    hostile = relation()._replace(columns=(Column(name, 23, -1, True),))
    (change,) = stitched((10, Insert(OID, [b"5"])), relations=[hostile])
    assert json.loads(change.after) == {name: 5}


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "",
        "[]",
        "1",
        "null",
        '"text"',
        '{"a": NaN}',
        '{"a": "\\u0000"}',
        '{"a": "\\ud800"}',
        '{"a": 1e400000}',
        "{} {}",
        "[" * 100_000,
    ],
)
def test_text_that_jsonb_refuses_or_that_is_no_object_is_marked_and_quoted(text: str) -> None:
    assert json.loads(context_json(text.encode())) == {
        "$pgaudit_ctx": "invalid",
        "text": text[:1024],
    }


def test_of_an_invalid_context_the_first_1024_characters_are_kept() -> None:
    marked = json.loads(context_json(("ä" * 5000).encode()))
    assert marked["text"] == "ä" * 1024


def test_of_an_invalid_context_only_what_jsonb_can_hold_is_quoted() -> None:
    marked = json.loads(context_json(b"a\0b\xffc"))
    assert marked["text"] == "a\ufffdb\ufffdc"


@pytest.mark.parametrize("text", ["{}", " { } "])
def test_an_empty_object_is_no_context(text: str) -> None:
    assert context_json(text.encode()) is None


def test_a_valid_context_is_kept_as_it_was_written() -> None:
    text = '{"reason": "\\u00e4 \\ud83e\\ude7a", "n": 1.50, "n": 2}'
    assert context_json(text.encode()) == text


@pytest.mark.parametrize("frames", [POSTGRESQL_18, POSTGRESQL_15])
def test_a_recorded_stream_gives_the_rows_their_contexts(frames) -> None:
    stitcher = Stitcher(facts)
    changes = []
    for frame in list(frames.values())[1:]:
        changes += stitcher.receive(parse_frame(frame).wal_start, decode(frame, PAYLOAD))
        # The recording keeps one commit only; the next Begin or this ends a transaction as well.
    changes += stitcher.receive(0, Commit(0, 0, 0))
    found = {
        (change.key or (b"-",))[0].decode(): json.loads(change.context or "{}").get("user")
        for change in changes
        if change.table.name == "child" and change.operation == "INSERT"
    }
    assert {key: found[key] for key in ("21", "22", "23")} == {"21": "a", "22": "a", "23": "b"}
    assert found["41"] is None


def bemi(lsn: int, text: str) -> Message:
    return context(lsn, text, prefix="_bemi")


def test_a_message_of_bemi_covers_the_next_row_only_and_in_place_of_ours() -> None:
    assert contexts(
        (10, context(10, '{"user":"ours"}')),
        (10, row(1)),
        (20, bemi(20, '{"user":"bemi"}')),
        (20, row(2)),
        (30, row(3)),
    ) == ['{"user":"ours"}', '{"user":"bemi"}', '{"user":"ours"}']


def test_of_two_messages_of_bemi_before_one_row_the_second_counts() -> None:
    assert contexts(
        (10, bemi(10, '{"n":1}')), (20, bemi(20, '{"n":2}')), (20, row(1)), (30, row(2))
    ) == ['{"n":2}', None]


def test_a_message_of_bemi_covers_the_row_at_its_position_if_that_arrives_first() -> None:
    assert contexts((20, row(1)), (20, bemi(20, '{"n":1}')), (30, row(2))) == ['{"n":1}', None]


def test_our_message_at_the_position_of_a_row_leaves_it_what_bemi_said() -> None:
    assert contexts(
        (10, bemi(10, '{"n":1}')), (20, row(1)), (20, context(20, '{"user":"a"}')), (30, row(2))
    ) == ['{"n":1}', '{"user":"a"}']


def test_of_a_truncate_of_several_tables_bemi_explains_the_first() -> None:
    assert contexts((10, bemi(10, '{"n":1}')), (20, Truncate(False, False, (OID, OID)))) == [
        '{"n":1}',
        None,
    ]


def test_a_message_of_bemi_does_not_reach_into_the_next_transaction() -> None:
    stitcher = Stitcher(facts)
    stitcher.receive(0, Begin(50, 0, 1))
    stitcher.receive(0, relation())
    stitcher.receive(10, bemi(10, '{"n":1}'))
    stitcher.receive(50, Commit(50, 60, 0))
    stitcher.receive(70, Begin(90, 0, 2))
    stitcher.receive(70, row(1))
    (change,) = stitcher.receive(90, Commit(90, 99, 0))
    assert change.context is None
