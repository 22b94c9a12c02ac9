"""Clients that reconnect and take what waits for them, with next to no Python per frame; a process of its own.

    python -m bench.loadlib.lean '{"port": 8801, "users": [1, 1000], "ids": ["n0", "n1"], "at_once": 128}'

prints "ready", begins at a line on stdin, prints its figures as JSON and holds the connections until stdin ends.
Each connection asserts that exactly `ids` come, each once and in this order, and acknowledges them in one go.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import cast

import msgspec
import uvloop

from bench.loadlib.figures import Spread, spread_of
from bench.loadlib.ledger import message_id
from bench.loadlib.machine import Stopwatch, allow_descriptors
from bench.loadlib.options import LoadError

TEXT, CLOSE, FINAL = 0x1, 0x8, 0x80
ACK_BYTES = 3500  # of ids in one frame; limits.max_frame_bytes is 4096
WAITING = b'{"type":"bench"'
HELLO = b'{"type":"hello"'
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3; nobody checks the answer here
WITHIN_S = 120.0


class FrameScanner:
    """Bytes of a server in, payloads of its text frames out: unmasked, unfragmented. Raises LoadError at CLOSE."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The text frames that are complete now; others are left out."""
        buffer = self._rest + data if self._rest else data
        size = len(buffer)
        payloads: list[bytes] = []
        at = 0
        while at + 2 <= size:
            length, start = buffer[at + 1], at + 2
            if length >= 126:
                start = at + (4 if length == 126 else 10)
                if start > size:
                    break
                length = int.from_bytes(buffer[at + 2 : start], "big")
            end = start + length
            if end > size:
                break
            opcode = buffer[at] & 0xF
            if opcode == TEXT:
                payloads.append(buffer[start:end])
            elif opcode == CLOSE:
                raise LoadError(
                    f"the daemon closed a connection with {int.from_bytes(buffer[start : start + 2], 'big')}"
                )
            at = end
        self._rest = buffer[at:]
        return payloads


def text_frame(payload: bytes) -> bytes:
    """A client's frame. Its mask is zero, which RFC 6455 does not forbid and saves the work."""
    size = len(payload)
    head = (
        bytes((FINAL | TEXT, 0x80 | size))
        if size < 126
        else bytes((FINAL | TEXT, 0x80 | 126)) + size.to_bytes(2, "big")
    )
    return head + b"\0\0\0\0" + payload


def ack_frames(ids: list[bytes]) -> bytes:
    """Acknowledge these, in as many frames as it takes."""
    frames, part, size = [], list[bytes](), 0
    for known in [*ids, b""]:
        if part and (not known or size + len(known) + 3 > ACK_BYTES):
            frames.append(text_frame(b'{"type":"ack","message_ids":["%b"]}' % b'","'.join(part)))
            part, size = [], 0
        part.append(known)
        size += len(known) + 3
    return b"".join(frames)


