"""The contract of ports.Mailbox, with `max_per_user` 5 and `ttl_days` 7."""

from __future__ import annotations

import asyncio

import pytest

from pushd.ports import Stores
from tests.samples import item

from .conftest import MAX_PER_USER, START_MS, TTL_DAYS, Node

IMPLEMENTATIONS = ("sqlite", "redis")
DAY_MS = 86_400_000


async def ids(stores: Stores, user_id: int) -> list[str]:
    return [waiting.message_id for waiting in (await stores.mailbox.read([user_id])).get(user_id, [])]


async def test_an_item_comes_back_as_it_was_after_a_restart(node: Node) -> None:
    full = item(
        "m1",
        content='"消息" \\ \0 \U0001f600',
        data={"a": [1, None, {"b": "\0"}]},
        time="2024-01-02 03:04:05",
        ts=START_MS,
        priority=3,
        need_confirm=True,
        expires_ms=START_MS + 1,
        saved_at=START_MS,
    )
    await node.stores.mailbox.save([(full, [7, 2**53])])
    await node.restart()
    assert await node.stores.mailbox.read([7, 8, 2**53]) == {7: [full], 2**53: [full]}


async def test_oldest_first_in_the_order_of_the_calls(node: Node) -> None:
    await node.stores.mailbox.save([(item("b"), [1]), (item("a"), [2, 1])])
    await node.restart()
    await node.stores.mailbox.save([(item("c"), {1})])
    assert await ids(node.stores, 1) == ["b", "a", "c"]
    assert await ids(node.stores, 2) == ["a"]


async def test_concurrent_saves_keep_the_order_of_the_calls(stores: Stores) -> None:
    everyone = list(range(1, 1201))
    await asyncio.gather(*(stores.mailbox.save([(item(name), everyone)]) for name in "abc"))
    waiting = await stores.mailbox.read(everyone)
    assert {tuple(kept.message_id for kept in items) for items in waiting.values()} == {("a", "b", "c")}
    assert len(waiting) == 1200


async def test_a_notice_saved_for_others_before_takes_its_place_at_the_end(stores: Stores) -> None:
    await stores.mailbox.save([(item("a"), [1])])
    await stores.mailbox.save([(item("b"), [1, 2])])
    await stores.mailbox.save([(item("a"), [2])])
    assert await ids(stores, 2) == ["b", "a"]


async def test_a_waiting_message_id_is_not_put_there_twice(stores: Stores) -> None:
    await stores.mailbox.save([(item("a"), [1, 1]), (item("b"), [1]), (item("a"), [1, 2])])
    await stores.mailbox.save([(item("a"), [1])])
    assert await ids(stores, 1) == ["a", "b"]
    assert await ids(stores, 2) == ["a"]


async def test_the_newest_are_kept(stores: Stores) -> None:
    await stores.mailbox.save([(item("other"), [2])])
    for number in range(MAX_PER_USER + 2):
        await stores.mailbox.save([(item(f"m{number}"), [1])])
    assert await ids(stores, 1) == ["m2", "m3", "m4", "m5", "m6"]
    await stores.mailbox.save([(item(f"n{number}"), [1]) for number in range(MAX_PER_USER + 2)])
    assert await ids(stores, 1) == ["n2", "n3", "n4", "n5", "n6"]
    assert await ids(stores, 2) == ["other"]


async def test_reading_removes_nothing(stores: Stores) -> None:
    await stores.mailbox.save([(item("a"), [1])])
    assert await ids(stores, 1) == await ids(stores, 1) == ["a"]


async def test_remove_takes_only_what_is_named(stores: Stores) -> None:
    await stores.mailbox.save([(item(name), [1, 2]) for name in "abc"])
    await stores.mailbox.remove({1: ["a", "c", "unknown"], 2: {"b"}, 3: ["a"], 4: []})
    assert await ids(stores, 1) == ["b"]
    assert await ids(stores, 2) == ["a", "c"]
    await stores.mailbox.save([(item("a"), [1])])
    assert await ids(stores, 1) == ["b", "a"]


async def test_remove_from_many(stores: Stores) -> None:
    everyone = range(1, 1201)
    await stores.mailbox.save([(item(name), everyone) for name in "ab"])
    await stores.mailbox.remove({user_id: ["a"] for user_id in everyone})
    waiting = await stores.mailbox.read(everyone)
    assert {tuple(kept.message_id for kept in items) for items in waiting.values()} == {("b",)}
    assert len(waiting) == 1200


async def test_clear_counts(stores: Stores) -> None:
    await stores.mailbox.save([(item(name), [1, 2]) for name in "abc"])
    assert await stores.mailbox.clear(1) == 3
    assert await stores.mailbox.clear(1) == 0
    assert await ids(stores, 1) == []
    assert await ids(stores, 2) == ["a", "b", "c"]


async def test_expired_items_are_left_out(node: Node) -> None:
    await node.stores.mailbox.save([(item("a", expires_ms=START_MS + 1000), [1]), (item("b"), [1])])
    node.clock.now_ms += 999
    assert await ids(node.stores, 1) == ["a", "b"]
    node.clock.now_ms += 1
    assert await ids(node.stores, 1) == ["b"]


async def test_items_wait_ttl_days(node: Node) -> None:
    await node.stores.mailbox.save([(item("a"), [1]), (item("b", saved_at=START_MS + 5), [1])])
    node.clock.now_ms += TTL_DAYS * DAY_MS - 1
    assert await ids(node.stores, 1) == ["a", "b"]
    node.clock.now_ms += 1
    assert await ids(node.stores, 1) == ["b"]


async def test_purge_drops_what_is_past_its_time_up_to_the_limit(node: Node) -> None:
    if type(node) is not Node:
        pytest.skip("this store drops by itself; its own tests say when")
    await node.stores.mailbox.save([(item("expires", expires_ms=START_MS + 1000), [1, 2, 3]), (item("old"), [1, 2])])
    await node.stores.mailbox.save([(item("new", saved_at=START_MS + DAY_MS), [1])])
    assert await node.stores.mailbox.purge(START_MS + 999, 10) == 0
    assert await node.stores.mailbox.purge(START_MS + 1000, 2) == 2
    assert await node.stores.mailbox.purge(START_MS + 1000, 2) == 1
    assert await node.stores.mailbox.purge(START_MS + TTL_DAYS * DAY_MS, 10) == 2
    assert await ids(node.stores, 1) == ["new"]


async def test_items_without_a_message_id_do_no_harm(stores: Stores) -> None:
    await stores.mailbox.save([(item("", content="x"), [1]), (item("", content="y"), [1])])
    assert [waiting.content for waiting in (await stores.mailbox.read([1]))[1]] == ["x", "y"]
    await stores.mailbox.remove({1: [""]})
    assert await stores.mailbox.clear(1) == 2


async def test_nothing_for_nobody(stores: Stores) -> None:
    await stores.mailbox.save([])
    await stores.mailbox.save([(item("a"), [])])
    await stores.mailbox.remove({})
    assert await stores.mailbox.read([]) == {}
    assert await stores.mailbox.read([1]) == {}


async def test_what_is_first_need_not_be_looked_for(stores: Stores) -> None:
    await stores.mailbox.save([(item("a"), [7, 8]), (item("b"), [7])], is_first=True)
    await stores.mailbox.save([(item("c"), [7, 9])], is_first=True)
    assert await ids(stores, 7) == ["a", "b", "c"]
    assert await ids(stores, 8) == ["a"]
    await stores.mailbox.save([(item("c"), [7, 8])])
    assert (await ids(stores, 7), await ids(stores, 8)) == (["a", "b", "c"], ["a", "c"])
