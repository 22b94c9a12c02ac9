"""Reading mailboxes of users who arrive: what is on its way, deadlines, and stores that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import StoreUnavailable
from pushd.presence.arrivals import Arrivals
from pushd.presence.mailboxes import Mailboxes
from pushd.presence.replay import Replays
from tests.daemon import until
from tests.unit.parts import House
from tests.unit.waiting import fill, greeted

Build = Callable[..., House]


@pytest.fixture
async def impatient(make_house: Build, frail: Any) -> House:
    """A house whose stores get 0.01 s to answer for who arrives."""
    house = make_house(stores=frail)
    house.mailboxes = Mailboxes(house.directory, frail.mailbox, house.writers, house.metrics, within_s=0.01)
    house.replays = Replays(
        house.hub,
        house.mailboxes,
        house.acknowledgements,
        house.amendments,
        house.current,
        house.metrics,
        house.failures,
    )
    house.arrivals = Arrivals(house.hub, house.register, house.greeting, house.mailboxes, house.replays, house.failures)
    house.start_all()
    return house


async def test_what_was_on_its_way_into_the_mailbox_is_replayed(frail_house: House, frail: Any) -> None:
    answer = frail.mailbox.pause("save")
    flight = await frail_house.publish(target="custom", user_ids=[7])
    await until(lambda: "save" in frail.mailbox.calls)
    client = frail_house.arrive(7)
    await asyncio.sleep(0)
    answer.set()
    await greeted(client)
    assert client.ids == [flight.notice.message_id]
    assert client.messages[1]["offline"] is True


async def test_stores_that_do_not_answer_count_as_down(impatient: House, frail: Any) -> None:
    ids = await fill(impatient, 7, 2)
    answer = frail.mailbox.pause("read")
    client = impatient.arrive(7)
    await greeted(client)
    assert client.notices == []
    answer.set()
    await until(lambda: client.ids == ids)


async def test_when_the_directory_fails_the_mailbox_comes_later(frail_house: House, frail: Any) -> None:
    ids = await fill(frail_house, 7, 2)
    frail.directory.fail("learn", 3)
    client = frail_house.arrive(7)
    await greeted(client)
    await until(lambda: client.ids == ids)
    assert frail_house.metrics.errors.value == 3


async def test_the_mailbox_does_not_wait_for_the_records(impatient: House, frail: Any) -> None:
    """CONTRACT section 6: live delivery goes on while the records store is down; a mailbox that answers may too."""
    ids = await fill(impatient, 7, 2)
    frail.ledger.fail("commit", 10_000)
    await impatient.publish(target="custom", user_ids=[8])
    await until(lambda: "commit" in frail.ledger.calls)
    client = impatient.arrive(7)
    await greeted(client)
    await until(lambda: client.ids == ids, within_s=0.2)


async def test_the_failure_is_over_when_nobody_waits_and_the_store_is_back(frail_house: House, frail: Any) -> None:
    frail.mailbox.fail("read", 10_000)
    client = frail_house.arrive(7)
    await greeted(client)
    client.leave()
    await until(lambda: not frail_house.replays._tasks)
    frail.mailbox.work()
    await frail_house.publish(target="custom", user_ids=[7])
    await frail_house.quiet()
    assert frail_house.mailboxes.failure == ""


async def test_a_failure_is_remembered_until_a_reading_works(frail_house: House, frail: Any) -> None:
    ids = await fill(frail_house, 7, 2)
    client = frail_house.open(7)
    frail.mailbox.fail("read", 2)
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await frail_house.mailboxes.read([client.connection])
    assert [line["event"] for line in logs] == ["mailbox replay waits for the store"]
    assert frail_house.mailboxes.failure
    waiting = await frail_house.mailboxes.read([client.connection])
    assert [item.message_id for item in waiting[7]] == ids
    assert frail_house.mailboxes.failure == ""
    assert frail_house.metrics.errors.value == 2


async def test_what_took_longer_than_it_may_is_said(impatient: House, frail: Any) -> None:
    client = impatient.open(7)
    frail.mailbox.pause("read")
    with pytest.raises(StoreUnavailable, match=r"^mailbox: no answer within 0\.01 s$"):
        await impatient.mailboxes.read([client.connection])
    assert impatient.mailboxes.failure == "mailbox: no answer within 0.01 s"
    impatient.mailboxes.nobody_waits()
    assert impatient.mailboxes.failure == ""
