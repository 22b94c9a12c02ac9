"""Pushing again, to those who have not received it: from outside, across a crash, and what the records say after it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pushd.model import User
from pushd.stores.sqlite import import_users
from tests import stored
from tests.daemon import Probe, Process, until

HAS_IT, SILENT, ABSENT, RETURNED, STRANGER = 1, 2, 3, 4, 5
EVERYBODY = [HAS_IT, SILENT, ABSENT, RETURNED]
RECORDS = "/notification/records"


async def _resend(probe: Probe, message_id: str, wait_ms: int = 5000) -> dict[str, Any]:
    response = await probe.post(f"{RECORDS}/{message_id}/resend?wait_ms={wait_ms}", None)
    assert response.status_code == 200, response.text
    return response.json()["data"]


async def _counts(probe: Probe, message_id: str) -> dict[str, Any]:
    data = await probe.get(f"{RECORDS}/{message_id}")
    names = ("total_count", "online_count", "delivered_count", "failed_count", "status", "push_time", "created_at")
    return data["counts"] | {name: data["record"][name] for name in names}


async def _has_received(probe: Probe, message_id: str, count: int) -> bool:
    return (await probe.receive_status(message_id))["received_users"] == count


TARGETS: list[dict[str, Any]] = [
    {"target": "custom", "user_ids": EVERYBODY},
    {"target": "custom", "user_ids": [*EVERYBODY, STRANGER], "exclude_ids": [STRANGER]},
    {"target": "role", "roles": [2]},
    {"target": "all", "exclude_ids": [STRANGER]},
]


@pytest.fixture
async def daemon(start: Any, tmp_path: Path) -> Probe:
    (tmp_path / "data").mkdir(mode=0o700)
    users = [User(user_id, f"user {user_id}", 2) for user_id in EVERYBODY] + [User(STRANGER, "stranger", 0)]
    import_users(str(tmp_path / "data"), users)
    return await start()


@pytest.mark.parametrize("target", TARGETS, ids=[target["target"] for target in TARGETS])
async def test_exactly_those_who_have_not_received_it(daemon: Probe, tmp_path: Path, target: dict[str, Any]) -> None:
    """The silent one does not acknowledge, the absent one stays away, one comes back and leaves the mailbox unread."""
    probe = daemon
    clients = {user_id: await probe.client(user_id, ack=user_id == SILENT) for user_id in (HAS_IT, SILENT, STRANGER)}
    published = await probe.publish(
        "again", type="alarm", data={"n": [1]}, priority="high", need_confirm=True, **target
    )
    message_id = published["message_id"]
    clients[RETURNED] = await probe.client(RETURNED, ack=True)
    originals = {user_id: await clients[user_id].receive() for user_id in (HAS_IT, SILENT, RETURNED)}
    assert {notice["message_id"] for notice in originals.values()} == {message_id}
    before = await _counts(probe, message_id)

    again = await _resend(probe, message_id)
    assert (again["message_id"], again["status"], again["duplicate"]) == (message_id, "delivered", False)
    assert (again["target"], again["message_type"]) == (target["target"], "alarm")
    assert (again["total_count"], again["online_count"], again["offline_count"]) == (3, 2, 1)
    for user_id in (SILENT, RETURNED):
        notice = await clients[user_id].receive()
        assert {**notice, "time": 0, "ts": 0} == {**originals[SILENT], "time": 0, "ts": 0}
    marker = await probe.publish("marker", target="online")
    for user_id in (HAS_IT, STRANGER, SILENT, RETURNED):
        assert await clients[user_id].receive_ids(1) == [marker["message_id"]], user_id  # nothing in between
    assert await probe.mailbox(ABSENT) == [message_id]

    # Whether somebody is online is only ever noted as true; all else is as it was, until they acknowledge.
    after = await _counts(probe, message_id)
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= {"online_users"}
    for user_id in (SILENT, RETURNED):
        await clients[user_id].ack(message_id)
    await until(lambda: _has_received(probe, message_id, 3))
    assert await (await probe.client(ABSENT)).receive_ids(1) == [message_id]
    await until(lambda: _has_received(probe, message_id, 4))
    after = await _counts(probe, message_id)
    assert (after["total_users"], after["receive_rate"], after["delivered_count"]) == (4, 100.0, 4)
    assert (after["total_count"], after["push_time"]) == (4, before["push_time"])
    receipts = [row for row in stored.rows(tmp_path, stored.RECEIPTS) if row["message_id"] == message_id]
    assert sorted(row["user_id"] for row in receipts) == EVERYBODY
    assert len({row["created_at"] for row in receipts}) == 1
    assert await probe.mailbox(RETURNED) == []


async def test_nobody_is_left(probe: Probe) -> None:
    client = await probe.client(HAS_IT)
    published = await probe.publish(target="custom", user_ids=[HAS_IT])
    await client.receive()
    before = await _counts(probe, published["message_id"])
    again = await _resend(probe, published["message_id"])
    assert (again["status"], again["total_count"], again["delivered_count"]) == ("delivered", 0, 0)
    assert await _counts(probe, published["message_id"]) == before
    marker = await probe.publish(target="online")
    assert await client.receive_ids(1) == [marker["message_id"]]


async def test_many_times(probe: Probe) -> None:
    """One copy waits in the mailbox, however often it is sent again."""
    published = await probe.publish(target="custom", user_ids=[ABSENT])
    for wait_ms in (5000, 0, 5000):
        assert (await _resend(probe, published["message_id"], wait_ms))["message_id"] == published["message_id"]
    assert await probe.mailbox(ABSENT) == [published["message_id"]]
    status = await probe.receive_status(published["message_id"])
    assert (status["total_users"], status["received_users"]) == (1, 0)
    listed = await probe.get(RECORDS)
    assert (listed["total"], listed["stats"]["total_recipients"]) == (1, 1)


async def test_at_the_same_time(probe: Probe, tmp_path: Path) -> None:
    """One acknowledgement is for all copies, and nothing is left to do."""
    silent = await probe.client(SILENT, ack=True)
    published = await probe.publish(target="custom", user_ids=[SILENT, ABSENT])
    message_id = published["message_id"]
    await asyncio.gather(*(_resend(probe, message_id) for _ in range(5)))
    assert await silent.receive_ids(6) == [message_id] * 6
    await silent.ack(message_id)
    await until(lambda: all(row["settled"] for row in stored.rows(tmp_path, "journal")))
    assert (await probe.mailbox(SILENT), await probe.mailbox(ABSENT)) == ([], [message_id])
    status = await probe.receive_status(message_id)
    assert (status["total_users"], status["received_users"]) == (2, 1)


async def test_without_waiting(probe: Probe) -> None:
    published = await probe.publish(target="custom", user_ids=[ABSENT])
    again = await _resend(probe, published["message_id"], wait_ms=0)
    assert again["status"] == "accepted"
    assert "total_count" not in again


async def test_refusals(probe: Probe, tmp_path: Path) -> None:
    unknown = await probe.post(f"{RECORDS}/nope/resend", None)
    assert (unknown.status_code, unknown.json()["error"]) == (404, "NOT_FOUND")
    assert unknown.json()["data"] == {"field": "message_id"}
    published = await probe.publish(target="custom", user_ids=[ABSENT], expires_in_s=3600)
    path = f"{RECORDS}/{published['message_id']}/resend"
    for wait_ms in ("-1", "10001", "soon"):
        response = await probe.post(f"{path}?wait_ms={wait_ms}", None)
        assert (response.status_code, response.json()["data"]) == (400, {"field": "wait_ms"})
    await probe.get(RECORDS)  # it is on record from now on
    stored.change(tmp_path, f"UPDATE {stored.PUSHES} SET expires_at = push_time + 1")
    await until(lambda: _is_refused(probe, path))
    status = await probe.receive_status(published["message_id"])
    assert (status["total_users"], status["received_users"]) == (1, 0)


async def _is_refused(probe: Probe, path: str) -> bool:
    response = await probe.post(path, None)
    answer = response.json()
    return (response.status_code, answer["error"], answer["data"]) == (
        400, "INVALID_REQUEST", {"field": "message_id"},
    )  # fmt: skip


# ---- what other programs have put into the records

COLUMNS = (
    "content message_type target target_user_ids target_roles recipients_count status success error push_time "
    "expires_at sender_id sender_name priority need_confirm extra_data total_count online_count created_at updated_at"
)
ODD = (
    "NULL", "''", "'odd'", "7", "-1", "1.5", "1e300", "-9e999", "4611686018427387904", "x'ff00'", "CAST(x'ff' AS TEXT)",
    "'[]'", "'[\"a\"]'", "'[1.5,null,1e30]'", "'[['", "'hello'",
    "'{\"n\":123456789012345678901234567890}'", "'{\"a\":\"\\ud83d\"}'", "'订单'",
    "printf('%.*c', 600, 'x')", "printf('%.*c', 120, '[') || printf('%.*c', 120, ']')",
)  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS.split())
async def test_a_record_of_any_kind_is_sent_or_refused(probe: Probe, tmp_path: Path, column: str) -> None:
    for value in ODD:
        published = await probe.publish(target="custom", user_ids=[ABSENT], wait_ms=0)
        await probe.get(RECORDS)
        with suppress(sqlite3.IntegrityError):  # what may not be NULL
            stored.change(
                tmp_path, f"UPDATE push_records SET {column} = {value} WHERE message_id = ?", published["message_id"]
            )
        path = f"{RECORDS}/{published['message_id']}"
        response = await probe.post(f"{path}/resend", None)
        answer = response.json()
        refused = (400, "INVALID_REQUEST", {"field": "message_id"})
        assert response.status_code == 200 or (response.status_code, answer["error"], answer["data"]) == refused, value
        await probe.get(path)
        await probe.get(RECORDS, params={"page_size": 100})
    again = await _resend(probe, (await probe.publish(target="custom", user_ids=[ABSENT]))["message_id"])
    assert again["status"] == "delivered"


@pytest.mark.parametrize("change", ["target = 'everyone'", "target = 'custom', target_user_ids = NULL", "priority = 9"])
async def test_an_unknown_target_or_priority_keeps_nobody_from_getting_it(
    probe: Probe, tmp_path: Path, change: str
) -> None:
    """Who has not received it is known from the receive records."""
    has_it, silent = await probe.client(HAS_IT), await probe.client(SILENT, ack=True)
    published = await probe.publish(target="custom", user_ids=[HAS_IT, SILENT], priority=3)
    message_id = published["message_id"]
    original = await silent.receive()
    assert await has_it.receive_ids(1) == [message_id]
    await until(lambda: _has_received(probe, message_id, 1))
    stored.change(tmp_path, f"UPDATE push_records SET {change}")
    again = await _resend(probe, message_id)
    assert (again["target"], again["total_count"], again["online_count"]) == ("custom", 1, 1)
    notice = await silent.receive()
    assert {**notice, "time": 0, "ts": 0, "priority": 0} == {**original, "time": 0, "ts": 0, "priority": 0}
    assert notice["priority"] == (1 if "priority" in change else 3)
    assert await has_it.is_quiet()


async def test_receive_records_of_nobody_are_passed_over(probe: Probe, tmp_path: Path) -> None:
    """Of no user, or of what would be a guest."""
    guest, silent = await probe.client(), await probe.client(SILENT, ack=True)
    assert guest.hello["data"]["user_id"] == -1
    published = await probe.publish(target="custom", user_ids=[SILENT])
    message_id = published["message_id"]
    assert await silent.receive_ids(1) == [message_id]
    await probe.get(RECORDS)
    for user_id in ("-1", "-7", "'nobody'", "1.5", "x'07'"):
        stored.change(
            tmp_path,
            f"INSERT INTO {stored.RECEIPTS} (message_id, user_id, created_at, updated_at) VALUES (?, {user_id}, 1, 1)",
            message_id,
        )
    again = await _resend(probe, message_id)
    assert (again["status"], again["total_count"], again["online_count"]) == ("delivered", 1, 1)
    assert await silent.receive_ids(1) == [message_id]
    assert await guest.is_quiet()


async def test_across_a_crash(tmp_path: Path) -> None:
    """Killed right behind the 200s: the next process delivers, to those who have not received it."""
    async with Process(tmp_path) as process:
        async with await process.start() as probe:
            client = await probe.client(HAS_IT)
            ids = [(await probe.publish(target="custom", user_ids=[HAS_IT, ABSENT]))["message_id"] for _ in range(20)]
            assert await client.receive_ids(20) == ids
            cleared = await probe.http.delete(f"/api/admin/notification/offline-messages?user_id={ABSENT}")
            assert cleared.json()["data"]["cleared_count"] == 20
            await until(lambda: all(row["settled"] for row in stored.rows(tmp_path, "journal")))
            answers = await asyncio.gather(*(probe.post(f"{RECORDS}/{one}/resend", None) for one in ids))
            await process.kill()
            assert {answer.json()["data"]["status"] for answer in answers} == {"accepted"}
        async with await process.start() as probe:
            await until(lambda: _has_in_mailbox(probe, ABSENT, 20))
            back = await probe.client(ABSENT, ack=True)
            assert sorted(await back.receive_ids(20)) == sorted(ids)
            await back.ack(*ids)
            await until(lambda: _has_received(probe, ids[-1], 2))
            other = await probe.client(HAS_IT)
            marker = await probe.publish(target="online")
            assert await other.receive_ids(1) == [marker["message_id"]]
            for message_id in ids:
                counts = await _counts(probe, message_id)
                assert (counts["total_users"], counts["total_count"], counts["delivered_count"]) == (2, 2, 2)


async def _has_in_mailbox(probe: Probe, user_id: int, count: int) -> bool:
    return len(await probe.mailbox(user_id)) == count


async def test_counts_of_a_notice_that_a_crash_cut_off(tmp_path: Path) -> None:
    """The next process brings it to the rest; the record still counts everybody."""
    async with Process(tmp_path) as process:
        async with await process.start() as probe:
            client, silent = await probe.client(HAS_IT), await probe.client(SILENT, ack=True)
            published = await probe.publish(target="custom", user_ids=[HAS_IT, SILENT])
            message_id = published["message_id"]
            assert await client.receive_ids(1) == await silent.receive_ids(1) == [message_id]
            await until(lambda: _has_received(probe, message_id, 1))
            await process.kill()
        async with await process.start() as probe:
            await until(lambda: _has_in_mailbox(probe, SILENT, 1))
            counts = await _counts(probe, message_id)
            assert (counts["total_users"], counts["total_count"], counts["delivered_count"]) == (2, 2, 1)
            again = await _resend(probe, message_id)
            assert (again["total_count"], again["offline_count"]) == (1, 1)
            assert (await _counts(probe, message_id))["total_count"] == 2
