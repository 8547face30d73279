"""Every error this package raises on purpose.

Each message names the thing, the cause and the remedy. None contains row values, context values
or passwords::

    AuditError
     ├── UsageError               the call or the command line is off (exit code 2)
     │    ├── MissingExtra        an optional dependency is not installed
     │    └── NotConfigured       no destination was named
     ├── ContextError             the application's side
     │    ├── ContextInvalid      a context that cannot be written
     │    ├── ContextRequired     a write without context under ``require_context=True``
     │    └── NoOpenScope         ``bind_context`` outside of any ``audit_context``
     ├── ProtocolError            bytes that are not what the replication protocol says
     ├── DatabaseError            a server that refuses or lacks something
     │    ├── ConnectionFailed    no connection could be made, or one was lost
     │    ├── ServerReadOnly      a standby, or a server that is read-only for everybody
     │    ├── ChangeRefused       the destination refuses to store a change, whenever it is tried
     │    ├── SourceNotReady      the source lacks a setting, a right, a slot or a publication
     │    │    ├── ChangeUnreadable
     │    │    ├── PublicationReplaced
     │    │    ├── SlotMissing
     │    │    └── SlotBusy
     │    └── DestinationNotReady the destination lacks its schema or a right
     ├── PositionMismatch         going on would lose or falsify something
     ├── UnexpectedError          a mistake in this package ended the worker
     └── ReadingError             a question that cannot be answered as asked
          ├── KeyMismatch         a key that does not fit the model
          ├── NaiveDatetime       a moment without a time zone
          ├── SourceAmbiguous     several sources hold the table and none was named
          ├── SourceUnknown       a source the destination has never heard of
          ├── TransactionAmbiguous  a transaction number that was used more than once
          ├── NotCaughtUp         the trail did not get as far in time
          ├── Unsupported         a mapping that this version cannot rebuild
          └── HistoryUnknown      the trail cannot know
               └── NotCaptured    the table was never captured
"""


class AuditError(Exception):
    """The root of every error this package raises on purpose."""

    exit_code = 1


class UsageError(AuditError):
    """A call or a command line that cannot work as written."""

    exit_code = 2


class MissingExtra(UsageError):
    """An optional dependency is missing.

    Args:
        extra: The name of the extra that brings it.
        purpose: What needs it.
        package: The package that could not be imported.
    """

    def __init__(self, extra: str, purpose: str, package: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed. "
            f"Run: python -m pip install 'pgaudit-ctx[{extra}]'"
        )


class NotConfigured(UsageError):
    """A module-level reading function was called before a destination was named."""


class ContextError(AuditError):
    """Something is wrong with a context or the place where it is used."""


class ContextInvalid(ContextError):
    """A context that is not a mapping, or holds something JSON cannot carry."""


class ContextRequired(ContextError):
    """A write without context on an engine installed with ``require_context=True``."""


class NoOpenScope(ContextError):
    """``bind_context`` was called outside of any ``audit_context`` scope."""


class ProtocolError(AuditError):
    """Bytes from the server that are not what the replication protocol describes."""


class DatabaseError(AuditError):
    """A server that refuses or lacks something."""


class ConnectionFailed(DatabaseError):
    """No connection could be made, or it was lost."""


class ServerReadOnly(DatabaseError):
    """Nothing can be written to this server now: it is a standby, or read-only for everybody."""


class ChangeRefused(DatabaseError):
    """The destination refuses a change itself: to try it again would not help."""


class SourceNotReady(DatabaseError):
    """The audited database lacks a setting, a right, a slot or a publication."""


class ChangeUnreadable(SourceNotReady):
    """The source cannot decode what comes now: to try it again would not help.

    Args:
        message: What is wrong, and what to do.
        commit_lsn: Where the commit record of the transaction starts; 0 if that is unknown.
    """

    def __init__(self, message: str, commit_lsn: int = 0) -> None:
        super().__init__(message)
        self.commit_lsn = commit_lsn


class PublicationReplaced(SourceNotReady):
    """The publication did not exist at the place of the log that has to be read."""


class SlotMissing(SourceNotReady):
    """The replication slot does not exist."""


class SlotBusy(SourceNotReady):
    """Another process is reading the replication slot."""


class DestinationNotReady(DatabaseError):
    """The destination lacks the trail's schema, or a right on it."""


class PositionMismatch(AuditError):
    """Slot and checkpoint do not agree: going on would lose or falsify something."""


class UnexpectedError(AuditError):
    """What nobody has thought of; the message says where it happened, and quotes no values."""


class ReadingError(AuditError):
    """A question about the trail that cannot be answered as it was asked."""


class KeyMismatch(ReadingError):
    """A key that does not fit the model's primary key."""


class NaiveDatetime(ReadingError):
    """A moment without a time zone."""


class SourceAmbiguous(ReadingError):
    """Several sources hold the table and none was named."""


class SourceUnknown(ReadingError):
    """The destination holds nothing of a source of that name."""


class TransactionAmbiguous(ReadingError):
    """A transaction number that was used more than once."""


class NotCaughtUp(ReadingError, TimeoutError):
    """The trail did not get as far as it was waited for in time."""


class Unsupported(ReadingError):
    """A mapping that this version of the package cannot rebuild."""


class HistoryUnknown(ReadingError):
    """The trail cannot know what was asked."""


class NotCaptured(HistoryUnknown):
    """The table was never captured."""
