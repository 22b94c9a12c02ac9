"""What other programs put into a mailbox in Redis, seen from outside: both dialects, acknowledgements, the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.daemon import PREFIX, Client, Probe, Process, until
from tests.servers import RedisServer

KEY = "offline_msg:7"
MSGPACK = {"subprotocols": ["pushd.v1.msgpack"]}

BAD: list[bytes] = [
    b"",
    b"\xff\xfe",
    b"{",
    b'{"type":"t"}',
    b"[" * 100_000,
    b'{"content":"x","data":' + b"[" * 3000 + b"]" * 3000 + b"}",
    b'{"content":"' + b"x" * 5_000_000 + b'"}',
    b'{"content":"' + b"x" * 1_048_500 + b'"}',
]
ODD: dict[str, bytes] = {
    "big": b'{"type":"system_notice","content":"hi","message_id":"big","data":{"n":123456789012345678901234567890}}',
    "nan": b'{"content":"hi","message_id":"nan","data":[NaN,-Infinity,1e999]}',
    "half": b'{"content":"bob \\ud83d","message_id":"half"}',
    "latin": b'{"content":"caf\xe9","message_id":"latin"}',
    "late": b'{"content":"hi","message_id":"late","ts":1e300,"priority":99}',
    "hello": b'{"type":"hello","content":"hi","message_id":"hello","ts":"now"}',
    "twice": b'{"content":"hi","message_id":"twice","data":{"a":1,"a":2}}',
    "12": b'{"content":"hi","message_id":12}',
    "x" * 9000: b'{"content":"hi","message_id":"' + b"x" * 9000 + b'"}',
}


@pytest.fixture
async def probe(start: Any, redis_server: RedisServer) -> Probe:
    return await start(mailbox={"url": redis_server.url})


async def push(server: RedisServer, *elements: bytes) -> None:
    async with server.client() as client:
        await client.lpush(KEY, *elements)


async def connect(probe: Probe, dialect: str) -> Any:
    return await probe.open("/ws?user_id=7&ack=1", **(MSGPACK if dialect == "msgpack" else {}))


async def receive(ws: Any, count: int) -> list[dict[str, Any]]:
    """Hello, and so many notices."""
    frames = [await ws.recv() for _ in range(count + 1)]
    messages = [json.loads(frame) if isinstance(frame, str) else msgspec.msgpack.decode(frame) for frame in frames]
    assert messages[0]["type"] == "hello"
    assert all(message["type"] == "system_notice" for message in messages[1:])
    return messages[1:]


def encoded(dialect: str, message: dict[str, Any]) -> Any:
    return json.dumps(message) if dialect == "json" else msgspec.msgpack.encode(message)


@pytest.mark.parametrize("dialect", ["json", "msgpack"])
async def test_the_good_ones_arrive_in_the_lists_order(probe: Probe, redis_server: RedisServer, dialect: str) -> None:
    mixed = [element for pair in zip(BAD, ODD.values(), strict=False) for element in pair]
    await push(redis_server, *mixed, *list(ODD.values())[len(BAD) :], b'{"content":"last","message_id":"last"}')
    ws = await connect(probe, dialect)
    found = await receive(ws, len(ODD) + 1)
    assert [message["message_id"] for message in found] == [*ODD, "last"]
    number = found[0]["data"]["n"]
    assert number == (123456789012345678901234567890 if dialect == "json" else 123456789012345678901234567890.0)
    assert found[1]["data"] == [None, None, None]
    assert [message["content"] for message in found[2:4]] == ["bob \ufffd", "caf\ufffd"]
    assert found[4]["priority"] == 1
    listed = await probe.get("/notification/offline-messages", params={"user_id": 7})
    names = [each["message_id"] for each in reversed(listed["offline_messages"])]
    assert [name for name in names if name in ODD or name == "last"] == [*ODD, "last"]
    await ws.send(encoded(dialect, {"type": "ack", "message_ids": [*list(ODD)[:-1], "last"]}))
    await ws.send(encoded(dialect, {"type": "message_received", "message_id": list(ODD)[-1]}))

    async def is_acknowledged() -> bool:
        return int(await redis_server.command("LLEN", KEY)) == len(BAD)

    await until(is_acknowledged)
    metrics = (await probe.http.get("/metrics")).text
    count = float(metrics.partition('pushd_errors_total{kind="mailbox_element"} ')[2].split()[0])
    assert count >= len(BAD)
    other = await probe.client(8)
    await probe.publish("live", target="custom", user_ids=[8])
    assert (await other.receive())["content"] == "live"


@pytest.mark.parametrize("how", ["read", "confirm", "http", "clear"])
async def test_other_ways_out(probe: Probe, redis_server: RedisServer, how: str) -> None:
    await push(redis_server, ODD["big"], ODD["half"])
    if how == "http":
        body = {"message_ids": ["big", "half", "unknown"], "user_id": 7}
        answer = (await probe.post("/notification/batch-mark-read", body)).json()["data"]
        assert (answer["success_count"], answer["failed_count"]) == (2, 1)
    elif how == "clear":
        answer = await probe.http.delete(f"{PREFIX}/notification/offline-messages", params={"user_id": 7})
        assert answer.json()["data"]["cleared_count"] == 2
    else:
        client = Client(await connect(probe, "json"))
        await receive(client.ws, 2)
        await client.send({"type": how, "message_ids": ["big", "half"]})
        assert await client.is_quiet()

    async def is_gone() -> bool:
        return not await redis_server.command("EXISTS", KEY)

    await until(is_gone)


async def test_they_do_not_end_a_daemon_nor_its_next_start(tmp_path: Path, redis_server: RedisServer) -> None:
    await push(redis_server, *BAD, *ODD.values())
    async with Process(tmp_path, mailbox={"url": redis_server.url}) as daemon:
        for _ in range(2):
            async with await daemon.start() as probe:
                for dialect in ("msgpack", "json"):
                    ws = await connect(probe, dialect)
                    assert len(await receive(ws, len(ODD))) == len(ODD)
            await daemon.kill()
        noise = [event for event in daemon.events() if "mailbox" in str(event.get("event"))]
        assert 1 <= len(noise) <= 2 * (len(BAD) + 1)
