"""Pushing again, to those who have not received it: from outside, across a crash, and what the records say after it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pushd.clock import wall_ms
from pushd.model import Notice, Priority, Target, TargetKind, User
from pushd.stores.sqlite import import_users
from tests import stored
from tests.daemon import Probe, Process, until
from tests.samples import DELIVERED, EXPIRED, OFFLINE, PENDING, at, receipt

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
    assert changed <= {"online_users", "online_count"}
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
    await until(lambda: not stored.unsettled(tmp_path))
    assert (await probe.mailbox(SILENT), await probe.mailbox(ABSENT)) == ([], [message_id])
    status = await probe.receive_status(message_id)
    assert (status["total_users"], status["received_users"]) == (2, 1)


async def test_without_waiting(probe: Probe) -> None:
    published = await probe.publish(target="custom", user_ids=[ABSENT])
    again = await _resend(probe, published["message_id"], wait_ms=0)
    assert again["status"] == "accepted"
    assert "total_count" not in again


async def test_refusals(start: Any, tmp_path: Path) -> None:
    now_ms = wall_ms()
    target = Target(TargetKind.CUSTOM, user_ids=(ABSENT,))
    old = Notice(1, "old", "expired", target, now_ms - 2000, expires_ms=now_ms - 1000)
    await stored.left_behind(tmp_path, [old], [receipt("old", ABSENT, at(now_ms - 2000, EXPIRED))])
    probe = await start()
    unknown = await probe.post(f"{RECORDS}/nope/resend", None)
    assert (unknown.status_code, unknown.json()["error"]) == (404, "NOT_FOUND")
    assert unknown.json()["data"] == {"field": "message_id"}
    for wait_ms in ("-1", "10001", "soon"):
        response = await probe.post(f"{RECORDS}/old/resend?wait_ms={wait_ms}", None)
        assert (response.status_code, response.json()["data"]) == (400, {"field": "wait_ms"})
    response = await probe.post(f"{RECORDS}/old/resend", None)
    assert _refusal(response) == (400, "INVALID_REQUEST", {"field": "message_id"})
    status = await probe.receive_status("old")
    assert (status["total_users"], status["received_users"]) == (1, 0)


def _refusal(response: Any) -> tuple[int, str, Any]:
    answer = response.json()
    return response.status_code, answer.get("error", ""), answer["data"]


# ---- what other programs have put into the records

FIELDS = (
    "seq message_id content target accepted_ms type data priority need_confirm expires_ms idempotency_key sender_id "
    "sender_name is_resent kind user_ids roles exclude_ids new"
)
COLUMNS = ("message_id", "accepted_ms", "expires_ms", "waits_from_ms", "version", "body")
LABELS = ("type", "sender_id", "sender_name", "target", "priority", "need_confirm")
ODD_JSON = (
    "null", '""', '"odd"', "7", "-1", "1.5", "1e300", "-9e999", str(2**62), str(2**70), '"\xff"', "[]", '["a"]', "{}",
    "[1.5,null,1e30]", "[[", '"hello"', '{"n":123456789012345678901234567890}', '{"a":"\\ud83d"}', '"订单"', "true",
    '"' + "x" * 600 + '"', "[" * 120 + "]" * 120,
)  # fmt: skip
ODD = (
    "NULL", "''", "'odd'", "7", "-1", "1.5", "1e300", "-9e999", "4611686018427387904", "x'ff00'", "CAST(x'ff' AS TEXT)",
    "'[]'", "'[\"a\"]'", "'[['", "'hello'", "'{\"n\":123456789012345678901234567890}'", "'{\"a\":\"\\ud83d\"}'",
    "'订单'", "printf('%.*c', 600, 'x')",
)  # fmt: skip


def _with(notice: Notice, field: str, text: str) -> bytes:
    """The notice's JSON, with this in the place of a field's value."""
    fields = msgspec.to_builtins(notice)
    (fields["target"] if field in ("kind", "user_ids", "roles", "exclude_ids") else fields)[field] = "@@@"
    return msgspec.json.encode(fields).replace(b'"@@@"', text.encode("latin-1" if "\xff" in text else "utf-8"))


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("field", name) for name in FIELDS.split()),
        *(("notice", name) for name in COLUMNS),
        *(("label", name) for name in LABELS),
    ],
)
async def test_a_record_of_any_kind_is_sent_or_refused(start: Any, tmp_path: Path, table: str, column: str) -> None:
    """Or not found, where nothing says any more what it is."""
    target, now_ms = Target(TargetKind.CUSTOM, user_ids=(ABSENT,)), wall_ms()
    notices = [Notice(seq, f"m{seq}", "hi", target, now_ms, type=f"type{seq}") for seq in range(1, len(ODD_JSON) + 2)]
    await stored.left_behind(
        tmp_path, notices, [receipt(one.message_id, ABSENT, at(now_ms, OFFLINE)) for one in notices]
    )
    if table == "field":
        for notice, text in zip(notices, ODD_JSON, strict=False):
            stored.change(tmp_path, "UPDATE notice SET body = ? WHERE seq = ?", _with(notice, column, text), notice.seq)
    else:
        key = "seq" if table == "notice" else "number"
        numbers = [row[key] for row in stored.rows(tmp_path, table)]
        for number, value in zip(sorted(numbers)[:-1], ODD, strict=False):
            with suppress(sqlite3.IntegrityError):  # what may not be NULL
                stored.change(tmp_path, f"UPDATE {table} SET {column} = {value} WHERE {key} = ?", number)
    probe = await start()
    for notice in notices:
        path = f"{RECORDS}/{notice.message_id}"
        response = await probe.post(f"{path}/resend", None)
        assert response.status_code == 200 or _refusal(response) in (
            (400, "INVALID_REQUEST", {"field": "message_id"}),
            (404, "NOT_FOUND", {"field": "message_id"}),
        )
        assert (await probe.http.get(f"/api/admin{path}")).status_code in (200, 404)
        await probe.get(RECORDS, params={"page_size": 100})
    assert (await _resend(probe, notices[-1].message_id))["status"] == "delivered"
    again = await _resend(probe, (await probe.publish(target="custom", user_ids=[ABSENT]))["message_id"])
    assert again["status"] == "delivered"


@pytest.mark.parametrize(("field", "text"), [("kind", '"everyone"'), ("user_ids", '"odd"'), ("priority", "9")])
async def test_an_unknown_target_or_priority_keeps_nobody_from_getting_it(
    start: Any, tmp_path: Path, field: str, text: str
) -> None:
    """Who has not received it is known from the receive records."""
    now_ms = wall_ms()
    notice = Notice(
        1, "m1", "hi", Target(TargetKind.CUSTOM, user_ids=(HAS_IT, SILENT)), now_ms, priority=Priority.URGENT
    )
    receipts = [receipt("m1", HAS_IT, at(now_ms, DELIVERED)), receipt("m1", SILENT, at(now_ms, PENDING))]
    await stored.left_behind(tmp_path, [notice], receipts)
    stored.change(tmp_path, "UPDATE notice SET body = ?", _with(notice, field, text))
    probe = await start()
    has_it, silent = await probe.client(HAS_IT), await probe.client(SILENT, ack=True)
    again = await _resend(probe, "m1")
    assert (again["target"], again["total_count"], again["online_count"]) == ("custom", 1, 1)
    sent = await silent.receive()
    assert (sent["message_id"], sent["content"]) == ("m1", "hi")
    assert sent["priority"] == (1 if field == "priority" else 3)
    assert await has_it.is_quiet()


async def test_receive_records_of_nobody_are_passed_over(start: Any, tmp_path: Path) -> None:
    """Of no user, or of what would be a guest."""
    nobody = range(11, 16)
    now_ms = wall_ms()
    notice = Notice(1, "m1", "hi", Target(TargetKind.CUSTOM, user_ids=(SILENT,)), now_ms)
    receipts = [receipt("m1", user_id, at(now_ms, PENDING)) for user_id in (SILENT, *nobody)]
    await stored.left_behind(tmp_path, [notice], receipts)
    for user_id, value in zip(nobody, ("-1", "-7", "'nobody'", "1.5", "x'07'"), strict=True):
        stored.change(tmp_path, f"UPDATE user_number SET id = {value} WHERE id = ?", user_id)
    probe = await start()
    guest, silent = await probe.client(), await probe.client(SILENT, ack=True)
    assert guest.hello["data"]["user_id"] == -1
    again = await _resend(probe, "m1")
    assert (again["status"], again["total_count"], again["online_count"]) == ("delivered", 1, 1)
    assert await silent.receive_ids(1) == ["m1"]
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
            await until(lambda: not stored.unsettled(tmp_path))
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
