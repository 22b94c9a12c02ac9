"""One frame to many connections: the hub as the daemon uses it, and a bare C send() loop over the same sockets.

    python -m bench.fanout [--quick]

Both run in this process, on the daemon's core, frame by frame in turn; the hub in the daemon's slices of 2 ms, with the
event loop running in between. The readers are the C client on the other core: raw TCP, every byte compared. The bare
loop is also compared with itself: how far that is from 1.00 is the error of the rest.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import statistics
import sys
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

from bench.loadlib import rounds
from bench.loadlib.machine import allow_descriptors
from bench.loadlib.native import LoadClient, built, load_client
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import Result, at_least, rounds_for
from bench.loadlib.servers import cores, on_core, scratch
from pushd._fastpath import Connection, FanOut, Hub
from pushd.delivery.fan_out import FanOutQueue
from pushd.model import Client, Priority
from pushd.protocol.frames import Opcode, ws_frame

SIZES = (200, 1024)  # bytes of a frame's payload
CONNECTIONS = (1000, 10_000)
DELIVERIES, QUICK_DELIVERIES = 120_000, 30_000  # per contender and round
MAX_PENDING_BYTES = 1 << 20
DELIVERED, SHARE = "connections x frame: deliveries/s", "the hub's rate to the bare loop's"
CONTROL = "the bare loop's rate to itself: what the comparison cannot tell apart"

CLIENT = Client(username="", role=0, client_ip="127.0.0.1", user_agent="")


class Bridge(asyncio.Protocol):
    """What the listener does for a connection in the daemon."""

    def __init__(self, hub: Hub, joined: Callable[[Connection], None]) -> None:
        self._hub = hub
        self._joined = joined
        self._connection: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        number = self._hub.connections_total + 1
        self._connection = Connection(
            self._hub, cast(asyncio.Transport, transport), user_id=number, conn_id=f"c{number}", dialect=0,
            is_acking=False, now=0.0, details=CLIENT,
        )  # fmt: skip
        self._hub.add(self._connection)
        self._hub.release(self._connection)
        self._hub.send(self._connection, b"")  # its buffer is known to be empty from here on: direct
        self._joined(self._connection)

    def resume_writing(self) -> None:
        if self._connection is not None:
            self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connection.connection_lost(None)


@dataclass(frozen=True)
class Cost:
    """Of one frame: time by the clock, and CPU of this thread, in which what others do to the core does not count."""

    wall_ns: float
    cpu_ns: float

    @staticmethod
    def now() -> Cost:
        """Since some moment."""
        return Cost(time.perf_counter_ns(), time.thread_time_ns())

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall_ns - other.wall_ns, self.cpu_ns - other.cpu_ns)


@dataclass
class Ground:
    """Connected sockets, known to both contenders, and who reads them."""

    hub: Hub
    fan_outs: FanOutQueue
    readers: LoadClient
    descriptors: array[int]
    library: ctypes.PyDLL  # holds the GIL, as the hub does
    checksum: int = 14695981039346656037
    sent: int = 0

    def frame(self, size: int) -> bytes:
        """The next one, unlike all before."""
        payload = json.dumps({"type": "bench", "n": self.sent}).encode()
        payload += b" " * (size - len(payload))
        self.sent += 1
        self.checksum = fnv(self.checksum, payload)
        return ws_frame(Opcode.TEXT, payload)

    async def by_hub(self, size: int) -> Cost:
        """One frame through the fan-out queue, until it has reached everyone. Raises LoadError."""
        frame = self.frame(size)
        began = Cost.now()
        job = FanOut("m", lambda dialect: frame)
        under_way = self.fan_outs.add(job, Priority.NORMAL)
        if under_way is not None:
            await under_way
        took = Cost.now() - began
        if len(job.handed) != len(self.descriptors):
            raise LoadError(f"the kernel took {len(job.handed)} of {len(self.descriptors)} frames from the hub")
        return took

    async def by_loop(self, size: int) -> Cost:
        """One frame by the bare loop."""
        frame = self.frame(size)
        address, count = self.descriptors.buffer_info()
        began = Cost.now()
        whole = self.library.send_loop(ctypes.c_void_p(address), ctypes.c_size_t(count), frame, len(frame))
        took = Cost.now() - began
        if whole != count:
            raise LoadError(f"the kernel took {whole} of {count} frames from the bare loop")
        return took

    async def settle(self) -> None:
        """Return when the readers have everything, intact and in order. Raises LoadError."""
        said = await self.readers.ask(f"expect {self.sent}")
        if said["checksum"] != f"{self.checksum:016x}" or said["frames"] != self.sent * len(self.descriptors):
            raise LoadError(f"the readers got something else: {said}")


def fnv(checksum: int, data: bytes) -> int:
    """FNV-1a, 64 bits, going on."""
    for byte in data:
        checksum = (checksum ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return checksum


@asynccontextmanager
async def ground(connections: int) -> AsyncIterator[Ground]:
    """`connections` sockets between this process and the readers."""
    allow_descriptors(connections)
    hub, descriptors = Hub(MAX_PENDING_BYTES), array("i")

    def joined(connection: Connection) -> None:
        assert connection.transport is not None, "just made"
        descriptors.append(connection.transport.get_extra_info("socket").fileno())

    library = ctypes.PyDLL(str(built("sendloop.so")))
    library.send_loop.restype = ctypes.c_size_t
    library.send_loop.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Bridge(hub, joined), "127.0.0.1", 0, backlog=4096)
    fan_outs = FanOutQueue(hub)
    serving = asyncio.create_task(fan_outs.serve())
    options = ["--port", str(server.sockets[0].getsockname()[1]), "--connections", str(connections), "--raw",
               "--match", '{"type":']  # fmt: skip
    try:
        with scratch() as directory:
            async with load_client(directory, "readers", options, core=cores().others) as readers:
                while len(descriptors) < connections:
                    await asyncio.sleep(0.01)
                yield Ground(hub, fan_outs, readers, descriptors, library)
    finally:
        serving.cancel()
        server.close()
        await asyncio.gather(serving, return_exceptions=True)


@dataclass(frozen=True)
class Turn:
    """Some frames by all, in turn. Shares are the median of them: all had the same machine then."""

    hub_ns: float
    loop_ns: float
    share: float
    share_of_cpu: float
    control: float
    control_of_cpu: float


async def turn(there: Ground, size: int, frames: int) -> Turn:
    """Frames by the hub, the loop and the loop again, each first in a third of them; the readers have everything before
    the next one."""
    costs: dict[str, list[Cost]] = {"hub": [], "loop": [], "again": []}
    ways: dict[str, Callable[[int], Awaitable[Cost]]]
    ways = {"hub": there.by_hub, "loop": there.by_loop, "again": there.by_loop}
    names = tuple(ways)
    for number in range(frames):
        for place in range(len(names)):
            name = names[(number + (place if number % 2 else -place)) % len(names)]
            costs[name].append(await ways[name](size))
            await there.settle()
    median = statistics.median
    return Turn(
        median(cost.wall_ns for cost in costs["hub"]),
        median(cost.wall_ns for cost in costs["loop"]),
        *shares(costs["loop"], costs["hub"]),
        *shares(costs["loop"], costs["again"]),
    )


def shares(ours: list[Cost], theirs: list[Cost]) -> tuple[float, float]:
    """Our cost to theirs, by the clock and by CPU: the median of the pairs."""
    pairs = list(zip(ours, theirs, strict=True))
    return (
        statistics.median(mine.wall_ns / other.wall_ns for mine, other in pairs),
        statistics.median(mine.cpu_ns / other.cpu_ns for mine, other in pairs),
    )


async def compare(there: Ground, size: int, deliveries: int, count: int) -> list[Result]:
    """Rounds of one frame size."""
    connections = len(there.descriptors)
    await turn(there, size, 4)
    turns = [await turn(there, size, max(4, deliveries // connections)) for _ in range(count)]
    what = f"{connections:,} x {size:,} B"
    return [
        Result(f"hub, {what}", [connections * 1e9 / each.hub_ns for each in turns], "/s", group=DELIVERED),
        Result(f"bare loop, {what}", [connections * 1e9 / each.loop_ns for each in turns], "/s", group=DELIVERED),
        Result(what, [each.share for each in turns], "x", at_least(0.97), SHARE),
        Result(f"{what}, by CPU time", [each.share_of_cpu for each in turns], "x", group=SHARE),
        Result(what, [each.control for each in turns], "x", group=CONTROL),
        Result(f"{what}, by CPU time", [each.control_of_cpu for each in turns], "x", group=CONTROL),
    ]


async def run(quick: bool) -> list[Result]:
    """All sizes and numbers."""
    found: list[Result] = []
    with on_core(cores().daemon):
        for connections in CONNECTIONS:
            async with ground(connections) as there:
                one = partial(compare, there, deliveries=QUICK_DELIVERIES if quick else DELIVERIES,
                              count=rounds_for(quick))  # fmt: skip
                for size in SIZES:
                    found += await one(size)
    return sorted(found, key=lambda result: (DELIVERED, SHARE, CONTROL).index(result.group))


if __name__ == "__main__":
    sys.exit(rounds.script("fanout", run))
