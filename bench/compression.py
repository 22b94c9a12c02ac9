"""What compression saves and costs: one broadcast to 1,000 guests, `server.compression` on against off.

Two daemons side by side on the daemon's core, alternately. Every connection of the one negotiates permessage-deflate.
Counted are the bytes that arrive at the clients, the same at each of them, and the daemon's CPU.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import zlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from bench.loadlib import rounds
from bench.loadlib.admin import Admin, notice
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import Result
from bench.loadlib.servers import Server, cores, daemon, scratch

CLIENTS, QUICK_CLIENTS = 1000, 200
NOTICES, QUICK_NOTICES = 150, 20  # a round; CPU is told in steps of 10 ms
FRAME_BYTES = (200, 600, 2048, 16_384)
OVERHEAD_BYTES = 175  # of a frame beside content and data
ARRIVED_WITHIN_S = 30.0
CONTENT = "Your order has been paid"
WORDS = (
    "order paid shipped user account balance notice system update version failed retry confirm read address city "
    "street item price total amount currency discount available until please click here details"
)
REQUEST = (
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{}\r\n"
)
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


class Guest(asyncio.Protocol):
    """Counts what comes behind the hello; keeps what came last."""

    def __init__(self, has_offer: bool) -> None:
        self.has_offer = has_offer
        self.total_bytes = 0
        self.last = b""
        self.greeted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        cast(asyncio.Transport, transport).write(REQUEST.format(OFFER if self.has_offer else "").encode())

    def data_received(self, data: bytes) -> None:
        """The 101 and hello first, then notices."""
        if self.greeted.done():
            self.total_bytes += len(data)
            self.last += data
            return
        self._head += data
        if b'"node_id"' in self._head:
            self.greeted.set_result(b"permessage-deflate" in self._head)


@dataclass(frozen=True)
class Turn:
    """One round of one contender."""

    bytes_each: float
    cpu_ms: float


@dataclass
class Contender:
    """A daemon, and the guests who listen to it."""

    server: Server
    admin: Admin
    guests: Sequence[Guest]

    async def broadcast(self, bodies: Sequence[bytes]) -> Turn:
        """Raises LoadError unless every guest got every notice, and the same bytes as all others."""
        before, cpu_s = [guest.total_bytes for guest in self.guests], self.server.cpu_s
        for body in bodies:
            for guest in self.guests:
                guest.last = b""
            answer = await self.admin.publish(body, wait_ms=5000)
            if answer["status"] != "delivered":
                raise LoadError(f"a notice is {answer['status']}")
            await self._arrived(json.loads(body))
        cpu_ms = (self.server.cpu_s - cpu_s) * 1000 / len(bodies)
        came = {guest.total_bytes - old for guest, old in zip(self.guests, before, strict=True)}
        if len(came) != 1:
            raise LoadError(f"guests got {min(came)} to {max(came)} bytes")
        return Turn(came.pop() / len(bodies), cpu_ms)

    async def _arrived(self, sent: dict[str, object]) -> None:
        async with asyncio.timeout(ARRIVED_WITHIN_S):
            while (message := message_of(self.guests[0].last)) is None or not self._have_all(self.guests[0].last):
                await asyncio.sleep(0.001)
        if (message["content"], message["data"]) != (sent["content"], sent["data"]):
            raise LoadError("what arrived is not what was sent")

    def _have_all(self, frame: bytes) -> bool:
        return all(guest.last == frame for guest in self.guests)


def message_of(frame: bytes) -> dict[str, object] | None:
    """The message in one whole frame, None until it is whole. Raises LoadError for more than one."""
    if len(frame) < 4:
        return None
    size, start = frame[1], 2
    if size == 126:
        size, start = struct.unpack_from("!H", frame, 2)[0], 4
    if len(frame) < start + size:
        return None
    if len(frame) > start + size:
        raise LoadError("more than one frame of one notice")
    payload = frame[start:]
    if frame[0] & 0x40:
        payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
    return dict(json.loads(payload))


def body_of(frame_bytes: int, number: int, rng: random.Random) -> bytes:
    """A notice like an order, whose frame takes about so many bytes."""
    items: list[dict[str, object]] = []
    name = f"c{frame_bytes}-{number:08d}-{rng.randrange(1 << 30)}"
    while len(json.dumps([CONTENT, items], separators=(",", ":"))) + OVERHEAD_BYTES < frame_bytes:
        words = " ".join(rng.choices(WORDS.split(), k=3))
        items.append({"id": rng.randrange(10**6), "name": words, "price": rng.randrange(10**5) / 100})
    return notice(CONTENT, name, target="online", data={"items": items} if items else None)


async def contender(stack: AsyncExitStack, directory: Path, compression: str, count: int) -> Contender:
    """A daemon of its own with `count` guests."""
    directory.mkdir()
    environ = {"PUSHD_SERVER_COMPRESSION": compression}
    config = "[delivery]\nheartbeat_s = 3000\n"
    server = stack.enter_context(daemon(directory, config, 1, core=cores().daemon, environ=environ))
    guests = []
    for _ in range(count):
        make = partial(Guest, compression == "on")
        transport, guest = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", server.port)
        stack.callback(transport.close)
        async with asyncio.timeout(ARRIVED_WITHIN_S):
            was_negotiated = await guest.greeted
        if was_negotiated is not (compression == "on"):
            raise LoadError(f"compression {compression} was negotiated otherwise")
        guests.append(guest)
    return Contender(server, await stack.enter_async_context(Admin(server.port)), guests)


async def run(quick: bool) -> list[Result]:
    """By size of the frame: bytes and CPU. Raises LoadError."""
    count, notices = (QUICK_CLIENTS, QUICK_NOTICES) if quick else (CLIENTS, NOTICES)
    rng = random.Random(1)
    results: list[Result] = []
    async with AsyncExitStack() as stack:
        place = stack.enter_context(scratch())
        both = {name: await contender(stack, place / name, name, count) for name in ("off", "on")}
        for size in FRAME_BYTES:

            async def turn(name: str, size: int = size) -> Turn:
                bodies = [body_of(size, number, rng) for number in range(notices)]
                return await both[name].broadcast(bodies)

            done = await rounds.alternate({name: partial(turn, name) for name in both}, rounds.rounds_for(quick))
            results += results_of(size, done["off"], done["on"])
    return results


def results_of(size: int, off: Sequence[Turn], on: Sequence[Turn]) -> list[Result]:
    """The lines of one size."""
    group = f"{size:,} B, CPU of a broadcast"
    ratios = rounds.ratios([turn.cpu_ms for turn in on], [turn.cpu_ms for turn in off])
    return [
        Result(f"{size:,} B: bytes per connection, off", [turn.bytes_each for turn in off], "B"),
        Result("... on", [turn.bytes_each for turn in on], "B"),
        Result("... CPU of a broadcast, off", [turn.cpu_ms for turn in off], "ms", None, group),
        Result("... on", [turn.cpu_ms for turn in on], "ms", None, group),
        Result("... on to off", ratios),
    ]


if __name__ == "__main__":
    sys.exit(rounds.script("compression", run))
