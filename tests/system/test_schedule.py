"""Notices that go out later, from outside: published, listed, cancelled, deleted, and out when they are due."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.daemon import Probe, until
from tests.mongo_server import MongoServer
from tests.tokens import SECRET, token

Start = Callable[..., Any]
LATER = {"delay_s": 3600}


@pytest.fixture(params=["embedded", "mongodb"])
async def probe(start: Start, mongo_server: MongoServer, request: pytest.FixtureRequest) -> Probe:
    """A daemon that keeps its records here, or there."""
    if request.param == "embedded":
        return await start()
    database = f"pushd_{uuid.uuid4().hex}"
    return await start(records={"url": mongo_server.url, "database": database, "flush_ms": 1})


async def publish(probe: Probe, **fields: Any) -> dict[str, Any]:
    response = await probe.post("/system/notice", {"content": "x", **fields})
    assert response.status_code == 200, response.text
    return response.json()["data"]


async def post(probe: Probe, path: str) -> tuple[int, dict[str, Any]]:
    response = await probe.post(path, {})
    return response.status_code, response.json()


async def cancel(probe: Probe, message_id: str) -> tuple[int, dict[str, Any]]:
    return await post(probe, f"/notification/records/{message_id}/cancel")


async def record(probe: Probe, message_id: str) -> dict[str, Any]:
    return (await probe.get(f"/notification/records/{message_id}"))["record"]


async def listed(probe: Probe, **params: Any) -> list[str]:
    data = await probe.get("/notification/records", params={"page_size": 100, **params})
    assert data["total"] == len(data["items"])
    return [item["message_id"] for item in data["items"]]


async def test_a_notice_goes_out_within_a_second_of_when_it_is_due(probe: Probe) -> None:
    client = await probe.client(7)
    began = time.time()
    scheduled = await publish(probe, delay_s=0.6, message_id="m", target="custom", user_ids=[7], data={"a": 1})
    assert (scheduled["status"], scheduled["duplicate"], scheduled["message_id"]) == ("scheduled", False, "m")
    frame = await client.receive()
    assert 0.6 <= time.time() - began < 1.6
    assert (frame["content"], frame["data"], frame["message_id"]) == ("x", {"a": 1}, "m")
    assert frame["ts"] >= (began + 0.6) * 1000 - 1
    sent = await record(probe, "m")
    assert (sent["state"], sent["status"]) == ("sent", "success")


async def test_what_is_scheduled_is_on_record_at_once(probe: Probe) -> None:
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
    fields = {"message_id": "m", "title": "t", "tags": ["a"], "expires_in_s": 60}
    scheduled = await publish(probe, send_at=due.isoformat(), target="all", **fields)
    assert scheduled["push_time"] == due.strftime("%Y-%m-%d %H:%M:%S")
    assert scheduled["recipients_count"] == "all_users"
    found = await record(probe, "m")
    assert datetime.fromisoformat(found["push_time"]) == due == datetime.fromisoformat(found["send_at"])
    assert datetime.fromisoformat(found["created_at"]) < datetime.now(UTC) + timedelta(seconds=1)
    assert datetime.fromisoformat(found["expires_at"]) == due + timedelta(seconds=60)
    assert (found["state"], found["status"], found["success"]) == ("scheduled", "scheduled", True)
    assert (found["title"], found["tags"], found["total_count"]) == ("t", ["a"], 0)
    assert (await probe.receive_status("m"))["total_users"] == 0


async def test_lists_have_all_of_them_in_their_place(probe: Probe) -> None:
    await publish(probe, message_id="sent")
    for message_id, delay_s in (("c", 300), ("a", 100), ("b", 200)):
        await publish(probe, message_id=message_id, delay_s=delay_s, priority="high", type=f"type_{message_id}")
    await cancel(probe, "b")
    assert await listed(probe) == ["c", "b", "a", "sent"]
    assert await listed(probe, sort_order="asc") == ["sent", "a", "b", "c"]
    assert await listed(probe, state="scheduled") == ["c", "a"]
    assert await listed(probe, state="cancelled") == ["b"] == await listed(probe, status="cancelled")
    assert await listed(probe, state="sent") == ["sent"]
    assert await listed(probe, message_type="type_a") == ["a"]
    pages = [await probe.get("/notification/records", params={"page": page, "page_size": 1}) for page in range(1, 6)]
    assert [[item["message_id"] for item in page["items"]] for page in pages] == [["c"], ["b"], ["a"], ["sent"], []]
    stats = await probe.get("/notification/stats")
    assert (stats["total_records"], stats["success_records"]) == (4, 4)


async def test_a_cancelled_notice_never_goes_out(probe: Probe) -> None:
    client = await probe.client(7)
    await publish(probe, delay_s=0.3, message_id="m")
    await publish(probe, delay_s=0.4, message_id="n")
    assert await cancel(probe, "m") == (
        200, {"code": 200, "message": "OK", "data": {"message_id": "m", "status": "cancelled", "success": True}},
    )  # fmt: skip
    assert (await cancel(probe, "m"))[0] == 200
    assert (await client.receive())["message_id"] == "n"
    assert (await record(probe, "m"))["status"] == "cancelled"
    status, error = await cancel(probe, "n")
    assert (status, error["error"], error["data"]) == (409, "CONFLICT", {"field": "message_id"})
    assert (await cancel(probe, "unknown"))[0] == 404
    again = await publish(probe, message_id="m")
    assert (again["duplicate"], again["status"]) == (True, "cancelled")
    assert await client.is_quiet()


async def test_what_is_deleted_before_it_is_due_never_goes_out(probe: Probe) -> None:
    client = await probe.client(7)
    await publish(probe, delay_s=0.2, message_id="m")
    path = "/api/admin/notification/records/m"
    assert (await probe.http.delete(path)).status_code == 200
    assert (await probe.http.delete(path)).status_code == 404
    assert (await probe.http.get(path)).status_code == 404
    assert await client.is_quiet(0.5)
    assert (await publish(probe, message_id="m"))["duplicate"] is False


async def test_what_is_revoked_before_it_is_due_is_cancelled(probe: Probe) -> None:
    client = await probe.client(7, query="changes=1")
    await publish(probe, delay_s=0.3, message_id="m")
    status, answer = await post(probe, "/notification/records/m/revoke")
    assert (status, answer["data"]["status"]) == (200, "cancelled")
    assert (await record(probe, "m"))["state"] == "cancelled"
    assert await client.is_quiet(0.6)


async def test_it_may_say_something_else_at_another_time(probe: Probe) -> None:
    client = await probe.client(7)
    await publish(probe, delay_s=0.5, message_id="m", title="t", expires_in_s=600)
    at_ms = int(time.time() * 1000) + 1500
    path = "/api/admin/notification/records/m"
    response = await probe.http.put(path, json={"content": "newer", "title": "", "send_at": at_ms})
    assert response.status_code == 200, response.text
    changed = await record(probe, "m")
    assert (changed["state"], changed["content"], "title" in changed) == ("scheduled", "newer", False)
    assert datetime.fromisoformat(changed["send_at"]).timestamp() * 1000 == at_ms
    assert datetime.fromisoformat(changed["expires_at"]).timestamp() * 1000 == at_ms + 600_000
    frame = await client.receive()
    assert (frame["content"], "title" in frame) == ("newer", False)
    assert frame["ts"] >= at_ms
    sent = await record(probe, "m")
    assert (sent["state"], sent["content"]) == ("sent", "newer")
    response = await probe.http.put(path, json={"send_at": at_ms + 3_600_000})
    assert (response.status_code, response.json()["error"]) == (409, "CONFLICT")
    assert await client.is_quiet()


async def test_only_what_has_gone_out_can_be_sent_again(probe: Probe) -> None:
    await publish(probe, message_id="m", **LATER)
    for _ in range(2):
        status, error = await post(probe, "/notification/records/m/resend")
        assert (status, error["error"]) == (409, "CONFLICT")
        await cancel(probe, "m")


async def test_a_repeat_is_answered_with_the_first(probe: Probe) -> None:
    first = await publish(probe, message_id="m", **LATER)
    for fields in ({**LATER}, {"delay_s": 5}, {}):
        repeat = await publish(probe, message_id="m", content="another", **fields)
        assert repeat == first | {"duplicate": True}
    keyed = {"headers": {"Idempotency-Key": "k"}}
    one = (await probe.post("/system/notice", {"content": "x", **LATER}, **keyed)).json()["data"]
    two = (await probe.post("/system/notice", {"content": "x", **LATER}, **keyed)).json()["data"]
    assert (one["duplicate"], two["duplicate"], one["message_id"]) == (False, True, two["message_id"])


async def test_waiting_for_a_scheduled_one_ends_at_once(probe: Probe) -> None:
    response = await probe.post("/system/notice?wait_ms=10000", {"content": "x", **LATER})
    data = response.json()["data"]
    assert data["status"] == "scheduled"
    assert "delivered_count" not in data


async def test_a_batch_may_have_both_kinds_and_bad_ones(probe: Probe) -> None:
    client = await probe.client(7)
    notices = [
        {"content": "now", "message_id": "now"},
        {"content": "later", "message_id": "later", "delay_s": 0.3},
        {"content": "later", "message_id": "later", "delay_s": 0.3},
        {"content": "past", "send_at": "2001-01-01T00:00:00Z"},
        {"content": "both", "send_at": 2**50, "delay_s": 1},
        {"content": "local", "send_at": "2031-01-01 00:00:00"},
        {"content": "long", "delay_s": 40_000_000},
    ]
    response = await probe.post("/system/notices", {"notices": notices})
    items = response.json()["data"]["items"]
    assert [(item["status"], item["duplicate"]) for item in items[:3]] == [
        ("accepted", False), ("scheduled", False), ("scheduled", True),
    ]  # fmt: skip
    assert [(item["code"], item["data"]["field"]) for item in items[3:]] == [
        (400, "send_at"), (400, "delay_s"), (400, "send_at"), (400, "delay_s"),
    ]  # fmt: skip
    assert await client.receive_ids(2) == ["now", "later"]


async def test_metrics_count_what_is_scheduled_and_what_was_cancelled(probe: Probe) -> None:
    await publish(probe, message_id="m", **LATER)
    await publish(probe, message_id="n", **LATER)
    await cancel(probe, "m")
    metrics = (await probe.http.get("/metrics")).text
    assert "pushd_scheduled 1.0" in metrics
    for result, count in (("scheduled", 2), ("cancelled", 1)):
        line = f'pushd_notices_total{{priority="normal",result="{result}",target="all"}} {count}.0'
        assert line in metrics or f'target="all",priority="normal",result="{result}"}} {count}' in metrics


async def test_only_an_admin_cancels(start: Start) -> None:
    probe = await start(auth={"mode": "jwt", "jwt_secret": SECRET})
    headers = {"Authorization": f"Bearer {token(7, role=0)}"}
    response = await probe.post("/notification/records/m/cancel", {}, headers=headers)
    assert response.status_code == 403


async def test_a_drain_keeps_what_is_scheduled(start: Start) -> None:
    probe = await start()
    await publish(probe, message_id="m", delay_s=0.2)
    await probe.node.drain()
    await asyncio.sleep(0.4)  # past the time when it was due
    assert await probe.node.stores.schedule.count() == 1


@pytest.mark.parametrize("count", [1500])
async def test_many_that_are_due_together_all_arrive(probe: Probe, count: int) -> None:
    client = await probe.client(7, ack=True)
    at = int(time.time() * 1000) + 3000
    body = {"notices": [{"content": "x", "send_at": at, "target": "custom", "user_ids": [7]}] * 500}
    for _ in range(count // 500):
        assert (await probe.post("/system/notices", body)).status_code == 200
    ids = await client.receive_ids(count)
    assert len(set(ids)) == count
    await until(lambda: probe.node.schedule.count == 0)
