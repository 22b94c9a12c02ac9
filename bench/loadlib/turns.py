"""A TCP proxy that counts round trips: how often a client speaks after the server did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

_CLIENT, _SERVER = 0, 1


class Turns:
    """Requests that follow one another without waiting for an answer are one round trip, as on the wire."""

    def __init__(self) -> None:
        self.total = 0
        self.bytes_total = 0

    def note(self, side: int, last: int, size: int) -> int:
        """Bytes came from `side`; who spoke last from now on."""
        if side == _CLIENT and last == _SERVER:
            self.total += 1
        self.bytes_total += size
        return side


class _Link:
    """One client's connection, both ends."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.last = _SERVER
        self.ends: list[asyncio.Transport | None] = [None, None]
        self.early: list[bytes] = []


class _End(asyncio.Protocol):
    def __init__(self, link: _Link, side: int) -> None:
        self._link = link
        self._side = side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link.ends[self._side] = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        link = self._link
        link.last = link.turns.note(self._side, link.last, len(data))
        other = link.ends[1 - self._side]
        if other is None:
            link.early.append(data)
        else:
            other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        other = self._link.ends[1 - self._side]
        if other is not None:
            other.close()


class _Front(_End):
    def __init__(self, turns: Turns, port: int, tasks: set[asyncio.Task[None]]) -> None:
        super().__init__(_Link(turns), _CLIENT)
        self._port = port
        self._tasks = tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        task = asyncio.get_running_loop().create_task(self._dial())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self) -> None:
        link = self._link
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_connection(lambda: _End(link, _SERVER), "127.0.0.1", self._port)
        for data in link.early:
            server.write(data)
        link.early.clear()


@asynccontextmanager
async def counting(port: int) -> AsyncIterator[tuple[int, Turns]]:
    """A port of 127.0.0.1 that leads to `port`, and the count."""
    turns, tasks = Turns(), set[asyncio.Task[None]]()
    server = await asyncio.get_running_loop().create_server(lambda: _Front(turns, port, tasks), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], turns
    finally:
        server.close()
