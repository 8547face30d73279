"""What a page shows of a terminal: commands, and what they print."""

import re
from collections.abc import Iterator

_CHANGES_WITH_EACH_RUN = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:?\d\d)?"), "<moment>"),
    (re.compile(r"\b\d\d:\d\d:\d\d\.\d+\b"), "<time>"),
    (re.compile(r"^\w+day \d\d \w+ \d{4}, UTC$", re.MULTILINE), "<day>"),
    (re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{5,8}\b"), "<lsn>"),
    (re.compile(r"\bin \d+\.\d\ds\b"), "in <seconds>"),
    (re.compile(r"\btransaction \d+\b"), "transaction <xid>"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
    (re.compile(r"\boid \d+\b"), "oid <oid>"),
    (re.compile(r"\b\d{19}\b"), "<system identifier>"),
)


def steady(text: str) -> str:
    """The text without what differs from run to run."""
    for pattern, stand_in in _CHANGES_WITH_EACH_RUN:
        text = pattern.sub(stand_in, text)
    return text.strip()


def sessions(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with its output."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.replace("\\\n", " ").partition("\n")
        yield command, output
