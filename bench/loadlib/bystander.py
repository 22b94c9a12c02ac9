"""Somebody who only wants his notices, while others do what they like: how long does each take to him?

One user's connection and a publisher who posts to him every 10 ms over a few connections in turn, whether or not the
former ones are answered. A notice has come when the kernel has it (SO_TIMESTAMPNS), so what else runs on this core is
not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.loadlib import drive_plan
from bench.loadlib.figures import Histogram, Spread
from bench.loadlib.http import AnswerParser
from bench.loadlib.lean import FrameScanner
from bench.loadlib.machine import usage_of
from bench.loadlib.options import LoadError
from bench.loadlib.watchers import SO_TIMESTAMPNS, TIMESPEC, monotonic_ns, sent_ns

USER = 1
EVERY_S = 0.01
PUBLISHERS = 8
READ_BYTES = 65_536
WITHIN_S = 10.0


class Bystander:
    """His notices: how many were published, refused, and came, and how long each took."""

    def __init__(self, port: int, pid: int) -> None:
        self._port = port
        self._pid = pid
        self._socket = socket.socket()
        self._scanner: FrameScanner | None = None
        self._head = b""
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._latency = Histogram()
        self._is_greeted = asyncio.Event()
        self.failure: LoadError | None = None
        self.published = self.refused = self.arrived = 0
        self.most_rss_bytes = 0

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Bystander]:
        """Connected, and publishing until the end of the block."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        (token,) = drive_plan.tokens([USER])
        await loop.sock_sendall(self._socket, drive_plan.upgrade(self._port, token, is_acking=False))
        loop.add_reader(self._socket, self._read)
        async with asyncio.timeout(WITHIN_S):
            await self._is_greeted.wait()
        for _ in range(PUBLISHERS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers.append(writer)
            self._tasks.append(asyncio.create_task(self._take_answers(reader)))
        self._tasks += [asyncio.create_task(self._publish()), asyncio.create_task(self._watch_memory())]
        try:
            yield self
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            loop.remove_reader(self._socket)
            self._socket.close()
            for writer in self._writers:
                writer.close()

    def take_spread(self) -> Spread:
        """How long notices took that came since the last call."""
        latency, self._latency = self._latency, Histogram()
        self.most_rss_bytes = 0
        return latency.spread()

    async def caught_up(self) -> None:
        """Everything that was published has come. Raises LoadError when it has not in time."""
        ends = time.monotonic() + WITHIN_S
        while self.arrived < self.published - self.refused and self.failure is None:
            if time.monotonic() > ends:
                raise LoadError(f"of {self.published} notices {self.arrived} came, {self.refused} were refused")
            await asyncio.sleep(0.02)
        if self.failure is not None:
            raise self.failure

    async def _publish(self) -> None:
        due = time.monotonic()
        while True:
            writer = self._writers[self.published % PUBLISHERS]
            body = b'{"type":"live","target":"custom","user_ids":[%d],"content":"live","data":{"sent_ns":%d}}' % (
                USER,
                time.monotonic_ns(),
            )
            writer.write(drive_plan.post(self._port, "/system/notice", body))
            self.published += 1
            due = max(due + EVERY_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _take_answers(self, reader: asyncio.StreamReader) -> None:
        parser = AnswerParser()
        while data := await reader.read(READ_BYTES):
            self.refused += sum(1 for answer in parser.feed(data) if answer.status != 200)
        self.failure = self.failure or LoadError("the daemon ended a publisher's connection")

    async def _watch_memory(self) -> None:
        while True:
            with contextlib.suppress(LoadError):
                self.most_rss_bytes = max(self.most_rss_bytes, usage_of(self._pid).rss_bytes)
            await asyncio.sleep(0.02)

    def _read(self) -> None:
        try:
            data, extra, _, _ = self._socket.recvmsg(READ_BYTES, socket.CMSG_SPACE(TIMESPEC.size))
        except BlockingIOError:
            return
        except OSError:
            data, extra = b"", []
        try:
            self._take(data, [monotonic_ns(stamp) for _, kind, stamp in extra if kind == SO_TIMESTAMPNS])
        except LoadError as error:
            self.failure = self.failure or error
            asyncio.get_running_loop().remove_reader(self._socket)

    def _take(self, data: bytes, stamps: list[int]) -> None:
        if not data:
            raise LoadError("the daemon ended the bystander's connection")
        if self._scanner is None:
            self._head += data
            _, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._scanner = FrameScanner()
        arrived_ns = stamps[0] if stamps else time.monotonic_ns()
        for payload in self._scanner.feed(data):
            if payload.startswith(b'{"type":"live"'):
                self.arrived += 1
                self._latency.add(arrived_ns - sent_ns(payload))
            else:
                self._is_greeted.set()
