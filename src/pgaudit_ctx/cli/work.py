"""``pgaudit-ctx worker``: captures until it is told to stop."""

import gc
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Annotated

import typer

from pgaudit_ctx.cli import filters, options
from pgaudit_ctx.cli.metrics import serve_metrics
from pgaudit_ctx.cli.options import err, needed
from pgaudit_ctx.errors import AuditError, UnexpectedError
from pgaudit_ctx.preflight import WorkerOptions
from pgaudit_ctx.supervisor import NOTHING_LOST, Supervisor
from pgaudit_ctx.wal.lsn import format_lsn
from pgaudit_ctx.worker import Progress


def worker(
    *,
    source: options.Source = None,
    destination: options.Destination = None,
    slot: options.Slot = "pgaudit_ctx",
    publication: options.Publication = "pgaudit_ctx",
    name: options.Name = None,
    include_table: filters.IncludeTable = None,
    exclude_table: filters.ExcludeTable = None,
    include_schema: filters.IncludeSchema = None,
    exclude_schema: filters.ExcludeSchema = None,
    ignore_column: filters.IgnoreColumn = None,
    redact_column: filters.RedactColumn = None,
    hash_key: filters.HashKey = None,
    until_caught_up: Annotated[
        bool,
        typer.Option(
            "--until-caught-up",
            help="Stop once everything is stored that was committed before the start.",
        ),
    ] = False,
    standby: Annotated[
        bool,
        typer.Option("--standby", help="Wait while another worker reads the slot, then take over."),
    ] = False,
    accept_gap: Annotated[
        bool,
        typer.Option(
            "--accept-gap",
            help="If something is lost by now, write the gap down and go on. For this start only.",
        ),
    ] = False,
    ack_delay: Annotated[
        str | None,
        typer.Option(
            "--ack-delay",
            metavar="TIME",
            envvar="PGAUDIT_CTX_ACK_DELAY",
            help="Keep the slot back for so long, for a destination restored from a backup.",
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size",
            metavar="SIZE",
            envvar="PGAUDIT_CTX_BATCH_SIZE",
            help="Commit at the latest when so much was sent to the destination.",
        ),
    ] = "32MB",
    batch_time: Annotated[
        str,
        typer.Option(
            "--batch-time",
            metavar="TIME",
            envvar="PGAUDIT_CTX_BATCH_TIME",
            help="Or when the first transaction of a batch has waited for so long.",
        ),
    ] = "1s",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=1,
            max=65535,
            envvar="PGAUDIT_CTX_METRICS_PORT",
            help="Serve Prometheus metrics on this port.",
        ),
    ] = None,
    log_level: options.LogLevel = options.Level.INFO,  # noqa: ARG001 - its callback acts
) -> None:
    """Capture changes until SIGTERM or Ctrl-C; what has arrived by then is stored first."""
    chosen = WorkerOptions(
        needed(source, "source"),
        needed(destination, "destination"),
        slot,
        publication,
        name,
        filters.chosen_filters(
            include_table,
            exclude_table,
            include_schema,
            exclude_schema,
            ignore_column,
            redact_column,
            hash_key,
        ),
        accept_gap,
        0.0 if ack_delay is None else options.parse_duration(ack_delay),
        options.parse_size(batch_size),
        options.parse_duration(batch_time),
    )
    collect_rarely()
    with closing(Supervisor(chosen, standby=standby)) as running:
        report = serve_metrics(metrics_port, running.name) if metrics_port is not None else _quietly
        with _until_signalled(running.stop), _told():
            progress = running.run(until_caught_up=until_caught_up, on_batch=report)
    if progress.rejected:
        err.print(
            f"[red]{progress.rejected:,} changes were refused by the destination[/red]: see "
            "pgaudit-ctx rejected list"
        )
    err.print(
        f"{running.name}: stored {progress.changes:,} changes of {progress.transactions:,} "
        f"transactions, complete up to {format_lsn(progress.end_lsn)}"
    )


def collect_rarely() -> None:
    """Keep Python's search for cycles out of the loop's way, in a process that only captures.

    What a change is made of has no cycles and goes as soon as nothing refers to it; what is alive
    now stays until the end. To look through both again and again takes a fifteenth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _quietly(_: Progress) -> None:
    pass


@contextmanager
def _until_signalled(stop: Callable[[], None]) -> Iterator[None]:
    def handle(number: int, _frame: FrameType | None) -> None:
        # A second one ends it at once, for a destination that does not answer.
        signal.signal(number, signal.default_int_handler)
        stop()

    handled = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handle) for number in handled]
    try:
        yield
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _told() -> Iterator[None]:
    """Say what ended the worker also where nobody has foreseen it, without quoting a value."""
    try:
        yield
    except AuditError:
        raise
    except KeyboardInterrupt:
        err.print("ended at once: what was not committed will be captured by the next start")
        raise
    except Exception as error:  # noqa: BLE001 - nothing is hidden: it ends the worker all the same
        # The message of an exception may quote a row; the places in the code do not.
        sys.stderr.writelines(traceback.format_tb(error.__traceback__))
        raise UnexpectedError(
            f"a mistake in pgaudit-ctx ended the worker: {type(error).__name__}. {NOTHING_LOST}, "
            "and the lines above"
        ) from None
