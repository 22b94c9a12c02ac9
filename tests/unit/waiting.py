"""Mailboxes that tests fill, and clients who wait for what is in them."""

from __future__ import annotations

from tests.daemon import until
from tests.unit.parts import Client, House


async def fill(house: House, user_id: int, count: int, size: int = 1) -> list[str]:
    """Put so many items into a mailbox; their ids, oldest first."""
    notices = await house.accept(*(f"w{index}" for index in range(count)), size=size)
    await house.stores.mailbox.save([(house.item_of(one), [user_id]) for one in notices])
    return [one.message_id for one in notices]


async def greeted(*clients: Client) -> None:
    for client in clients:
        await until(lambda client=client: client.is_greeted)


async def emptied(house: House, user_id: int) -> None:
    async def is_empty() -> bool:
        await house.writers.flushed()
        return not await house.mailbox(user_id)

    await until(is_empty)
