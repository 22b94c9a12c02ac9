"""What a user reads at once or puts away waits for nothing any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pushd.errors import StoreUnavailable
from pushd.records import InboxFilter
from tests.unit.parts import House


async def publish(house: House, *message_ids: str, **fields: Any) -> None:
    for message_id in message_ids:
        await house.publish(message_id=message_id, target="custom", user_ids=[7], **fields)
    await house.quiet()


async def unread(house: House) -> int:
    return (await house.stores.records.unread_counts([7])).get(7, 0)


async def test_what_was_sent_and_what_waits_is_read(house: House) -> None:
    await publish(house, "a")
    client = house.arrive(7, is_acking=True)
    await publish(house, "b", "c")
    assert house.acknowledgements.waiting_total == 2
    assert await house.inboxes.read_all(7) == 3
    assert (await unread(house), house.acknowledgements.waiting_total) == (0, 0)
    client.leave()
    await house.quiet()
    assert await house.mailbox(7) == []


async def test_what_does_not_match_still_waits(house: House) -> None:
    await publish(house, "a", type="order_paid")
    await publish(house, "b")
    assert await house.inboxes.read_all(7, InboxFilter(message_type="order_paid")) == 1
    await house.quiet()
    assert await house.mailbox(7) == ["b"]


async def test_what_comes_later_stays_unread(house: House) -> None:
    await publish(house, "a")
    then_ms = house.clock.wall_ms()
    house.clock.move(1)
    await publish(house, "b")
    assert await house.inboxes.read_all(7, until_ms=then_ms) == 1
    assert await unread(house) == 1


async def test_what_is_being_sent_is_read(house: House) -> None:
    """Its receipt is noted when the fan-out ends; the user may have it already."""
    client = house.connect(7)
    (counted,) = await house.counted("a")
    flight = counted.flight
    house.acknowledgements.sending(flight)
    reading = asyncio.create_task(house.inboxes.read_all(7, until_ms=flight.notice.accepted_ms))
    await house.quiet()
    assert not reading.done()
    house.acknowledgements.sent(flight, [7], [])
    house.acknowledgements.all_sent(flight)
    assert await reading == 1
    assert await unread(house) == 0
    assert client.receive() == []


async def test_what_is_put_away_is_told_to_the_users_connections(house: House) -> None:
    await publish(house, "a", "b")
    client = house.connect(7)
    assert await house.inboxes.archive(7, ["a", "nothing"]) == ["a"]
    (message,) = client.receive()
    assert message == {"type": "receipt", "message_id": "a", "status": "read", "unread_count": 1}
    await house.quiet()
    assert await house.mailbox(7) == ["b"]
    assert await house.inboxes.unarchive(7, ["nothing", "a"]) == ["a"]
    assert await unread(house) == 1


async def test_a_store_that_is_away_changes_nothing(frail_house: House, frail: Any) -> None:
    await publish(frail_house, "a")
    frail.inbox.fail("read_all")
    with pytest.raises(StoreUnavailable):
        await frail_house.inboxes.read_all(7)
    assert await frail_house.mailbox(7) == ["a"]
