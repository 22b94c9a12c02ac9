"""Having a notice say something else, from outside: who sees which version, and what is on record of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from pushd.clock import wall_ms
from tests.daemon import Client, Probe, Process, until
from tests.mongo_server import MongoServer
from tests.servers import RedisServer

TOLD, OLD, ABSENT = 1, 2, 3
RECORDS = "/notification/records"
WHOLE = {"title": "t", "url": "/u", "tags": ["a", "b"], "data": {"n": 1}, "priority": "high", "need_confirm": True}


async def put(probe: Probe, message_id: str, **fields: Any) -> httpx.Response:
    return await probe.http.put(f"/api/admin{RECORDS}/{message_id}", json=fields)


async def edit(probe: Probe, message_id: str, **fields: Any) -> dict[str, Any]:
    response = await put(probe, message_id, **fields)
    assert response.status_code == 200, response.text
    return response.json()["data"]


async def _record(probe: Probe, message_id: str) -> dict[str, Any]:
    return (await probe.get(f"{RECORDS}/{message_id}"))["record"]


async def _receipt(probe: Probe, message_id: str, user_id: int) -> dict[str, Any]:
    where = {"message_id": message_id, "user_id": user_id}
    (row,) = (await probe.get("/notification/admin-receive-records", params=where))["items"]
    return row


async def _inbox(probe: Probe, user_id: int) -> list[dict[str, Any]]:
    return (await probe.get("/notification/inbox", params={"user_id": user_id}))["items"]


async def _unread(probe: Probe, user_id: int) -> int:
    return (await probe.get("/notification/user-summary", params={"user_id": user_id}))["unread_count"]


async def _mailbox(probe: Probe, user_id: int) -> list[dict[str, Any]]:
    return (await probe.get("/notification/offline-messages", params={"user_id": user_id}))["offline_messages"]


async def _until_quiet(probe: Probe, client: Client) -> list[dict[str, Any]]:
    """What has come, up to a marker."""
    return await _up_to(client, await probe.publish("marker", target="online"))


async def _up_to(client: Client, marker: dict[str, Any]) -> list[dict[str, Any]]:
    seen = [await client.receive()]
    while seen[-1].get("message_id") != marker["message_id"]:
        seen.append(await client.receive())
    return [frame for frame in seen if frame.get("content") != "marker"]


async def test_everybody_sees_the_newest(probe: Probe) -> None:
    """Two connections of one user, in both dialects; a client of version 1 keeps what it has."""
    told = await probe.client(TOLD, query="changes=1")
    packed = await probe.open(f"/ws?user_id={TOLD}&changes=1", subprotocols=["pushd.v1.msgpack"])
    await packed.recv()
    old = await probe.client(OLD)
    published = await probe.publish("first", target="custom", user_ids=[TOLD, OLD, ABSENT], **WHOLE)
    message_id = published["message_id"]
    notice = await told.receive()
    assert "version" not in notice
    for receive in (packed.recv, old.receive):
        await receive()

    answer = await edit(probe, message_id, content="second", title=None, tags=["c"])
    assert answer == {"message_id": message_id, "version": 2, "connections": 2, "success": True}
    newest = {**notice, "content": "second", "tags": ["c"], "version": 2}
    del newest["title"]
    assert await told.receive() == {"type": "update", "notice": newest}
    assert msgspec.msgpack.decode(await packed.recv()) == {"type": "update", "notice": newest}
    assert await _until_quiet(probe, old) == []

    record = await _record(probe, message_id)
    assert (record["content"], record["version"], record["tags"], record["url"]) == ("second", 2, ["c"], "/u")
    assert "title" not in record
    (waiting,) = await _mailbox(probe, ABSENT)
    assert (waiting["content"], waiting["version"], waiting["message_id"]) == ("second", 2, message_id)
    items = {user_id: await _inbox(probe, user_id) for user_id in (TOLD, ABSENT)}
    found = [item for one in items.values() for item in one if item["message_id"] == message_id]
    assert [(item["content"], item["version"], item["tags"]) for item in found] == [("second", 2, ["c"])] * 2
    absent = await probe.client(ABSENT)
    assert await absent.receive() == {**newest, "offline": True}
    found = await probe.get(RECORDS, params={"tag": "c"})
    assert [item["message_id"] for item in found["items"]] == [message_id]
    assert (await probe.get(RECORDS, params={"tag": "a"}))["items"] == []


async def test_what_is_left_out_stays_and_null_takes_away(probe: Probe) -> None:
    published = await probe.publish("x", target="custom", user_ids=[ABSENT], expires_in_s=100, **WHOLE)
    message_id = published["message_id"]
    expires_at = (await _record(probe, message_id))["expires_at"]
    await edit(probe, message_id, content="y")
    record = await _record(probe, message_id)
    assert (record["title"], record["extra_data"], record["expires_at"]) == ("t", {"n": 1}, expires_at)
    await edit(probe, message_id, title=None, url=None, tags=None, data=None, expires_in_s=None)
    record = await _record(probe, message_id)
    assert (record["extra_data"], record["expires_at"], record["version"]) == (None, None, 3)
    assert not {"title", "url", "tags"} & record.keys()
    await edit(probe, message_id, expires_in_s=50)
    assert (await _record(probe, message_id))["expires_at"] is not None


async def test_keywords_find_what_it_says_now(probe: Probe) -> None:
    published = await probe.publish("needle", target="custom", user_ids=[ABSENT])
    assert (await probe.get(RECORDS, params={"keyword": "needle"}))["total"] == 1
    await edit(probe, published["message_id"], content="thread")
    assert (await probe.get(RECORDS, params={"keyword": "needle"}))["total"] == 0
    assert (await probe.get(RECORDS, params={"keyword": "thread"}))["total"] == 1


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "INVALID_REQUEST", ""),
    ({"version": 1, "reset": ["read"]}, "INVALID_REQUEST", ""),
    ({"content": " "}, "CONTENT_EMPTY", "content"),
    ({"content": None}, "CONTENT_EMPTY", "content"),
    ({"content": "x" * 501}, "CONTENT_TOO_LONG", "content"),
    ({"title": "x" * 201}, "INVALID_REQUEST", "title"),
    ({"url": "javascript:alert(1)"}, "INVALID_REQUEST", "url"),
    ({"tags": ["x"] * 11}, "INVALID_REQUEST", "tags"),
    ({"expires_in_s": 0}, "INVALID_REQUEST", "expires_in_s"),
    ({"content": "x", "reset": ["confirmed"]}, "INVALID_REQUEST", "reset"),
    ({"content": "x", "version": 0}, "INVALID_REQUEST", "version"),
    ({"content": "x", "version": 2}, "CONFLICT", "version"),
    ({"data": "x" * 70_000}, "BODY_TOO_LARGE", "data"),
]


@pytest.mark.parametrize(("fields", "code", "field"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
async def test_what_is_refused(probe: Probe, fields: dict[str, Any], code: str, field: str) -> None:
    published = await probe.publish("x", target="custom", user_ids=[ABSENT])
    response = await put(probe, published["message_id"], **fields)
    assert response.json()["error"] == code, response.text
    assert field in response.json()["message"]
    record = await _record(probe, published["message_id"])
    assert record["content"] == "x"
    assert "version" not in record


async def test_notices_that_nobody_gets_any_more(probe: Probe) -> None:
    revoked = (await probe.publish("x", target="custom", user_ids=[ABSENT]))["message_id"]
    await probe.post(f"{RECORDS}/{revoked}/revoke", None)
    expired = (await probe.publish("x", target="custom", user_ids=[ABSENT], expires_in_s=0.001))["message_id"]
    await asyncio.sleep(0.002)
    for message_id, status in ((revoked, 409), (expired, 409), ("nobody", 404)):
        assert (await put(probe, message_id, content="y")).status_code == status


async def test_two_editors(probe: Probe) -> None:
    """Of those who name the version that they have seen, one wins; the others are told which one is in force."""
    message_id = (await probe.publish("x", target="custom", user_ids=[ABSENT]))["message_id"]
    answers = await asyncio.gather(*(put(probe, message_id, content=f"y{number}", version=1) for number in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["data"] == {"field": "version", "version": 2}
    answers = await asyncio.gather(*(put(probe, message_id, content=f"z{number}") for number in range(5)))
    versions = {answer.json()["data"]["version"]: number for number, answer in enumerate(answers)}
    assert sorted(versions) == [3, 4, 5, 6, 7]
    record = await _record(probe, message_id)
    assert (record["version"], record["content"]) == (7, f"z{versions[7]}")


async def test_unread_again_and_what_was_confirmed(probe: Probe) -> None:
    """Who has read it has not any more; a confirmation says which version it is of."""
    users = [TOLD, OLD, ABSENT]
    clients = [await probe.client(user_id, query="changes=1") for user_id in users]
    message_id = (await probe.publish("x", target="custom", user_ids=users, need_confirm=True))["message_id"]
    mark = {"message_id": message_id}
    for path, user_id in (("mark-confirmed", TOLD), ("mark-read", OLD)):
        response = await probe.post(f"/notification/{path}", {**mark, "user_id": user_id})
        assert response.status_code == 200
    await edit(probe, message_id, content="y")
    row = await _receipt(probe, message_id, TOLD)
    assert (row["is_confirmed"], "confirmed_version" in row) == (True, False)
    assert [await _unread(probe, user_id) for user_id in users] == [0, 0, 1]
    await edit(probe, message_id, content="z", reset=["read"])
    assert [await _unread(probe, user_id) for user_id in users] == [1, 1, 1]
    for user_id in (TOLD, OLD):
        row = await _receipt(probe, message_id, user_id)
        assert (row["is_received"], row["is_read"], row["read_at"], row["is_confirmed"]) == (True, False, None, False)
    assert (await probe.receive_status(message_id))["read_users"] == 0
    await clients[0].send({"type": "confirm", "message_ids": [message_id]})
    await until(lambda: _is_confirmed(probe, message_id))
    assert (await _receipt(probe, message_id, TOLD))["confirmed_version"] == 3
    assert [await _unread(probe, user_id) for user_id in users] == [0, 1, 1]


async def _is_confirmed(probe: Probe, message_id: str) -> bool:
    return (await probe.receive_status(message_id))["confirmed_users"] == 1


async def test_while_it_goes_out(probe: Probe) -> None:
    """Whoever gets the first version is told of the last one behind it; nobody is left with a former one."""
    clients = {user_id: await probe.client(user_id, query="changes=1") for user_id in range(10, 30)}
    users = [*range(10, 50)]

    async def publish_and_edit(number: int) -> str:
        message_id = (await probe.publish(f"{number} v1", target="custom", user_ids=users, wait_ms=0))["message_id"]
        for version in (2, 3):
            await edit(probe, message_id, content=f"{number} v{version}", version=version - 1)
        return message_id

    message_ids = await asyncio.gather(*(publish_and_edit(number) for number in range(10)))
    marker = await probe.publish("marker", target="online")
    for client in clients.values():
        last: dict[str, str] = {}
        for frame in await _up_to(client, marker):
            notice = frame["notice"] if frame["type"] == "update" else frame
            last[notice["message_id"]] = notice["content"]
        assert last == {message_id: f"{number} v3" for number, message_id in enumerate(message_ids)}
    for user_id in users[20:]:
        assert {item["content"] for item in await _mailbox(probe, user_id)} == {f"{number} v3" for number in range(10)}


async def test_after_a_crash(tmp_path: Path) -> None:
    """The mailbox, what was not acknowledged, the record and a reset say what was answered before the kill."""
    async with Process(tmp_path) as daemon:
        async with await daemon.start() as probe:
            slow = await probe.client(TOLD, ack=True)
            reader = await probe.client(OLD)
            published = await probe.publish("first", target="custom", user_ids=[TOLD, OLD, ABSENT], wait_ms=0)
            message_id = published["message_id"]
            for client in (slow, reader):
                await client.receive()
            await probe.post("/notification/mark-read", {"message_id": message_id, "user_id": OLD})
            await until(lambda: _mailbox(probe, ABSENT))
            await edit(probe, message_id, content="second", reset=["read"])
            await daemon.kill()
        async with await daemon.start() as probe:
            for user_id in (TOLD, ABSENT):
                client = await probe.client(user_id)
                notice = await client.receive()
                assert (notice["content"], notice["version"]) == ("second", 2)
            assert await _unread(probe, OLD) == 1
            row = await _receipt(probe, message_id, OLD)
            assert (row["is_read"], row["read_at"]) == (False, None)
            record = await _record(probe, message_id)
            assert (record["content"], record["version"]) == ("second", 2)
            assert (await edit(probe, message_id, content="third", version=2))["version"] == 3


async def test_it_is_counted_and_sent_again_as_it_is(probe: Probe) -> None:
    published = await probe.publish("x", target="custom", user_ids=[ABSENT])
    await edit(probe, published["message_id"], content="y")
    wanted = 'pushd_notices_total{priority="normal",result="edited",target="custom"} 1.0'
    assert wanted in (await probe.http.get("/metrics")).text
    client = await probe.client(ABSENT, ack=True)
    assert (await client.receive())["content"] == "y"
    response = await probe.post(f"{RECORDS}/{published['message_id']}/resend?wait_ms=5000", None)
    assert response.status_code == 200
    notice = await client.receive()
    assert (notice["content"], notice["version"]) == ("y", 2)


class TestOutside:
    """With mailboxes in Redis and records in MongoDB."""

    @pytest.fixture
    async def probe(self, start: Any, redis_server: RedisServer, mongo_server: MongoServer) -> Probe:
        return await start(mailbox={"url": redis_server.url}, records={"url": mongo_server.url, "flush_ms": 1})  # type: ignore[no-any-return]

    async def test_the_stores_follow(self, probe: Probe, redis_server: RedisServer, mongo_server: MongoServer) -> None:
        told = await probe.client(TOLD, query="changes=1")
        published = await probe.publish("first", target="custom", user_ids=[TOLD, ABSENT], tags=["a"])
        message_id = published["message_id"]
        await told.receive()
        await probe.post("/notification/mark-read", {"message_id": message_id, "user_id": TOLD})
        assert (await told.receive())["type"] == "receipt"
        before = await redis_server.command("LINDEX", f"offline_msg:{ABSENT}", 0)
        answer = await edit(probe, message_id, content="second", title="t", tags=None, reset=["read"])
        assert (answer["version"], answer["connections"]) == (2, 1)
        assert (await told.receive())["notice"]["content"] == "second"
        (waiting,) = await _mailbox(probe, ABSENT)
        assert (waiting["content"], waiting["title"], waiting["version"]) == ("second", "t", 2)
        record = await _record(probe, message_id)
        assert (record["content"], record["version"], "tags" in record) == ("second", 2, False)
        assert await _unread(probe, TOLD) == 1

        async def element() -> Any:
            found = await redis_server.command("LINDEX", f"offline_msg:{ABSENT}", 0)
            return found if b"second" in found else None

        after = await until(element)
        old, new = (msgspec.json.decode(one) for one in (before, after))
        assert new == {
            **{name: old[name] for name in old if name != "tags"},
            "content": "second",
            "title": "t",
            "version": 2,
        }
        response = await probe.post("/notification/mark-confirmed", {"message_id": message_id, "user_id": TOLD})
        assert response.status_code == 200
        assert (await _receipt(probe, message_id, TOLD))["confirmed_version"] == 2
        client = await probe.client(ABSENT)
        assert (await client.receive())["content"] == "second"


async def test_a_scheduled_one(probe: Probe) -> None:
    """It goes out as it was edited; revoking it cancels it."""
    client = await probe.client(TOLD, query="changes=1")
    fields = {"target": "custom", "user_ids": [TOLD], "delay_s": 3600}
    first, second = [(await probe.publish("first", **fields))["message_id"] for _ in range(2)]
    soon = await edit(probe, first, content="second", send_at=wall_ms() + 300, version=1)
    assert (soon["version"], soon["connections"]) == (2, 0)
    notice = await client.receive()
    assert (notice["content"], notice["version"], notice["message_id"]) == ("second", 2, first)
    assert (await edit(probe, first, content="third"))["version"] == 3
    assert (await client.receive())["notice"]["content"] == "third"
    assert (await put(probe, first, send_at=wall_ms() + 60_000)).json()["error"] == "CONFLICT"
    response = await probe.post(f"{RECORDS}/{second}/revoke", None)
    assert response.json()["data"]["status"] == "cancelled"
    assert (await _record(probe, second))["state"] == "cancelled"
    assert (await put(probe, second, content="x")).json()["error"] == "CONFLICT"
