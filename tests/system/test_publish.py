"""Publishing over HTTP: what is refused and why, repeats, batches, waiting, limits and priorities."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pushd import app
from tests.daemon import PREFIX, Probe, until
from tests.unit.parts import Faulty

TO_7: dict[str, Any] = {"target": "custom", "user_ids": [7]}


def _error(response: httpx.Response) -> tuple[int, str, str]:
    answer = response.json()
    assert answer["code"] == response.status_code
    return response.status_code, answer["error"], answer["data"].get("field", "")


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({}, 400, "CONTENT_EMPTY", "content"),
    ({"content": None}, 400, "CONTENT_EMPTY", "content"),
    ({"content": ""}, 400, "CONTENT_EMPTY", "content"),
    ({"content": " \t\r\n\u3000"}, 400, "CONTENT_EMPTY", "content"),
    ({"content": "字" * 501}, 400, "CONTENT_TOO_LONG", "content"),
    ({"content": "x", "target": "everybody"}, 400, "INVALID_TARGET", "target"),
    ({"content": "x", "target": ""}, 400, "INVALID_TARGET", "target"),
    ({"content": "x", "target": "ALL"}, 400, "INVALID_TARGET", "target"),
    ({"content": "x", "target": "custom"}, 400, "MISSING_USER_IDS", "user_ids"),
    ({"content": "x", "target": "custom", "user_ids": []}, 400, "MISSING_USER_IDS", "user_ids"),
    ({"content": "x", "target": "role"}, 400, "INVALID_REQUEST", "roles"),
    ({"content": "x", "target": "role", "roles": list(range(101))}, 400, "INVALID_REQUEST", "roles"),
    ({"content": "x", "target": "custom", "user_ids": list(range(1, 102))}, 400, "TOO_MANY_USER_IDS", "user_ids"),
    ({"content": "x", "exclude_ids": list(range(1, 102))}, 400, "TOO_MANY_USER_IDS", "exclude_ids"),
    ({"content": "x", "data": "x" * 65_535}, 413, "BODY_TOO_LARGE", "data"),
    ({"content": "x", "type": "hello"}, 400, "INVALID_REQUEST", "type"),
    ({"content": "x", "type": "error"}, 400, "INVALID_REQUEST", "type"),
    ({"content": "x", "type": "order\n"}, 400, "INVALID_REQUEST", "type"),
    ({"content": "x", "message_id": "id\n"}, 400, "INVALID_REQUEST", "message_id"),
    ({"content": "x", "message_id": ""}, 400, "INVALID_REQUEST", "message_id"),
    ({"content": "x", "message_id": "x" * 129}, 400, "INVALID_REQUEST", "message_id"),
    ({"content": "x", "expires_in_s": 0}, 400, "INVALID_REQUEST", "expires_in_s"),
    ({"content": "x", "expires_in_s": -1}, 400, "INVALID_REQUEST", "expires_in_s"),
    ({"content": "x", "priority": 4}, 400, "INVALID_REQUEST", "priority"),
    ({"content": "x", "priority": "HIGH"}, 400, "INVALID_REQUEST", "priority"),
    ({"content": "x", **TO_7, "user_ids": [7, 0]}, 400, "INVALID_REQUEST", "user_ids[1]"),
    ({"content": "x", **TO_7, "user_ids": [-1]}, 400, "INVALID_REQUEST", "user_ids[0]"),
    ({"content": "x", **TO_7, "user_ids": [2**63]}, 400, "INVALID_REQUEST", "user_ids[0]"),
]


async def test_refusals_name_code_and_field_and_keep_nothing(start: Any) -> None:
    probe = await start(limits={"max_user_ids": 100})
    client = await probe.client(7)
    for body, *expected in REFUSED:
        assert _error(await probe.post("/system/notice", body)) == tuple(expected), body
    answer = await probe.post("/system/notices", {"notices": [body for body, *_ in REFUSED]})
    items = answer.json()["data"]["items"]
    assert [(item["code"], item["error"], item["data"]["field"]) for item in items] == [
        tuple(expected) for _, *expected in REFUSED
    ]
    published = await probe.publish(target="all")
    assert await client.receive_ids(1) == [published["message_id"]]


async def test_what_is_just_allowed(start: Any) -> None:
    probe = await start(limits={"max_user_ids": 100})
    await probe.client(7)
    for body in (
        {"content": "字" * 500},
        {"content": "x", "data": "x" * 65_534},
        {"content": "x", "message_id": "x" * 128, "type": "T" * 64},
        {"content": "x", "target": "custom", "user_ids": [2**63 - 1, *range(1, 100)]},
        {"content": "\0\u2028\U0001f514 <b>&\\\"'"},
        {"content": "x", "expires_in_s": 315_360_000, "user_ids": [], "roles": [], "exclude_ids": []},
    ):
        response = await probe.post("/system/notice?wait_ms=5000", body)
        assert response.status_code == 200, response.text
        assert response.json()["data"]["status"] == "delivered"


@pytest.mark.parametrize("depth", [1, 99, 100])
async def test_data_may_be_nested(probe: Probe, depth: int) -> None:
    data: Any = 1
    for level in range(depth):
        data = [data] if level % 2 else {"a": data}
    await probe.publish(data=data, **TO_7)
    waiting = await probe.get("/notification/offline-messages", params={"user_id": 7})
    assert waiting["offline_messages"][0]["data"] == data
    assert (await (await probe.client(7)).receive())["data"] == data


@pytest.mark.parametrize("depth", [101, 260, 900])
async def test_data_that_is_nested_deeper_is_refused(probe: Probe, depth: int) -> None:
    """What a client's decoder, the API's encoder or the journal's at the next start could not read."""
    body = b'{"content":"x","data":' + b"[" * depth + b"]" * depth + b"}"
    headers = {"content-type": "application/json"}
    response = await probe.http.post(f"{PREFIX}/system/notice", content=body, headers=headers)
    assert _error(response) == (400, "INVALID_REQUEST", "data")


