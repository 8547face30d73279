"""Database URLs: both spellings in, the one that is needed out, no password in a message."""

import re
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from pgaudit_ctx.errors import UsageError

_SCHEME: Final = re.compile(r"^(postgres(?:ql)?)(?:\+[a-z0-9_]+)?://", re.IGNORECASE)


def libpq_url(url: str) -> str:
    """Give a URL in the form libpq takes.

    Args:
        url: ``postgresql://…``, ``postgresql+driver://…`` or a libpq ``key=value`` string.

    Returns:
        The same without SQLAlchemy's driver name.

    Raises:
        UsageError: If it names another kind of database.
    """
    if "://" not in url:
        if "=" in url:
            return url
        raise UsageError(
            "a database URL must look like postgresql://user@host:5432/database; "
            "what was given is neither that nor a list of key=value pairs"
        )
    if not _SCHEME.match(url):
        raise UsageError(
            f"a database URL must begin with postgresql://, not with {url.split('://', 1)[0]}://; "
            "only PostgreSQL can be audited through its write-ahead log"
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
        UsageError: If it is not a PostgreSQL URL.
    """
    libpq_url(url)
    if "://" not in url:
        raise UsageError("this command needs a URL (postgresql://…), not key=value pairs")
    scheme = url.split("://", 1)[0]
    return url if "+" in scheme else _SCHEME.sub(f"postgresql+{driver}://", url)


def without_password(url: str) -> str:
    """Give a URL that may be shown.

    Args:
        url: Any database URL.

    Returns:
        The URL with ``***`` in place of a password, in its authority and in its query.
    """
    parts = urlsplit(url)
    authority = parts.netloc
    if "@" in authority:
        user, _, host = authority.rpartition("@")
        if ":" in user:
            authority = f"{user.split(':', 1)[0]}:***@{host}"
    query = re.sub(r"(?i)\b(password|sslpassword)=[^&]*", r"\1=***", parts.query)
    return urlunsplit((parts.scheme, authority, parts.path, query, ""))
