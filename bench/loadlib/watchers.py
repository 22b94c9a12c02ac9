"""Connected clients that time live notices, and the publisher of these.

A notice has come when the kernel of the client's machine has it (SO_TIMESTAMPNS): one program stands for hundreds of
machines here, on a core that others use too.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from bench.loadlib.admin import Admin, notice
from bench.loadlib.canned import CONTENT
from bench.loadlib.figures import NS_PER_S, Histogram
from bench.loadlib.lean import HELLO, FrameScanner, upgrade_request
from bench.loadlib.machine import allow_descriptors
from bench.loadlib.options import LoadError

LIVE = b'{"type":"live"'
SENT = b'"sent_ns":'
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python has no name for it
TIMESPEC = struct.Struct("@ll")
READ_BYTES = 65_536
PATIENCE_S = 15.0
PUBLISHERS = 64


def sent_ns(payload: bytes) -> int:
    """When a live notice was written to its POST, by the monotonic clock."""
    start = payload.index(SENT) + len(SENT)
    return int(payload[start : payload.index(b"}", start)])


def monotonic_ns(stamp: bytes) -> int:
    """A moment of the day as one of the clock by which notices are sent."""
    seconds, nanoseconds = TIMESPEC.unpack_from(stamp)
    return int(seconds * NS_PER_S + nanoseconds - (time.time_ns() - time.monotonic_ns()))


class Watcher:
    """One of them, reading by itself: a transport of the loop's would not tell when bytes came."""

    def __init__(self, crew: Watchers, user_id: int) -> None:
        self._crew = crew
        self._request = upgrade_request(crew.port, user_id)
        self._head = b""
        self._scanner: FrameScanner | None = None  # before the 101
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    async def connect(self) -> None:
        """Ask for the upgrade; what comes is read from here on."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._crew.port))
        await loop.sock_sendall(self._socket, self._request)
        loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        try:
            data, extra, _, _ = self._socket.recvmsg(READ_BYTES, socket.CMSG_SPACE(TIMESPEC.size))
        except BlockingIOError:
            return
        except OSError:
            data, extra = b"", []
        try:
            if not data:
                raise LoadError("the daemon ended a watching connection")
            stamps = [monotonic_ns(stamp) for _, kind, stamp in extra if kind == SO_TIMESTAMPNS]
            # The kernel begins to note times a moment after the first socket asks for them.
            self._take(data, stamps[0] if stamps else time.monotonic_ns())
        except LoadError as error:
            self.close()
            self._crew.failure = self._crew.failure or error

    def _take(self, data: bytes, arrived_ns: int) -> None:
        if self._scanner is None:
            self._head += data
            _, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if not self._head.startswith(b"HTTP/1.1 101 "):
                raise LoadError(f"upgrade: {self._head[:200]!r}")
            self._scanner = FrameScanner()
        for payload in self._scanner.feed(data):
            if payload.startswith(LIVE):
                self._crew.arrived(sent_ns(payload), arrived_ns)
            elif payload.startswith(HELLO):
                self._crew.greeted += 1

    def close(self) -> None:
        """At once."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


class Watchers:
    """All of them. Latency: from just before a POST is written to the arrival of a frame, journal included."""

    def __init__(self, port: int, users: range, rate: float, target: str) -> None:
        self.port = port
        self.greeted = 0
        self.failure: LoadError | None = None
        self._users = users
        self._rate = rate
        self._is_stopping = False
        online: dict[str, Any] = {"target": "online"}
        self._fields = online if target == "online" else {"target": "custom", "user_ids": [*users]}
        self._members: list[Watcher] = []
        self._book = Histogram()
        self.answers = Histogram()  # from a POST to its 200
        self._published = 0
        self._arrived = 0
        self._publishing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watchers:
        allow_descriptors(len(self._users))
        for user_id in self._users:
            member = Watcher(self, user_id)
            self._members.append(member)
            await member.connect()
        await self._until(lambda: self.greeted == len(self._users))
        self._publishing = asyncio.create_task(self._publish())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        for member in self._members:
            member.close()

    def arrived(self, sent_at_ns: int, now_ns: int) -> None:
        """One delivery."""
        self._arrived += 1
        self._book.add(now_ns - sent_at_ns)

    def new_book(self) -> Histogram:
        """What arrived since the last call."""
        book, self._book = self._book, Histogram()
        return book

    async def stop(self) -> None:
        """Publish no more; return when everything has come. Raises LoadError when something has not."""
        assert self._publishing is not None, "not entered"
        self._is_stopping = True
        await self._publishing
        await self._until(lambda: self._arrived >= self._published * len(self._users))

    async def _publish(self) -> None:
        """At `rate`, whatever the answers take: each on a connection of its own while another is unanswered."""
        # in use before the storm, as a new one would wait behind all who come back, and in turn, to stay so
        idle = deque([await Admin(self.port).__aenter__() for _ in range(PUBLISHERS)])
        for admin in idle:
            await admin.ask("GET", "/healthz")
        began_ns, number = time.monotonic_ns(), 0
        try:
            async with asyncio.TaskGroup() as group:
                while not self._is_stopping:
                    group.create_task(self._post(number, idle))
                    number += 1
                    due_ns = began_ns + int(number * NS_PER_S / self._rate)
                    await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S))
        finally:
            for admin in idle:
                await admin.__aexit__()

    async def _post(self, number: int, idle: deque[Admin]) -> None:
        admin = idle.popleft() if idle else await Admin(self.port).__aenter__()
        data = {"number": number, "sent_ns": time.monotonic_ns()}
        await admin.publish(notice(CONTENT.decode(), f"l{number:06d}", type="live", data=data, **self._fields))
        self._published += 1
        self.answers.add(time.monotonic_ns() - data["sent_ns"])
        idle.append(admin)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not is_so():
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > ends:
                raise LoadError(f"watchers: {self._arrived} arrived, {self._published} notices published")
            await asyncio.sleep(0.01)
