"""What a page shows of a terminal: commands, and what they print."""

import re
from collections.abc import Callable, Iterator

_CHANGES_WITH_EACH_RUN = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:?\d\d)?"), "<moment>"),
    (re.compile(r"\b\d\d:\d\d:\d\d\.\d+\b"), "<time>"),
    (re.compile(r"^\w+day \d\d \w+ \d{4}, UTC$", re.MULTILINE), "<day>"),
    (re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{5,8}\b"), "<lsn>"),
    (re.compile(r"\bin \d+\.\d\ds\b"), "in <seconds>"),
    (re.compile(r"\btransaction \d+\b"), "transaction <xid>"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
    (re.compile(r"\b(oid|source has|has \d{19},)\s+\d+\b"), r"\1 <oid>"),
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


_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def parts(text: str) -> dict[str, str]:
    """A page cut at its headings of the second level, each part with its own heading."""
    cut = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return {part.partition("\n")[0].strip("# "): part for part in cut}


def played(text: str, run: Callable[[str], str]) -> str:
    """The text with what its commands have printed now instead of what stood there.

    Args:
        text: A page, or a part of one.
        run: Runs one command and gives what it printed.
    """

    def play(block: re.Match[str]) -> str:
        shown = re.split(r"^(?=\$ )", block[1], flags=re.MULTILINE)
        return "".join(["```console\n", *(_play(one, run) for one in shown if one), "```"])

    return _BLOCK.sub(play, text)


def _play(shown: str, run: Callable[[str], str]) -> str:
    typed = _TYPED.match(shown)
    assert typed is not None, f"a console block begins with a command: {shown}"
    printed = run(typed[1].replace("\n> ", "\n"))
    return f"$ {typed[1]}\n{printed.rstrip()}\n" if printed.strip() else f"$ {typed[1]}\n"


# A command goes on where its line ends with a backslash, and on lines that begin as in bash.
_TYPED = re.compile(r"\$ ((?:.*\\\n)*.*(?:\n> .*)*)\n")
