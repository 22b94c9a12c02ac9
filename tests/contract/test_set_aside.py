"""The contract of ports.SetAside, and of the command that works beside it."""

from __future__ import annotations

import pytest

from pushd.errors import StartError
from pushd.stores.sqlite import set_aside
from pushd.stores.sqlite.set_aside import SqliteSetAside

from .conftest import START_MS, Node


def data_dir(node: Node) -> str:
    return str(node.directory / "data")


async def test_what_is_kept_is_there_after_a_restart_until_it_is_dropped(node: Node) -> None:
    assert await node.stores.set_aside.keep("mailbox", "TypeError: odd", bytes(range(256))) == 0
    assert await node.stores.set_aside.keep("notice", "half a pair: \ud83d", b"") == 0
    await node.restart()
    assert await node.stores.set_aside.counts() == {"mailbox": 1, "notice": 1}
    first, second = set_aside.entries(data_dir(node))
    assert first == (1, "mailbox", START_MS, 256, False, "TypeError: odd")
    assert (second.cause, second.size) == ("half a pair: \\ud83d", 0)
    await node.stores.set_aside.drop([1, 99])
    assert await node.stores.set_aside.counts() == {"notice": 1}


async def test_only_what_the_operator_wants_is_given_out(node: Node) -> None:
    store = node.stores.set_aside
    for number in range(1, 5):
        await store.keep("records", "why", b"%d" % number)
    assert await store.wanted([], 10) == []
    assert set_aside.want(data_dir(node), [2, 4]) == 2
    assert await store.wanted([], 10) == [(2, "records", b"2"), (4, "records", b"4")]
    assert await store.wanted([2], 10) == [(4, "records", b"4")]
    assert await store.wanted([], 1) == [(2, "records", b"2")]
    await store.refuse(2, "again")
    assert [entry[0] for entry in await store.wanted([], 10)] == [4]
    assert [entry.cause for entry in set_aside.entries(data_dir(node))] == ["why", "again", "why", "why"]
    assert set_aside.want(data_dir(node), None) == 3
    assert len(await store.wanted([], 10)) == 4


async def test_unknown_entries_are_named_and_nothing_is_done(node: Node) -> None:
    await node.stores.set_aside.keep("records", "why", b"")
    for change in (set_aside.want, set_aside.drop):
        with pytest.raises(StartError, match="not set aside: 7, 8; nothing was done"):
            change(data_dir(node), [8, 1, 7])
    assert await node.stores.set_aside.wanted([], 10) == []
    assert set_aside.drop(data_dir(node), [1]) == 1
    assert set_aside.drop(data_dir(node), None) == 0
    assert await node.stores.set_aside.counts() == {}


async def test_an_id_is_not_given_out_twice(node: Node) -> None:
    await node.stores.set_aside.keep("records", "why", b"")
    set_aside.drop(data_dir(node), None)
    await node.stores.set_aside.keep("records", "why", b"")
    assert [entry.entry_id for entry in set_aside.entries(data_dir(node))] == [2]


async def test_of_too_many_the_oldest_go(node: Node) -> None:
    async with node.thread() as thread:
        store = SqliteSetAside(thread, node.clock, most_entries=20)
        dropped = [await store.keep("records", "why", b"") for _ in range(25)]
    assert dropped == [0] * 20 + [3, 0, 0, 3, 0]
    assert [entry.entry_id for entry in set_aside.entries(data_dir(node))] == list(range(7, 26))


async def test_of_too_much_the_oldest_goes(node: Node) -> None:
    async with node.thread() as thread:
        store = SqliteSetAside(thread, node.clock, most_bytes=1000)
        assert [await store.keep("records", "why", b"x" * 300) for _ in range(4)] == [0, 0, 0, 1]
        assert await store.keep("records", "why", b"x" * 1001) == 4  # it does not fit alone
        assert await store.counts() == {}


async def test_without_a_daemon(tmp_path: object) -> None:
    nowhere = str(tmp_path) + "/new"
    assert list(set_aside.entries(nowhere)) == []
    assert (set_aside.want(nowhere, None), set_aside.drop(nowhere, None)) == (0, 0)
