"""The contract of ports.Mailbox, with `max_per_user` 5 and `ttl_days` 7."""

from __future__ import annotations

import asyncio

import pytest

from pushd.model import MailboxItem, Priority
from pushd.ports import Stores
from tests.samples import item, item_of, read_mailbox

from .conftest import MAX_PER_USER, START_MS, TTL_DAYS, Node

IMPLEMENTATIONS = ("sqlite", "redis")
DAY_MS = 86_400_000


async def ids(stores: Stores, user_id: int) -> list[str]:
    return [waiting.message_id for waiting in (await stores.mailbox.read([user_id])).get(user_id, [])]


class Copies(dict[str, MailboxItem]):
    """What waits of notices, by their ids; they are accepted one after the other, a millisecond apart."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._at_ms = START_MS

    async def accept(self, *names: str) -> list[MailboxItem]:
        for name in names:
            (accepted,) = await self._node.accept(name, accepted_ms=self._at_ms)
            self[name] = item_of(accepted)
            self._at_ms += 1
        return [self[name] for name in names]


@pytest.fixture
async def copies(node: Node) -> Copies:
    """Of a, b and c."""
    made = Copies(node)
    await made.accept("a", "b", "c")
    return made


async def test_an_item_comes_back_as_it_was_after_a_restart(node: Node) -> None:
    (accepted,) = await node.accept(
        "m1",
        accepted_ms=START_MS,
        content='"消息" \\ \0 \U0001f600',
        data={"a": [1, None, {"b": "\0"}]},
        priority=Priority.URGENT,
        need_confirm=True,
        expires_ms=START_MS + 1,
        title="T",
        url="/orders/5",
        tags=("a", "b"),
    )
    full = item_of(accepted)
    await node.stores.mailbox.save([(full, [7, 2**53])])
    await node.restart()
    assert await read_mailbox(node.stores.mailbox, [7, 8, 2**53]) == {7: [full], 2**53: [full]}


async def test_oldest_first_in_the_order_in_which_they_were_published(node: Node, copies: Copies) -> None:
    await node.stores.mailbox.save([(copies["b"], [1]), (copies["a"], [2, 1])])
    await node.restart()
    await node.stores.mailbox.save([(copies["c"], {1})])
    assert await ids(node.stores, 1) == ["a", "b", "c"]
    assert await ids(node.stores, 2) == ["a"]


async def test_concurrent_saves_keep_the_order(stores: Stores, copies: Copies) -> None:
    everyone = list(range(1, 1201))
    await asyncio.gather(*(stores.mailbox.save([(copies[name], everyone)]) for name in "abc"))
    waiting = await stores.mailbox.read(everyone)
    assert {tuple(kept.message_id for kept in items) for items in waiting.values()} == {("a", "b", "c")}
    assert len(waiting) == 1200


async def test_a_notice_saved_late_takes_its_place(stores: Stores, copies: Copies) -> None:
    """Saved for others before, or returned by a client that did not acknowledge it."""
    await stores.mailbox.save([(copies["a"], [1])])
    await stores.mailbox.save([(copies["b"], [1, 2])])
    await stores.mailbox.save([(copies["a"], [2])])
    assert await ids(stores, 2) == ["a", "b"]


async def test_a_waiting_message_id_is_not_put_there_twice(stores: Stores, copies: Copies) -> None:
    await stores.mailbox.save([(copies["a"], [1, 1]), (copies["b"], [1]), (copies["a"], [1, 2])])
    await stores.mailbox.save([(copies["a"], [1])])
    assert await ids(stores, 1) == ["a", "b"]
    assert await ids(stores, 2) == ["a"]


async def test_the_newest_are_kept(stores: Stores, copies: Copies) -> None:
    await stores.mailbox.save([(copies["a"], [2])])
    for one in await copies.accept(*(f"m{number}" for number in range(MAX_PER_USER + 2))):
        await stores.mailbox.save([(one, [1])])
    assert await ids(stores, 1) == ["m2", "m3", "m4", "m5", "m6"]
    more = await copies.accept(*(f"n{number}" for number in range(MAX_PER_USER + 2)))
    await stores.mailbox.save([(one, [1]) for one in more])
    assert await ids(stores, 1) == ["n2", "n3", "n4", "n5", "n6"]
    assert await ids(stores, 2) == ["a"]


async def test_reading_removes_nothing(stores: Stores, copies: Copies) -> None:
    await stores.mailbox.save([(copies["a"], [1])])
    assert await ids(stores, 1) == await ids(stores, 1) == ["a"]


async def test_remove_takes_only_what_is_named(stores: Stores, copies: Copies) -> None:
    await stores.mailbox.save([(copies[name], [1, 2]) for name in "abc"])
    await stores.mailbox.remove({1: ["a", "c", "unknown"], 2: {"b"}, 3: ["a"], 4: []})
    assert await ids(stores, 1) == ["b"]
    assert await ids(stores, 2) == ["a", "c"]
    await stores.mailbox.save([(copies["a"], [1])])
    assert await ids(stores, 1) == ["a", "b"]


async def test_remove_from_many(stores: Stores, copies: Copies) -> None:
    everyone = range(1, 1201)
    await stores.mailbox.save([(copies[name], everyone) for name in "ab"])
    await stores.mailbox.remove({user_id: ["a"] for user_id in everyone})
    waiting = await stores.mailbox.read(everyone)
    assert {tuple(kept.message_id for kept in items) for items in waiting.values()} == {("b",)}
    assert len(waiting) == 1200


async def test_clear_counts(node: Node, copies: Copies) -> None:
    await node.stores.mailbox.save([(copies[name], [1, 2]) for name in "abc"])
    assert await node.stores.mailbox.clear(1) == 3
    assert await node.stores.mailbox.clear(1) == 0
    for _ in range(2):
        assert await ids(node.stores, 1) == []
        assert await ids(node.stores, 2) == ["a", "b", "c"]
        await node.restart()


async def test_expired_items_are_left_out(node: Node) -> None:
    (expires,) = await node.accept("a", accepted_ms=START_MS, expires_ms=START_MS + 1000)
    (stays,) = await node.accept("b", accepted_ms=START_MS + 1)
    await node.stores.mailbox.save([(item_of(expires), [1]), (item_of(stays), [1])])
    node.clock.now_ms += 999
    assert await ids(node.stores, 1) == ["a", "b"]
    node.clock.now_ms += 1
    assert await ids(node.stores, 1) == ["b"]


async def test_items_wait_ttl_days(node: Node) -> None:
    (old,) = await node.accept("a", accepted_ms=START_MS)
    (new,) = await node.accept("b", accepted_ms=START_MS + 5)
    await node.stores.mailbox.save([(item_of(old), [1]), (item_of(new), [1])])
    node.clock.now_ms += TTL_DAYS * DAY_MS - 1
    assert await ids(node.stores, 1) == ["a", "b"]
    node.clock.now_ms += 1
    assert await ids(node.stores, 1) == ["b"]


async def test_what_is_saved_again_waits_anew(node: Node) -> None:
    """A notice that is sent again, however long ago it was published; but an element that Redis still has stays."""
    first = ["a"] if type(node) is Node else []
    (old,) = await node.accept("a", accepted_ms=START_MS)
    await node.stores.mailbox.save([(item_of(old), [1])])
    node.clock.now_ms += (TTL_DAYS + 3) * DAY_MS
    assert await ids(node.stores, 1) == []
    (again,) = await node.accept("a", accepted_ms=node.clock.now_ms, is_resent=True)
    await node.stores.mailbox.save([(item_of(again), [1, 2])])
    for _ in range(2):
        assert (await ids(node.stores, 1), await ids(node.stores, 2)) == (first, ["a"])
        await node.restart()
    node.clock.now_ms += TTL_DAYS * DAY_MS - 1
    assert (await ids(node.stores, 1), await ids(node.stores, 2)) == (first, ["a"])
    node.clock.now_ms += 1
    assert (await ids(node.stores, 1), await ids(node.stores, 2)) == ([], [])


async def test_purge_drops_what_is_past_its_time_up_to_the_limit(node: Node) -> None:
    if type(node) is not Node:
        pytest.skip("this store drops by itself; its own tests say when")
    (expires,) = await node.accept("expires", accepted_ms=START_MS, expires_ms=START_MS + 1000)
    (old,) = await node.accept("old", accepted_ms=START_MS)
    (new,) = await node.accept("new", accepted_ms=START_MS + DAY_MS)
    await node.stores.mailbox.save([(item_of(expires), [1, 2, 3]), (item_of(old), [1, 2])])
    await node.stores.mailbox.save([(item_of(new), [1])])
    assert await node.stores.mailbox.purge(START_MS + 999, 10) == 0
    assert await node.stores.mailbox.purge(START_MS + 1000, 2) == 2
    assert await node.stores.mailbox.purge(START_MS + 1000, 2) == 1
    assert await node.stores.mailbox.purge(START_MS + TTL_DAYS * DAY_MS, 10) == 2
    assert await node.stores.mailbox.purge(START_MS + TTL_DAYS * DAY_MS, 10) == 0
    assert await ids(node.stores, 1) == ["new"]


async def test_items_without_a_message_id_do_no_harm(node: Node) -> None:
    """Other programs may put them there; where none can, there are none."""
    mailbox = node.stores.mailbox
    await mailbox.save([(item("", content="x"), [1]), (item("", content="y"), [1])])
    contents = [waiting.content for waiting in (await mailbox.read([1])).get(1, [])]
    assert contents == ([] if type(node) is Node else ["x", "y"])
    await mailbox.remove({1: [""]})
    assert await mailbox.clear(1) == len(contents)


async def test_nothing_for_nobody(stores: Stores, copies: Copies) -> None:
    await stores.mailbox.save([])
    await stores.mailbox.save([(copies["a"], [])])
    await stores.mailbox.remove({})
    assert await stores.mailbox.read([]) == {}
    assert await stores.mailbox.read([1]) == {}


async def test_what_is_first_need_not_be_looked_for(stores: Stores, copies: Copies) -> None:
    await stores.mailbox.save([(copies["a"], [7, 8]), (copies["b"], [7])], is_first=True)
    await stores.mailbox.save([(copies["c"], [7, 9])], is_first=True)
    assert await ids(stores, 7) == ["a", "b", "c"]
    assert await ids(stores, 8) == ["a"]
    await stores.mailbox.save([(copies["c"], [7, 8])])
    assert (await ids(stores, 7), await ids(stores, 8)) == (["a", "b", "c"], ["a", "c"])
