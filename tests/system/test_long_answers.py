"""Long answers over the socket: whole, in order, with what comes behind them, and given back when nobody takes them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tests.daemon import PREFIX, Probe, until

DATA = "d" * 60_000
COUNT = 40


@pytest.fixture
async def full(start: Any) -> Probe:
    """User 7 has 2.4 MB waiting."""
    probe: Probe = await start()
    for number in range(COUNT):
        await probe.publish(f"n{number}", target="custom", user_ids=[7], data=DATA)
    return probe


@asynccontextmanager
async def connected(probe: Probe) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Who reads little by himself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", probe.port, limit=16_384)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


def asked(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


MAILBOX = f"{PREFIX}/notification/offline-messages?user_id=7"


async def read_answer(reader: asyncio.StreamReader, *, has_body: bool = True) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None
    return int(head.split()[1]), await reader.readexactly(int(length[1])) if has_body else length[1]


async def test_a_mailbox_and_a_page_of_records_are_whole(full: Probe) -> None:
    data = await full.get("/notification/offline-messages", params={"user_id": 7})
    assert [item["content"] for item in data["offline_messages"]] == [f"n{number}" for number in reversed(range(COUNT))]
    assert {item["data"] for item in data["offline_messages"]} == {DATA}
    page = await full.get("/notification/records", params={"page_size": 100})
    assert [item["content"] for item in page["items"]] == [f"n{number}" for number in reversed(range(COUNT))]
    assert page["stats"]["total_records"] == page["total"] == COUNT
    batch = await full.post("/notification/receive-records/batch", {"user_ids": [8, 7], "limit": 100})
    assert {user_id: len(rows) for user_id, rows in batch.json()["data"].items()} == {"8": 0, "7": COUNT}


async def test_pipelined_requests_are_answered_behind_a_long_answer_that_is_taken_slowly(full: Probe) -> None:
    async with connected(full) as (reader, writer):
        writer.write(asked(MAILBOX) + asked(MAILBOX, "HEAD") + asked("/healthz") + asked(MAILBOX) + asked("/healthz"))
        await until(lambda: full.node.server.shared.unsent.total > 0)  # nobody reads yet
        status, body = await read_answer(reader)
        assert status == 200
        assert len(json.loads(body)["data"]["offline_messages"]) == COUNT
        status, length = await read_answer(reader, has_body=False)
        assert (status, int(length)) == (200, len(body))
        assert (await read_answer(reader))[1] == b'{"status":"ok"}'
        assert len((await read_answer(reader))[1]) == len(body)
        assert (await read_answer(reader))[1] == b'{"status":"ok"}'
        assert full.node.server.shared.unsent.total == 0


async def test_answers_do_not_mix_however_fast_they_are_taken(full: Probe) -> None:
    async with connected(full) as (reader, writer):
        writer.write((asked(MAILBOX) + asked("/healthz")) * 10)
        for _ in range(10):
            assert len(json.loads((await read_answer(reader))[1])["data"]["offline_messages"]) == COUNT
            assert (await read_answer(reader))[1] == b'{"status":"ok"}'


async def test_an_answer_that_is_the_last_of_its_connection_comes_whole(full: Probe) -> None:
    async with connected(full) as (reader, writer):
        writer.write(f"GET {MAILBOX} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        await until(lambda: full.node.server.shared.unsent.total > 0)
        answer = await reader.read()
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["data"]["offline_messages"]) == COUNT


async def test_what_nobody_takes_is_given_back_when_the_peer_goes(full: Probe) -> None:
    async with connected(full) as (_, writer):
        writer.write(asked(MAILBOX))
        await until(lambda: full.node.server.shared.unsent.total > 0)
    await until(lambda: full.node.server.shared.unsent.total == 0)
    assert not full.node.server.shared.unsent._of


async def test_there_is_room_for_so_many_bytes_and_then_503(full: Probe) -> None:
    full.node.server.shared.unsent.max_bytes_of_one = 3_000_000
    async with connected(full) as (_, writer):
        writer.write(asked(MAILBOX))
        await until(lambda: full.node.server.shared.unsent.total > 0)
        refused = await full.http.get(MAILBOX)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    await until(lambda: full.node.server.shared.unsent.total == 0)
    assert (await full.http.get(MAILBOX)).status_code == 200


async def test_who_takes_it_too_slowly_does_without(full: Probe) -> None:
    unsent = full.node.server.shared.unsent
    unsent.within_s, unsent.bytes_per_s = 0.0, 1e9
    async with connected(full) as (reader, writer):
        writer.write(asked(MAILBOX))
        await until(lambda: full.node.server.shared.unsent.total > 0)
        await until(lambda: full.node.server.shared.unsent.total == 0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await read_answer(reader)


async def test_a_batch_of_a_thousand_is_answered_in_order_and_a_bad_one_harms_no_other(start: Any) -> None:
    probe: Probe = await start()
    notices: list[dict[str, Any]] = [{"content": f"{n:04}" + "x" * 490, "target": "online"} for n in range(1000)]
    notices[500] = {"content": ""}
    items = (await probe.post("/system/notices", {"notices": notices})).json()["data"]["items"]
    assert [item["success"] for item in items] == [number != 500 for number in range(1000)]
    assert [item["message"][:4] for item in items if item["success"]] == [
        f"{number:04}" for number in range(1000) if number != 500
    ]


async def test_who_is_online_is_listed_whole(start: Any) -> None:
    probe: Probe = await start()
    for user_id in range(1, 301):
        await probe.client(user_id)
    data = await probe.get("/notification/online-users")
    assert data["total_online"] == 300
    assert sorted(user["user_id"] for user in data["users"]) == list(range(1, 301))
    closed = await probe.post("/websocket/disconnect", {"conn_id": data["users"][150]["connection_id"]})
    assert closed.json()["data"] == {"closed": 1}
