"""Who asked for it is told how many notices are unread: at most one frame a sweep, and always the true count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pushd.model import Mark
from pushd.protocol.frames import DEFLATED, Dialect
from tests.daemon import until
from tests.unit.parts import Client, House


async def follower(house: House, user_id: int = 7, **how: Any) -> Client:
    client = house.arrive(user_id, is_told_unread=True, **how)
    await until(lambda: client.is_greeted)
    return client


def told(client: Client) -> list[int]:
    """The counts that this client got."""
    client.receive()
    return [message["unread_count"] for message in client.messages if message["type"] == "unread"]


async def publish(house: House, *message_ids: str, user_id: int = 7) -> None:
    for message_id in message_ids:
        await house.publish(message_id=message_id, target="custom", user_ids=[user_id])
    await house.quiet()


async def test_many_changes_are_one_frame(house: House) -> None:
    client = await follower(house)
    await house.unread.sweep()
    assert told(client) == []
    await publish(house, "a", "b", "c")
    await house.unread.sweep()
    await house.unread.sweep()
    assert told(client) == [3]
    await house.acknowledgements.mark(7, ["a"], Mark.READ)
    await publish(house, "d")
    await house.unread.sweep()
    assert told(client) == [3]  # as many as before
    await house.inboxes.read_all(7)
    await house.unread.sweep()
    assert told(client) == [3, 0]


async def test_only_who_asked_is_told(house: House) -> None:
    client, other, stranger = await follower(house), house.arrive(7), await follower(house, 8)
    guest = house.arrive(-1, is_told_unread=True)
    await publish(house, "a")
    await house.unread.sweep()
    assert [told(one) for one in (client, other, stranger, guest)] == [[1], [], [], []]


@pytest.mark.parametrize("dialect", [Dialect.JSON, Dialect.MSGPACK, Dialect.MSGPACK | DEFLATED])
async def test_in_every_dialect(house: House, dialect: int) -> None:
    client = await follower(house, dialect=dialect)
    await publish(house, "a")
    await house.unread.sweep()
    assert told(client) == [1]
    assert client.messages[0]["type"] == "hello"


async def test_a_hello_with_an_older_count_is_set_right(house: House) -> None:
    """Also where nothing has changed since, and for the user's other connections."""
    first = await follower(house)
    await publish(house, "a")
    await house.unread.sweep()
    house.unread.follow((late := house.connect(7)).connection)
    house.unread.greeted(late.connection, 5)
    await house.unread.sweep()
    assert (told(first), told(late)) == ([1, 1], [1])
    house.unread.follow((third := house.connect(8)).connection)
    house.unread.greeted(third.connection, 2)
    await house.unread.sweep()
    assert told(third) == [0]


async def test_nobody_is_told_before_the_hello_or_after_the_end(house: House) -> None:
    client = await follower(house)
    house.unread.follow((early := house.connect(7)).connection)
    client.leave()
    early.leave()
    await publish(house, "a")
    await house.unread.sweep()
    assert told(early) == []
    assert house.unread.__dict__["_followed"] == {}
    assert house.unread.__dict__["_asked"] == set()


async def test_a_store_that_is_away_is_asked_again(frail_house: House, frail: Any) -> None:
    client = await follower(frail_house)
    await publish(frail_house, "a")
    frail.records.fail("unread_counts", 1)
    await frail_house.unread.sweep()
    assert told(client) == []
    frail.records.fail("unread_counts", 1, TypeError("odd"))
    await frail_house.unread.sweep()
    await frail_house.unread.sweep()
    assert told(client) == [1]
    assert frail_house.metrics.errors.labels("unread").value == 1


async def test_it_goes_on_by_itself(house: House) -> None:
    house.unread.__dict__["_every_s"] = 0.0
    house.start(house.unread.run())
    client = await follower(house)
    await publish(house, "a")
    await until(lambda: told(client) == [1])
    await house.inboxes.archive(7, ["a"])
    await until(lambda: told(client) == [1, 0])


async def test_more_users_than_the_store_can_name(house: House) -> None:
    clients = [await follower(house, user_id) for user_id in (1, 2, 3)]
    await house.publish(target="custom", user_ids=[*range(1, 1500)])
    await house.quiet()
    assert house.stores.inbox.unread_changed() is None
    await house.publish(target="custom", user_ids=[*range(1, 1500)])
    await house.quiet()
    await asyncio.gather(house.unread.sweep())
    assert [told(client) for client in clients] == [[2]] * 3
