"""What a clock that was set back does to the order of a trail: nothing."""

import datetime as dt
from collections.abc import Iterator

import pytest

from pgaudit_ctx import AuditReader
from pgaudit_ctx.embedded import EmbeddedPostgres
from support.clinic import Base, Patient
from support.clock import ServerWithClock
from support.database import Capture, Database, create_database
from support.positions import insert
from support.server import Server


@pytest.fixture
def timed(server: Server) -> Iterator[ServerWithClock]:
    with ServerWithClock(
        server.binaries if isinstance(server, EmbeddedPostgres) else None
    ) as running:
        yield running


def test_a_clock_that_was_set_back_an_hour_changes_neither_order_nor_what_was_valid(
    timed: ServerWithClock, destination: Database
) -> None:
    source = create_database(timed)
    Base.metadata.create_all(source.engine())
    capture = Capture(source, destination)
    capture.setup()
    insert(source, 1)
    source.execute("UPDATE patient SET name = 'before'")
    capture.run()
    timed.set_clock("-1h")
    source.execute("UPDATE patient SET name = 'set back'")
    capture.run()
    timed.set_clock("+0")
    source.execute("UPDATE patient SET name = 'after'")
    capture.run()

    versions = AuditReader(destination.engine()).history(Patient, 1)
    assert [version.after["name"] for version in versions] == ["x", "before", "set back", "after"]
    before, back, after = versions[1], versions[2], versions[3]
    assert before.committed_at - back.committed_at > dt.timedelta(minutes=59)
    assert versions.gaps == []
    assert all(one.valid_to is None or one.valid_from <= one.valid_to for one in versions)
    # The last one in order that is not later.
    assert versions.as_of(back.committed_at) == back
    assert versions.as_of(before.committed_at).number == back.number
    assert versions.as_of(after.committed_at) == after
    assert versions.complete_up_to.time >= after.committed_at
