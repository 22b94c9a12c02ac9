"""The process metrics every Prometheus client has, read from /proc."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pushd.telemetry.metrics import counter, gauge


class ProcessMetrics(Collector):
    """Those of the client library, whose own collector lists every descriptor: 10 ms with 10,000 connections."""

    def __init__(self) -> None:
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def collect(self) -> Iterable[Metric]:
        """Fields of proc_pid_stat(5), from the third one on: the second may hold spaces."""
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        started_s = self._booted_s + int(fields[19]) / self._ticks
        cpu_s = (int(fields[11]) + int(fields[12])) / self._ticks
        yield gauge("process_virtual_memory_bytes", "Virtual memory.", int(fields[20]))
        yield gauge("process_resident_memory_bytes", "Resident memory.", int(fields[21]) * self._page_bytes)
        yield gauge("process_start_time_seconds", "Start of the process, since the epoch.", started_s)
        yield counter("process_cpu_seconds", "User and system time.", cpu_s)
        yield gauge("process_open_fds", "Open file descriptors.", _open_descriptors())
        yield gauge("process_max_fds", "Open file descriptors at most.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _open_descriptors() -> int:
    """Linux 6.2 and later count them, earlier ones say 0 and have them listed."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
