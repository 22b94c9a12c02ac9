"""The main job from outside: a notice is published, whoever is concerned gets it, now or later."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.daemon import Client, Probe, until


async def test_hello_is_the_first_frame(probe: Probe) -> None:
    client = await probe.client(7)
    assert client.hello["type"] == "hello"
    assert client.hello["code"] == 200
    data = client.hello["data"]
    assert data["user_id"] == 7
    assert data["status"] == "connected"
    assert data["heartbeat_s"] == 25
    assert data["unread_count"] == 0
    assert data["conn_id"]
    assert data["node_id"]


async def test_a_notice_has_the_fields_of_the_contract(probe: Probe) -> None:
    client = await probe.client(7)
    published = await probe.publish(
        "你好", type="order_paid", data={"order": [1, 2]}, priority="high", need_confirm=True
    )
    notice = await client.receive()
    assert notice == {
        "type": "order_paid",
        "content": "你好",
        "data": {"order": [1, 2]},
        "time": published["push_time"],
        "ts": notice["ts"],
        "message_id": published["message_id"],
        "priority": 2,
        "need_confirm": True,
    }


async def test_messagepack_clients_get_the_same_fields(probe: Probe) -> None:
    json_client = await probe.client(7)
    ws = await probe.open("/ws?user_id=8", subprotocols=["pushd.v1.msgpack"])
    assert ws.subprotocol == "pushd.v1.msgpack"
    hello = msgspec.msgpack.decode(await ws.recv())
    assert hello["type"] == "hello"
    await probe.publish(data={"deep": {"list": [1, None, 2.5, "x"]}})
    assert msgspec.msgpack.decode(await ws.recv()) == await json_client.receive()
    await ws.send(msgspec.msgpack.encode({"type": "ping"}))
    assert msgspec.msgpack.decode(await ws.recv())["type"] == "pong"


TARGETS: list[tuple[dict[str, Any], set[int]]] = [
    ({"target": "all"}, {1, 2, 3, -1}),
    ({"target": "online"}, {1, 2, 3, -1}),
    ({"target": "all", "exclude_ids": [2]}, {1, 3, -1}),
    ({"target": "custom", "user_ids": [1, 3, 99]}, {1, 3}),
    ({"target": "custom", "user_ids": [1, 3], "exclude_ids": [1]}, {3}),
    ({"target": "role", "roles": [2]}, {2}),
    ({"target": "admin"}, {1}),
]


@pytest.mark.parametrize(("fields", "expected"), TARGETS)
async def test_targets(start: Any, fields: dict[str, Any], expected: set[int], tmp_path: Any) -> None:
    from pushd.model import User
    from pushd.stores.sqlite import import_users

    (tmp_path / "data").mkdir(mode=0o700)
    import_users(str(tmp_path / "data"), [User(1, "ann", 1), User(2, "ben", 2), User(3, "cid", 3)])
    probe = await start()
    clients = {user_id: await probe.client(user_id if user_id > 0 else None) for user_id in (1, 2, 3, -1)}
    await probe.publish("first", **fields)
    await probe.publish("last", target="online")
    got = {user_id for user_id, client in clients.items() if (await client.receive())["content"] == "first"}
    assert got == expected


async def test_every_connection_of_a_user_gets_it(probe: Probe) -> None:
    clients = [await probe.client(7) for _ in range(3)]
    published = await probe.publish(target="custom", user_ids=[7])
    assert [await client.receive_ids(1) for client in clients] == [[published["message_id"]]] * 3
    assert published["total_count"] == published["online_count"] == 1


async def test_absent_users_find_it_waiting_oldest_first_and_once(probe: Probe) -> None:
    ids = [(await probe.publish(str(n), target="custom", user_ids=[7]))["message_id"] for n in range(5)]
    assert await probe.mailbox(7) == ids
    client = await probe.client(7)
    assert client.hello["data"]["unread_count"] == 5
    messages = [await client.receive() for _ in range(5)]
    assert [message["message_id"] for message in messages] == ids
    assert all(message["offline"] is True for message in messages)
    await until(lambda: _is_empty(probe, 7))
    again = await probe.client(7)
    assert await again.is_quiet()


async def _is_empty(probe: Probe, user_id: int) -> bool:
    return not await probe.mailbox(user_id)


async def test_all_reaches_every_user_that_ever_connected(probe: Probe) -> None:
    early = await probe.client(5)
    await early.ws.close()
    await until(lambda: not probe.node.hub.connections_total)
    published = await probe.publish(target="all")
    assert (published["total_count"], published["offline_count"]) == (1, 1)
    assert await (await probe.client(5)).receive_ids(1) == [published["message_id"]]


async def test_guests_get_live_notices_only(probe: Probe) -> None:
    guest = await probe.client()
    assert guest.hello["data"]["user_id"] < 0
    other = await probe.client()
    assert other.hello["data"]["user_id"] != guest.hello["data"]["user_id"]
    published = await probe.publish(target="all")
    assert published["total_count"] == 0
    assert await guest.receive_ids(1) == [published["message_id"]]
    await guest.send({"type": "read", "message_ids": [published["message_id"]]})
    assert (await guest.receive())["error"] == "FORBIDDEN"


async def test_order_within_a_priority(probe: Probe) -> None:
    clients = [await probe.client(user_id) for user_id in (1, 2)]
    bodies = [{"content": str(n), "target": ("all", "online", "custom")[n % 3], "user_ids": [1, 2]} for n in range(300)]
    response = await probe.post("/system/notices", {"notices": bodies})
    ids = [item["message_id"] for item in response.json()["data"]["items"]]
    for client in clients:
        assert await client.receive_ids(300) == ids


async def test_mailbox_comes_before_live_frames(probe: Probe) -> None:
    waiting = [(await probe.publish(target="custom", user_ids=[7]))["message_id"] for _ in range(20)]
    ws = await probe.open("/ws?user_id=7")
    live = [(await probe.publish(target="custom", user_ids=[7], wait_ms=0))["message_id"] for _ in range(5)]
    client = Client(ws)
    assert (await client.receive())["type"] == "hello"
    assert await client.receive_ids(25) == waiting + live


async def test_mailbox_keeps_the_newest(start: Any) -> None:
    probe = await start(mailbox={"max_per_user": 3})
    ids = [(await probe.publish(target="custom", user_ids=[7]))["message_id"] for _ in range(5)]
    assert await probe.mailbox(7) == ids[-3:]


async def test_clearing_a_mailbox(probe: Probe) -> None:
    await probe.publish(target="custom", user_ids=[7])
    response = await probe.http.delete("/api/admin/notification/offline-messages", params={"user_id": 7})
    assert response.json()["data"] == {"user_id": 7, "cleared_count": 1}
    assert await probe.mailbox(7) == []


async def test_expired_notices_are_not_delivered_late(probe: Probe) -> None:
    published = await probe.publish(target="custom", user_ids=[7], expires_in_s=0.05)
    await until(lambda: _is_empty(probe, 7))
    client = await probe.client(7)
    assert await client.is_quiet()
    status = await probe.receive_status(published["message_id"])
    assert status["received_users"] == 0


class TestAcknowledgements:
    async def test_unacknowledged_when_the_connection_goes_is_in_the_mailbox_again(self, probe: Probe) -> None:
        client = await probe.client(7, ack=True)
        published = [await probe.publish(target="custom", user_ids=[7]) for _ in range(3)]
        ids = await client.receive_ids(3)
        assert ids == [item["message_id"] for item in published]
        await client.ack(ids[1])
        await client.ws.close()
        await until(lambda: not probe.node.hub.connections_total)
        assert await probe.mailbox(7) == [ids[0], ids[2]]

    async def test_received_means_acknowledged(self, probe: Probe) -> None:
        client = await probe.client(7, ack=True)
        published = await probe.publish(target="custom", user_ids=[7])
        message_id = published["message_id"]
        assert (published["online_count"], published["delivered_count"]) == (1, 0)
        await client.receive()
        assert (await probe.receive_status(message_id))["received_users"] == 0
        await client.send({"type": "message_received", "message_id": message_id})
        await until(lambda: _received(probe, message_id))

    async def test_one_acknowledgement_counts_for_all_connections(self, probe: Probe) -> None:
        first, second = await probe.client(7, ack=True), await probe.client(7, ack=True)
        await probe.publish(target="custom", user_ids=[7])
        (message_id,) = await first.receive_ids(1)
        await second.receive()
        await first.ack(message_id)
        await until(lambda: _received(probe, message_id))
        await first.ws.close()
        await second.ws.close()
        await until(lambda: not probe.node.hub.connections_total)
        assert await probe.mailbox(7) == []

    async def test_while_another_acknowledging_connection_is_open_nothing_goes_back(self, probe: Probe) -> None:
        first, second = await probe.client(7, ack=True), await probe.client(7, ack=True)
        await probe.publish(target="custom", user_ids=[7])
        await first.ws.close()
        await until(lambda: probe.node.hub.connections_total == 1)
        assert await probe.mailbox(7) == []
        await second.ack(*(await second.receive_ids(1)))

    async def test_a_frame_not_acknowledged_in_time_goes_back(self, start: Any) -> None:
        probe = await start(delivery={"ack_timeout_s": 0.1})
        client = await probe.client(7, ack=True)
        await probe.publish(target="custom", user_ids=[7])
        (message_id,) = await client.receive_ids(1)
        await until(lambda: _waits(probe, 7, message_id))
        await client.ack(message_id)  # late, and still good
        await until(lambda: _is_empty(probe, 7))
        await until(lambda: _received(probe, message_id))

    async def test_a_replayed_notice_stays_until_acknowledged(self, probe: Probe) -> None:
        published = await probe.publish(target="custom", user_ids=[7])
        first = await probe.client(7, ack=True)
        assert await first.receive_ids(1) == [published["message_id"]]
        await first.ws.close()
        await until(lambda: not probe.node.hub.connections_total)
        second = await probe.client(7, ack=True)
        assert await second.receive_ids(1) == [published["message_id"]]
        await second.ack(published["message_id"])
        await until(lambda: _is_empty(probe, 7))
        await until(lambda: _received(probe, published["message_id"]))

    async def test_ids_that_were_never_sent_are_ignored(self, probe: Probe) -> None:
        published = await probe.publish(target="custom", user_ids=[8])
        client = await probe.client(7, ack=True)
        await client.ack(published["message_id"], "made-up")
        await client.send({"type": "ping"})
        assert (await client.receive())["type"] == "pong"
        status = await probe.receive_status(published["message_id"])
        assert (status["total_users"], status["received_users"]) == (1, 0)


async def _received(probe: Probe, message_id: str) -> bool:
    return (await probe.receive_status(message_id))["received_users"] == 1


async def _waits(probe: Probe, user_id: int, message_id: str) -> bool:
    return message_id in await probe.mailbox(user_id)


class TestReadAndConfirm:
    async def test_other_connections_of_the_user_are_told(self, probe: Probe) -> None:
        first, second, stranger = await probe.client(7), await probe.client(7), await probe.client(8)
        published = [await probe.publish(target="custom", user_ids=[7]) for _ in range(2)]
        ids = await first.receive_ids(2)
        await second.receive_ids(2)
        await first.send({"type": "read", "message_ids": [ids[0]]})
        receipt = await second.receive()
        assert receipt == {"type": "receipt", "message_id": ids[0], "status": "read", "unread_count": 1}
        await second.send({"type": "confirm", "message_ids": [ids[1]]})
        receipt = await first.receive()
        assert receipt == {"type": "receipt", "message_id": ids[1], "status": "confirmed", "unread_count": 0}
        status = await probe.receive_status(published[1]["message_id"])
        assert (status["read_users"], status["confirmed_users"]) == (1, 1)
        assert await stranger.is_quiet()

    async def test_unknown_notices_are_refused_and_named(self, probe: Probe) -> None:
        client = await probe.client(7)
        await client.send({"type": "read", "message_ids": ["nope"]})
        assert await client.receive() == {
            "type": "error",
            "error": "NOT_FOUND",
            "message": "no such notice for this user",
            "ref": "nope",
        }

    async def test_over_http(self, probe: Probe) -> None:
        client = await probe.client(7)
        published = [(await probe.publish(target="custom", user_ids=[7]))["message_id"] for _ in range(3)]
        await client.receive_ids(3)
        body = {"message_id": published[0], "user_id": 7}
        assert (await probe.post("/notification/mark-read", body)).json()["data"]["success"] is True
        assert (await client.receive())["status"] == "read"
        assert (await probe.post("/notification/mark-confirmed", body)).status_code == 200
        assert (await client.receive())["status"] == "confirmed"
        body = {"message_ids": [published[1], published[2], "nope"], "user_id": 7}
        data = (await probe.post("/notification/batch-mark-read", body)).json()["data"]
        assert (data["success_count"], data["failed_count"], data["total_count"]) == (2, 1, 3)
        assert data["success_rate"] == 66.67
        assert data["errors"] == [{"message_id": "nope", "error": "NOT_FOUND"}]
        missing = await probe.post("/notification/mark-read", {"message_id": "nope", "user_id": 7})
        assert (missing.status_code, missing.json()["error"]) == (404, "NOT_FOUND")

    async def test_read_over_http_while_absent_empties_the_mailbox(self, probe: Probe) -> None:
        published = await probe.publish(target="custom", user_ids=[7])
        body = {"message_id": published["message_id"], "user_id": 7}
        assert (await probe.post("/notification/mark-read", body)).status_code == 200
        assert await probe.mailbox(7) == []
        status = await probe.receive_status(published["message_id"])
        assert (status["received_users"], status["read_users"]) == (1, 1)