@pytest.mark.parametrize("wait_ms", ["-1", "10001", "1.5", "soon", "٣", "1" * 400])
async def test_wait_ms_out_of_range(probe: Probe, wait_ms: str) -> None:
    response = await probe.post("/system/notice", {"content": "x"}, params={"wait_ms": wait_ms})
    assert _error(response) == (400, "INVALID_REQUEST", "wait_ms")


class TestAnswer:
    async def test_accepted(self, probe: Probe) -> None:
        response = await probe.post("/system/notice", {"content": "你好"})
        answer = response.json()
        assert (answer["code"], answer["message"]) == (200, "OK")
        data = answer["data"]
        assert time.strptime(data.pop("push_time"), "%Y-%m-%d %H:%M:%S")
        assert data.pop("message_id")
        assert data == {
            "success": True,
            "message": "你好",
            "target": "all",
            "message_type": "system_notice",
            "recipients_count": "all_users",
            "status": "accepted",
            "duplicate": False,
        }

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"target": "admin"}, "all_admins"),
            ({**TO_7, "user_ids": [7, 8, 7]}, "2_users"),
            ({**TO_7, "user_ids": [7, 8], "exclude_ids": [8]}, "1_users"),
        ],
    )
    async def test_recipients_count(self, probe: Probe, fields: dict[str, Any], text: str) -> None:
        assert (await probe.publish(**fields))["recipients_count"] == text

    async def test_waiting_counts_recipients(self, probe: Probe) -> None:
        clients = [await probe.client(7), await probe.client(7), await probe.client(8, ack=True), await probe.client()]
        data = await probe.publish(target="custom", user_ids=[7, 8, 9, 10])
        names = ("status", "total_count", "online_count", "offline_count", "delivered_count")
        assert [data[name] for name in names] == ["delivered", 4, 2, 2, 1]
        assert len(clients) == 4

    async def test_waiting_ends_when_nobody_is_concerned(self, probe: Probe) -> None:
        data = await probe.publish(target="admin", wait_ms=10_000)
        assert (data["status"], data["total_count"]) == ("delivered", 0)


