"""Why a server could not be reached, and what to do about it, in words without a password; pure."""

from typing import Final

# What drivers and the system say, in lower case, and what helps; the first that fits counts.
_REMEDIES: Final = (
    (("password authentication failed", "no password supplied"), "check user and password"),
    (("no pg_hba.conf entry",), ""),
    (
        (
            "could not translate host name",
            "failed to resolve host",
            "name or service not known",
            "nodename nor servname",
            "name resolution",
        ),
        "check the host",
    ),
    (("port number", "port must be", "servname", "for connection option"), "check the port"),
)
_PG_HBA: Final = "allow this user and address in the server's pg_hba.conf, and reload it"


def why_unreachable(
    said: str, place: str, *, host: str | None, database: str | None, user: str | None
) -> str:
    """Explain why no connection could be made.

    Args:
        said: What the driver or the system says.
        place: ``"source"`` or ``"destination"``.
        host: As the URL has it. If a password holds an ``@`` that was not percent-encoded, this
            begins with a part of it, which is left out.
        database: The database's name, if one was given.
        user: The role, if one was given.

    Returns:
        One line: what was tried, what was said, and a remedy.
    """
    if host and "@" in host:
        shown = host.rpartition("@")[2]
        said = said.replace(host, shown)
        remedy = "write the @ in its password as %40, and other special characters likewise"
        host = shown
    else:
        remedy = _remedy(said.lower())
    said = " ".join(said.split()).rstrip("?.")
    named = [
        f"{word} {value}"
        for word, value in (("host", host), ("database", database), ("user", user))
        if value
    ]
    where = f"the {place} ({', '.join(named) or 'the default server'})"
    return f"cannot connect to {where}: {said}. Remedy: {remedy}"


def _remedy(said: str) -> str:
    for words, remedy in _REMEDIES:
        if any(word in said for word in words):
            return f"{remedy} in its URL" if remedy else _PG_HBA
    if "does not exist" in said and "database" in said:
        return "check the database's name in its URL, or create it with createdb"
    if "does not exist" in said and "role" in said:
        return "check the user in its URL"
    if "permission denied" in said or "must be superuser or replication role" in said:
        return "give the user the right: ALTER ROLE … REPLICATION"
    return "check that the server runs and that host and port in its URL are right"
