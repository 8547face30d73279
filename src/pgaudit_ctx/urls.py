"""Database URLs: both spellings in, the one that is needed out, no password in a message."""

import re
from typing import Final

from pgaudit_ctx.errors import UsageError

# Greedy up to the last @: a password that was not percent-encoded may hold anything.
_USERINFO: Final = re.compile(r"^([A-Za-z0-9+.-]+://[^:@/]*:).*@", re.DOTALL)
_PASSWORD: Final = re.compile(r"(?i)\b((?:ssl)?password\s*=\s*)(?:'(?:[^'\\]|\\.)*'|[^&\s]*)")
_ANY_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*|)://")
# An @ or / of a password that was not percent-encoded: where the host begins is then read in
# different ways, and what is taken for host or database would be shown in messages.
_AMBIGUOUS: Final = re.compile(r"^[^/]*://(?:[^@/]*@[^?/]*@|[^@/?]*(?:\?[^=/@]*)?/[^?]*@)")
_SCHEME: Final = re.compile(r"^(postgres(?:ql)?)(?:\+[a-z0-9_]+)?://", re.IGNORECASE)


def libpq_url(url: str) -> str:
    """Give a URL in the form libpq takes.

    Args:
        url: ``postgresql://…``, ``postgresql+driver://…`` or a libpq ``key=value`` string.

    Returns:
        The same without SQLAlchemy's driver name.

    Raises:
        UsageError: If it names another kind of database, or its password is not percent-encoded so
            that it can be read in two ways.
    """
    scheme = _ANY_SCHEME.match(url)
    if scheme is None:
        if "=" in url:
            return url
        raise UsageError(
            "a database URL must look like postgresql://user@host:5432/database; "
            "what was given is neither that nor a list of key=value pairs"
        )
    if not _SCHEME.match(url):
        raise UsageError(
            f"a database URL must begin with postgresql://, not with {scheme[1]}://; "
            "only PostgreSQL can be audited through its write-ahead log"
        )
    if _AMBIGUOUS.match(url):
        raise UsageError(
            "a database URL has an @ too many, so it is not clear where its password ends. Remedy: "
            "percent-encode special characters, in passwords above all: @ is %40, / is %2F"
        )
    return _SCHEME.sub("postgresql://", url)


def sqlalchemy_url(url: str, driver: str = "psycopg") -> str:
    """Give a URL in the form SQLAlchemy takes.

    Args:
        url: ``postgresql://…`` or ``postgresql+driver://…``; a driver that is named is kept.
        driver: The driver to name where the URL names none.

    Returns:
        A URL for ``sqlalchemy.create_engine``.

    Raises:
        UsageError: If it is not a PostgreSQL URL, or cannot be read.
    """
    plain = libpq_url(url)
    scheme = _ANY_SCHEME.match(url)
    if scheme is None:
        raise UsageError("this needs a URL (postgresql://…), not key=value pairs")
    _, _, named = scheme[1].partition("+")
    return _SCHEME.sub(f"postgresql+{named or driver}://", plain)


def without_password(url: str) -> str:
    """Give a URL, or a list of key=value pairs, that may be shown.

    Args:
        url: As a person wrote it, well-formed or not.

    Returns:
        The same with ``***`` in place of every password.
    """
    shown = _USERINFO.sub(r"\1***@", url)
    return _PASSWORD.sub(r"\1***", shown)
