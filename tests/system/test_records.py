"""Every endpoint for stored records, from outside; the witness is the database itself (tests.stored)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pushd.clock import wall_ms
from pushd.model import Notice, Target, TargetKind, User
from pushd.records import PushSort, ReceiptSort
from pushd.stores.sqlite import import_users
from tests import stored
from tests.daemon import PREFIX, Probe, until
from tests.samples import OUTCOMES, at, receipt

RECORDS = "/notification/records"
RECEIPTS = "/notification/admin-receive-records"
STATS = "/notification/stats"
TOTALS = "/notification/admin-receive-stats"
SUMMARY = "/notification/user-summary"
BATCH = "/notification/receive-records/batch"
ONLINE = "/notification/online-users"

ANN, BEN, CID, DORA, ABSENT = 1, 2, 3, 4, 5
USERS = [
    User(ANN, "Ann", 1), User(BEN, "ben_1", 0), User(CID, "100% cid", 0), User(DORA, "benx1 null", 0),
    User(ABSENT, "ev'a", 2),
]  # fmt: skip
NOTICES: list[dict[str, Any]] = [
    {"content": "Disk 50% full"},
    {"content": "Disk 50 of 60 full", "type": "alarm", "priority": 3},
    {"content": "snake_case", "type": "alarm", "target": "custom", "user_ids": [BEN, ABSENT]},
    {"content": "snakeXcase null", "target": "role", "roles": [2], "priority": "low"},
    {"content": 'it\'s ä \\ "quote"', "target": "admin", "need_confirm": True},
    {"content": "online", "target": "online", "data": {"a": [1]}},
    {"content": "last", "type": "alarm", "target": "custom", "user_ids": [DORA, CID], "priority": 2},
]
ZONE = "Asia/Shanghai"


class World:
    """A daemon, what was published on it, and where its database is."""

    def __init__(self, probe: Probe, directory: Path, ids: list[str]) -> None:
        self.probe = probe
        self.directory = directory
        self.ids = ids

    async def pages(self, path: str, params: dict[str, Any], page_size: int = 3) -> list[Any]:
        """The whole list, page by page; every page says the same total."""
        items: list[Any] = []
        for page in itertools.count(1):
            answer = await self.probe.get(path, params={**params, "page": page, "page_size": page_size})
            assert (answer["page"], answer["page_size"]) == (page, page_size)
            items += answer["items"]
            if len(answer["items"]) < page_size:
                assert answer["total"] == len(items)
                return items
        raise AssertionError

    def pushes(self) -> list[dict[str, Any]]:
        return stored.rows(self.directory, stored.PUSHES)

    def receipts(self) -> list[dict[str, Any]]:
        return stored.rows(self.directory, stored.RECEIPTS)


@pytest.fixture
async def world(start: Any, tmp_path: Path) -> World:
    """Ben takes what comes, Cid acknowledges one, Dora acknowledges none, Ann and Eva are absent; some is read."""
    (tmp_path / "data").mkdir(mode=0o700)
    import_users(str(tmp_path / "data"), USERS)
    probe = await start(server={"timezone": ZONE}, records={"retention_days": 3650})
    clients = {user_id: await probe.client(user_id, ack=user_id != BEN) for user_id in (BEN, CID, DORA)}
    ids = [(await probe.publish(**notice))["message_id"] for notice in NOTICES]
    await clients[CID].receive()
    await clients[CID].ack(ids[0])
    await until(lambda: _received(probe, ids[0], 2))
    for user_id, message_id, mark in ((BEN, ids[0], "read"), (BEN, ids[1], "confirmed"), (ABSENT, ids[2], "read")):
        body = {"user_id": user_id, "message_id": message_id}
        assert (await probe.post(f"/notification/mark-{mark}", body)).status_code == 200
    return World(probe, tmp_path, ids)


@pytest.fixture
async def dated(start: Any, tmp_path: Path) -> World:
    """Four notices of old, at the moments that tests ask for, and one of now."""
    times = [*map(_at, MOMENTS), wall_ms()]
    notices = [Notice(seq, f"m{seq}", "hi", Target(TargetKind.ALL), at_ms) for seq, at_ms in enumerate(times, 1)]
    receipts = [
        receipt(notice.message_id, user_id, at(notice.accepted_ms, OUTCOMES[(notice.seq + user_id) % len(OUTCOMES)]))
        for notice in notices
        for user_id in (BEN, CID, DORA)
    ]
    await stored.left_behind(tmp_path, notices, receipts)
    probe = await start(server={"timezone": ZONE}, records={"retention_days": 3650})
    return World(probe, tmp_path, [notice.message_id for notice in notices])


async def _received(probe: Probe, message_id: str, count: int) -> bool:
    return (await probe.receive_status(message_id))["received_users"] == count


def _rate(part: int, whole: int) -> float:
    return round(part / whole * 100, 2) if whole else 0.0


def _receipt_stats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """An independent count."""
    users = len(rows)
    online, received, read, confirmed = (
        sum(row[flag] for row in rows) for flag in ("is_online", "is_received", "is_read", "is_confirmed")
    )
    return {
        "total_users": users, "online_users": online, "received_users": received, "read_users": read,
        "confirmed_users": confirmed, "receive_rate": _rate(received, users), "read_rate": _rate(read, users),
        "confirm_rate": _rate(confirmed, users), "online_rate": _rate(online, users),
    }  # fmt: skip


def _push_stats(pushes: list[dict[str, Any]], receipts: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [row for row in receipts if row["message_id"] in {push["message_id"] for push in pushes}]
    return {
        "total_records": len(pushes),
        "success_records": sum(push["success"] for push in pushes),
        "failed_records": sum(not push["success"] for push in pushes),
        "total_recipients": sum(push["total_count"] for push in pushes),
        "delivered_count": sum(row["is_received"] for row in mine),
        "failed_count": sum(row["delivery_status"] == "expired" and not row["is_received"] for row in mine),
    }


Predicate = Callable[[dict[str, Any]], Any]
PUSH_FILTERS: list[tuple[dict[str, Any], Predicate]] = [
    ({}, lambda push: True),
    ({"message_type": "alarm"}, lambda push: push["message_type"] == "alarm"),
    ({"message_type": "ala%"}, lambda push: False),
    ({"target": "custom"}, lambda push: push["target"] == "custom"),
    ({"status": "success"}, lambda push: push["status"] == "success"),
    ({"status": "failed"}, lambda push: False),
    ({"success": "true"}, lambda push: push["success"]),
    ({"success": "0"}, lambda push: not push["success"]),
    ({"sender_id": 0}, lambda push: True),
    ({"sender_id": 2**63 - 1}, lambda push: False),
    ({"keyword": "disk 50"}, lambda push: "disk 50" in push["content"].lower()),
    ({"keyword": "50%"}, lambda push: "50%" in push["content"]),
    ({"keyword": "e_c"}, lambda push: "e_c" in push["content"]),
    ({"keyword": "%"}, lambda push: "%" in push["content"]),
    ({"keyword": "'"}, lambda push: "'" in push["content"]),
    ({"keyword": "\\"}, lambda push: "\\" in push["content"]),
    ({"keyword": "ä"}, lambda push: "ä" in push["content"]),
    ({"keyword": "null"}, lambda push: "null" in push["content"]),
    ({"keyword": "*"}, lambda push: False),
    ({"message_type": "alarm", "target": "custom", "keyword": "a"},
     lambda push: push["message_type"] == "alarm" and push["target"] == "custom" and "a" in push["content"]),
    ({"keyword": "", "target": "", "success": "", "start_date": "", "sender_id": "", "sort_by": ""}, lambda push: True),
    ({"unknown": "x", "user_id": "x", "token": "x", "__hash__": "x"}, lambda push: True),
]  # fmt: skip


class TestPushRecords:
    async def test_filters(self, world: World) -> None:
        pushes, receipts = world.pushes(), world.receipts()
        assert len(pushes) == len(NOTICES)
        for params, predicate in PUSH_FILTERS:
            expected = [push for push in pushes if predicate(push)]
            answer = await world.probe.get(RECORDS, params={**params, "page_size": 100})
            found = [item["message_id"] for item in answer["items"]]
            assert sorted(found) == sorted(push["message_id"] for push in expected), params
            assert answer["total"] == len(expected)
            assert answer["stats"] == _push_stats(expected, receipts), params
            assert await world.probe.get(STATS, params=params) == answer["stats"]

    async def test_order_and_pages(self, world: World) -> None:
        rows = {push["message_id"]: push for push in world.pushes()}
        for sort in PushSort:
            keys = (sort.value, "push_time", "message_id")
            ascending = sorted(rows, key=lambda message_id: [rows[message_id][key] for key in keys])
            for order, expected in (("asc", ascending), ("desc", ascending[::-1])):
                items = await world.pages(RECORDS, {"sort_by": sort.value, "sort_order": order})
                assert [item["message_id"] for item in items] == expected, (sort, order)

    async def test_defaults(self, world: World) -> None:
        answer = await world.probe.get(RECORDS)
        assert [item["message_id"] for item in answer["items"]] == world.ids[::-1]
        assert (answer["page"], answer["page_size"], answer["total"]) == (1, 10, len(NOTICES))
        beyond = await world.probe.get(RECORDS, params={"page": 1_000_000, "page_size": 100})
        assert (beyond["items"], beyond["total"], beyond["stats"]) == ([], len(NOTICES), answer["stats"])

    async def test_detail(self, world: World) -> None:
        row = next(push for push in world.pushes() if push["message_id"] == world.ids[2])
        data = await world.probe.get(f"{RECORDS}/{world.ids[2]}")
        record = data["record"]
        same = ("message_id", "content", "message_type", "target", "status", "priority", "total_count", "sender_name")
        assert {name: record[name] for name in same} == {name: row[name] for name in same}
        assert (record["target_user_ids"], record["target_roles"]) == ([BEN, ABSENT], None)
        assert (record["recipients_count"], record["delivered_count"], record["failed_count"]) == ("2_users", 2, 0)
        assert datetime.fromisoformat(record["push_time"]).timestamp() * 1000 == pytest.approx(row["push_time"])
        assert record["push_time"].endswith("+08:00")
        assert data["counts"] == await world.probe.receive_status(world.ids[2])
        assert (await world.probe.get(f"{RECORDS}/{world.ids[5]}"))["record"]["extra_data"] == {"a": [1]}
        assert (await world.probe.http.head(f"{PREFIX}{RECORDS}/{world.ids[2]}")).status_code == 200

    async def test_unknown_notices(self, world: World) -> None:
        for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/resend")):
            for message_id in ("nope", "%25", "a%2Fb", "%00", "n" * 512, "null"):
                response = await world.probe.http.request(method, f"{PREFIX}{RECORDS}/{message_id}{more}")
                assert (response.status_code, response.json()["error"]) == (404, "NOT_FOUND"), message_id
            response = await world.probe.http.request(method, f"{PREFIX}{RECORDS}/%FF{more}")
            assert response.status_code == 400

    async def test_delete(self, world: World) -> None:
        gone, path = world.ids[0], f"{PREFIX}{RECORDS}/{world.ids[0]}"
        response = await world.probe.http.delete(path)
        assert response.json()["data"] == {"message_id": gone, "success": True}
        for again in (
            await world.probe.http.get(path),
            await world.probe.http.delete(path),
            await world.probe.http.post(f"{path}/resend"),
            await world.probe.http.get(f"{PREFIX}/notification/messages/{gone}/receive-status"),
        ):
            assert (again.status_code, again.json()["error"]) == (404, "NOT_FOUND")
        assert gone not in {row["message_id"] for row in [*world.pushes(), *world.receipts()]}
        assert (await world.probe.get(RECORDS))["total"] == len(NOTICES) - 1
        answer = await world.probe.get(RECEIPTS)
        assert answer["stats"] == _receipt_stats(world.receipts())


RECEIPT_FILTERS: list[tuple[dict[str, Any], Predicate]] = [
    ({}, lambda row: True),
    ({"message_id": "{0}"}, lambda row: row["content"] == NOTICES[0]["content"]),
    ({"message_id": "nope"}, lambda row: False),
    ({"user_id": BEN}, lambda row: row["user_id"] == BEN),
    ({"user_id": 99}, lambda row: False),
    ({"username": "BEN"}, lambda row: row["user_id"] in (BEN, DORA)),
    ({"username": "n_1"}, lambda row: row["user_id"] == BEN),
    ({"username": "%"}, lambda row: row["user_id"] == CID),
    ({"username": "'"}, lambda row: row["user_id"] == ABSENT),
    ({"username": "null"}, lambda row: row["user_id"] == DORA),
    ({"username": "\\"}, lambda row: False),
    *(({flag: text}, lambda row, flag=flag, value=value: row[flag] == value)
      for flag in ("is_online", "is_received", "is_read", "is_confirmed")
      for text, value in (("true", 1), ("false", 0), ("1", 1), ("0", 0))),
    *(({"delivery_status": status}, lambda row, status=status: row["delivery_status"] == status)
      for status in ("pending", "offline", "expired", "delivered")),
    *(({"push_channel": channel}, lambda row, channel=channel: row["push_channel"] == channel)
      for channel in ("websocket", "offline")),
    ({"username": "ben", "is_received": "true", "is_read": "false"},
     lambda row: row["user_id"] in (BEN, DORA) and row["is_received"] and not row["is_read"]),
    ({"message_id": "{1}", "is_online": "true"},
     lambda row: row["content"] == NOTICES[1]["content"] and row["is_online"]),
    ({"username": "", "is_read": "", "delivery_status": "", "end_date": "", "sort_order": ""}, lambda row: True),
    ({"unknown": "x", "keyword": "x"}, lambda row: True),
]  # fmt: skip


def _pairs(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["message_id"], row["user_id"]) for row in rows]


class TestReceiveRecords:
    async def test_filters_and_rates(self, world: World) -> None:
        contents = {push["message_id"]: push["content"] for push in world.pushes()}
        rows = [{**row, "content": contents[row["message_id"]]} for row in world.receipts()]
        for params, predicate in RECEIPT_FILTERS:
            asked = {name: str(value).format(*world.ids) for name, value in params.items()}
            expected = [row for row in rows if predicate(row)]
            answer = await world.probe.get(RECEIPTS, params={**asked, "page_size": 100})
            assert sorted(_pairs(answer["items"])) == sorted(_pairs(expected)), params
            assert answer["total"] == len(expected)
            assert answer["stats"] == _receipt_stats(expected), params

    async def test_the_table_has_something_of_everything(self, world: World) -> None:
        """Else the filters would be compared with nothing."""
        rows = world.receipts()
        for name in ("is_online", "is_received", "is_read", "is_confirmed", "push_channel"):
            assert len({row[name] for row in rows}) == 2, name
        assert {row["delivery_status"] for row in rows} == {"pending", "offline", "delivered"}

    async def test_order_and_pages(self, world: World) -> None:
        rows = {(row["message_id"], row["user_id"]): row for row in world.receipts()}
        for sort, order in itertools.product(ReceiptSort, ("asc", "desc")):
            values = {pair: rows[pair][sort.value] or 0 for pair in rows}
            items = await world.pages(RECEIPTS, {"sort_by": sort.value, "sort_order": order})
            pairs = _pairs(items)
            assert sorted(pairs) == sorted(rows)
            found = [values[pair] for pair in pairs]
            assert found == sorted(found, reverse=order == "desc")

    async def test_every_field_of_the_contract(self, world: World) -> None:
        rows = {(row["message_id"], row["user_id"]): row for row in world.receipts()}
        pushes = {
            item["message_id"]: item for item in (await world.probe.get(RECORDS, params={"page_size": 100}))["items"]
        }
        times = ("received_at", "read_at", "confirmed_at", "created_at", "updated_at")
        for item in (await world.probe.get(RECEIPTS, params={"page_size": 100}))["items"]:
            row = rows[item["message_id"], item["user_id"]]
            said = {name: item.pop(name) for name in ("message_type", "expires_at")}
            assert item.keys() == row.keys()
            notice = pushes[item["message_id"]]
            assert said == {"message_type": notice["message_type"], "expires_at": notice["expires_at"]}
            assert {name: item[name] for name in row if name not in times} == {
                name: row[name] for name in row if name not in times
            }
            for name in times:
                at_ms = None if item[name] is None else round(datetime.fromisoformat(item[name]).timestamp() * 1000)
                assert at_ms == row[name]

    async def test_of_many_users(self, world: World) -> None:
        rows = sorted(world.receipts(), key=lambda row: (row["created_at"], row["message_id"]), reverse=True)
        for limit in (1, 2, 100):
            response = await world.probe.post(BATCH, {"user_ids": [BEN, CID, 99, ABSENT], "limit": limit})
            data = response.json()["data"]
            assert list(data) == [str(BEN), str(CID), "99", str(ABSENT)]
            for user_id in (BEN, CID, 99, ABSENT):
                mine = [row for row in rows if row["user_id"] == user_id][:limit]
                assert _pairs(data[str(user_id)]) == _pairs(mine)
        twice = (await world.probe.post(BATCH, {"user_ids": [BEN, BEN, CID, BEN], "limit": 100})).json()["data"]
        assert twice == {user_id: data[user_id] for user_id in (str(BEN), str(CID))}
        everybody = (await world.probe.post(BATCH, {"user_ids": list(range(1, 1001))})).json()["data"]
        assert sum(map(len, everybody.values())) == len(rows)
        assert len(everybody) == 1000

    async def test_totals_by_user(self, world: World) -> None:
        rows = world.receipts()
        data = await world.probe.get(TOTALS)
        assert data["total"] == _receipt_stats(rows)
        counts = [len([row for row in rows if row["user_id"] == user["user_id"]]) for user in data["users"]]
        assert counts == sorted(counts, reverse=True)
        assert {user["user_id"] for user in data["users"]} == {row["user_id"] for row in rows}
        for user in data["users"]:
            mine = [row for row in rows if row["user_id"] == user["user_id"]]
            expected = _receipt_stats(mine)
            assert user["username"] == next(known.username for known in USERS if known.user_id == user["user_id"])
            assert user["total_count"] == expected["total_users"]
            for name in ("received", "read", "confirmed"):
                assert user[f"{name}_count"] == expected[f"{name}_users"]
            for name in ("receive_rate", "read_rate", "confirm_rate"):
                assert user[name] == expected[name]
        limited = await world.probe.get(TOTALS, params={"limit": 1})
        assert limited == {"total": data["total"], "users": data["users"][:1]}

    async def test_summary_of_a_user(self, world: World) -> None:
        for user in USERS:
            mine = [row for row in world.receipts() if row["user_id"] == user.user_id]
            data = await world.probe.get(SUMMARY, params={"user_id": user.user_id})
            assert data["user_id"] == user.user_id
            assert data["total_count"] == len(mine)
            assert data["unread_count"] == sum(not row["is_read"] for row in mine)
            assert data["online_status"] is (user.user_id in (BEN, CID, DORA))
            last = datetime.fromisoformat(data["last_message_time"])
            assert round(last.timestamp() * 1000) == max(row["created_at"] for row in mine)
        nobody = await world.probe.get(SUMMARY, params={"user_id": 99})
        assert nobody == {
            "user_id": 99, "unread_count": 0, "total_count": 0, "last_message_time": None, "online_status": False,
        }  # fmt: skip
        assert (await world.probe.client(BEN)).hello["data"]["unread_count"] == (
            await world.probe.get(SUMMARY, params={"user_id": BEN})
        )["unread_count"]


def _at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(ZONE)).timestamp() * 1000)


MOMENTS = ("2025-03-01 00:00:00.000", "2025-03-01 23:59:59.999", "2025-03-02 00:00:00.000", "2025-03-02 12:00:00.500")
PERIODS: list[tuple[dict[str, str], list[int]]] = [
    ({"start_date": "2025-03-01", "end_date": "2025-03-01"}, [0, 1]),
    ({"start_date": "2025-03-02", "end_date": "2025-03-02"}, [2, 3]),
    ({"end_date": "2025-02-28"}, []),
    ({"end_date": "2025-03-01"}, [0, 1]),
    ({"start_date": "2025-03-02", "end_date": "2025-03-01"}, []),
    ({"start_date": "2025-03-01 23:59:59", "end_date": "2025-03-02 00:00:00"}, [1, 2]),
    ({"start_date": "2025-03-01T16:00:00Z", "end_date": "2025-03-02T12:00:00+08:00"}, [2, 3]),
    ({"start_date": "2025-03-01T23:59:59.999", "end_date": "2025-03-01T23:59:59.999"}, [1]),
    ({"start_date": "2025-03-02 12:00:00.501", "end_date": "2025-03-03"}, []),
]
NO_DATES = (
    "yesterday!", "2025-13-01", "2025-02-30", "2025-03-01 25:00:00", "1740787200", "0000-01-01", "%%%%%%%%%%",
    "2025-03-01T00:00:00+99:00", "short", "2025-03-01" * 5, "２０２５-03-01", "2025-03-01\0",
    "1712011111111", "20250301", "2025-W09-6", "2025-03-01T00:00:00,5", "2025-03-01 ", "2025-03-01 24:00:00",
)  # fmt: skip
DATED = (RECORDS, STATS, RECEIPTS, TOTALS)


class TestDates:
    async def test_both_ends_belong_to_it(self, dated: World) -> None:
        """A date means the whole day, in server.timezone."""
        pushes, receipts = dated.pushes(), dated.receipts()
        for params, numbers in PERIODS:
            ids = [dated.ids[number] for number in numbers]
            found = await dated.probe.get(RECORDS, params={**params, "sort_order": "asc"})
            assert [item["message_id"] for item in found["items"]] == ids, params
            expected = _push_stats([push for push in pushes if push["message_id"] in ids], receipts)
            assert found["stats"] == await dated.probe.get(STATS, params=params) == expected
            mine = [row for row in receipts if row["message_id"] in ids]
            found = await dated.probe.get(RECEIPTS, params={**params, "page_size": 100})
            assert sorted(_pairs(found["items"])) == sorted(_pairs(mine)), params
            assert found["stats"] == _receipt_stats(mine)
            totals = await dated.probe.get(TOTALS, params=params)
            assert totals["total"] == _receipt_stats(mine)
            assert sum(user["total_count"] for user in totals["users"]) == len(mine)

    async def test_what_is_no_date(self, probe: Probe) -> None:
        for path, field in itertools.product(DATED, ("start_date", "end_date")):
            for text in NO_DATES:
                response = await probe.http.get(PREFIX + path, params={field: text})
                assert response.status_code == 400, (text, response.text)
                assert response.json()["data"] == {"field": field}, text
                assert response.json()["message"].startswith(field), text


PAGING: dict[str, list[str]] = {
    "page": ["null", "0", "-1", "1.5", "one", "1000001", "9" * 400, "٧", "%00"],
    "page_size": ["0", "-1", "101", "ten"],
    "sort_order": ["up", "DESC", "desc; --", "null"],
}
FLAGS = {
    flag: ["yes", "2", "-1", "[]", "null", "Null"] for flag in ("is_online", "is_received", "is_read", "is_confirmed")
}
BAD: dict[str, dict[str, list[str]]] = {
    STATS: {"target": ["nobody", "ALL", "%"], "success": ["yes", "2", "[]"], "sender_id": ["-1", str(2**63), "ann"],
            "keyword": ["x" * 501], "message_type": ["x" * 501], "status": ["x" * 501]},
    RECORDS: {**PAGING, "target": ["nobody"], "success": ["maybe"], "sender_id": ["1.5"], "keyword": ["x" * 501],
              "sort_by": ["content", "push_time desc", "1", "PUSH_TIME", "null", "rowid"]},
    RECEIPTS: {**PAGING, **FLAGS, "user_id": ["0", "-1", str(2**63), "ann"],
               "username": ["x" * 501], "delivery_status": ["lost", "%"], "push_channel": ["mail", "0"],
               "sort_by": ["push_time", "rowid", "created_at,user_id"]},
    TOTALS: {"limit": ["0", "1001", "-1", "all"]},
    SUMMARY: {"user_id": ["0", "-1", "ann", "null", str(2**63)]},
}  # fmt: skip
BAD_BODIES: list[tuple[str, dict[str, Any], str]] = [
    (BATCH, {}, "user_ids"),
    (BATCH, {"user_ids": []}, "user_ids"),
    (BATCH, {"user_ids": [0]}, "user_ids"),
    (BATCH, {"user_ids": ["x"]}, "user_ids"),
    (BATCH, {"user_ids": [2**63]}, "user_ids"),
    (BATCH, {"user_ids": list(range(1, 1002))}, "user_ids"),
    (BATCH, {"user_ids": None}, "user_ids"),
    (BATCH, {"user_ids": [1], "limit": 0}, "limit"),
    (BATCH, {"user_ids": [1], "limit": 101}, "limit"),
    (BATCH, {"user_ids": [1], "limit": "2"}, "limit"),
]


class TestBadParameters:
    async def test_each_is_named(self, probe: Probe) -> None:
        for path, field, texts in ((path, field, texts) for path, row in BAD.items() for field, texts in row.items()):
            for text in texts:
                response = await probe.http.get(f"{PREFIX}{path}?{field}={quote(text)}")
                answer = response.json()
                assert response.status_code == 400, (field, text, response.text)
                assert answer["error"] == ("INVALID_TARGET" if field == "target" else "INVALID_REQUEST"), (field, text)
                assert answer["data"] == {"field": field}, (field, text)
                assert answer["message"].startswith(f"{field}: "), answer["message"]

    async def test_in_bodies(self, probe: Probe) -> None:
        for path, body, field in BAD_BODIES:
            response = await probe.post(path, body)
            assert response.status_code == 400, (body, response.text)
            assert response.json()["data"]["field"].startswith(field), body

    async def test_a_user_must_be_named(self, probe: Probe) -> None:
        response = await probe.http.get(PREFIX + SUMMARY)
        assert (response.status_code, response.json()["data"]) == (400, {"field": "user_id"})


NAMES = sorted({name for fields in BAD.values() for name in fields} | {"start_date", "end_date", "unknown", ""})
GOOD = ["1", "0", "7", "true", "all", "desc", "asc", "2025-03-01", "push_time", "created_at", "username", "delivered"]
FIELD = st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8"), max_size=8)
VALUE = st.sampled_from(GOOD) | st.text(st.characters(codec="utf-8"), max_size=20) | st.integers().map(str)
ESCAPES = st.lists(st.sampled_from(["%", "%2", "%00", "%FF", "%C3%28", "%ED%A0%80", "&", "=", "+", ";", "a"])).map(
    "".join
)
PAIR = st.tuples(FIELD, VALUE).map(lambda pair: f"{quote(pair[0])}={quote(pair[1])}")
QUERY = st.lists(PAIR | ESCAPES | st.tuples(FIELD, ESCAPES).map(lambda pair: f"{quote(pair[0])}={pair[1]}"), max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([*DATED, SUMMARY, ONLINE]), query=QUERY.map("&".join))
async def test_arbitrary_queries(probe: Probe, path: str, query: str) -> None:
    response = await probe.http.get(f"{PREFIX}{path}?{query}")
    answer = response.json()
    assert response.status_code in (200, 400), response.text
    assert answer["code"] == response.status_code
    if response.status_code == 400:
        assert answer["data"]["field"] in NAMES, response.text
        assert answer["message"].startswith(answer["data"]["field"])


class TestOnlineUsers:
    async def test_fields(self, start: Any, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir(mode=0o700)
        import_users(str(tmp_path / "data"), [User(BEN, "ben", 2)])
        probe = await start(server={"timezone": ZONE})
        oldest = await probe.client(BEN, user_agent_header="agent/1")
        await probe.client(BEN, user_agent_header="agent/2")
        await probe.client(CID)
        await probe.client()
        await until(lambda: len(stored.rows(tmp_path, stored.STATUSES)) == 2)
        data = await probe.get(ONLINE)
        assert data["total_online"] == 2
        datetime.strptime(data["timestamp"], "%Y-%m-%d %H:%M:%S")
        ben, cid = sorted(data["users"], key=lambda user: user["user_id"])
        assert datetime.fromisoformat(ben.pop("connected_at")).utcoffset() is not None
        assert ben == {
            "user_id": BEN, "username": "ben", "role": 2, "connections": 2,
            "connection_id": oldest.hello["data"]["conn_id"], "client_ip": "127.0.0.1", "user_agent": "agent/1",
            "total_online_count": 1, "total_online_time_s": 0.0,
        }  # fmt: skip
        assert (cid["user_id"], cid["username"], cid["role"], cid["connections"]) == (CID, "", 0, 1)
        assert {row["username"] for row in stored.rows(tmp_path, stored.STATUSES)} == {"ben", ""}
        await oldest.ws.close()
        await until(lambda: _has_connections(probe, {BEN: 1, CID: 1}))

    async def test_nobody(self, probe: Probe) -> None:
        await probe.client()
        data = await probe.get(ONLINE)
        assert (data["total_online"], data["users"]) == (0, [])


async def _has_connections(probe: Probe, expected: dict[int, int]) -> bool:
    users = (await probe.get(ONLINE))["users"]
    return {user["user_id"]: user["connections"] for user in users} == expected


CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)


class TestDevices:
    async def test_of_a_browser_behind_a_proxy(self, start: Any) -> None:
        probe = await start(server={"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]})
        forwarded = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 10.1.1.1"}
        client = await probe.client(7, user_agent_header=CHROME, additional_headers=forwarded)
        await probe.publish(target="custom", user_ids=[7, 8])
        items = (await probe.get(RECEIPTS, params={"sort_by": "user_id", "sort_order": "asc"}))["items"]
        here, absent = items
        assert (here["device_type"], here["platform"], here["browser"]) == ("desktop", "Windows", "Chrome")
        assert (here["client_ip"], here["user_agent"]) == ("203.0.113.9", CHROME)
        assert here["connection_id"] == client.hello["data"]["conn_id"]
        names = ("device_type", "platform", "browser", "client_ip", "user_agent", "connection_id")
        assert {absent[name] for name in names} == {""}
        (online,) = (await probe.get(ONLINE))["users"]
        assert (online["client_ip"], online["user_agent"]) == ("203.0.113.9", CHROME)

    async def test_forwarded_by_nobody_trusted(self, probe: Probe) -> None:
        await probe.client(7, additional_headers={"X-Forwarded-For": "203.0.113.9"})
        await probe.publish(target="custom", user_ids=[7])
        assert (await probe.get(RECEIPTS))["items"][0]["client_ip"] == "127.0.0.1"

    async def test_of_one_who_comes_later(self, probe: Probe) -> None:
        published = await probe.publish(target="custom", user_ids=[7])
        client = await probe.client(7, ack=True, user_agent_header=CHROME)
        await client.receive()
        await client.ack(published["message_id"])
        await until(lambda: _received(probe, published["message_id"], 1))
        (item,) = (await probe.get(RECEIPTS))["items"]
        assert (item["platform"], item["push_channel"], item["delivery_status"]) == ("Windows", "offline", "delivered")
