"""Why a worker is late is told from who is busy."""

import pytest

from pgaudit_ctx.doctor.facts import Activity, Facts, Limits, Names, Slot
from pgaudit_ctx.doctor.lag import explain_lag

MB = 2**20
NAMES = Names("pgaudit_ctx", "pgaudit_ctx", "clinic")
IDLE = Activity(
    written=900 * MB,
    sent=900 * MB,
    write_rate=0.0,
    confirm_rate=0.0,
    sender_wait="WalSenderMain",
    destination_state="idle in transaction",
    destination_wait="ClientRead",
)


def slot(pid: int | None) -> Slot:
    return Slot("pgoutput", "clinic", pid, "pgaudit_ctx source", 1, 1, "reserved", 1, None)


def cause(pid: int | None = 7, activity: Activity | None = IDLE) -> str:
    facts = Facts(NAMES, Limits(), None, None, activity)
    return explain_lag(facts, slot(pid))[0]


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        ({"sent": 1 * MB, "sender_wait": "WalSenderWriteData"}, "the network"),
        ({"sent": 1 * MB, "sender_wait": None}, "the source"),
        (
            {
                "sent": 1 * MB,
                "sender_wait": None,
                "write_rate": 90.0 * MB,
                "confirm_rate": 80.0 * MB,
            },
            "the write volume",
        ),
        ({"destination_state": "active", "destination_wait": "WALSync"}, "the destination"),
        ({"destination_state": "active", "destination_wait": None}, "the destination"),
        ({}, "the worker"),
    ],
)
def test_the_cause_is_where_somebody_is_waited_for(seen: dict, named: str) -> None:
    assert cause(activity=IDLE._replace(**seen)).startswith(named)


def test_without_a_worker_there_is_nothing_to_look_at() -> None:
    assert cause(pid=None) == "no worker reads the slot"


def test_what_a_role_may_not_see_is_said() -> None:
    assert "cannot be seen" in cause(activity=IDLE._replace(sent=None))
