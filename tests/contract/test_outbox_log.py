"""The contract of ports.OutboxLog."""

from __future__ import annotations

from pushd.ports import Stores

from .conftest import Node


async def test_what_waits_is_read_in_order_and_stays_until_dropped(stores: Stores) -> None:
    await stores.outbox.append("mailbox", [b"1", b"2"])
    await stores.outbox.append("records", [b"x"])
    await stores.outbox.append("mailbox", [b"3"])
    rows = await stores.outbox.oldest("mailbox", 2)
    assert [body for _, body in rows] == [b"1", b"2"]
    assert await stores.outbox.oldest("mailbox", 2) == rows
    await stores.outbox.drop("mailbox", rows[-1][0])
    assert [body for _, body in await stores.outbox.oldest("mailbox", 10)] == [b"3"]
    assert [body for _, body in await stores.outbox.oldest("records", 10)] == [b"x"]


async def test_dropping_concerns_one_writer_alone(stores: Stores) -> None:
    await stores.outbox.append("records", [b"x"])
    await stores.outbox.append("mailbox", [b"1"])
    await stores.outbox.drop("mailbox", (await stores.outbox.oldest("mailbox", 1))[0][0])
    assert await stores.outbox.counts() == {"records": 1}


async def test_any_bytes_are_kept_over_a_restart(node: Node) -> None:
    bodies = [b"", bytes(range(256)), b"x" * 1_000_000]
    await node.stores.outbox.append("mailbox", bodies)
    await node.restart()
    assert [body for _, body in await node.stores.outbox.oldest("mailbox", 10)] == bodies
    assert await node.stores.outbox.counts() == {"mailbox": 3}


async def test_nothing_waits_at_first(stores: Stores) -> None:
    assert await stores.outbox.counts() == {}
    assert await stores.outbox.oldest("mailbox", 10) == []
    await stores.outbox.drop("mailbox", 1000)


async def test_positions_are_not_given_out_twice(stores: Stores) -> None:
    await stores.outbox.append("mailbox", [b"1"])
    (first,) = await stores.outbox.oldest("mailbox", 1)
    await stores.outbox.drop("mailbox", first[0])
    await stores.outbox.append("mailbox", [b"2"])
    (second,) = await stores.outbox.oldest("mailbox", 1)
    assert second[0] > first[0]
