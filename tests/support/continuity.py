"""What a trail says after something was lost, and how a loss is accepted."""

from contextlib import closing

from pgaudit_ctx.supervisor import Supervisor
from support.database import Capture, Database


def accept(capture: Capture) -> None:
    """Capture as a worker with ``--accept-gap`` does."""
    with closing(Supervisor(capture.options._replace(accept_gap=True))) as supervisor:
        supervisor.run(until_caught_up=True)


def ids(capture: Capture) -> list[str]:
    """The patients in the trail, in its order."""
    rows = capture.destination.execute(
        "SELECT primary_key[1] AS id FROM pgaudit_ctx.changes ORDER BY epoch, commit_lsn, ordinal"
    )
    return [row.id for row in rows]


def gaps(capture: Capture) -> list[tuple[int, int, str]]:
    rows = capture.destination.execute(
        "SELECT epoch, to_epoch, cause, from_time <= to_time AS ordered FROM pgaudit_ctx.gaps"
    )
    assert all(row.ordered for row in rows)
    return [(row.epoch, row.to_epoch, row.cause) for row in rows]


def epochs(capture: Capture) -> list[tuple[int, bool]]:
    rows = capture.destination.execute(
        "SELECT epoch, fork_lsn IS NOT NULL AS forked FROM pgaudit_ctx.epochs ORDER BY epoch"
    )
    return [(row.epoch, row.forked) for row in rows]


def make_slot(capture: Capture) -> None:
    capture.source.execute(
        f"SELECT pg_create_logical_replication_slot('{capture.options.slot}', 'pgoutput')"
    )


def drop_slot(capture: Capture) -> None:
    capture.source.execute(f"SELECT pg_drop_replication_slot('{capture.options.slot}')")


def publish(source: Database) -> None:
    source.execute("ALTER TABLE patient REPLICA IDENTITY FULL")
    source.execute(
        "CREATE PUBLICATION pgaudit_ctx FOR TABLE patient WITH (publish_via_partition_root)"
    )