class TestRepeats:
    async def test_by_message_id(self, probe: Probe) -> None:
        client = await probe.client(7)
        first = await probe.publish("first", message_id="order-1", **TO_7)
        again = await probe.publish("another text", message_id="order-1", target="all", priority=3)
        assert (first.pop("duplicate"), again.pop("duplicate")) == (False, True)
        assert again == first
        last = await probe.publish("last")
        assert await client.receive_ids(2) == ["order-1", last["message_id"]]

    async def test_by_idempotency_key(self, probe: Probe) -> None:
        client = await probe.client(7)
        answers = []
        for content in ("first", "second"):
            response = await probe.post("/system/notice", {"content": content}, headers={"Idempotency-Key": "k 1"})
            answers.append(response.json()["data"])
        assert [answer["duplicate"] for answer in answers] == [False, True]
        assert answers[0]["message_id"] == answers[1]["message_id"]
        other = await probe.publish("last", wait_ms=5000)
        assert await client.receive_ids(2) == [answers[0]["message_id"], other["message_id"]]

    @pytest.mark.parametrize(
        "key",
        ["schlüssel", "键-1", "ключ", "مفتاح", "می\u200cخواهم", "注文\u30001", "👩\u200d👩\u200d👧",
         '"quoted, \\"text\\""', "😀" * 255,
         "!#$%&'*+/:;<=>?@[]^_`{|}~", "x" * 255],
    )  # fmt: skip
    async def test_a_key_is_any_printable_text(self, probe: Probe, key: str) -> None:
        headers = [(b"Idempotency-Key", key.encode())]
        answers = [(await probe.post("/system/notice", {"content": "x"}, headers=headers)).json() for _ in range(2)]
        assert [answer["data"]["duplicate"] for answer in answers] == [False, True]

    async def test_a_key_in_latin_1(self, probe: Probe) -> None:
        headers = [(b"Idempotency-Key", "schlüssel".encode("latin-1"))]
        for expected in (False, True):
            response = await probe.post("/system/notice", {"content": "x"}, headers=headers)
            assert response.json()["data"]["duplicate"] is expected

    async def test_bad_keys(self, probe: Probe) -> None:
        latin = ("x" * 256, "a\tb", "a\xa0b", "a\x85b")
        texts = ("键" * 256, "a\u2028b", "a\u202eb", "a\ufeffb", "a\u00a0b", "a\U000e0001b", "\u0378")
        for raw_key in [key.encode("latin-1") for key in latin] + [key.encode() for key in texts]:
            headers = [(b"Idempotency-Key", raw_key)]
            response = await probe.post("/system/notice", {"content": "x"}, headers=headers)
            assert _error(response) == (400, "INVALID_REQUEST", "Idempotency-Key")

    @pytest.mark.parametrize("way", ["message_id", "key", "batch"])
    async def test_concurrently(self, probe: Probe, way: str) -> None:
        client = await probe.client(7)
        body = {"content": "x", **({} if way == "key" else {"message_id": "same"})}
        if way == "batch":
            response = await probe.post("/system/notices", {"notices": [body] * 50})
            answers = response.json()["data"]["items"]
        else:
            headers = {"Idempotency-Key": "same"} if way == "key" else {}
            posts = [probe.post("/system/notice", body, headers=headers) for _ in range(50)]
            answers = [response.json()["data"] for response in await asyncio.gather(*posts)]
        assert sorted(answer["duplicate"] for answer in answers) == [False] + [True] * 49
        assert len({answer["message_id"] for answer in answers}) == 1
        last = await probe.publish("last")
        assert await client.receive_ids(2) == [answers[0]["message_id"], last["message_id"]]

    async def test_after_a_restart(self, make_config: Callable[..., Any], tmp_path: Path) -> None:
        config = make_config()
        async with app.running(config) as node, Probe(node.port, node) as probe:
            first = await probe.publish("first", message_id="order-1", **TO_7)
            body, headers = {"content": "by key", **TO_7}, {"Idempotency-Key": "k"}
            keyed = (await probe.post("/system/notice?wait_ms=5000", body, headers=headers)).json()["data"]
            await node.drain()
        async with app.running(config) as node, Probe(node.port, node) as probe:
            began = time.monotonic()
            again = await probe.publish("again", message_id="order-1", wait_ms=10_000)
            keyed_again = (await probe.post("/system/notice?wait_ms=10000", body, headers=headers)).json()["data"]
            assert time.monotonic() - began < 5  # long delivered: nothing to wait for
            for one, two in ((first, again), (keyed, keyed_again)):
                assert (two["duplicate"], two["status"]) == (True, "delivered")
                for name in ("message", "message_id", "push_time", "target", "recipients_count"):
                    assert one[name] == two[name]
            assert await probe.mailbox(7) == [first["message_id"], keyed["message_id"]]

    async def test_beyond_the_window_it_is_a_new_notice(self, start: Any) -> None:
        probe = await start(delivery={"dedup_window_s": 0.1})
        await probe.publish(message_id="same")

        async def is_new() -> bool:
            return not (await probe.publish(message_id="same"))["duplicate"]

        await until(is_new)

    async def test_a_refused_publish_is_not_remembered(self, start: Any) -> None:
        probe = await start(delivery={"queue_size": 1})
        body = {"notices": [{"content": "x", "message_id": f"id-{number}"} for number in range(3)]}
        items = (await probe.post("/system/notices", body)).json()["data"]["items"]
        assert [item.get("error") for item in items] == [None, "QUEUE_FULL", "QUEUE_FULL"]
        assert (await probe.publish(message_id="id-2"))["duplicate"] is False
        assert (await probe.publish(message_id="id-0"))["duplicate"] is True


