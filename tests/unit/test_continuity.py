"""Whether a capture can go on is judged from positions alone."""

import pytest

from pgaudit_ctx.continuity import Loss, SourceFacts, judge
from pgaudit_ctx.destination.ledger import Checkpoint
from pgaudit_ctx.source.timelines import parse_history

TRAIL = Checkpoint("audit", 3, 900, 1000, 77, 2, 16384)
SOURCE = SourceFacts(77, 2, {}, 16384, 5000, 1000)


def judged(source: SourceFacts) -> Loss | None:
    return judge("clinic", "audit", TRAIL, source)


@pytest.mark.parametrize(
    "source",
    [
        SOURCE,
        SOURCE._replace(slot_lsn=400),
        SOURCE._replace(position=1000),
        SOURCE._replace(timeline=3, history={1: 500, 2: 1000}),
        SOURCE._replace(timeline=4, history={1: 500, 2: 2000, 3: 3000}, slot_lsn=800),
    ],
    ids=["equal", "slot behind", "nothing new", "forked where it ends", "forked later"],
)
def test_nothing_is_lost_where_the_slot_has_all_from_the_checkpoint_on(source: SourceFacts) -> None:
    assert judged(source) is None


LOWER = SOURCE._replace(system_identifier=78, position=90, slot_lsn=80)
FORKED = SOURCE._replace(timeline=3, history={1: 5, 2: 800})


@pytest.mark.parametrize(
    ("source", "new_epoch", "needs_slot", "fork", "gap"),
    [
        pytest.param(source, *expected, id=name)
        for name, source, *expected in [
            ("recreated", SOURCE._replace(slot_lsn=1200), False, False, None, (1000, 1200)),
            ("dropped", SOURCE._replace(slot_lsn=None), False, True, None, (1000, 5000)),
            (
                "invalidated",
                SOURCE._replace(slot_lsn=None, slot_lost=True),
                False,
                True,
                None,
                (1000, 5000),
            ),
            ("another cluster", LOWER, True, False, None, (1000, 80)),
            ("another database", SOURCE._replace(database_oid=5), True, False, None, (1000, 1000)),
            (
                "taken back",
                SOURCE._replace(position=700, slot_lsn=600),
                True,
                False,
                None,
                (1000, 600),
            ),
            ("fork, slot kept", FORKED._replace(slot_lsn=700), True, False, 800, None),
            ("fork, slot later", FORKED._replace(slot_lsn=950), True, False, 800, (800, 950)),
            ("fork, no slot", FORKED._replace(slot_lsn=None), True, True, 800, (800, 5000)),
            ("unknown", FORKED._replace(history={1: 900}), True, False, None, (1000, 1000)),
            ("an old primary", SOURCE._replace(timeline=1), True, False, None, (1000, 1000)),
            (
                "fork above, slot later",
                FORKED._replace(history={2: 1500}, slot_lsn=1600),
                False,
                False,
                None,
                (1000, 1600),
            ),
        ]
    ],
)
def test_each_loss_is_told_with_its_range(
    source: SourceFacts,
    new_epoch: bool,
    needs_slot: bool,
    fork: int | None,
    gap: tuple[int, int] | None,
) -> None:
    loss = judged(source)
    assert loss is not None
    assert (loss.new_epoch, loss.needs_slot, loss.fork_lsn) == (new_epoch, needs_slot, fork)
    assert ((loss.from_lsn, loss.to_lsn) if loss.is_gap(loss.to_lsn) else None) == gap
    assert "0/3E8" in loss.found  # where the trail ends


def test_a_timeline_history_names_where_each_timeline_was_left() -> None:
    content = "1\t0/3000000\tno recovery target specified\n\n2\t1/A0\tbefore 2026-01-01\n"
    assert parse_history(content) == {1: 0x3000000, 2: (1 << 32) + 0xA0}
