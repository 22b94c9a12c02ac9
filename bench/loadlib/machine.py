"""What the operating system says: who a host name is, descriptors, CPU and memory of this process and the daemon."""

from __future__ import annotations

import os
import platform
import resource
import socket
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from bench.loadlib.options import LoadError, Options

SPARE_DESCRIPTORS = 64
BUSY_PERCENT = 90.0


def resolve(options: Options) -> str:
    """The address at which the daemon listens, asked once for all connections. Raises LoadError."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LoadError(f"{options.host}: {error.strerror or error}") from None
    addresses = [str(address[0]) for *_, address in found]
    if not options.is_remote and not all(ip_address(address).is_loopback for address in addresses):
        raise LoadError(
            f"{options.host} is not this machine: the load would hit somebody's network and times would be the "
            "network's; give --remote if that is what you want"
        )
    return next((address for address in addresses if _answers(address, options)), "") or _nobody(options)


def _answers(address: str, options: Options) -> bool:
    try:
        socket.create_connection((address, options.port), options.timeout_s).close()
    except OSError:
        return False
    return True


def _nobody(options: Options) -> str:
    raise LoadError(f"nobody listens at {options.authority}; start the daemon first (`make run`)")


def allow_descriptors(needed: int) -> None:
    """Raise the limit of open files as far as needed. Raises LoadError."""
    needed += SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LoadError(f"{needed} open files are needed, {hard} are allowed here: raise `ulimit -Hn` or lower -c")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_ports(needed: int) -> None:
    """Every connection to one address needs a port of its own here. Raises LoadError."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return
    if needed > high - low:
        raise LoadError(f"{needed} local ports are needed, there are {high - low} (net.ipv4.ip_local_port_range)")


@dataclass(frozen=True)
class Usage:
    """What a process has used: resident bytes, seconds of CPU; zero if it is not known."""

    rss_bytes: int = 0
    cpu_s: float = 0.0


def usage_of(pid: int) -> Usage:
    """A process of this machine. Raises LoadError."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise LoadError(f"--pid: there is no process {pid}") from None
    ticks = int(fields[11]) + int(fields[12])
    return Usage(int(fields[21]) * resource.getpagesize(), ticks / os.sysconf("SC_CLK_TCK"))


def usage_from_metrics(text: str) -> Usage:
    """A daemon that says it itself, in the Prometheus format."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in ("process_resident_memory_bytes", "process_cpu_seconds_total"):
            values[name] = float(value)
    return Usage(int(values.get("process_resident_memory_bytes", 0)), values.get("process_cpu_seconds_total", 0.0))


class Stopwatch:
    """Wall and own CPU time since it was made."""

    def __init__(self) -> None:
        self._began_ns = time.monotonic_ns()
        self._cpu_ns = time.process_time_ns()

    @property
    def elapsed_s(self) -> float:
        """Wall time."""
        return (time.monotonic_ns() - self._began_ns) / 1e9

    @property
    def busy_percent(self) -> float:
        """This process's share of one core."""
        elapsed_ns = time.monotonic_ns() - self._began_ns
        return 100 * (time.process_time_ns() - self._cpu_ns) / elapsed_ns if elapsed_ns else 0.0


def describe() -> dict[str, str | int]:
    """The machine, without its name."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
    }
