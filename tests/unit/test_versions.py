"""The versions of one record, from hand-made rows."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx.change import UNAVAILABLE, Operation
from pgaudit_ctx.errors import HistoryUnknown, NaiveDatetime, UsageError
from pgaudit_ctx.reading.history import choose, version_at
from pgaudit_ctx.reading.version import Difference, look_up
from support.clinic import Patient, Status
from unit.history_rows import BEGAN, NOON, at, change, gap, image, trail_of

INSERTED = change("INSERT", 0, 1, after=image(name="A"), context={"user": "a"})
UPDATED = change(
    "UPDATE", 10, 2, before={"name": "A"}, after=image(name="B"), context={"user": "b"}
)
UNCHANGED = change("UPDATE", 20, 3, before={}, after=image(name="B"))
DELETED = change("DELETE", 30, 4, before=image(name="B"))
LIFE = (INSERTED, UPDATED, UNCHANGED, DELETED)


def numbers(history) -> list[int]:
    return [version.number for version in history]


def test_versions_stand_in_order_with_typed_images() -> None:
    first, second, *_ = trail_of(*LIFE).versions
    assert (first.number, first.operation, first.before) == (1, Operation.INSERT, None)
    assert first.after == {
        "id": 1,
        "name": "A",
        "born": None,
        "status": Status.ACTIVE,
        "notes": None,
    }
    assert second.before == {**first.after}
    assert second.after == {**first.after, "name": "B"}
    assert second.diff == {"name": Difference("A", "B")}


def test_the_diff_of_an_insert_and_of_a_delete_has_one_side() -> None:
    first, *_, last = trail_of(*LIFE).versions
    assert first.diff["name"] == Difference(None, "A")
    assert last.diff["name"] == Difference("B", None)


def test_what_changed_is_unknown_where_the_log_did_not_carry_the_old_row() -> None:
    (version,) = trail_of(change("UPDATE", 0, 1, before=None)).versions
    assert (version.changed, version.before, dict(version.diff)) == (None, None, {})


def test_a_value_the_log_did_not_carry_is_unavailable() -> None:
    row = change("UPDATE", 0, 1, before=None, after=image(name={"$pgaudit_ctx": "unavailable"}))
    (version,) = trail_of(row).versions
    assert version.after is not None
    assert version.after["name"] is UNAVAILABLE


def test_a_version_is_frozen_and_its_images_are_read_only() -> None:
    version = trail_of(*LIFE).versions[0]
    with pytest.raises(AttributeError):
        version.number = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        version.after["name"] = "x"  # type: ignore[index]


def test_neighbours_are_those_of_the_whole_history() -> None:
    trail = trail_of(*LIFE)
    first, second, third, last = trail.versions
    assert (first.previous, first.next, last.previous, last.next) == (None, second, third, None)
    (found,) = choose(trail, {"user": "b"})
    assert (found.previous, found.next) == (first, third)


def test_an_instance_is_a_transient_object_with_the_attributes() -> None:
    made = trail_of(*LIFE).versions[1].instance()
    assert isinstance(made, Patient)
    assert (made.id, made.name, made.status) == (1, "B", Status.ACTIVE)


def test_the_instance_of_a_delete_is_as_it_was_before() -> None:
    assert trail_of(*LIFE).versions[-1].instance().name == "B"


def test_a_truncate_has_no_instance() -> None:
    last = trail_of(INSERTED, change("TRUNCATE", 5, 2)).versions[-1]
    with pytest.raises(HistoryUnknown, match=r"version\.previous"):
        last.instance()


def test_each_version_is_valid_until_the_next() -> None:
    versions = trail_of(*LIFE).versions
    assert [(v.valid_from, v.valid_to) for v in versions] == [
        (at(0), at(10)),
        (at(10), at(20)),
        (at(20), at(30)),
        (at(30), None),
    ]


def test_a_clock_that_ran_backwards_makes_a_version_that_was_never_valid() -> None:
    trail = trail_of(INSERTED, change("UPDATE", 10, 2), change("UPDATE", 5, 3))
    assert [(v.valid_from, v.valid_to) for v in trail.versions] == [
        (at(0), at(5)),
        (at(10), at(10)),
        (at(5), None),
    ]
    found = version_at(trail, at(12))
    assert found is not None
    assert found.number == 3


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(-1, 13))
def test_the_version_at_a_moment_is_the_last_in_order_committed_by_then(
    times: list[int], moment: int
) -> None:
    rows = [
        change("UPDATE" if number else "INSERT", minute, number + 1)
        for number, minute in enumerate(times)
    ]
    trail = trail_of(*rows)
    expected = [number for number, minute in enumerate(times, 1) if minute <= moment]
    found = version_at(trail, at(moment))
    assert (None if found is None else found.number) == (expected[-1] if expected else None)
    valid = [
        version.number
        for version in trail.versions
        if version.valid_from <= at(moment)
        and (version.valid_to is None or at(moment) < version.valid_to)
    ]
    assert valid == expected[-1:]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_no_version_ends_before_it_begins(times: list[int]) -> None:
    for version in trail_of(*(change("UPDATE", t, n) for n, t in enumerate(times, 1))).versions:
        assert version.valid_to is None or version.valid_to >= version.valid_from


def test_after_its_delete_a_record_is_known_not_to_exist_until_it_is_inserted_again() -> None:
    trail = trail_of(*LIFE, change("INSERT", 40, 5, after=image(name="C")))
    assert version_at(trail, at(30)) is None
    assert version_at(trail, at(39)) is None
    again = version_at(trail, at(40))
    assert again is not None
    assert (again.number, again.as_dict()["name"]) == (5, "C")


def test_before_its_insert_a_record_is_known_not_to_exist_since_capture_began() -> None:
    trail = trail_of(*LIFE)
    assert version_at(trail, BEGAN) is None
    with pytest.raises(HistoryUnknown, match="capture of the table began"):
        version_at(trail, BEGAN - dt.timedelta(microseconds=1))


@pytest.mark.parametrize("operation", ["UPDATE", "DELETE", "SNAPSHOT"])
def test_before_a_first_trace_that_is_no_insert_the_trail_cannot_know(operation: str) -> None:
    with pytest.raises(HistoryUnknown, match=f"first trace is {operation}"):
        version_at(trail_of(change(operation, 0, 1)), at(-1))


def test_a_record_without_a_trace_is_unknown() -> None:
    with pytest.raises(HistoryUnknown, match="no trace of this Patient"):
        version_at(trail_of(), at(0))


def test_a_truncate_ends_the_record() -> None:
    trail = trail_of(INSERTED, change("TRUNCATE", 5, 2), change("INSERT", 9, 3))
    assert [version.operation.value for version in trail.versions] == [
        "INSERT",
        "TRUNCATE",
        "INSERT",
    ]
    assert version_at(trail, at(6)) is None
    assert trail.versions[0].valid_to == at(5)
    assert trail.versions[1].after is None


def test_a_truncate_while_the_record_was_not_there_is_no_version_of_it() -> None:
    truncates = [change("TRUNCATE", minute, minute + 1) for minute in (1, 31, 32)]
    trail = trail_of(truncates[0], *LIFE, *truncates[1:])
    assert [version.operation.value for version in trail.versions] == [
        row.operation for row in LIFE
    ]


def test_a_key_that_changes_belongs_to_both_histories() -> None:
    move = change(
        "UPDATE", 10, 2, primary_key=["2"], previous_key=["1"], before={"id": 1}, after=image(id=2)
    )
    old = trail_of(INSERTED, move)
    assert numbers(old.versions) == [1, 2]
    assert version_at(old, at(9)) is old.versions[0]
    assert version_at(old, at(10)) is None
    new = trail_of(move, key=("2",))
    found = version_at(new, at(10))
    assert found is not None
    assert found.diff == {"id": Difference(1, 2)}


def test_a_truncate_after_the_key_moved_away_is_no_version_of_the_old_key() -> None:
    move = change("UPDATE", 10, 2, primary_key=["2"], previous_key=["1"], before={"id": 1})
    assert len(trail_of(INSERTED, move, change("TRUNCATE", 20, 3)).versions) == 2


def test_in_and_after_a_gap_the_trail_cannot_know_until_the_next_change() -> None:
    trail = trail_of(INSERTED, change("UPDATE", 10, 9), gaps=[gap(3, 5)])
    assert version_at(trail, at(2)) is trail.versions[0]
    for minute in (3, 4, 9):
        with pytest.raises(HistoryUnknown, match="lost"):
            version_at(trail, at(minute))
    assert version_at(trail, at(10)) is trail.versions[1]


def test_a_delete_before_a_gap_says_nothing_about_the_time_after_it() -> None:
    trail = trail_of(INSERTED, change("DELETE", 1, 2), gaps=[gap(3, 5)])
    assert version_at(trail, at(2)) is None
    with pytest.raises(HistoryUnknown):
        version_at(trail, at(4))


def test_a_gap_in_a_later_epoch_comes_after_a_higher_position_of_an_earlier_one() -> None:
    trail = trail_of(change("INSERT", 0, 900), gaps=[gap(3, 5, epoch=2)])
    with pytest.raises(HistoryUnknown):
        version_at(trail, at(4))


def test_a_gap_of_an_earlier_epoch_does_not_hide_a_change_of_a_later_one() -> None:
    trail = trail_of(change("INSERT", 10, 1, epoch=2), gaps=[gap(3, 900)])
    assert version_at(trail, at(10)) is trail.versions[0]


def test_positions_are_compared_as_numbers_not_as_text() -> None:
    row = change("INSERT", 10, 1, commit_lsn="10/0")
    lost = gap(3, 1)._replace(from_lsn="9/FF", to_lsn="9/FFF")
    assert version_at(trail_of(row, gaps=[lost]), at(11)) is not None


def test_since_is_inclusive_and_until_exclusive() -> None:
    trail = trail_of(*LIFE)
    assert numbers(choose(trail, {"since": at(10), "include_unchanged": True})) == [2, 3, 4]
    assert numbers(choose(trail, {"until": at(10)})) == [1]
    assert numbers(choose(trail, {"since": at(10), "until": at(30)})) == [2]


def test_an_update_that_changed_nothing_is_left_out_unless_asked_for() -> None:
    trail = trail_of(*LIFE)
    assert numbers(choose(trail, {})) == [1, 2, 4]
    assert numbers(choose(trail, {"include_unchanged": True})) == [1, 2, 3, 4]


def test_an_update_whose_old_row_is_unknown_is_never_left_out() -> None:
    trail = trail_of(INSERTED, change("UPDATE", 1, 2, before=None))
    assert numbers(choose(trail, {})) == [1, 2]
    assert numbers(choose(trail, {"fields": ["born"]})) == [1, 2]


def test_a_change_to_columns_the_model_does_not_have_counts_as_none() -> None:
    trail = trail_of(INSERTED, change("UPDATE", 1, 2, before={"internal": 1}))
    assert numbers(choose(trail, {})) == [1]


@pytest.mark.parametrize(("limit", "expected"), [(0, []), (1, [4]), (2, [2, 4]), (9, [1, 2, 4])])
def test_a_limit_keeps_the_newest(limit: int, expected: list[int]) -> None:
    assert numbers(choose(trail_of(*LIFE), {"limit": limit})) == expected


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(UsageError, match="limit=-1"):
        choose(trail_of(*LIFE), {"limit": -1})


def test_versions_can_be_chosen_by_user_and_by_what_they_changed() -> None:
    trail = trail_of(*LIFE)
    assert numbers(choose(trail, {"user": "b"})) == [2]
    assert numbers(choose(trail, {"fields": ["name"]})) == [1, 2, 4]
    renamed = trail_of(INSERTED, change("UPDATE", 1, 2, before={"born": None}))
    assert numbers(choose(renamed, {"fields": ["name"]})) == [1]


def test_a_field_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="Patient has no attribute nmae"):
        choose(trail_of(*LIFE), {"fields": ["nmae"]})


@pytest.mark.parametrize("name", ["since", "until"])
def test_a_naive_moment_is_refused_by_the_name_of_its_argument(name: str) -> None:
    naive = NOON.replace(tzinfo=None)
    with pytest.raises(NaiveDatetime, match=name):
        choose(trail_of(*LIFE), {name: naive})  # type: ignore[misc]
    with pytest.raises(NaiveDatetime, match="when"):
        version_at(trail_of(*LIFE), naive)


def test_a_moment_in_another_time_zone_is_the_same_moment() -> None:
    trail = trail_of(*LIFE)
    elsewhere = at(10).astimezone(dt.timezone(dt.timedelta(hours=-8)))
    assert version_at(trail, elsewhere) is trail.versions[1]


def test_a_history_is_a_sequence_that_keeps_its_trail_when_sliced() -> None:
    history = choose(trail_of(*LIFE, gaps=[gap(100, 50)]), {})
    assert len(history) == 3
    assert history.latest is history[-1] is list(history)[2]
    part = history[:1]
    assert numbers(part) == [1]
    assert part.gaps == [gap(100, 50)]
    assert part.complete_up_to.lsn == "0/FFFF"
    assert part.as_of(at(10)) is history[1]
    assert choose(trail_of(), {}).latest is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("user", "a"),
        ("actor.id", 5),
        ("actor.name.first", None),
        ("actor", {"id": 5}),
        ("user.id", None),
        ("dotted.key", "found first"),
        ("roles.0", None),
        ("missing", None),
    ],
)
def test_a_context_value_is_found_by_a_dotted_path(path: str, expected: object) -> None:
    context = {
        "user": "a",
        "actor": {"id": 5},
        "dotted.key": "found first",
        "dotted": {"key": "second"},
        "roles": ["x"],
    }
    assert look_up(context, path) == expected
    assert look_up(None, path) is None


def test_user_and_reason_are_read_by_the_readers_keys() -> None:
    row = change("INSERT", 0, 1, context={"actor": {"id": "a"}, "why": "r"})
    (version,) = trail_of(row, user_key="actor.id", reason_key="why").versions
    assert (version.user, version.reason) == ("a", "r")
    assert (trail_of(INSERTED).versions[0].user, trail_of(DELETED).versions[0].user) == ("a", None)


def test_the_context_of_a_version_is_read_only() -> None:
    version = trail_of(INSERTED).versions[0]
    assert version.context == {"user": "a"}
    with pytest.raises(TypeError):
        version.context["user"] = "b"  # type: ignore[index]
    assert trail_of(DELETED).versions[0].context is None
