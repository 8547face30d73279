"""What the worker tells Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.worker import Progress


def serve_metrics(port: int, source: str) -> Callable[[Progress], None]:
    """Serve the worker's progress over HTTP, from a thread of its own.

    Args:
        port: Where to listen, on all addresses.
        source: The source's name, a label of each metric.

    Returns:
        What is to be called after each commit in the destination.

    Raises:
        UsageError: If the port cannot be had.
    """
    registry = CollectorRegistry()

    def gauge(name: str, text: str) -> Gauge:
        made = Gauge(f"pgaudit_ctx_{name}", text, ["source"], registry=registry)
        labelled: Gauge = made.labels(source)
        labelled.set(0)
        return labelled

    changes = gauge("captured_changes", "Changes stored since the worker was started.")
    size = gauge("captured_bytes", "Bytes sent to the destination since then.")
    transactions = gauge("captured_transactions", "Transactions stored since then.")
    rejected = gauge("rejected_changes", "Changes that the destination refused since then.")
    position = gauge("stored_lsn", "Everything before this position is stored.")
    stored = gauge("last_stored_timestamp_seconds", "When that was last moved, by our clock.")
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on port {port}: {error.strerror}. Remedy: choose another "
            "with --metrics-port"
        ) from None

    def update(progress: Progress) -> None:
        changes.set(progress.changes)
        size.set(progress.bytes)
        transactions.set(progress.transactions)
        rejected.set(progress.rejected)
        position.set(progress.end_lsn)
        stored.set_to_current_time()

    return update
