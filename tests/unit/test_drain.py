"""Every connection is closed when the node stops, a few at a time."""

from __future__ import annotations

import pytest

from pushd.errors import CloseCode
from pushd.presence.drain import close_all
from tests.unit.parts import House


async def test_drain_closes_everybody_a_few_at_a_time(house: House) -> None:
    clients = [house.connect(user_id) for user_id in range(1, 41)]
    house.connect(-1)
    left: list[int] = []
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        left.append(house.hub.connections_total)

    await close_all(house.hub, house.failures, 0.5, pause=pause)
    assert house.hub.connections_total == 0
    assert left == [36, 31, 26, 21, 16, 11, 6, 1]
    assert sum(pauses) <= 0.5
    for client in clients:
        client.receive()
        assert client.close_code == CloseCode.SERVICE_RESTART


@pytest.mark.parametrize("within_s", [0.0, 0.01])
async def test_drain_of_few_or_none(house: House, within_s: float) -> None:
    await close_all(house.hub, house.failures, within_s)
    client = house.connect(1)
    await close_all(house.hub, house.failures, within_s)
    client.receive()
    assert client.close_code == CloseCode.SERVICE_RESTART


async def test_drained_acknowledging_clients_find_everything_in_the_mailbox(house: House) -> None:
    house.connect(1, is_acking=True)
    flight = await house.publish(target="custom", user_ids=[1])
    await house.quiet()
    await close_all(house.hub, house.failures, 0)
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert await house.unsettled() == []
