"""A user's own inbox from outside: over HTTP, with every store that can keep records."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from tests.daemon import PREFIX, Client, Probe, Process, until
from tests.mongo_server import MongoServer
from tests.tokens import API_KEY, JWT, token

CALLS = [("GET", "inbox"), ("GET", "unread-count"), *(("POST", path) for path in ("read-all", "archive", "unarchive"))]
KEY = {"X-API-Key": API_KEY}


def bearer(user_id: int, role: int = 0) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user_id, role)}"}


class Inbox:
    """What one user sees and does over HTTP."""

    def __init__(self, probe: Probe, user_id: int) -> None:
        self._probe = probe
        self._headers = bearer(user_id)

    async def page(self, **query: Any) -> dict[str, Any]:
        return await self._probe.get("/notification/inbox", params=query, headers=self._headers)

    async def ids(self, **query: Any) -> list[str]:
        return [item["message_id"] for item in (await self.page(**query))["items"]]

    async def unread(self) -> int:
        return (await self._probe.get("/notification/unread-count", headers=self._headers))["unread_count"]

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        response = await self._probe.post(f"/notification/{path}", body, headers=self._headers)
        assert response.status_code == 200, response.text
        return response.json()["data"]


async def publish(probe: Probe, *message_ids: str, user_ids: tuple[int, ...] = (7,), **fields: Any) -> None:
    for message_id in message_ids:
        body = {"content": f"content of {message_id}", "message_id": message_id, "target": "custom"} | fields
        response = await probe.post("/system/notice?wait_ms=5000", body | {"user_ids": user_ids}, headers=KEY)
        assert response.status_code == 200, response.text


@pytest.fixture(params=["embedded", "mongodb"])
async def probe(start: Any, mongo_server: MongoServer, request: pytest.FixtureRequest) -> Probe:
    """A daemon whose records are its own, or in MongoDB."""
    if request.param == "embedded":
        return await start(auth=JWT)
    return await start(auth=JWT, records={"url": mongo_server.url, "database": f"pushd_{uuid4().hex}", "flush_ms": 1})


@pytest.fixture
async def mine(probe: Probe) -> Inbox:
    return Inbox(probe, 7)


async def test_an_item_has_every_field(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a", data={"order": 5}, type="order_paid", priority="high", need_confirm=True)
    await publish(probe, "b", expires_in_s=3600)
    page = await mine.page()
    assert (page["unread_count"], page["next"]) == (await mine.unread(), None) == (2, None)
    newest, oldest = page["items"]
    assert newest.pop("expires_at").startswith("20")
    assert oldest.pop("ts") <= newest["ts"]
    assert len(oldest.pop("time")) == len("YYYY-MM-DD HH:MM:SS")
    assert oldest == {
        "message_id": "a",
        "type": "order_paid",
        "content": "content of a",
        "data": {"order": 5},
        "priority": 2,
        "need_confirm": True,
        "version": 1,
        "is_read": False,
        "read_at": None,
        "is_confirmed": False,
        "confirmed_at": None,
        "is_archived": False,
    }
    await mine.post("mark-confirmed", message_id="a")
    (_, item) = (await mine.page())["items"]
    assert (item["is_read"], item["is_confirmed"]) == (True, True)
    assert item["read_at"] == item["confirmed_at"] is not None


async def test_pages_are_followed_by_their_cursors(probe: Probe, mine: Inbox) -> None:
    names = [f"m{number}" for number in range(7)]
    await publish(probe, *names)
    found: list[str] = []
    before: dict[str, str] = {}
    while True:
        page = await mine.page(limit=3, **before)
        found += [item["message_id"] for item in page["items"]]
        await publish(probe, f"late{len(found)}")
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    assert found == names[::-1]


async def test_filters(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a", type="order_paid", title="paid", url="/orders/5", tags=["urgent", "x"])
    await publish(probe, "b", "c")
    await publish(probe, "d", user_ids=(8,))
    await mine.post("mark-read", message_id="b")
    await mine.post("archive", message_ids=["c"])
    assert await mine.ids() == ["b", "a"]
    assert await mine.ids(status="unread") == ["a"]
    assert await mine.ids(status="read", archived="include") == ["c", "b"]
    assert await mine.ids(archived="only") == ["c"]
    assert await mine.ids(type="order_paid") == ["a"]
    assert await mine.ids(type="other") == []
    assert await mine.ids(tag="urgent", type="order_paid") == ["a"]
    assert await mine.ids(tag="y") == []
    (item,) = (await mine.page(tag="x"))["items"]
    assert (item["title"], item["url"], item["tags"]) == ("paid", "/orders/5", ["urgent", "x"])


async def test_everything_is_read_at_once(probe: Probe, mine: Inbox) -> None:
    """What is on another user's list, and what comes later, stays unread; nothing is confirmed, nothing waits."""
    await publish(probe, "a", "b", user_ids=(7, 8))
    await publish(probe, "c", type="order_paid")
    assert await mine.post("read-all", type="order_paid") == {"success_count": 1, "unread_count": 2}
    assert await mine.post("read-all", until_ts=0) == {"success_count": 0, "unread_count": 2}
    assert await mine.post("read-all") == {"success_count": 2, "unread_count": 0}
    assert await mine.post("read-all") == {"success_count": 0, "unread_count": 0}
    await publish(probe, "d")
    assert await mine.ids(status="unread") == ["d"]
    assert await Inbox(probe, 8).unread() == 2
    assert not any(item["is_confirmed"] for item in (await mine.page())["items"])
    params = {"user_id": 7}
    mailbox = await probe.get("/notification/offline-messages", params=params, headers=KEY)
    assert [item["message_id"] for item in mailbox["offline_messages"]] == ["d"]