def upgrade_request(port: int, user_id: int, query: str = "") -> bytes:
    """The handshake of a user."""
    return (
        f"GET /ws?user_id={user_id}{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    ).encode()


class Client(asyncio.Protocol):
    """A connection: handshake, then payloads to `take`."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._head = b""
        self._is_open = False
        self._scanner = FrameScanner()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        try:
            if not self._is_open:
                data = self._opened(data)
            if data and (payloads := self._scanner.feed(data)):
                self.take(payloads, now_ns)
        except LoadError as error:
            self.failed(error)

    def _opened(self, data: bytes) -> bytes:
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return b""
        if not head.startswith(b"HTTP/1.1 101 "):
            raise LoadError(f"upgrade: {head[:60]!r} {rest[:200]!r}")
        self._is_open = True
        return rest

    def take(self, payloads: list[bytes], now_ns: int) -> None:
        """Text frames came."""

    def failed(self, error: LoadError) -> None:
        """It is of no more use."""

    def close(self) -> None:
        """At once."""
        if self.transport is not None:
            self.transport.abort()


class Returner(Client):
    """Somebody who comes back for what waits."""

    def __init__(self, crew: Crew, user_id: int) -> None:
        super().__init__(upgrade_request(crew.spec.port, user_id, "&ack=1"))
        self._crew = crew
        self._began_ns = time.monotonic_ns()
        self._ids: list[bytes] = []
        self._has_hello = False
        self._is_done = False

    def data_received(self, data: bytes) -> None:
        if not self._is_done:  # what is live for him is of no interest
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._crew.is_over:
            self.failed(LoadError("the daemon ended a connection early"))

    def take(self, payloads: list[bytes], now_ns: int) -> None:
        if not self._has_hello:
            if not payloads[0].startswith(HELLO):
                raise LoadError(f"no hello: {payloads[0][:100]!r}")
            self._has_hello = True
        self._ids += [message_id(payload) for payload in payloads if payload.startswith(WAITING)]
        if len(self._ids) >= len(self._crew.ids):
            self._finish(now_ns)

    def _finish(self, now_ns: int) -> None:
        if self._ids != self._crew.ids:
            raise LoadError(f"not each once, oldest first: {self._ids[:3]}... instead of {self._crew.ids[:3]}...")
        self._is_done = True
        if self.transport is not None:
            self.transport.write(self._crew.acks)
        self._crew.finished(now_ns - self._began_ns, now_ns)

    def failed(self, error: LoadError) -> None:
        self._crew.fail(error)


@dataclass(frozen=True)
class Spec:
    """Who comes (first and last user), for what, how many at a time; `nice`: less urgent than others on this core."""

    port: int
    users: tuple[int, int]
    ids: list[str]
    at_once: int
    nice: int = 0


@dataclass(frozen=True)
class Took:
    """From the first connect to the last message; by user, from the connect to his last message."""

    messages: int
    began_ns: int
    ended_ns: int
    busy_percent: float
    by_user: Spread

    @property
    def elapsed_s(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


class Crew:
    """All who come back."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.ids = [known.encode() for known in spec.ids]
        self.acks = ack_frames(self.ids)
        self.is_over = False
        self._users = iter(range(spec.users[0], spec.users[1] + 1))
        self._left = spec.users[1] - spec.users[0] + 1
        self._times_ns: list[int] = []
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._members: list[Returner] = []

    async def run(self) -> Took:
        """All come, and have everything. Raises LoadError."""
        watch, began_ns = Stopwatch(), time.monotonic_ns()
        for _ in range(self.spec.at_once):
            self._next()
        async with asyncio.timeout(WITHIN_S):
            ended_ns = await self._ended
        messages = len(self._times_ns) * len(self.ids)
        return Took(messages, began_ns, ended_ns, watch.busy_percent, spread_of(self._times_ns))

    def _next(self) -> None:
        user_id = next(self._users, None)
        if user_id is not None:
            task = asyncio.get_running_loop().create_task(self._connect(user_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, user_id: int) -> None:
        member = Returner(self, user_id)
        self._members.append(member)
        try:
            await asyncio.get_running_loop().create_connection(lambda: member, "127.0.0.1", self.spec.port)
        except OSError as error:
            self.fail(LoadError(f"connect: {error}"))

    def finished(self, took_ns: int, now_ns: int) -> None:
        """One user has everything."""
        self._times_ns.append(took_ns)
        self._left -= 1
        if self._left:
            self._next()
        elif not self._ended.done():
            self._ended.set_result(now_ns)

    def fail(self, error: LoadError) -> None:
        """It cannot be finished any more."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def close(self) -> None:
        """All go."""
        self.is_over = True
        for member in self._members:
            member.close()


async def _serve(spec: Spec) -> None:
    allow_descriptors(spec.users[1] - spec.users[0] + 1)
    crew = Crew(spec)
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    try:
        took = await crew.run()
        _say(json.dumps({**asdict(took), "error": ""}))
        await asyncio.to_thread(sys.stdin.read)
    except (LoadError, TimeoutError) as error:
        _say(json.dumps({"error": str(error) or "not all had come in time"}))
    crew.close()


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """See the module."""
    spec = msgspec.json.decode(sys.argv[1].encode(), type=Spec)
    os.nice(spec.nice)
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(spec))


if __name__ == "__main__":
    main()
