"""A complete, trustworthy audit trail for applications on SQLAlchemy and PostgreSQL.

The application says who and why with :func:`audit_context`; the worker reads what changed from the
write-ahead log; :func:`history` gives it back, typed and in order.
"""

import importlib
from typing import TYPE_CHECKING, Final

from pgaudit_ctx.errors import MissingExtra

if TYPE_CHECKING:
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
        NotCaptured,
    )
    from pgaudit_ctx.hook import emit_context, install, uninstall
    from pgaudit_ctx.reading.async_reader import AsyncAuditReader
    from pgaudit_ctx.reading.compare import diff
    from pgaudit_ctx.reading.default import (
        as_of,
        blame,
        configure,
        deleted,
        history,
        select_as_of,
        select_changes,
    )
    from pgaudit_ctx.reading.history import History
    from pgaudit_ctx.reading.merged_timeline import Timeline
    from pgaudit_ctx.reading.reader import AuditReader
    from pgaudit_ctx.reading.revert import revert
    from pgaudit_ctx.reading.schemas import ChangeOut, VersionOut
    from pgaudit_ctx.reading.trail import Change
    from pgaudit_ctx.reading.version import Version

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
    "Timeline",
    "Version",
    "VersionOut",
    "as_of",
    "audit_context",
    "bind_context",
    "blame",
    "configure",
    "current_context",
    "deleted",
    "diff",
    "dump_context",
    "emit_context",
    "history",
    "install",
    "load_context",
    "revert",
    "select_as_of",
    "select_changes",
    "uninstall",
]

__version__ = "0.1.0.dev0"


# Each is loaded where it is first asked for: pytest loads this package in every run, for its
# plugin, and most runs need neither SQLAlchemy nor pydantic.
_HOMES: Final = {
    "context": (
        "audit_context",
        "bind_context",
        "current_context",
        "dump_context",
        "load_context",
    ),
    "errors": (
        "AuditError",
        "ContextInvalid",
        "ContextRequired",
        "HistoryUnknown",
        "NotCaptured",
    ),
    "hook": ("emit_context", "install", "uninstall"),
    "reading.async_reader": ("AsyncAuditReader",),
    "reading.compare": ("diff",),
    "reading.default": (
        "as_of",
        "blame",
        "configure",
        "deleted",
        "history",
        "select_as_of",
        "select_changes",
    ),
    "reading.history": ("History",),
    "reading.merged_timeline": ("Timeline",),
    "reading.reader": ("AuditReader",),
    "reading.revert": ("revert",),
    "reading.schemas": ("ChangeOut", "VersionOut"),
    "reading.trail": ("Change",),
    "reading.version": ("Version",),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


# Hidden from type checkers, which would take any name for one of this package.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f"{__name__}.{home}")
        except ImportError:
            if name == "AsyncAuditReader":
                # Only this reader needs SQLAlchemy's asyncio extension, and that needs greenlet.
                raise MissingExtra("asyncio", name, "greenlet") from None
            raise
        value: object = getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
