"""What a process costs by /proc: memory, and CPU of its first thread and of the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Resident (VmRSS) and proportional (Pss) bytes."""

    rss_bytes: int
    pss_bytes: int


@dataclass(frozen=True)
class Cpu:
    """Seconds so far: the first thread's, which is the daemon's loop, and those of all others, which is its store's."""

    loop_s: float
    others_s: float

    @property
    def total_s(self) -> float:
        return self.loop_s + self.others_s

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.loop_s - earlier.loop_s, self.others_s - earlier.others_s)


def kilobytes(text: str, name: str) -> int:
    """The line `name: 123 kB` of /proc/PID/status or smaps_rollup, in bytes."""
    for line in text.splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def seconds(stat: str) -> float:
    """User and system time of a line of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_of(pid: int) -> Memory:
    """Of a process of this user."""
    place = Path(f"/proc/{pid}")
    return Memory(
        kilobytes((place / "status").read_text(), "VmRSS"), kilobytes((place / "smaps_rollup").read_text(), "Pss")
    )


def cpu_of(pid: int) -> Cpu:
    """Of a process; a thread that ended is not counted."""
    place = Path(f"/proc/{pid}/task")
    spent = {int(task.name): seconds((task / "stat").read_text()) for task in place.iterdir()}
    first = spent.pop(pid)
    return Cpu(first, sum(spent.values()))
