"""POST /websocket/disconnect: live connections are revoked, by user or one by one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.daemon import Client, Probe, until


async def _disconnect(probe: Probe, **body: Any) -> int:
    response = await probe.post("/websocket/disconnect", body)
    assert response.status_code == 200, response.text
    return response.json()["data"]["closed"]


async def _is_alive(client: Client) -> bool:
    await client.send({"type": "ping"})
    return (await client.receive())["type"] == "pong"


async def test_by_user(probe: Probe) -> None:
    mine = [await probe.client(7, ack=number == 1) for number in range(3)]
    other = await probe.client(8)
    assert await _disconnect(probe, user_id=7) == 3
    assert [await client.closed() for client in mine] == [4403] * 3
    assert {client.ws.close_reason for client in mine} == {"revoked by an administrator"}
    assert await _is_alive(other)
    assert await _disconnect(probe, user_id=7) == 0
    assert [user["user_id"] for user in (await probe.get("/notification/online-users"))["users"]] == [8]


async def test_by_connection(probe: Probe) -> None:
    first, second, guest = await probe.client(7), await probe.client(7), await probe.client()
    assert await _disconnect(probe, conn_id=second.hello["data"]["conn_id"], reason="signed out") == 1
    assert (await second.closed(), second.ws.close_reason) == (4403, "signed out")
    assert await _is_alive(first)
    assert await _disconnect(probe, conn_id=guest.hello["data"]["conn_id"]) == 1
    assert await guest.closed() == 4403
    assert await _disconnect(probe, conn_id=second.hello["data"]["conn_id"]) == 0
    metrics = (await probe.http.get("/metrics")).text
    assert 'pushd_disconnects_total{code="4403"} 2.0' in metrics


@pytest.mark.parametrize("reason", ["", "x" * 100, "被管理员踢下线" * 14, "🔔" * 100, 'quote " \\ \n', "\0"])
async def test_any_reason_reaches_the_client(probe: Probe, reason: str) -> None:
    """A control frame holds 123 bytes of it (RFC 6455 section 5.5)."""
    client = await probe.client(7)
    assert await _disconnect(probe, user_id=7, reason=reason) == 1
    assert await client.closed() == 4403
    told = client.ws.close_reason
    assert reason.startswith(told)
    assert told == reason or len(told.encode()) >= 120


async def test_a_revoked_user_may_come_back(probe: Probe) -> None:
    """What is closed is the connection: tokens are revoked by `auth.revocation_url`."""
    client = await probe.client(7, ack=True)
    published = await probe.publish(target="custom", user_ids=[7])
    await client.receive()
    assert await _disconnect(probe, user_id=7) == 1
    await client.closed()
    again = await probe.client(7, ack=True)
    assert await again.receive_ids(1) == [published["message_id"]]


async def test_unknown_ones(probe: Probe) -> None:
    await probe.client(7)
    assert await _disconnect(probe, user_id=99) == 0
    assert await _disconnect(probe, user_id=2**63 - 1) == 0
    assert await _disconnect(probe, conn_id="nope") == 0
    assert await _disconnect(probe, conn_id="\0%") == 0
    assert probe.node.hub.connections_total == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "user_id"),
    ({"user_id": None, "conn_id": None}, "user_id"),
    ({"reason": "because"}, "user_id"),
    ({"user_id": 7, "conn_id": "x"}, "user_id"),
    ({"user_id": "+7"}, "user_id"),
    ({"user_id": 0}, "user_id"),
    ({"user_id": -1}, "user_id"),
    ({"user_id": 2**63}, "user_id"),
    ({"user_id": [7]}, "user_id"),
    ({"conn_id": 7}, "conn_id"),
    ({"conn_id": ""}, "conn_id"),
    ({"conn_id": "x" * 65}, "conn_id"),
    ({"user_id": 7, "reason": "x" * 101}, "reason"),
    ({"user_id": 7, "reason": None}, "reason"),
]


async def test_bad_bodies(probe: Probe) -> None:
    client = await probe.client(7)
    for body, field in BAD:
        response = await probe.post("/websocket/disconnect", body)
        assert (response.status_code, response.json()["data"]) == (400, {"field": field}), body
    assert await _is_alive(client)


async def test_records_after_it(probe: Probe) -> None:
    """A silent client's notice is in the mailbox again, and the user is offline."""
    client = await probe.client(7, ack=True)
    published = await probe.publish(target="custom", user_ids=[7])
    await client.receive()
    assert await _disconnect(probe, user_id=7) == 1
    await until(lambda: probe.mailbox(7))
    assert await probe.mailbox(7) == [published["message_id"]]
    assert (await probe.get("/notification/user-summary", params={"user_id": 7}))["online_status"] is False
