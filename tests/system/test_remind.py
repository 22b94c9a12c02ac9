"""Reminding of a notice, from outside: who gets it again, how, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.daemon import Client, Probe, Process, until
from tests.mongo_server import MongoServer
from tests.servers import RedisServer

CONFIRMED, READ, RECEIVED, OLD, ABSENT = range(1, 6)
USERS = [CONFIRMED, READ, RECEIVED, OLD, ABSENT]
RECORDS = "/notification/records"


async def ask(probe: Probe, message_id: str, step: str) -> httpx.Response:
    return await probe.post(f"{RECORDS}/{message_id}/remind", {"step": step})


async def remind(probe: Probe, message_id: str, step: str) -> tuple[int, int]:
    response = await ask(probe, message_id, step)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert data["message_id"] == message_id
    return data["n"], data["recipients"]


async def _unread(probe: Probe, user_id: int) -> int:
    return (await probe.get("/notification/user-summary", params={"user_id": user_id}))["unread_count"]


async def _crowd(probe: Probe) -> tuple[str, dict[int, Client], dict[str, Any]]:
    """A notice; who has confirmed, read and received it, an old client that has, and nobody for the last user."""
    clients = {user_id: await probe.client(user_id, query="changes=1") for user_id in (CONFIRMED, READ, RECEIVED)}
    clients[OLD] = await probe.client(OLD)
    published = await probe.publish("do it", target="custom", user_ids=USERS, title="t", need_confirm=True)
    message_id = published["message_id"]
    notice, *_ = [await client.receive() for client in clients.values()]
    for user_id, path in ((CONFIRMED, "mark-confirmed"), (READ, "mark-read")):
        await probe.post(f"/notification/{path}", {"message_id": message_id, "user_id": user_id})
        assert (await clients[user_id].receive())["type"] == "receipt"
    return message_id, clients, notice


STEPS = {
    "received": ([], [ABSENT]),
    "read": ([RECEIVED], [OLD, ABSENT]),
    "confirmed": ([READ, RECEIVED], [OLD, ABSENT]),
}


@pytest.mark.parametrize("step", STEPS)
async def test_who_has_not_got_that_far(probe: Probe, step: str) -> None:
    """Live as a reminder for who wants to hear of changes, as the notice for others; else it waits, once."""
    message_id, clients, notice = await _crowd(probe)
    before = await probe.receive_status(message_id)
    told, others = STEPS[step]
    assert await remind(probe, message_id, step) == (1, len(told) + len(others))
    for user_id in told:
        assert await clients[user_id].receive() == {"type": "remind", "n": 1, "notice": notice}
    if OLD in others:
        assert await clients[OLD].receive() == notice
    await until(lambda: _is_waiting(probe, message_id))
    marker = await probe.publish("marker", target="online")
    for client in clients.values():
        assert await client.receive_ids(1) == [marker["message_id"]]
    assert await probe.mailbox(ABSENT) == [message_id]
    assert await probe.receive_status(message_id) == before
    assert await (await probe.client(ABSENT)).receive() == {**notice, "offline": True}


async def _is_waiting(probe: Probe, message_id: str) -> bool:
    text = (await probe.http.get("/metrics")).text
    return "pushd_journal_pending 0.0" in text and await probe.mailbox(ABSENT) == [message_id]


async def test_msgpack_and_who_is_away_now(probe: Probe) -> None:
    packed = await probe.open(f"/ws?user_id={READ}&changes=1", subprotocols=["pushd.v1.msgpack"])
    await packed.recv()
    leaving = await probe.client(RECEIVED)
    message_id = (await probe.publish("x", target="custom", user_ids=[READ, RECEIVED]))["message_id"]
    notice = msgspec.msgpack.decode(await packed.recv())
    await leaving.receive()
    await leaving.ws.close()
    await until(lambda: _has_left(probe, 1))
    assert await remind(probe, message_id, "read") == (1, 2)
    assert msgspec.msgpack.decode(await packed.recv()) == {"type": "remind", "n": 1, "notice": notice}
    await until(lambda: probe.mailbox(RECEIVED))
    assert (await probe.receive_status(message_id))["received_users"] == 2, "receipts stay"
    assert await (await probe.client(RECEIVED)).receive_ids(1) == [message_id]
    await until(lambda: _is_empty(probe, RECEIVED))
    assert await _unread(probe, RECEIVED) == 1


async def _has_left(probe: Probe, users: int) -> bool:
    return (await probe.get("/websocket/stats"))["unique_users"] == users


async def _is_empty(probe: Probe, user_id: int) -> bool:
    return await probe.mailbox(user_id) == []


async def test_how_often(start: Any) -> None:
    probe = await start(limits={"remind_every_s": 300})
    message_id = (await probe.publish("x", target="custom", user_ids=[ABSENT]))["message_id"]
    assert await remind(probe, message_id, "read") == (1, 1)
    response = await ask(probe, message_id, "read")
    assert (response.status_code, response.json()["error"]) == (429, "RATE_LIMITED")
    assert 290 <= int(response.headers["Retry-After"]) <= 300
    other = (await probe.publish("y", target="custom", user_ids=[ABSENT]))["message_id"]
    assert await remind(probe, other, "read") == (1, 1)


async def test_it_is_counted_and_nobody_is_left(start: Any) -> None:
    probe = await start(limits={"remind_every_s": 0})
    message_id = (await probe.publish("x", target="custom", user_ids=[ABSENT]))["message_id"]
    assert [await remind(probe, message_id, "read") for _ in range(2)] == [(1, 1), (2, 1)]
    assert await probe.mailbox(ABSENT) == [message_id]
    await probe.post("/notification/mark-read", {"message_id": message_id, "user_id": ABSENT})
    assert await remind(probe, message_id, "read") == (2, 0)
    assert await remind(probe, message_id, "confirmed") == (3, 1)


async def test_what_is_refused(probe: Probe) -> None:
    revoked, scheduled = [
        (await probe.publish("x", target="custom", user_ids=[ABSENT], **fields))["message_id"]
        for fields in ({}, {"delay_s": 3600})
    ]
    await probe.post(f"{RECORDS}/{revoked}/revoke", None)
    for message_id, step, status in (
        (revoked, "read", 409),
        (scheduled, "read", 409),
        ("nobody", "read", 404),
        (revoked, "seen", 400),
    ):
        assert (await ask(probe, message_id, step)).status_code == status, message_id


async def test_after_a_crash(tmp_path: Path) -> None:
    """A reminder that was answered reaches everybody, and is counted on."""
    async with Process(tmp_path, limits={"remind_every_s": 0}) as daemon:
        async with await daemon.start() as probe:
            silent = await probe.client(READ, ack=True, query="changes=1")
            message_id = (await probe.publish("x", target="custom", user_ids=[READ], wait_ms=0))["message_id"]
            await silent.receive()
            await silent.ack(message_id)
            await until(lambda: _has_received(probe, message_id))
            assert await remind(probe, message_id, "confirmed") == (1, 1)
            await daemon.kill()
        async with await daemon.start() as probe:
            again = await probe.client(READ, query="changes=1")
            frame = await again.receive()
            assert message_id in (frame.get("message_id"), frame.get("notice", {}).get("message_id"))
            assert await remind(probe, message_id, "confirmed") == (2, 1)


async def _has_received(probe: Probe, message_id: str) -> bool:
    return (await probe.receive_status(message_id))["received_users"] == 1


async def test_stores_outside(start: Any, redis_server: RedisServer, mongo_server: MongoServer) -> None:
    probe = await start(mailbox={"url": redis_server.url}, records={"url": mongo_server.url, "flush_ms": 1})
    message_id, clients, notice = await _crowd(probe)
    assert await remind(probe, message_id, "confirmed") == (1, 4)
    for user_id in (READ, RECEIVED):
        assert await clients[user_id].receive() == {"type": "remind", "n": 1, "notice": notice}
    assert await clients[OLD].receive() == notice
    await until(lambda: probe.mailbox(ABSENT))
    assert await probe.mailbox(ABSENT) == [message_id]
