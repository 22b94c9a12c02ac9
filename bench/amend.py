"""A broadcast taken back: how long it takes, how late the loop is meanwhile, and when the last connection was told.

    python -m bench.amend [--quick]

10,000 users are connected, with changes=1, and as many are absent, in whose mailboxes it waits.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

from bench.loadlib import rounds
from bench.loadlib.admin import PREFIX, Admin, lag_between, notice
from bench.loadlib.machine import allow_descriptors
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import Result, below, rounds_for
from bench.loadlib.servers import cores, daemon, on_core, scratch

CONNECTED, ABSENT = 10_000, 10_000
CONNECTING_AT_ONCE = 200
WITHIN_S = 30.0
TOOK = "from the request to its end, ms"
LAG = "how late the loop was, worst reading, ms (upper bound)"


@dataclass
class Seen:
    """What has come on all connections."""

    frames: int = 0
    last_ns: int = 0
    greeted: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTING_AT_ONCE))

    async def all(self, frames: int) -> None:
        """Return when so many frames have come. Raises LoadError."""
        ends = time.monotonic() + WITHIN_S
        while self.frames < frames:
            if time.monotonic() > ends:
                raise LoadError(f"{self.frames} of {frames} frames after {WITHIN_S:g} s")
            await asyncio.sleep(0.002)


class Reader(asyncio.Protocol):
    """One connection: counts the frames behind its hello."""

    def __init__(self, seen: Seen, port: int, user_id: int) -> None:
        self._seen = seen
        self._head = (
            f"GET /ws?user_id={user_id}&changes=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        self._has_hello = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._head.encode())

    def data_received(self, data: bytes) -> None:
        if not self._has_hello and b'"hello"' in data:
            self._has_hello = True
            self._seen.greeted.release()
            return
        self._seen.frames += data.count(b'"message_id"')
        self._seen.last_ns = time.monotonic_ns()


async def connect(port: int, seen: Seen) -> None:
    """Have all connections, greeted."""
    loop = asyncio.get_running_loop()
    for user_id in range(1, CONNECTED + 1):
        await seen.greeted.acquire()
        await loop.create_connection(lambda user_id=user_id: Reader(seen, port, user_id), "127.0.0.1", port)  # type: ignore[misc]
    for _ in range(CONNECTING_AT_ONCE):
        await asyncio.wait_for(seen.greeted.acquire(), WITHIN_S)


async def ask(admin: Admin, path: str) -> dict[str, Any]:
    """What a POST says. Raises LoadError."""
    answer = await admin.ask("POST", f"{PREFIX}{path}", b"")
    if answer.status != 200:
        raise LoadError(f"{path}: {answer.status} {answer.body[:300]!r}")
    data: dict[str, Any] = json.loads(answer.body)["data"]
    return data


@dataclass(frozen=True)
class Took:
    """Milliseconds: until the answer, until the last connection was told; the loop's worst lag is below `lag_ms`."""

    answer_ms: float
    told_ms: float
    lag_ms: float


async def revoke(admin: Admin, seen: Seen, number: int) -> Took:
    """Publish to everybody, wait until all is written, and take it back. Raises LoadError."""
    before = seen.frames
    message_id = (await admin.publish(notice("x" * 200, f"b{number}", target="all"), 10_000))["message_id"]
    await seen.all(before + CONNECTED)
    while (await admin.metrics()).total("pushd_journal_pending"):
        await asyncio.sleep(0.05)
    metrics, began_ns = await admin.metrics(), time.monotonic_ns()
    said = await ask(admin, f"/notification/records/{message_id}/revoke")
    answered_ns = time.monotonic_ns()
    if (said["copies"], said["connections"]) != (ABSENT, CONNECTED):
        raise LoadError(f"not all of them: {said}")
    await seen.all(before + 2 * CONNECTED)
    await asyncio.sleep(0.1)  # the lag is read at intervals
    lag = lag_between(metrics, await admin.metrics())
    return Took((answered_ns - began_ns) / 1e6, (seen.last_ns - began_ns) / 1e6, lag.max_below_ms)


async def run(quick: bool) -> list[Result]:
    """Rounds on one daemon; the first one warms up."""
    allow_descriptors(CONNECTED)
    seen = Seen()
    with scratch() as directory:
        config = "[delivery]\nheartbeat_s = 600\n"
        with daemon(directory, config, CONNECTED + ABSENT, core=cores().daemon) as server, on_core(cores().others):
            await connect(server.port, seen)
            async with Admin(server.port) as admin:
                took = [await revoke(admin, seen, number) for number in range(rounds_for(quick) + 1)][1:]
    return [
        Result("revoke: the answer", [one.answer_ms for one in took], "ms", below(1000), TOOK),
        Result("revoke: the last connection was told", [one.told_ms for one in took], "ms", below(1000), TOOK),
        Result("revoke", [one.lag_ms for one in took], "ms", below(50), LAG),
    ]


if __name__ == "__main__":
    sys.exit(rounds.script("amend", run))