async def test_what_is_put_away_is_read_and_comes_back(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a", "b")
    answer = await mine.post("archive", message_ids=["a", "nothing", "a"])
    assert (answer["success_count"], answer["failed_count"], answer["total_count"]) == (1, 1, 2)
    assert answer["errors"] == [{"message_id": "nothing", "error": "NOT_FOUND"}]
    assert (await mine.ids(), await mine.unread()) == (["b"], 1)
    (item,) = (await mine.page(archived="only"))["items"]
    assert (item["is_archived"], item["is_read"]) == (True, True)
    assert (await mine.post("unarchive", message_ids=["a"]))["success_count"] == 1
    assert (await mine.ids(), await mine.unread()) == (["b", "a"], 1)


async def test_what_expires_leaves_the_inbox_and_the_count(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a", expires_in_s=0.3)
    await publish(probe, "b")

    async def is_gone() -> bool:
        page = await mine.page()  # the two numbers of one answer: it may expire between two
        return [item["message_id"] for item in page["items"]] == ["b"] and page["unread_count"] == 1

    await until(is_gone)


async def test_revoked_notices_leave_the_inbox(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a", "b")
    response = await probe.post("/notification/records/a/revoke", {}, headers=KEY)
    assert response.status_code == 200, response.text
    assert (await mine.ids(), await mine.unread()) == (["b"], 1)


async def test_deleted_records_leave_the_inbox(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a", "b")
    await probe.http.delete(f"{PREFIX}/notification/records/a", headers=KEY)
    assert (await mine.ids(), await mine.unread()) == (["b"], 1)


async def test_whose_inbox_it_is(probe: Probe) -> None:
    await publish(probe, "a")

    async def call(method: str, path: str, headers: dict[str, str], **user: Any) -> httpx.Response:
        url, body = f"{PREFIX}/notification/{path}", {"message_ids": ["a"]} | user
        if method == "GET":
            return await probe.http.get(url, params=user, headers=headers)
        return await probe.http.post(url, json=body, headers=headers)

    for method, path in CALLS:
        assert (await call(method, path, {})).status_code == 401
        assert (await call(method, path, bearer(8), user_id=7)).status_code == 403
        assert (await call(method, path, KEY)).json()["error"] == "INVALID_REQUEST"
        assert (await call(method, path, KEY, user_id=7)).status_code == 200
        assert (await call(method, path, bearer(9, role=1), user_id=7)).status_code == 200
        assert (await call(method, path, bearer(7))).status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"before": "x"}, "before"),
        ({"before": "s"}, "before"),
        ({"before": "sfffffffffffffffff"}, "before"),
        ({"status": "new"}, "status"),
        ({"archived": "yes"}, "archived"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
    ],
)
async def test_what_is_wrong_with_a_question_is_said(probe: Probe, query: dict[str, Any], field: str) -> None:
    response = await probe.http.get(f"{PREFIX}/notification/inbox", params=query, headers=bearer(7))
    assert (response.status_code, response.json()["data"]) == (400, {"field": field})
    assert response.json()["message"].startswith(f"{field}: ")


@pytest.mark.parametrize("body", [{"until_ts": -1}, {"until_ts": "now"}, {"type": 5}, {"tag": ["a"]}])
async def test_what_is_wrong_with_read_all_is_said(probe: Probe, body: dict[str, Any]) -> None:
    response = await probe.post("/notification/read-all", body, headers=bearer(7))
    assert (response.status_code, response.json()["data"]) == (400, {"field": next(iter(body))})


async def test_what_was_answered_outlives_a_kill(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        async with await process.start() as probe:
            for name in "abc":
                await probe.publish(message_id=name, target="custom", user_ids=[7])
            await probe.post("/notification/archive", {"message_ids": ["a"], "user_id": 7})
            assert (await probe.post("/notification/read-all", {"user_id": 7})).json()["data"]["success_count"] == 2
            await process.kill()
        async with await process.start() as probe:
            page = await probe.get("/notification/inbox", params={"user_id": 7, "archived": "include"})
            assert [(item["is_read"], item["is_archived"]) for item in page["items"]] == [
                (True, False), (True, False), (True, True),
            ]  # fmt: skip
            assert await probe.mailbox(7) == []


async def connect(probe: Probe, user_id: int, query: str, **options: Any) -> Client:
    headers = {"Authorization": f"Bearer {token(user_id)}"}
    return Client(await probe.open(f"/ws?{query}", additional_headers=headers, **options))


async def counted(client: Client, count: int) -> None:
    """Waits until the client is told this count; at most one frame a second comes."""
    while True:
        message = await client.receive()
        if message["type"] == "unread" and message["unread_count"] == count:
            return


async def test_two_tabs_are_told_the_count(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a")
    tabs = [await connect(probe, 7, "unread=1") for _ in range(2)]
    for tab in tabs:
        assert (await tab.receive())["type"] == "hello"
    await publish(probe, "b", "c", expires_in_s=3600)
    await publish(probe, "d", expires_in_s=1.5)
    for tab in tabs:
        await counted(tab, 4)
    await mine.post("mark-read", message_id="b")
    await mine.post("archive", message_ids=["a"])
    for tab in tabs:
        await counted(tab, 1)  # d has expired
    await tabs[0].send({"type": "read_all"})
    for tab in tabs:
        await counted(tab, 0)
    assert await mine.unread() == 0


async def test_read_all_on_the_wire(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a")
    client = await connect(probe, 7, "")
    assert [(await client.receive())["type"] for _ in range(2)] == ["hello", "system_notice"]
    ts = (await mine.page())["items"][0]["ts"]
    await client.send({"type": "read_all", "until_ts": ts - 1})
    await client.send({"type": "read_all", "until_ts": -1})
    assert (await client.receive())["error"] == "INVALID_REQUEST"
    assert await mine.unread() == 1
    await client.send({"type": "read_all", "until_ts": ts})

    async def is_read() -> bool:
        return await mine.unread() == 0

    await until(is_read)
    assert await client.is_quiet()  # unread=1 was not asked for


async def test_messagepack_is_told_and_reads_as_well(probe: Probe, mine: Inbox) -> None:
    await publish(probe, "a")
    headers = {"Authorization": f"Bearer {token(7)}"}
    ws = await probe.open("/ws?unread=1", additional_headers=headers, subprotocols=["pushd.v1.msgpack"])

    async def told(count: int) -> None:
        while (message := msgspec.msgpack.decode(await ws.recv()))["type"] != "unread":
            continue
        assert message == {"type": "unread", "unread_count": count}

    await publish(probe, "b")
    await told(2)
    await ws.send(msgspec.msgpack.encode({"type": "read_all"}))
    await told(0)
    assert await mine.unread() == 0


async def test_guests_read_nothing(start: Any) -> None:
    probe = await start()
    guest = await probe.client(query="unread=1")
    await guest.send({"type": "read_all"})
    assert (await guest.receive())["error"] == "FORBIDDEN"


async def test_what_was_sent_live_is_read_before_it_is_acknowledged(probe: Probe, mine: Inbox) -> None:
    """It does not come back from the mailbox."""
    client = await connect(probe, 7, "ack=1")
    await client.receive()
    body = {"content": "x", "target": "custom", "user_ids": [7], "message_id": "a"}
    await probe.post("/system/notice", body, headers=KEY)
    assert (await client.receive())["message_id"] == "a"
    assert await mine.post("read-all") == {"success_count": 1, "unread_count": 0}
    await client.ws.close()
    again = await connect(probe, 7, "ack=1")
    assert (await again.receive())["data"]["unread_count"] == 0
    assert await again.is_quiet()
