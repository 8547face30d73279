"""A complete, trustworthy audit trail for applications on SQLAlchemy and PostgreSQL.

The application says who and why with :func:`audit_context`; the worker reads what changed from the
write-ahead log; :func:`history` gives it back, typed and in order.
"""

from typing import TYPE_CHECKING

from pgaudit_ctx.context import (
    audit_context,
    bind_context,
    current_context,
    dump_context,
    load_context,
)
from pgaudit_ctx.errors import (
    AuditError,
    ContextInvalid,
    ContextRequired,
    HistoryUnknown,
    MissingExtra,
    NotCaptured,
)
from pgaudit_ctx.hook import emit_context, install, uninstall
from pgaudit_ctx.reading.default import as_of, configure, history, select_changes
from pgaudit_ctx.reading.history import History
from pgaudit_ctx.reading.reader import AuditReader
from pgaudit_ctx.reading.schemas import ChangeOut, VersionOut
from pgaudit_ctx.reading.trail import Change
from pgaudit_ctx.reading.version import Version

if TYPE_CHECKING:
    from pgaudit_ctx.reading.async_reader import AsyncAuditReader

__all__ = [
    "AsyncAuditReader",
    "AuditError",
    "AuditReader",
    "Change",
    "ChangeOut",
    "ContextInvalid",
    "ContextRequired",
    "History",
    "HistoryUnknown",
    "NotCaptured",
    "Version",
    "VersionOut",
    "as_of",
    "audit_context",
    "bind_context",
    "configure",
    "current_context",
    "dump_context",
    "emit_context",
    "history",
    "install",
    "load_context",
    "select_changes",
    "uninstall",
]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> object:
    # Only this reader needs SQLAlchemy's asyncio extension, and that needs greenlet.
    if name != "AsyncAuditReader":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from pgaudit_ctx.reading.async_reader import AsyncAuditReader
    except ImportError:
        raise MissingExtra("asyncio", "AsyncAuditReader", "greenlet") from None
    return AsyncAuditReader
