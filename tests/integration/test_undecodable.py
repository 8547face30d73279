"""A change that PostgreSQL can store and cannot decode: its text is larger than 1 GB."""

from contextlib import closing

import pytest

from pgaudit_ctx.errors import ChangeUnreadable
from pgaudit_ctx.supervisor import Supervisor
from support.command import run, urls_of
from support.database import Capture

# 136 MB of bits, compressed to almost nothing, and 1.09 GB as text.
LARGE = " || ".join(["B'0'::bit(83886080)"] * 13)


def keys(capture: Capture) -> list[str]:
    return [
        row.key
        for row in capture.destination.execute(
            "SELECT primary_key[1] AS key FROM pgaudit_ctx.changes ORDER BY commit_lsn, ordinal"
        )
    ]


@pytest.fixture
def failing(blank: Capture, monkeypatch: pytest.MonkeyPatch) -> Capture:
    """A row with a 0 cannot be decoded: a row filter, which is refused otherwise, divides by it.

    It comes second, because filters are looked at before a transaction's beginning is sent.
    """
    monkeypatch.setattr("pgaudit_ctx.preflight.refuse_filters", lambda *_: None)
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a int DEFAULT 1)")
    blank.setup()
    blank.source.execute("ALTER PUBLICATION pgaudit_ctx SET TABLE t WHERE (1 / a > -2)")
    return blank


def test_what_was_stored_before_and_comes_after_an_undecodable_transaction_is_kept(
    failing: Capture,
) -> None:
    for rows in ("(1, 1)", "(2, 1), (3, 0)", "(4, 1)", "(5, 1), (6, 0)", "(7, 1)"):
        failing.source.execute(f"INSERT INTO t VALUES {rows}")
    with pytest.raises(ChangeUnreadable, match="--accept-gap"):
        failing.run()
    with closing(Supervisor(failing.options._replace(accept_gap=True))) as supervisor:
        assert supervisor.run(until_caught_up=True).changes == 3
    assert keys(failing) == ["1", "4", "7"]
    gaps = failing.destination.execute("SELECT to_lsn - from_lsn AS bytes FROM pgaudit_ctx.gaps")
    assert [gap.bytes for gap in gaps] == [1, 1]


def test_a_gap_that_was_accepted_at_the_start_is_not_one_that_comes_later(
    failing: Capture,
) -> None:
    failing.source.execute("INSERT INTO t VALUES (1)")
    later = iter(["INSERT INTO t VALUES (2, 1), (3, 0)"])
    with (
        closing(Supervisor(failing.options._replace(accept_gap=True))) as supervisor,
        pytest.raises(ChangeUnreadable),
    ):
        supervisor.run(on_batch=lambda _: [failing.source.execute(it) for it in later] and None)
    assert failing.destination.execute("SELECT * FROM pgaudit_ctx.gaps") == []


@pytest.mark.heavy
def test_a_change_that_cannot_be_decoded_is_named_and_may_become_a_gap_of_one_transaction(
    blank: Capture,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a varbit)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1)")
    with blank.source.connect() as connection, connection.transaction():
        connection.execute(f"INSERT INTO t VALUES (2, {LARGE}), (3, NULL)")
        (xid,) = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    blank.source.execute("INSERT INTO t VALUES (4)")

    refused = run("worker", "--until-caught-up", env=urls_of(blank))
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())
    assert f"the transaction {xid}, committed at" in said
    assert "--accept-gap" in said
    assert "4" not in keys(blank)

    accepted = run("worker", "--until-caught-up", "--accept-gap", env=urls_of(blank))
    assert accepted.returncode == 0, accepted.stderr
    assert keys(blank) == ["1", "4"]
    (gap,) = blank.destination.execute(
        "SELECT to_lsn - from_lsn AS bytes, cause, to_epoch, from_lsn > first AS after_first,"
        " to_lsn < last AS before_last FROM pgaudit_ctx.gaps,"
        " (SELECT min(commit_lsn) AS first, max(commit_lsn) AS last FROM pgaudit_ctx.changes) c"
    )
    assert (gap.bytes, gap.to_epoch, gap.after_first, gap.before_last) == (1, 1, True, True)
    assert gap.cause == f"transaction {xid} could not be decoded"
    assert run("worker", "--until-caught-up", env=urls_of(blank)).returncode == 0
