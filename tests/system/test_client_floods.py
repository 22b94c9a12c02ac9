"""What valid clients send too much of costs them time, and nobody else notices; acknowledging one by one is free."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
import pytest

from tests import raw
from tests.daemon import Probe, until
from tests.raw import Raw
from tests.tokens import SECRET, token

NOTICES = 500


def text(message: dict[str, Any]) -> bytes:
    return raw.frame(raw.TEXT, json.dumps(message).encode())


def ids(count: int) -> list[str]:
    return [f"{number:x}" for number in range(count)]


async def answer(client: Raw) -> dict[str, Any]:
    return json.loads((await client.frame()).payload)


async def is_open(client: Raw) -> bool:
    client.send(raw.frame(raw.PING, b"still there?"))
    return (await client.frame()) == (0x80 | raw.PONG, b"still there?")


# ---- acknowledging


async def test_five_hundred_notices_acknowledged_one_by_one(probe: Probe) -> None:
    client = await probe.client(7, ack=True)
    notices = [{"content": "x", "target": "custom", "user_ids": [7]}] * NOTICES
    assert (await probe.post("/system/notices", {"notices": notices})).status_code == 200
    for _ in range(NOTICES):
        await client.ack((await client.receive())["message_id"])
    await client.send({"type": "ping"})
    assert (await client.receive())["type"] == "pong"
    await until(lambda: probe.node.acknowledgements.waiting_total == 0)


async def test_the_readmes_sample_stays_open(probe: Probe) -> None:
    """Acknowledged together, once in 200 ms."""
    client = await probe.client(7, ack=True)
    notices = [{"content": "x", "target": "custom", "user_ids": [7]}] * NOTICES
    assert (await probe.post("/system/notices", {"notices": notices})).status_code == 200
    message_ids = await client.receive_ids(NOTICES)
    for start in range(0, NOTICES, 100):
        await client.ack(*message_ids[start : start + 100])
    await client.send({"type": "ping"})
    assert (await client.receive())["type"] == "pong"
    await until(lambda: probe.node.acknowledgements.waiting_total == 0)


@pytest.mark.parametrize("kind", ["ack", "message_received"])
async def test_acknowledgements_above_the_rate_pause_reading_and_close_nothing(start: Any, kind: str) -> None:
    probe = await start(limits={"max_ids_per_s": 100})
    async with await Raw.websocket(probe.port, "/ws?user_id=7&ack=1") as client:
        began = time.monotonic()
        fields = {"message_id": "a"} if kind == "message_received" else {"message_ids": ["a"]}
        client.send(text({"type": kind, **fields}) * 200)
        assert await is_open(client)
        assert time.monotonic() - began > 0.4  # a hundred at once, the others as the rate allows


async def test_a_pause_is_its_own_connections_alone(start: Any) -> None:
    probe = await start(limits={"max_ids_per_s": 1})
    async with await Raw.websocket(probe.port, "/ws?user_id=7&ack=1") as client:
        client.send(text({"type": "ack", "message_ids": ids(100)}))
        hub = probe.node.hub
        await until(lambda: any(one.is_paused for one in hub.connections_of(7)))
        other = await probe.client(7)
        published = await probe.publish(target="custom", user_ids=[7])
        assert await other.receive_ids(1) == [published["message_id"]]
        assert (await answer(client))["message_id"] == published["message_id"]  # what it gets does not wait


async def test_a_paused_connection_is_not_taken_for_dead(start: Any) -> None:
    probe = await start(limits={"max_ids_per_s": 10}, delivery={"heartbeat_s": 0.2, "heartbeat_timeout_s": 0.2})
    async with await Raw.websocket(probe.port, "/ws?user_id=7&ack=1") as client:
        client.send(text({"type": "ack", "message_ids": ids(25)}), raw.frame(raw.PING, b"x"))
        while (received := await client.frame()).opcode != raw.PONG:
            assert received.opcode == raw.PING  # nobody answers it for as long as the pause lasts


# ---- unknown ids


@pytest.mark.parametrize("kind", ["read", "confirm"])
@pytest.mark.parametrize("count", [1, 2, 800])
async def test_one_error_frame_names_all_unknown_ids(probe: Probe, kind: str, count: int) -> None:
    async with await Raw.websocket(probe.port, "/ws?user_id=7") as client:
        client.send(text({"type": kind, "message_ids": ids(count)}), text({"type": "ping"}))
        answers = [await answer(client), await answer(client)]
        error = next(item for item in answers if item["type"] == "error")
        assert error["error"] == "NOT_FOUND"
        if count == 1:
            assert error["ref"] == "0"
            assert "refs" not in error
        else:
            assert error["refs"] == ids(count)
            assert "ref" not in error


async def test_unknown_ids_named_twice_and_known_ones_among_them(probe: Probe) -> None:
    client = await probe.client(7)
    known = (await probe.publish(target="custom", user_ids=[7]))["message_id"]
    await client.receive()
    await client.send({"type": "read", "message_ids": ["x", known, "y", "x"]})
    assert (await client.receive())["refs"] == ["x", "y"]
    await client.send({"type": "read", "message_ids": ["x", "x", known]})
    assert (await client.receive())["ref"] == "x"


async def test_error_frames_in_messagepack(probe: Probe) -> None:
    ws = await probe.open("/ws?user_id=7", subprotocols=["pushd.v1.msgpack"])
    assert msgspec.msgpack.decode(await ws.recv())["type"] == "hello"
    await ws.send(msgspec.msgpack.encode({"type": "read", "message_ids": ["x", "y"]}))
    assert msgspec.msgpack.decode(await ws.recv())["refs"] == ["x", "y"]


async def test_guests_are_told_once(probe: Probe) -> None:
    async with await Raw.websocket(probe.port, "/ws") as client:
        client.send(text({"type": "read", "message_ids": ids(300)}))
        error = await answer(client)
        assert (error["error"], error["refs"]) == ("FORBIDDEN", ids(300))
        assert await is_open(client)


async def test_marks_of_a_connection_wait_for_each_other(probe: Probe) -> None:
    """However many are asked for, two are under way, and all are answered."""
    async with await Raw.websocket(probe.port, "/ws?user_id=7") as client:
        client.send(b"".join(text({"type": "read", "message_ids": [f"{number}", "x"]}) for number in range(45)))
        under_way = []
        refs = []
        for _ in range(45):
            refs.append((await answer(client))["refs"][0])
            under_way.append(len(probe.node.shared.tasks))
        assert sorted(refs, key=int) == [f"{number}" for number in range(45)]
        assert await is_open(client)


# ---- other connections of the user


async def test_marks_are_told_to_the_users_other_connections(probe: Probe) -> None:
    """Hundreds at once, in order, in each one's dialect."""
    one, other = await probe.client(7), await probe.client(7)
    packed = await probe.open("/ws?user_id=7", subprotocols=["pushd.v1.msgpack"])
    await packed.recv()
    notices = [{"content": "x", "target": "custom", "user_ids": [7]}] * 250
    items = (await probe.post("/system/notices", {"notices": notices})).json()["data"]["items"]
    message_ids = [item["message_id"] for item in items]
    for client in (one, other):
        assert await client.receive_ids(250) == message_ids
    for _ in range(250):
        await packed.recv()
    await one.send({"type": "read", "message_ids": message_ids})
    told = [await other.receive() for _ in range(250)]
    assert [(item["type"], item["message_id"], item["status"], item["unread_count"]) for item in told] == [
        ("receipt", message_id, "read", 0) for message_id in message_ids
    ]
    assert [msgspec.msgpack.decode(await packed.recv())["message_id"] for _ in range(250)] == message_ids


