"""What processes have used of the machine, as Linux counts it."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

_SECTOR = 512


@dataclass(frozen=True)
class Usage:
    """What processes have used until now."""

    cpu: float  # seconds
    written: int  # bytes

    def __sub__(self, before: Self) -> Self:
        return replace(self, cpu=self.cpu - before.cpu, written=self.written - before.written)


def usage(pid: int, *, and_children: bool = True) -> Usage:
    """What a process and its children have used, with children that ended and were waited for.

    Written is what was handed to the kernel (wchar). Its write_bytes is what became dirty, and on
    file systems with large folios that is megabytes for each page that is written and synced.
    """
    tick = os.sysconf("SC_CLK_TCK")
    cpu = written = 0
    for process in [pid, *(_children(pid) if and_children else [])]:
        try:
            times = _stat(process)[11:15]
            counted = Path(f"/proc/{process}/io").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        # utime, stime, and those of children that were waited for; io counts them by itself.
        cpu += sum(map(int, times))
        written += int(re.search(r"^wchar: (\d+)", counted, re.MULTILINE)[1])
    return Usage(cpu / tick, written)


def device_writes(directory: Path) -> int:
    """Bytes written to the disk that a directory is on, by anybody; 0 where that is not known."""
    device = directory.stat().st_dev
    counted = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(counted.read_text().split()[6]) * _SECTOR if counted.exists() else 0


def _stat(pid: int) -> list[str]:
    """The fields of proc(5) after the name, which may hold spaces: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _children(pid: int) -> Iterator[int]:
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                parent = int(_stat(int(directory.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                yield int(directory.name)
