"""A client of version 1 gets what it got from version 1, byte for byte.

`tests/data/version_1_frames.json` has every frame that two clients got in `conversation` when the daemon was of version
1, JSON as text and MessagePack in hexadecimal digits. What differs from run to run, times and ids of connections, is
replaced by what has the same length.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import raw
from tests.daemon import Probe, until
from tests.raw import Raw

RECORDED = Path(__file__).parent.parent / "data" / "version_1_frames.json"
DIALECTS = ("json", "msgpack")
TO_7 = {"target": "custom", "user_ids": [7]}
NOTICES: dict[str, dict[str, Any]] = {
    "waits-1": {
        **TO_7,
        "content": 'It waits: "消息" \U0001f514\n',
        "type": "order_paid",
        "data": {"order": 5, "items": [1.5, None, True, "x" * 300], "nested": {"a": {"b": [[]]}}, "big": 2**53 + 1},
        "priority": "high",
        "need_confirm": True,
        "expires_in_s": 3600,
    },
    "waits-2": {**TO_7, "content": "nothing but a content"},
    "live-1": {"content": "to all", "data": [], "priority": 0},
    "live-2": {**TO_7, "content": "urgent", "data": "a text", "priority": 3, "need_confirm": True},
    "live-3": {"content": "to whoever is there", "target": "online", "data": -(2**63), "type": "T:a.b-c_d"},
    "live-4": {"content": "large", "data": {"text": "é" * 1000}},
}


class Recorded:
    """A connection, and what it got."""

    def __init__(self, dialect: str, connection: Raw) -> None:
        self._dialect = dialect
        self._connection = connection
        self.frames: list[str] = []

    @classmethod
    @asynccontextmanager
    async def opened(cls, probe: Probe, dialect: str) -> AsyncIterator[Recorded]:
        async with await Raw.connect(probe.port) as connection:
            connection.send(raw.upgrade("/ws?user_id=7&ack=1", f"Sec-WebSocket-Protocol: pushd.v1.{dialect}"))
            assert await connection.head() == 101
            yield cls(dialect, connection)

    def send(self, **message: Any) -> None:
        if self._dialect == "json":
            self._connection.send(raw.frame(raw.TEXT, json.dumps(message).encode()))
        else:
            self._connection.send(raw.frame(raw.BINARY, msgspec.msgpack.encode(message)))

    async def receive(self, count: int = 1) -> None:
        for _ in range(count):
            frame = await self._connection.frame()
            payload = without_what_differs(frame.payload, self._dialect)
            said = payload.decode() if self._dialect == "json" else payload.hex()
            self.frames.append(f"{frame.first:x} {said}")


def without_what_differs(payload: bytes, dialect: str) -> bytes:
    """The same bytes with times and ids of connections that every run has."""
    codec: Any = getattr(msgspec, dialect)
    message = codec.decode(payload)
    data = message.get("data")
    values = {message.get("time"): "2000-01-01 00:00:00", message.get("ts"): 10**12}
    if message["type"] in ("hello", "pong"):
        values[data["conn_id"]] = "c".ljust(len(data["conn_id"]), "_")
    for value, usual in values.items():
        if value is not None:
            assert len(codec.encode(value)) == len(codec.encode(usual)), message
            payload = payload.replace(codec.encode(value), codec.encode(usual))
    return payload


async def conversation(probe: Probe, dialect: str) -> list[str]:
    """What two clients of one user get: the first one, with this dialect, finds a mailbox, the second has the other."""

    async def publish(name: str) -> None:
        await probe.publish(**NOTICES[name], message_id=name)

    async def is_empty() -> bool:
        return not await probe.mailbox(7)

    async def say(client: Recorded, **message: Any) -> None:
        client.send(**message)
        await client.receive()

    async with AsyncExitStack() as stack:
        for name in ("waits-1", "waits-2"):
            await publish(name)
        one = await stack.enter_async_context(Recorded.opened(probe, dialect))
        await one.receive(3)  # hello, and what waits
        one.send(type="ack", message_ids=["waits-1", "waits-2"])
        await until(is_empty)
        other = DIALECTS[1 - DIALECTS.index(dialect)]
        two = await stack.enter_async_context(Recorded.opened(probe, other))
        await two.receive()
        for name in ("live-1", "live-2", "live-3", "live-4"):
            await publish(name)
            await one.receive()
            await two.receive()

        one.send(type="read", message_ids=["waits-1", "live-1"])
        await two.receive(2)  # receipts
        one.send(type="confirm", message_ids=["live-2"])
        await two.receive()
        await probe.post("/notification/mark-read", {"user_id": 7, "message_id": "waits-2"})
        await one.receive()
        await two.receive()

        await say(one, type="ping")
        await say(one, type="nothing")
        await say(one, type="read", message_ids=["unknown"])
        await say(one, type="confirm", message_ids=["unknown-1", "unknown-2"])
        await say(one, type="ack")
        await say(one, type="read", message_ids=[])
        one.send(type="message_received", message_id="live-1")
        await say(one, type="ping")
        return one.frames + two.frames


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_it_gets_what_it_always_got(start: Any, dialect: str) -> None:
    probe = await start(cluster={"node_id": "node"})
    assert await conversation(probe, dialect) == json.loads(RECORDED.read_text())[dialect]
