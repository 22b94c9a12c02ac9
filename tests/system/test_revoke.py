"""Taking a notice back, from outside: who is told, who does not get it any more, and what stays on record."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.daemon import Probe, Process, until
from tests.mongo_server import MongoServer
from tests.servers import RedisServer

TOLD, SILENT, ABSENT, LATER = 1, 2, 3, 4
RECORDS = "/notification/records"


async def _revoke(probe: Probe, message_id: str) -> dict[str, Any]:
    response = await probe.post(f"{RECORDS}/{message_id}/revoke", None)
    assert response.status_code == 200, response.text
    return response.json()["data"]


async def _record(probe: Probe, message_id: str) -> dict[str, Any]:
    return (await probe.get(f"{RECORDS}/{message_id}"))["record"]


async def _unread(probe: Probe, user_id: int) -> int:
    return (await probe.get("/notification/user-summary", params={"user_id": user_id}))["unread_count"]


async def test_out_of_everything(probe: Probe) -> None:
    """Two connections of one user, in both dialects; a client of version 1 hears nothing; nobody gets it later."""
    told = await probe.client(TOLD, query="changes=1")
    packed = await probe.open(f"/ws?user_id={TOLD}&changes=1", subprotocols=["pushd.v1.msgpack"])
    await packed.recv()
    old = await probe.client(TOLD)
    silent = await probe.client(SILENT)
    published = await probe.publish("oops", target="custom", user_ids=[TOLD, SILENT, ABSENT])
    message_id = published["message_id"]
    for client in (told, old, silent):
        await client.receive()
    await packed.recv()
    assert await probe.mailbox(ABSENT) == [message_id]
    assert [await _unread(probe, user_id) for user_id in (TOLD, ABSENT)] == [1, 1]

    revoked = await _revoke(probe, message_id)
    assert revoked == {
        "message_id": message_id, "status": "revoked", "success": True, "copies": 1, "connections": 2
    }  # fmt: skip
    assert await told.receive() == {"type": "revoke", "message_id": message_id}
    assert msgspec.msgpack.decode(await packed.recv()) == {"type": "revoke", "message_id": message_id}
    assert await probe.mailbox(ABSENT) == []
    assert [await _unread(probe, user_id) for user_id in (TOLD, ABSENT)] == [0, 0]
    marker = await probe.publish("marker", target="online")
    for client in (told, old, silent):
        assert await client.receive_ids(1) == [marker["message_id"]]
    absent = await probe.client(ABSENT, query="changes=1")
    assert absent.hello["data"]["unread_count"] == 0
    later = await probe.publish("later", target="online")
    assert await absent.receive_ids(1) == [later["message_id"]]

    record = await _record(probe, message_id)
    assert (record["state"], record["status"], record["content"]) == ("revoked", "success", "oops")
    assert record["total_count"] == 3
    status = await probe.receive_status(message_id)
    assert (status["total_users"], status["received_users"]) == (3, 2)


async def test_again_and_unknown_ones(probe: Probe) -> None:
    told = await probe.client(TOLD, query="changes=1")
    published = await probe.publish(target="custom", user_ids=[TOLD, ABSENT])
    assert (await _revoke(probe, published["message_id"]))["copies"] == 1
    again = await _revoke(probe, published["message_id"])
    assert (again["status"], again["copies"], again["connections"]) == ("revoked", 0, 0)
    assert [(await told.receive())["type"] for _ in range(2)] == ["system_notice", "revoke"]
    assert await told.is_quiet()
    response = await probe.post(f"{RECORDS}/nobody/revoke", None)
    assert (response.status_code, response.json()["error"]) == (404, "NOT_FOUND")


async def test_it_cannot_be_sent_again(probe: Probe) -> None:
    published = await probe.publish(target="custom", user_ids=[ABSENT], message_id="mine")
    await _revoke(probe, published["message_id"])
    response = await probe.post(f"{RECORDS}/mine/resend", None)
    assert (response.status_code, response.json()["error"]) == (409, "CONFLICT")
    assert await probe.mailbox(ABSENT) == []


async def test_what_a_client_has_not_acknowledged_does_not_return(start: Any) -> None:
    """Neither when its connection is lost, nor when the time for it is over; an answer that comes is on record."""
    probe = await start(delivery={"ack_timeout_s": 1})
    slow = await probe.client(TOLD, ack=True, query="changes=1")
    leaving = await probe.client(SILENT, ack=True)
    answers = await probe.client(LATER, ack=True)
    published = await probe.publish(target="custom", user_ids=[TOLD, SILENT, LATER], wait_ms=0)
    message_id = published["message_id"]
    for client in (slow, leaving, answers):
        await client.receive()
    await _revoke(probe, message_id)
    assert (await slow.receive())["type"] == "revoke"
    await leaving.ws.close()
    await answers.ack(message_id)
    await until(lambda: _settled(probe))
    assert [await probe.mailbox(user_id) for user_id in (TOLD, SILENT, LATER)] == [[], [], []]
    assert (await probe.receive_status(message_id))["received_users"] == 1


async def _settled(probe: Probe) -> bool:
    text = (await probe.http.get("/metrics")).text
    return "pushd_journal_pending 0.0" in text


async def test_a_guest_is_told(probe: Probe) -> None:
    guest = await probe.client(query="changes=1")
    published = await probe.publish(target="all")
    await guest.receive()
    assert (await _revoke(probe, published["message_id"]))["connections"] == 1
    assert await guest.receive() == {"type": "revoke", "message_id": published["message_id"]}


async def test_it_is_counted(probe: Probe) -> None:
    published = await probe.publish(target="custom", user_ids=[TOLD])
    await _revoke(probe, published["message_id"])
    wanted = 'pushd_notices_total{priority="normal",result="revoked",target="custom"} 1.0'
    assert wanted in (await probe.http.get("/metrics")).text


async def test_only_admins_may(start: Any) -> None:
    probe = await start(auth={"mode": "jwt", "jwt_secret": "s" * 32, "api_keys": ["k" * 32]})
    response = await probe.post(f"{RECORDS}/m/revoke", None)
    assert response.status_code == 401
    response = await probe.post(f"{RECORDS}/m/revoke", None, headers={"X-API-Key": "k" * 32})
    assert response.status_code == 404


@pytest.mark.parametrize("is_to_all", [False, True], ids=["some", "all"])
async def test_after_a_crash(tmp_path: Path, is_to_all: bool) -> None:
    """What was revoked before a kill is revoked after it: it neither waits nor goes out, whoever had not answered."""
    target = {"target": "all"} if is_to_all else {"target": "custom", "user_ids": [TOLD, ABSENT]}
    async with Process(tmp_path, directory={"cache_ttl_s": 1}) as daemon:
        async with await daemon.start() as probe:
            for user_id in (TOLD, ABSENT):
                await (await probe.client(user_id)).ws.close()
            slow = await probe.client(TOLD, ack=True)
            published = await probe.publish("before", wait_ms=0, **target)
            message_id = published["message_id"]
            await slow.receive()
            await until(lambda: probe.mailbox(ABSENT))
            await _revoke(probe, message_id)
            await daemon.kill()
        async with await daemon.start() as probe:
            assert await probe.mailbox(ABSENT) == await probe.mailbox(TOLD) == []
            for user_id in (TOLD, ABSENT):
                client = await probe.client(user_id, ack=True)
                assert client.hello["data"]["unread_count"] == 0
                marker = await probe.publish("after", target="online")
                assert await client.receive_ids(1) == [marker["message_id"]]
                await client.ws.close()
            assert (await _record(probe, message_id))["state"] == "revoked"
            assert (await _revoke(probe, message_id))["copies"] == 0


async def test_while_it_goes_out(probe: Probe) -> None:
    """Each notice is taken back at once: who connects later gets none, and nobody gets one after he was told."""
    clients = [await probe.client(user_id, query="changes=1") for user_id in range(10, 30)]
    users = [*range(10, 50)]

    async def publish_and_revoke(number: int) -> str:
        published = await probe.publish(f"n{number}", target="custom", user_ids=users, wait_ms=0)
        await _revoke(probe, published["message_id"])
        return published["message_id"]

    message_ids = await asyncio.gather(*(publish_and_revoke(number) for number in range(20)))
    marker = await probe.publish("marker", target="online")
    for client in clients:
        seen = [await client.receive()]
        while seen[-1].get("message_id") != marker["message_id"]:
            seen.append(await client.receive())
        got = [frame["message_id"] for frame in seen[:-1] if frame["type"] == "system_notice"]
        gone = [frame["message_id"] for frame in seen if frame["type"] == "revoke"]
        assert sorted(got) == sorted(gone)
        places = {(frame["type"], frame["message_id"]): place for place, frame in enumerate(seen)}
        assert all(places["system_notice", one] < places["revoke", one] for one in gone)
    for user_id in users:
        assert await probe.mailbox(user_id) == [], user_id
    for message_id in message_ids:
        assert (await _record(probe, message_id))["state"] == "revoked"


class TestOutside:
    """With mailboxes in Redis and records in MongoDB."""

    @pytest.fixture
    async def sections(self, redis_server: RedisServer, mongo_server: MongoServer) -> dict[str, Any]:
        return {"mailbox": {"url": redis_server.url}, "records": {"url": mongo_server.url, "flush_ms": 1}}

    async def test_the_stores_follow(
        self, start: Any, sections: dict[str, Any], redis_server: RedisServer, mongo_server: MongoServer
    ) -> None:
        probe = await start(**sections)
        told = await probe.client(TOLD, query="changes=1")
        published = await probe.publish("oops", target="custom", user_ids=[TOLD, ABSENT])
        message_id = published["message_id"]
        await told.receive()
        assert await probe.mailbox(ABSENT) == [message_id]
        revoked = await _revoke(probe, message_id)
        assert (revoked["copies"], revoked["connections"]) == (1, 1)
        assert await told.receive() == {"type": "revoke", "message_id": message_id}
        assert await probe.mailbox(ABSENT) == []
        assert (await _record(probe, message_id))["state"] == "revoked"
        assert [await _unread(probe, user_id) for user_id in (TOLD, ABSENT)] == [0, 0]
        key = f"offline_msg:{ABSENT}"
        await until(lambda: _is_gone(redis_server, key))

    async def test_a_replay_asks_what_is_known_here(
        self, start: Any, sections: dict[str, Any], redis_server: RedisServer
    ) -> None:
        """An element that is still in the list, as after a save that came late, is not sent."""
        probe = await start(**sections)
        published = await probe.publish("oops", target="custom", user_ids=[ABSENT])
        message_id = published["message_id"]
        element = await redis_server.command("LINDEX", f"offline_msg:{ABSENT}", 0)
        await _revoke(probe, message_id)
        await until(lambda: _is_gone(redis_server, f"offline_msg:{ABSENT}"))
        await redis_server.command("LPUSH", f"offline_msg:{ABSENT}", element)
        client = await probe.client(ABSENT)
        marker = await probe.publish("marker", target="online")
        assert await client.receive_ids(1) == [marker["message_id"]]

    async def test_redis_is_away(self, tmp_path: Path, sections: dict[str, Any], redis_server: RedisServer) -> None:
        """The list follows when Redis is back, also where the daemon was killed meanwhile."""
        key = f"offline_msg:{ABSENT}"
        async with Process(tmp_path, **sections) as daemon:
            async with await daemon.start() as probe:
                published = await probe.publish("oops", target="custom", user_ids=[ABSENT])
                redis_server.freeze()
                assert (await _revoke(probe, published["message_id"]))["copies"] == 1
                await daemon.kill()
            redis_server.thaw()
            assert await redis_server.command("LLEN", key) == 1
            async with await daemon.start() as probe:
                await until(lambda: _is_gone(redis_server, key))
                assert await probe.mailbox(ABSENT) == []


async def _is_gone(server: RedisServer, key: str) -> bool:
    return not await server.command("EXISTS", key)
