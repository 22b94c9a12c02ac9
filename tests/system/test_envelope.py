"""A notice's title, url and tags, wherever the notice is seen; and what publishers may not say there."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
import pytest

from tests.daemon import Probe
from tests.mongo_server import MongoServer
from tests.servers import RedisServer

TO_7_AND_8 = {"target": "custom", "user_ids": [7, 8]}
SAID: dict[str, Any] = {"title": "Order 5", "url": "https://shop.test/orders/5?a=1", "tags": ["shop", "café"]}
ENVELOPE = SAID.keys()


def envelope_of(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: shown[name] for name in ENVELOPE if name in shown}


@pytest.fixture(params=["embedded", "outside"])
async def world(
    start: Any, redis_server: RedisServer, mongo_server: MongoServer, request: pytest.FixtureRequest
) -> Probe:
    """A daemon with its own stores, or with MongoDB and Redis."""
    if request.param == "embedded":
        return await start()
    database = f"pushd_{uuid4().hex}"
    return await start(mailbox={"url": redis_server.url}, records={"url": mongo_server.url, "database": database})


async def test_it_is_the_same_everywhere(world: Probe) -> None:
    packed = await world.open("/ws?user_id=7&ack=1", subprotocols=["pushd.v1.msgpack"])
    client = await world.client(7)
    await packed.recv()
    message_id = (await world.publish("about an order", **SAID, **TO_7_AND_8))["message_id"]
    live = await client.receive()
    assert envelope_of(live) == SAID
    assert msgspec.msgpack.decode(await packed.recv()) == live

    (waiting,) = (await world.get("/notification/offline-messages", params={"user_id": 8}))["offline_messages"]
    assert envelope_of(waiting) == SAID
    late = await (await world.client(8)).receive()
    assert late == live | {"offline": True}

    record = (await world.get(f"/notification/records/{message_id}"))["record"]
    assert envelope_of(record) == SAID
    (listed,) = (await world.get("/notification/records"))["items"]
    assert listed == record


async def test_a_notice_without_it_has_none_anywhere(world: Probe) -> None:
    client = await world.client(7)
    message_id = (await world.publish("plain", title="", url=None, tags=[], **TO_7_AND_8))["message_id"]
    live = await client.receive()
    assert [*live] == ["type", "content", "data", "time", "ts", "message_id", "priority", "need_confirm"]
    (waiting,) = (await world.get("/notification/offline-messages", params={"user_id": 8}))["offline_messages"]
    record = (await world.get(f"/notification/records/{message_id}"))["record"]
    assert not ENVELOPE & (waiting.keys() | record.keys())


async def test_it_is_kept_when_the_notice_is_sent_again(world: Probe) -> None:
    message_id = (await world.publish("again", **SAID, **TO_7_AND_8))["message_id"]
    params = {"user_id": 8}
    await world.http.delete("/api/admin/notification/offline-messages", params=params)
    response = await world.post(f"/notification/records/{message_id}/resend?wait_ms=5000", {})
    assert response.status_code == 200, response.text
    (waiting,) = (await world.get("/notification/offline-messages", params=params))["offline_messages"]
    assert envelope_of(waiting) == SAID


async def test_lists_filter_by_tag(world: Probe) -> None:
    for name, tags in (("a", ["shop", "café"]), ("b", ["shop"]), ("c", []), ("d", ["Shop"])):
        fields = {"expires_in_s": 3600, "type": "order_paid"} if name == "a" else {}
        await world.publish("x", message_id=name, tags=tags, **TO_7_AND_8, **fields)

    async def listed(path: str, **params: Any) -> list[str]:
        page = await world.get(path, params={"sort_order": "asc", **params})
        assert page["total"] == len(page["items"])
        return [item["message_id"] for item in page["items"]]

    records, receipts = "/notification/records", "/notification/admin-receive-records"
    assert await listed(records, tag="shop") == ["a", "b"]
    assert await listed(records, tag="café", message_type="order_paid") == ["a"]
    assert await listed(records, tag="sho") == await listed(records, tag=".*") == []
    assert await listed(receipts, tag="shop") == ["a", "a", "b", "b"]
    assert await listed(receipts, tag="shop", user_id=8, message_id="b") == ["b"]
    assert await listed(receipts, tag="unknown") == []
    assert (await world.get("/notification/stats", params={"tag": "shop"}))["total_records"] == 2

    receipt, other = (await world.get(receipts, params={"user_id": 7, "sort_order": "asc"}))["items"][:3:2]
    assert (receipt["message_type"], receipt["tags"]) == ("order_paid", ["shop", "café"])
    assert receipt["expires_at"] == (await world.get(f"{records}/a"))["record"]["expires_at"] is not None
    assert (other["message_type"], other["expires_at"], "tags" in other) == ("system_notice", None, False)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"title": "x" * 201}, "title"),
        ({"title": ["x"]}, "title"),
        ({"url": "javascript:alert(1)"}, "url"),
        ({"url": "//evil.test"}, "url"),
        ({"url": "/\\evil.test"}, "url"),
        ({"url": "/\t/evil.test"}, "url"),
        ({"url": " https://a.test"}, "url"),
        ({"url": "HTTPS://a.test"}, "url"),
        ({"url": "/" + "x" * 2048}, "url"),
        ({"tags": "shop"}, "tags"),
        ({"tags": ["a"] * 11}, "tags"),
        ({"tags": ["a", ""]}, "tags[1]"),
        ({"tags": ["x" * 33]}, "tags[0]"),
        ({"tags": ["a\u0007"]}, "tags[0]"),
        ({"type": "revoke"}, "type"),
        ({"type": "pushd.anything"}, "type"),
    ],
)
async def test_what_is_refused(probe: Probe, fields: dict[str, Any], field: str) -> None:
    response = await probe.post("/system/notice", {"content": "x"} | fields)
    answer = response.json()
    assert (response.status_code, answer["error"], answer["data"]["field"]) == (400, "INVALID_REQUEST", field)
    assert answer["message"].startswith(f"{field}: ")
    assert (await probe.get("/notification/records"))["total"] == 0
