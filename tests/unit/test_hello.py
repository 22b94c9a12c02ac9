"""What hello says."""

from __future__ import annotations

from typing import Any

from pushd.model import Mark
from tests.daemon import until
from tests.unit.parts import NODE_ID, House
from tests.unit.waiting import fill, greeted


async def test_hello_says_who_and_where(house: House) -> None:
    client = house.arrive(7)
    await greeted(client)
    assert client.messages == [
        {
            "type": "hello",
            "code": 200,
            "data": {
                "user_id": 7,
                "conn_id": "c0",
                "status": "connected",
                "heartbeat_s": 25,
                "unread_count": 0,
                "node_id": NODE_ID,
            },
        }
    ]
    assert await house.stores.directory.all_ids() == [7]
    assert house.metrics.connects.value == 1


async def test_the_unread_count(house: House) -> None:
    flights = [await house.publish(target="custom", user_ids=[7]) for _ in range(3)]
    await house.quiet()
    await house.acknowledgements.mark(7, [flights[0].notice.message_id], Mark.READ)
    client = house.arrive(7)
    await greeted(client)
    assert client.messages[0]["data"]["unread_count"] == 2


async def test_without_a_count_of_unread_notices_the_mailbox_comes_all_the_same(frail_house: House, frail: Any) -> None:
    ids = await fill(frail_house, 7, 2)
    frail.records.fail("unread_counts", 10_000)
    client = frail_house.arrive(7)
    await greeted(client)
    await until(lambda: client.ids == ids)
