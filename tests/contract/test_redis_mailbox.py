"""The mailbox in Redis: what is stored, other programs' elements, clusters, and what happens when Redis fails."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from hashlib import sha1
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from structlog.testing import capture_logs

from pushd.config.schema import Config, DeliveryConfig, LimitsConfig, MailboxConfig, ServerConfig
from pushd.errors import StartError, StoreError, StoreLost, StoreUnavailable
from pushd.model import MailboxItem
from pushd.protocol.frames import frame, replayed_frame
from pushd.stores.redis import RedisMailbox, open_mailbox
from tests.proxy import proxy_to
from tests.samples import item
from tests.servers import RedisClusterServers, RedisServer

from .conftest import START_MS, Clock

DAY_MS = 86_400_000
MAX_PER_USER = 100
KEY = "offline_msg:7"
# 1700000000 s in Asia/Shanghai
START_TIME = "2023-11-15 06:13:20"

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
Open = Callable[..., Awaitable[RedisMailbox]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def deep(levels: int) -> str:
    return '{"content":"x","data":' + "[" * levels + "]" * levels + "}"


@pytest.fixture
def box_aside() -> list[int]:
    """How many elements were left aside, each time some were."""
    return []


@pytest.fixture
async def open_box(clock: Clock, box_aside: list[int]) -> AsyncIterator[Open]:
    """Opens a mailbox at a URL, `mailbox` and `delivery` as the configuration has them."""
    async with AsyncExitStack() as stack:

        async def opened(url: str, mailbox: dict[str, Any] | None = None, **delivery: Any) -> RedisMailbox:
            config = Config(
                server=ServerConfig(timezone="Asia/Shanghai"),
                mailbox=MailboxConfig(url=url, **(mailbox or {})),
                delivery=DeliveryConfig(**delivery),
            )
            return await stack.enter_async_context(open_mailbox(config, lambda *_: None, clock, box_aside.append))

        yield opened


@pytest.fixture
async def box(open_box: Open, redis_server: RedisServer) -> RedisMailbox:
    return await open_box(redis_server.url)


async def waiting(box: RedisMailbox, user_id: int = 7) -> list[MailboxItem]:
    return (await box.read([user_id])).get(user_id, [])


async def ids(box: RedisMailbox, user_id: int = 7) -> list[str]:
    return [found.message_id for found in await waiting(box, user_id)]


class TestLayout:
    async def test_newest_at_the_head_in_the_shape_of_the_contract(
        self, box: RedisMailbox, redis_server: RedisServer, clock: Clock
    ) -> None:
        said: dict[str, Any] = {"title": "B", "url": "/b", "tags": ("x", "y")}
        full = item("b", data={"a": 1}, time="t", ts=5, priority=2, need_confirm=True, expires_ms=START_MS + 9, **said)
        await box.save([(item("a"), [7]), (full, [7])])
        newest, oldest = [json.loads(element) for element in await redis_server.command("LRANGE", KEY, 0, -1)]
        assert newest == {
            "type": "system_notice", "content": "content of b", "data": {"a": 1}, "time": "t", "ts": 5,
            "message_id": "b", "title": "B", "url": "/b", "tags": ["x", "y"],
            "priority": 2, "need_confirm": True, "saved_at": START_MS, "expires_ms": START_MS + 9,
        }  # fmt: skip
        assert oldest == {
            "type": "system_notice", "content": "content of a", "time": "", "ts": 0,
            "message_id": "a", "priority": 1, "need_confirm": False, "saved_at": START_MS,
        }  # fmt: skip

    async def test_every_save_renews_the_time_to_live(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await box.save([(item("a"), [7])])
        assert 7 * 86_400 - 5 <= await redis_server.command("TTL", KEY) <= 7 * 86_400
        await redis_server.command("EXPIRE", KEY, 100)
        await box.save([(item("a"), [7])])
        assert await redis_server.command("TTL", KEY) > 100

    async def test_prefix_and_limits_are_the_configurations(self, open_box: Open, redis_server: RedisServer) -> None:
        box = await open_box(redis_server.url, {"key_prefix": "box-é:", "max_per_user": 2, "ttl_days": 1})
        await box.save([(item(name), [7]) for name in "abcc"])
        assert await ids(box) == ["b", "c"]
        assert await redis_server.command("LLEN", "box-é:7") == 2
        assert await redis_server.command("TTL", "box-é:7") <= 86_400

    async def test_an_id_waits_once_whatever_else_changed(self, box: RedisMailbox, clock: Clock) -> None:
        await box.save([(item("a"), [7]), (item("b"), [7])])
        clock.now_ms += 5
        await box.save([(item("a", content="other"), [7]), (item("c"), [7]), (item("b"), [7])])
        assert [found.content for found in await waiting(box)] == ["content of a", "content of b", "content of c"]

    async def test_ids_in_contents_and_data_are_not_ids(self, box: RedisMailbox) -> None:
        await box.save([(item("a", content='"message_id":"b"', data={"message_id": "b"}), [7])])
        await box.save([(item("b"), [7])])
        assert await ids(box) == ["a", "b"]
        await box.remove({7: ["b"]})
        assert await ids(box) == ["a"]

    @pytest.mark.parametrize("odd", ["/", "é/ü", '"', "\\", "\0", "😀", "%d+", "a b", "sha1:", " "])
    async def test_odd_ids(self, box: RedisMailbox, odd: str) -> None:
        await box.save([(item(odd), [7]), (item("x"), [7])])
        await box.save([(item(odd), [7])])
        assert await ids(box) == [odd, "x"]
        await box.remove({7: [odd]})
        assert await ids(box) == ["x"]

    async def test_purge_is_redis_business(self, box: RedisMailbox, clock: Clock) -> None:
        await box.save([(item("expires", expires_ms=START_MS + 1), [7])])
        assert await box.purge(START_MS + DAY_MS * 8, 10) == 0
        clock.now_ms += 1
        assert await ids(box) == []


class TestForeignElements:
    """Of other programs, in that shape or about."""

    async def _push(self, server: RedisServer, *elements: str | dict[str, Any]) -> None:
        for element in elements:
            await server.command("LPUSH", KEY, element if isinstance(element, str) else json.dumps(element))

    async def test_everything_but_the_content_may_be_missing(
        self, box: RedisMailbox, redis_server: RedisServer
    ) -> None:
        element = '{"content": "hello"}'
        await self._push(redis_server, element)
        (found,) = await waiting(box)
        name = "sha1:" + sha1(element.encode()).hexdigest()
        assert found == MailboxItem("system_notice", "hello", message_id=name, time=START_TIME, ts=START_MS)
        await box.remove({7: [name]})
        assert await redis_server.command("EXISTS", KEY) == 0

    async def test_other_types_and_unknown_fields(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await self._push(
            redis_server,
            {"type": "t", "content": "é", "message_id": 12345678901234567890, "ts": START_MS / 1000, "more": [1],
             "time": None, "priority": "high", "need_confirm": 1, "saved_at": None},
        )  # fmt: skip
        (found,) = await waiting(box)
        assert found == MailboxItem(
            "t", "é", message_id="12345678901234567890", time=START_TIME, ts=START_MS, need_confirm=True
        )

    @pytest.mark.parametrize(
        ("fields", "title", "url", "tags"),
        [
            ({"title": "T", "url": "/a", "tags": ["x", "y", "x"]}, "T", "/a", ("x", "y")),
            ({"title": 5, "url": {"a": 1}, "tags": "x"}, "", "", ()),
            (
                {"title": "x" * 300, "url": "javascript:alert(1)", "tags": ["", "ok", "x" * 33, None]},
                "x" * 200,
                "",
                ("ok",),
            ),
            ({"title": None, "url": "//evil.test", "tags": None}, "", "", ()),
            (
                {"title": [], "url": "HTTP://a", "tags": [str(number) for number in range(50)]},
                "",
                "",
                tuple("0123456789"),
            ),
        ],
    )
    async def test_title_url_and_tags_of_any_kind(
        self, box: RedisMailbox, redis_server: RedisServer, fields: dict[str, Any], title: str, url: str, tags: Any
    ) -> None:
        await self._push(redis_server, {"type": "t", "content": "x", "message_id": "a"} | fields)
        (found,) = await waiting(box)
        assert (found.message_id, found.title, found.url, found.tags) == ("a", title, url, tags)

    @pytest.mark.parametrize("name", ["hello", "update", "revoke", "pushd.", "pushd.x"])
    async def test_types_of_the_protocol_are_others(
        self, box: RedisMailbox, redis_server: RedisServer, name: str
    ) -> None:
        await self._push(redis_server, {"type": name, "content": "x", "message_id": "a"})
        (found,) = await waiting(box)
        assert found.type == "system_notice"

    async def test_missing_moments(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await self._push(
            redis_server,
            {"content": "1", "message_id": "a", "saved_at": START_MS - 5000},
            {"content": "2", "message_id": "b"},
            {"content": "3", "message_id": "c", "ts": START_MS - 1000, "time": "as it was"},
        )
        found = await waiting(box)
        assert [each.ts for each in found] == [START_MS - 5000, START_MS - 5000, START_MS - 1000]
        assert [each.time for each in found] == ["2023-11-15 06:13:15", "2023-11-15 06:13:15", "as it was"]

    @pytest.mark.parametrize(
        ("element", "name"),
        [
            ('{ "content" : "x" , "message_id" : "a/b" }', "a/b"),
            ('{"content":"x","message_id":"a\\/b"}', "a/b"),
            ('{"content":"x","message_id":"caf\\u00e9"}', "café"),
            ('{"content":"x","message_id":42}', "42"),
            ('{"content":"x","message_id" : -42 }', "-42"),
            ('{"content":"x","data":{"message_id":1},"message_id":98765432109876543}', "98765432109876543"),
            ('{"content":"x","message_id":""}', ""),
            ('{"content":"x","message_id":null}', ""),
            ('{"content":"x","message_id":4.5}', ""),
            ('{"content":"x","message_id":7.0}', ""),
            ('{"content":"x","message_id":true}', ""),
            ('{"content":"x","data":{"message_id":"inner"}}', ""),
        ],
    )
    async def test_all_can_be_saved_once_and_removed(
        self, box: RedisMailbox, redis_server: RedisServer, element: str, name: str
    ) -> None:
        name = name or "sha1:" + sha1(element.encode()).hexdigest()
        await self._push(redis_server, element)
        await box.save([(item("own"), [7])])
        assert await ids(box) == [name, "own"]
        if not name.startswith("sha1:"):
            await box.save([(item(name), [7])])
            assert await ids(box) == [name, "own"]
        await box.remove({7: [name, *(f"other{number}" for number in range(10))]})
        assert await ids(box) == ["own"]

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            ("NaN", None),
            ("[Infinity,-Infinity,1e400]", [None, None, None]),
            ("123456789012345678901234567890", 123456789012345678901234567890),
            ("1" * 5000, "1" * 5000),
            ('"bob \\ud83d"', "bob \ufffd"),
            ('"\\ude00\\ud83d\\ude00"', "\ufffd😀"),
            ('{"\\ud83d":1}', {"\ufffd": 1}),
            (b'"caf\xe9"', "caf\ufffd"),
            (b'"a\x01\tb"', "a\x01\tb"),
            (b'"a\x00b"', "a\x00b"),
            ('{"a":1,"a":2}', {"a": 2}),
            ('"\\\\ud83d"', "\\ud83d"),
            (deep(400), None),
        ],
    )
    async def test_what_is_no_strict_json(
        self, box: RedisMailbox, redis_server: RedisServer, written: str | bytes, read: Any
    ) -> None:
        """It is delivered as well as it can be, under its own id where Redis can find that, and can be removed."""
        data = written if isinstance(written, bytes) else written.encode()
        element = b'{"content":"hi","message_id":"m1","data":' + data + b"}"
        await redis_server.command("LPUSH", KEY, element, '{"content":"x","message_id":"m2"}')  # type: ignore[arg-type]
        await box.save([(item("m3"), [7])])
        first, *others = await waiting(box)
        assert first.data == read or read is None
        assert first.message_id == ("m1" if b"\0" not in data else "sha1:" + sha1(element).hexdigest())
        assert [each.message_id for each in others] == ["m2", "m3"]
        for dialect in (0, 1):
            assert frame(replayed_frame(first), dialect)
        await box.save([(item("m1"), [7])] if first.message_id == "m1" else [])
        await box.remove({7: [first.message_id]})
        assert await ids(box) == ["m2", "m3"]

    @pytest.mark.parametrize(
        "written", ["x" * 128, "é" * 500, "x" * 10_000, "x" * 20_000, "\\ud83d", "caf\\ud83d\\ude00"]
    )
    async def test_ids_of_any_length(self, box: RedisMailbox, redis_server: RedisServer, written: str) -> None:
        element = f'{{"content":"1","message_id":"{written}"}}'
        await self._push(redis_server, element, {"content": "2", "message_id": "b"})
        (found, other) = await ids(box)
        assert other == "b"
        assert len(json.dumps({"type": "ack", "message_ids": [found]})) <= LimitsConfig().max_frame_bytes
        assert found.startswith("sha1:") == (len(written) > 16_000 or written == "\\ud83d")
        await box.remove({7: [found]})
        assert await ids(box) == ["b"]

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"ts": "yesterday"}, {"ts": START_MS}),
            ({"ts": 1e300}, {"ts": START_MS}),
            ({"ts": 10**30}, {"ts": START_MS}),
            ({"ts": START_MS * 1000}, {"ts": START_MS}),
            ({"ts": -5}, {"ts": START_MS}),
            ({"ts": START_MS + 0.5}, {"ts": START_MS}),
            ({"priority": 99}, {"priority": 1}),
            ({"priority": -(10**30)}, {"priority": 1}),
            ({"priority": True}, {"priority": 1}),
            ({"priority": 3}, {"priority": 3}),
            ({"type": "hello"}, {"type": "system_notice"}),
            ({"type": None}, {"type": "system_notice"}),
            ({"type": ["x"]}, {"type": "system_notice"}),
            ({"need_confirm": []}, {"need_confirm": False}),
            ({"time": 5}, {"time": START_TIME}),
            ({"saved_at": "x", "expires_ms": {}}, {"saved_at": 0, "expires_ms": 0}),
            ({"expires_ms": 10**30}, {"expires_ms": 0}),
            ({"data": {"type": "hello"}}, {"data": {"type": "hello"}}),
        ],
    )
    async def test_a_field_that_makes_no_sense_is_as_if_it_were_missing(
        self, box: RedisMailbox, redis_server: RedisServer, fields: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        await self._push(redis_server, {"type": "t", "content": "x", "message_id": "a"} | fields)
        (found,) = await waiting(box)
        assert {name: getattr(found, name) for name in expected} == expected
        for dialect in (0, 1):
            assert frame(replayed_frame(found), dialect)

    async def test_the_order_is_the_lists(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        """Of what other programs put there; of our own an older one comes first although it was saved late."""
        foreign = [{"type": "t", "content": "x", "message_id": name, "ts": ts} for name, ts in (("f1", 9), ("f2", 3))]
        await box.save([(item("later", ts=START_MS + 5), [7])])
        await self._push(redis_server, *foreign)
        await box.save([(item("late", ts=START_MS), [7])])
        await self._push(redis_server, {**foreign[0], "message_id": "f3", "ts": 1, "saved_at": START_MS})
        assert await ids(box) == ["late", "f1", "f2", "later", "f3"]

    async def test_what_is_too_large_for_anybody(
        self, box: RedisMailbox, redis_server: RedisServer, box_aside: list[int]
    ) -> None:
        await self._push(
            redis_server, {"content": "x" * 3_000_000, "message_id": "big"}, {"content": "x", "message_id": "a"}
        )
        assert await ids(box) == ["a"]
        assert box_aside == [1]
        await box.remove({7: ["big", "a"]})
        assert await redis_server.command("LLEN", KEY) == 1

    async def test_a_long_list_is_read_as_deep_as_it_may_be(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        """What is deeper comes when the newer is gone, or goes with the next save; no call takes long."""
        async with redis_server.client() as client:
            for start in range(0, 300_000, 1000):
                elements = [f'{{"content":"{"x" * 100}","message_id":"m{start + n}"}}' for n in range(1000)]
                await client.lpush(KEY, *elements)
            await client.config_set("slowlog-log-slower-than", 50_000)
        newest = [f"m{number}" for number in range(299_900, 300_000)]
        assert await ids(box) == newest
        await box.remove({7: [*newest[:40], *newest[60:], "other"]})
        assert await ids(box) == [f"m{number}" for number in (*range(299_820, 299_900), *range(299_940, 299_960))]
        await self._push(redis_server, *({"content": "x", "message_id": f"p{number}"} for number in range(150)))
        await box.remove({7: ["m299950"]})  # was shown, and is deeper now
        assert "m299950" not in [
            json.loads(each)["message_id"] for each in await redis_server.command("LRANGE", KEY, 0, 300)
        ]
        await box.save([(item("own"), [7])])
        assert await redis_server.command("LLEN", KEY) == MAX_PER_USER
        assert (await ids(box))[-1] == "own"
        assert await redis_server.command("SLOWLOG", "LEN") == 0

    @pytest.mark.parametrize(
        "chosen", [[0], [0, 1], [1], [4], [0, 4], [1, 3], [2, 4], [0, 1, 3], [1, 2, 3], [0, 1, 2, 3]]
    )
    async def test_equal_elements_among_others(
        self, box: RedisMailbox, redis_server: RedisServer, chosen: list[int]
    ) -> None:
        names = ["a", "b", "c", "d", "e"]
        await self._push(redis_server, *({"content": "x", "message_id": name} for name in [*names, *names]))
        await box.remove({7: [names[index] for index in chosen]})
        left = [json.loads(each)["message_id"] for each in await redis_server.command("LRANGE", KEY, 0, -1)]
        assert left == [name for name in reversed([*names, *names]) if name not in {names[index] for index in chosen}]

    async def test_repeated_ids_are_delivered_once_and_all_removed(
        self, box: RedisMailbox, redis_server: RedisServer
    ) -> None:
        for text in "12":
            await self._push(redis_server, {"type": "t", "content": text, "message_id": "a"})
        assert [found.content for found in await waiting(box)] == ["1"]
        await box.remove({7: ["a"]})
        assert await redis_server.command("EXISTS", KEY) == 0

    async def test_what_cannot_be_read_stays_and_is_logged_once(
        self, box: RedisMailbox, redis_server: RedisServer, box_aside: list[int]
    ) -> None:
        bad = [
            "",
            "{",
            "null",
            "[]",
            '"text"',
            '{"type":"t"}',
            '{"content":5}',
            "[" * 100_000,
            deep(100_000),
            deep(900),
        ]
        await self._push(redis_server, *bad)
        await redis_server.command("LPUSH", KEY, b"\xff\xfe")  # type: ignore[arg-type]
        await box.save([(item("a"), [7])])
        with capture_logs() as logs:
            assert await ids(box) == ["a"]
            await box.remove({7: ["a", "sha1:0", "b"]})
            assert await ids(box) == []
        assert await redis_server.command("LLEN", KEY) == len(bad) + 1
        assert [(line["key"], line["unreadable"]) for line in logs] == [(KEY, len(bad) + 1)]
        assert logs[0]["causes"] == ["nested too deeply", "no JSON", "no object with a text as content"]
        assert box_aside == [len(bad) + 1] * 2

    async def test_a_key_of_another_type_stops_nobody_else(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await redis_server.set(KEY)
        users = range(1, 1001)
        with capture_logs() as logs:
            await box.save([(item("a"), users)])
            found = await box.read(users)
            await box.remove({user_id: ["a"] for user_id in users})
            assert await box.clear(7) == 0
        assert len(found) == 999
        assert await box.read(users) == {}
        assert [(line["key"], line["log_level"]) for line in logs] == [(KEY, "error")]


class TestMany:
    async def test_more_than_one_call_may_carry(self, box: RedisMailbox) -> None:
        """Large elements, long lists, many ids: every call does a part of it."""
        users = range(1, 301)
        await box.save([(item(f"m{number}", data="x" * 5000), users) for number in range(MAX_PER_USER + 3)])
        await box.save([(item(f"m{number}"), users) for number in range(MAX_PER_USER // 2, MAX_PER_USER + 4)])
        names = [f"m{number}" for number in range(4, MAX_PER_USER + 4)]
        found = await box.read(users)
        assert {tuple(each.message_id for each in items) for items in found.values()} == {tuple(names)}
        assert len(found) == 300
        await box.remove(dict.fromkeys(users, names[:60]))
        found = await box.read(users)
        assert {tuple(each.message_id for each in items) for items in found.values()} == {tuple(names[60:])}
        assert len(found) == 300

    async def test_a_repeated_save_changes_nothing(self, box: RedisMailbox) -> None:
        saves = [(item(f"m{number}"), range(1, 11)) for number in range(MAX_PER_USER + 50)]
        await box.save(saves)
        before = await box.read(range(1, 11))
        await box.save(saves)
        assert await box.read(range(1, 11)) == before

    async def test_overlapping_users_keep_their_order(self, box: RedisMailbox) -> None:
        saves = [(item(f"m{number}"), range(number, 3000, number)) for number in range(1, 40)]
        await asyncio.gather(*(box.save(saves[start : start + 10]) for start in range(0, 40, 10)))
        found = await box.read(range(3000))
        for user_id in range(1, 3000):
            expected = [f"m{number}" for number in range(1, 40) if user_id % number == 0]
            assert [each.message_id for each in found[user_id]] == expected

    async def test_writers_grow_with_what_waits(self, open_box: Open, redis_server: RedisServer) -> None:
        box = await open_box(redis_server.url, min_workers=2, max_workers=5)
        assert box.writers == 2
        saving = asyncio.create_task(box.save([(item("a"), range(20_000))]))
        seen = set()
        while not saving.done():
            await asyncio.sleep(0)
            seen.add(box.writers)
        await saving
        assert max(seen) == 5
        assert box.writers == 2


class TestFailures:
    async def test_stopped_and_back(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await box.check()
        await redis_server.stop()
        with pytest.raises(StoreLost):
            await box.check()
        with pytest.raises(StoreLost):
            await box.save([(item("a"), range(2000))])
        with pytest.raises(StoreLost):
            await box.read([7])
        await redis_server.start()
        await box.check()
        await box.save([(item("a"), [7])])  # the scripts are gone, too
        assert await ids(box) == ["a"]

    async def test_frozen(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await box.save([(item("a"), [7])])
        redis_server.freeze()
        try:
            outcomes = await asyncio.gather(
                box.save([(item("b"), range(5000))]), box.read([7]), box.check(), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [StoreLost] * 3
        finally:
            redis_server.thaw()
        await box.check()
        await box.save([(item("b"), range(5000))])
        assert await ids(box) == ["a", "b"]
        assert {len(items) for items in (await box.read(range(5000))).values()} == {1, 2}

    async def test_forgotten_scripts(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await box.save([(item("a"), [7])])
        await redis_server.command("SCRIPT FLUSH")
        await asyncio.gather(*(box.save([(item(name), [7])]) for name in "bc"))
        assert await ids(box) == ["a", "b", "c"]

    async def test_full(self, open_box: Open, tmp_path: Path) -> None:
        server = RedisServer(tmp_path, options=("maxmemory", "3mb", "maxmemory-policy", "noeviction"))
        try:
            await server.start()
            box = await open_box(server.url)
            too_much = [(item(f"m{number}", data="x" * 10_000), range(50)) for number in range(200)]
            with pytest.raises(StoreUnavailable) as caught:
                await box.save(too_much)
            assert not isinstance(caught.value, StoreLost)
            await server.command("CONFIG SET", "maxmemory", "1mb")
            with pytest.raises(StoreUnavailable):
                await box.check()
            await server.command("CONFIG SET", "maxmemory", "0")
            await box.check()
            await box.save([(item("last"), [7])])
            assert (await ids(box))[-1] == "last"
        finally:
            await server.stop()

    async def test_read_only(self, box: RedisMailbox, redis_server: RedisServer) -> None:
        await redis_server.command("REPLICAOF", "127.0.0.1", 1)
        for call in (box.check(), box.save([(item("a"), [7])])):
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert not isinstance(caught.value, StoreLost)
        await redis_server.command("REPLICAOF", "NO", "ONE")
        await box.save([(item("a"), [7])])

    @pytest.mark.parametrize("stale", ["yes", "no"])
    async def test_another_server_behind_the_same_address(
        self, open_box: Open, redis_server: RedisServer, tmp_path: Path, stale: str
    ) -> None:
        """The connections that are there lead to the old one, which is a replica now and answers so."""
        successor = RedisServer(tmp_path)
        await successor.start()
        try:
            async with proxy_to(redis_server.port) as proxy:
                box = await open_box(f"redis://127.0.0.1:{proxy.port}/0")
                await asyncio.gather(*(box.save([(item(name), range(2000))]) for name in "ab"), box.read(range(2000)))
                await redis_server.command("CONFIG", "SET", "replica-serve-stale-data", stale)
                await redis_server.command("REPLICAOF", "127.0.0.1", 1)
                proxy.switch_to(successor.port)
                with pytest.raises(StoreUnavailable):
                    await box.save([(item("c"), [7])])
                await box.save([(item("c"), [7])])
                assert await ids(box) == ["c"]
                await asyncio.gather(*(box.read(range(2000)) for _ in range(8)), box.check())
                assert await successor.command("LLEN", KEY) == 1
        finally:
            await successor.stop()

    @pytest.mark.parametrize(
        "answer",
        [
            "MASTERDOWN Link with MASTER is down",
            "LOADING Redis is loading the dataset in memory",
            "CLUSTERDOWN The cluster is down",
            "MISCONF Redis is configured to save RDB snapshots",
            "NOAUTH Authentication required.",
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
            "READONLY You can't write against a read only replica.",
            "ERR unknown command `EVALSHA`",
            "ERR no upstream host",
        ],
    )
    async def test_whatever_the_wrong_server_answers(
        self, open_box: Open, redis_server: RedisServer, answer: str
    ) -> None:
        async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while await reader.read(65536):
                    writer.write(f"-{answer}\r\n".encode())
            writer.transport.abort()

        listener = await asyncio.start_server(wrong, "127.0.0.1", 0)
        async with listener, proxy_to(redis_server.port) as proxy:
            box = await open_box(f"redis://127.0.0.1:{proxy.port}/0?protocol=2&lib_name=&lib_version=")
            await box.save([(item("a"), [7])])
            await redis_server.stop()
            proxy.reset()
            proxy.switch_to(listener.sockets[0].getsockname()[1])
            for _ in range(3):
                with pytest.raises(StoreError):
                    await box.save([(item("b"), [7])])
            proxy.switch_to(redis_server.port)
            await redis_server.start()
            await box.save([(item("b"), [7])])
            assert await ids(box) == ["b"]

    async def test_a_server_without_info(self, open_box: Open, tmp_path: Path) -> None:
        server = RedisServer(tmp_path, options=("rename-command", "INFO HIDDEN"))
        try:
            await server.start()
            box = await open_box(server.url)
            await box.check()
            await box.save([(item("a"), [7])])
            assert await ids(box) == ["a"]
        finally:
            await server.stop()

    @pytest.mark.parametrize("secret", ["pa%2Fss%23word", "p%40ss-word", "w%3Ford"])
    async def test_no_driver_names_the_password(self, open_box: Open, tmp_path: Path, secret: str) -> None:
        """A server that does not know AUTH or HELLO repeats what it was told."""
        server = RedisServer(tmp_path, options=("rename-command", "AUTH HIDDEN"))
        try:
            await server.start()
            box = await open_box(server.url.replace("//", f"//user:{secret}@") + "?protocol=2")
            with pytest.raises(StoreError) as caught:
                await box.save([(item("a"), [7])])
            said = f"{caught.value!r} {caught.value.__cause__!r}"
            assert "unknown command" in said
            assert secret not in said
            assert unquote(secret) not in said
        finally:
            await server.stop()

    async def test_passwords(self, open_box: Open, tmp_path: Path) -> None:
        server = RedisServer(tmp_path, password="very-secret-word")
        try:
            await server.start()
            good = await open_box(server.url)
            await good.check()
            address = server.url.partition("@")[2]
            for url in (f"redis://{address}", f"redis://:other-secret@{address}"):
                box = await open_box(url)
                with pytest.raises(StartError, match=r"^mailbox\.url: ") as caught:
                    await box.check()
                assert "secret" not in str(caught.value)
                assert "\n" not in str(caught.value)
                with pytest.raises(StoreUnavailable):
                    await box.save([(item("a"), [7])])
        finally:
            await server.stop()

    @pytest.mark.parametrize("rights", ["+@all -lpushx", "+@all -evalsha", "+@read +info"])
    async def test_missing_rights(self, open_box: Open, redis_server: RedisServer, rights: str) -> None:
        await redis_server.command("ACL SETUSER", "pushd", "on", ">word", "~offline_msg:*", *rights.split())
        box = await open_box(redis_server.url.replace("//", "//pushd:word@"))
        with pytest.raises(StartError, match=r"^mailbox\.url: "):
            await box.check()

    async def test_rights_that_suffice(self, open_box: Open, redis_server: RedisServer) -> None:
        rights = "+lrange +llen +lpush +lpushx +ltrim +lrem +expire +del +evalsha +script|load"
        await redis_server.command("ACL SETUSER", "pushd", "on", ">word", "~offline_msg:*", *rights.split())
        box = await open_box(redis_server.url.replace("//", "//pushd:word@"))
        await box.check()
        await box.save([(item("a"), [7])])
        assert await ids(box) == ["a"]
        assert await box.clear(7) == 1

    async def test_unknown_database(self, open_box: Open, redis_server: RedisServer) -> None:
        box = await open_box(redis_server.url.replace("/0", "/99"))
        with pytest.raises(StartError, match=r"^mailbox\.url: "):
            await box.check()


@pytest.fixture(params=[1, 3], ids=["one_node", "three_nodes"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisClusterServers]:
    servers = RedisClusterServers(tmp_path, request.param)
    try:
        await servers.start()
        yield servers
    finally:
        await servers.stop()


class TestCluster:
    async def test_the_same_behaviour(self, open_box: Open, cluster: RedisClusterServers) -> None:
        box = await open_box(cluster.url)
        await box.check()
        users = range(1, 1201)
        await asyncio.gather(*(box.save([(item(name), users), (item(name + name), users)]) for name in "abc"))
        await box.save([(item("a"), users)])
        found = await box.read(users)
        names = {tuple(each.message_id for each in items) for items in found.values()}
        assert names == {("a", "aa", "b", "bb", "c", "cc")}
        assert len(found) == 1200
        await box.remove({user_id: ["aa", "c", "x"] for user_id in users})
        assert await ids(box) == ["a", "b", "bb", "cc"]
        assert await box.clear(7) == 4
        assert len(await box.read(users)) == 1199

    async def test_forgotten_scripts_and_other_types(self, open_box: Open, cluster: RedisClusterServers) -> None:
        box = await open_box(cluster.url)
        await box.save([(item("a"), range(100))])
        for node in cluster.nodes:
            await node.command("SCRIPT FLUSH")
        await box.save([(item("b"), range(100))])
        assert await ids(box) == ["a", "b"]

    async def test_a_node_stopped_and_back(self, open_box: Open, cluster: RedisClusterServers) -> None:
        box = await open_box(cluster.url)
        await box.check()
        await cluster.nodes[-1].stop()
        with pytest.raises(StoreUnavailable):
            await box.save([(item("a"), range(1000))])
        await cluster.nodes[-1].start()

        async def saved() -> bool:
            try:
                await box.check()
                await box.save([(item("a"), range(1000))])
            except StoreUnavailable:
                return False
            return True

        async with asyncio.timeout(20):
            while not await saved():
                await asyncio.sleep(0.05)
        found = await box.read(range(1000))
        assert {tuple(each.message_id for each in items) for items in found.values()} == {("a",)}
        assert len(found) == 1000

    @pytest.mark.parametrize("cluster", [3], indirect=True)
    async def test_a_moved_slot(self, open_box: Open, cluster: RedisClusterServers) -> None:
        box = await open_box(cluster.url)
        await box.save([(item("a"), range(100))])
        target = cluster.nodes[1]
        name = (await target.command("CLUSTER MYID")).decode()
        user_id, slot = await self._user_of(cluster.nodes[0])
        await cluster.nodes[0].command("DEL", f"offline_msg:{user_id}")
        for node in reversed(cluster.nodes):
            await node.command("CLUSTER SETSLOT", slot, "NODE", name)
        await box.save([(item("b"), range(100))])
        assert await ids(box, user_id) == ["b"]
        assert await target.command("LLEN", f"offline_msg:{user_id}") == 1

    async def _user_of(self, node: RedisServer) -> tuple[int, int]:
        """A user whose mailbox is there, and its slot."""
        (key, *_) = await node.command("KEYS", "*")
        return int(key.decode().partition(":")[2]), int(await node.command("CLUSTER KEYSLOT", key))

    async def test_no_database(self, open_box: Open, cluster: RedisClusterServers) -> None:
        box = await open_box(cluster.url.replace("/0", "/3"))
        with pytest.raises(StartError, match=r"^mailbox\.url: SELECT is not allowed"):
            await box.check()