# ---- floods that close


@pytest.mark.parametrize(
    "flood",
    [
        raw.frame(raw.PING, b"x" * 125),
        raw.frame(raw.PONG),
        text({"type": "ping"}),
        text({"type": "nonsense"}),
        raw.frame(raw.TEXT, b"[" * 3000),
        raw.frame(raw.TEXT, b"", fin=False) + raw.frame(raw.CONTINUATION, b"", fin=False) * 60,
        text({"type": "read", "message_ids": ["x"]}),
        text({"type": "confirm", "message_ids": ["x"]}),
        text({"type": "auth", "token": "x"}),
    ],
    ids=["pings", "pongs", "json pings", "invalid", "nested", "fragments", "read", "confirm", "auth"],
)
async def test_4029_and_the_close_is_seen_by_one_who_goes_on(start: Any, flood: bytes) -> None:
    """A client that never stops sending gets all answers up to the close, and then the end of the stream."""
    probe = await start()
    other = await probe.client(8)
    async with await Raw.websocket(probe.port, "/ws?user_id=7") as client:

        async def go_on() -> None:
            while not client.writer.is_closing():
                client.send(flood * 20)
                await client.writer.drain()

        flooding = asyncio.create_task(go_on())
        while (received := await client.frame()).opcode != raw.CLOSE:
            pass
        assert received.close_code == 4029
        published = await probe.publish(target="custom", user_ids=[8])
        assert await other.receive_ids(1) == [published["message_id"]]
        await client.end()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
    await until(lambda: probe.node.hub.connections_total == 1)


# ---- tokens


@pytest.mark.parametrize("size", [1000, 8000, 8192])
@pytest.mark.parametrize("subprotocol", ["pushd.v1.json", "pushd.v1.msgpack"])
async def test_a_fresh_token_of_eight_kilobytes(start: Any, size: int, subprotocol: str) -> None:
    probe = await start(auth={"mode": "jwt", "jwt_secret": SECRET})
    ws = await probe.open(f"/ws?token={token(7, ttl_s=60)}", subprotocols=[subprotocol])
    await ws.recv()
    (connection,) = probe.node.hub.connections_of(7)
    before = connection.expires_at
    long = token(7, ttl_s=3600)
    pad = (size - len(long)) * 3 // 4 - 15
    long = token(7, ttl_s=3600, pad="x" * pad)
    assert size - 12 <= len(long) <= size
    message = {"type": "auth", "token": long}
    await ws.send(msgspec.msgpack.encode(message) if "msgpack" in subprotocol else json.dumps(message))
    await until(lambda: connection.expires_at > before + 1000)
    await (await ws.ping())


async def test_tokens_asked_for_again_and_again_pause_reading(start: Any) -> None:
    probe = await start(auth={"mode": "jwt", "jwt_secret": SECRET})
    mine = token(7, ttl_s=60, pad="x" * 1000)
    async with await Raw.websocket(probe.port, f"/ws?token={mine}") as client:
        began = time.monotonic()
        client.send(text({"type": "auth", "token": mine}) * 10)
        assert await is_open(client)
        assert time.monotonic() - began > 0.4