class TestBatch:
    async def test_one_bad_item_harms_no_other(self, probe: Probe) -> None:
        client = await probe.client(7)
        notices: list[Any] = [{"content": str(number)} for number in range(9)]
        notices[1:8:2] = [None, {"content": ""}, "text", {"content": 5}]
        response = await probe.post("/system/notices", {"notices": notices})
        assert response.status_code == 200
        items = response.json()["data"]["items"]
        assert [item["success"] for item in items] == [True, False] * 4 + [True]
        assert [item["error"] for item in items if not item["success"]] == [
            "INVALID_REQUEST", "CONTENT_EMPTY", "INVALID_REQUEST", "INVALID_REQUEST"
        ]  # fmt: skip
        assert [items[number]["message"] for number in range(0, 9, 2)] == ["0", "2", "4", "6", "8"]
        assert await client.receive_ids(5) == [item["message_id"] for item in items if item["success"]]

    async def test_a_thousand_at_most(self, probe: Probe) -> None:
        notices = [{"content": str(number)} for number in range(1001)]
        response = await probe.post("/system/notices", {"notices": notices})
        assert _error(response) == (400, "INVALID_REQUEST", "notices")
        response = await probe.post("/system/notices", {"notices": notices[:1000]})
        items = response.json()["data"]["items"]
        assert [item["message"] for item in items] == [notice["content"] for notice in notices[:1000]]

    @pytest.mark.parametrize("body", [{}, {"notices": None}, {"notices": []}, {"notices": {}}, {"notices": "x"}])
    async def test_no_list_of_notices(self, probe: Probe, body: dict[str, Any]) -> None:
        assert _error(await probe.post("/system/notices", body)) == (400, "INVALID_REQUEST", "notices")


class TestLimits:
    async def test_rate(self, start: Any) -> None:
        probe = await start(limits={"publishes_per_s": 2})
        responses = [await probe.post("/system/notice", {"content": "x"}) for _ in range(20)]
        refused = [response for response in responses if response.status_code != 200]
        assert len(refused) >= 10
        assert {_error(response)[:2] for response in refused} == {(429, "RATE_LIMITED")}
        assert all(int(response.headers["retry-after"]) > 0 for response in refused)

    @pytest.mark.parametrize("path", ["/system/notice", "/system/notice?wait_ms=100", "/system/notices"])
    async def test_a_journal_that_hangs(self, probe: Probe, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        """The publisher is told in time; the notice is kept all the same once the journal goes on."""
        probe.node.router.answer_within_s = 0.05
        client = await probe.client(7)
        journal = Faulty(probe.node.intake._journal)
        monkeypatch.setattr(probe.node.intake, "_journal", journal)
        gate = journal.hold("append")
        body = {"content": "x", "notices": [{"content": "x"}]}
        response = await probe.post(path, body)
        assert _error(response)[:2] == (503, "STORE_UNAVAILABLE")
        assert int(response.headers["retry-after"]) > 0
        gate.set()
        assert (await client.receive())["content"] == "x"
        assert (await probe.post(path, body)).status_code == 200

    async def test_queue_full_keeps_nothing(self, start: Any) -> None:
        probe = await start(delivery={"queue_size": 2})
        client = await probe.client(7)
        items = (await probe.post("/system/notices", {"notices": [{"content": "x"}] * 5})).json()["data"]["items"]
        assert [(item["code"], item["error"]) for item in items[2:]] == [(503, "QUEUE_FULL")] * 3
        last = await probe.publish("last")
        assert await client.receive_ids(3) == [items[0]["message_id"], items[1]["message_id"], last["message_id"]]
        metrics = (await probe.http.get("/metrics")).text
        assert 'pushd_notices_total{priority="normal",result="queue_full",target="all"} 3.0' in metrics

    async def test_a_full_queue_says_when_to_come_back(self, start: Any) -> None:
        probe = await start(delivery={"queue_size": 1})
        posts = await asyncio.gather(*(probe.post("/system/notice", {"content": "x"}) for _ in range(50)))
        full = [response for response in posts if response.status_code != 200]
        assert all(_error(response)[:2] == (503, "QUEUE_FULL") for response in full)
        assert all(int(response.headers["retry-after"]) > 0 for response in full)


class TestPriorities:
    @pytest.mark.parametrize(
        ("given", "shown"), [(0, 0), (1, 1), (2, 2), (3, 3), ("low", 0), ("normal", 1), ("high", 2), ("urgent", 3)]
    )
    async def test_words_and_numbers(self, probe: Probe, given: int | str, shown: int) -> None:
        client = await probe.client(7)
        await probe.publish(priority=given)
        assert (await client.receive())["priority"] == shown

    async def test_urgent_overtakes(self, start: Any) -> None:
        probe = await start(delivery={"min_workers": 1, "max_workers": 1})
        client = await probe.client(7)
        notices = [{"content": "x", "priority": "low"}] * 400 + [{"content": "!", "priority": "urgent"}]
        await probe.post("/system/notices", {"notices": notices})
        received = [(await client.receive())["priority"] for _ in range(401)]
        assert received.index(3) < 400


async def test_notices_expire(probe: Probe) -> None:
    published = await probe.publish(expires_in_s=0.001, **TO_7)

    async def is_gone() -> bool:
        return not await probe.mailbox(7)

    await until(is_gone)
    assert await (await probe.client(7)).is_quiet()
    assert (await probe.receive_status(published["message_id"]))["total_users"] == 1
