"""Whoever reads his own writes waits for the writers of what he reads, and for no others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pushd._fastpath import FanOut
from pushd.errors import StoreUnavailable
from pushd.model import Arrival, DeliveryStatus, Outcome, Priority
from pushd.writing.writers import Writers
from tests.daemon import until
from tests.unit.parts import START_MS, House, with_store

Build = Callable[..., House]
OFFLINE = Outcome(created_ms=START_MS, status=DeliveryStatus.OFFLINE)
Read = Callable[[Writers, set[int] | None], Coroutine[Any, Any, None]]
READS: dict[str, Read] = {
    "records": Writers.records_written,
    "mailboxes": Writers.mailboxes_written,
    "statuses": lambda writers, user_ids: writers.statuses_written(),
}
WRITE = {"records": ("records", "write"), "mailboxes": ("mailbox", "save"), "statuses": ("presence", "connected")}


async def note_all(house: House) -> None:
    """Something of every kind, about user 1."""
    (counted,) = await house.counted("m1")
    flight = counted.flight
    house.writers.records.conclude(flight, "success")
    house.writers.records.note(flight, "m1", [1], OFFLINE)
    house.writers.mailbox.save(flight, house.item_of(flight.notice), [1])
    house.writers.statuses.arrived(Arrival(1, "ann", "c1", "", "", START_MS))


@pytest.mark.parametrize("kind", READS)
@pytest.mark.parametrize("user_ids", [None, {1, 2}])
async def test_what_was_noted_before_is_there_and_is_all_that_is_waited_for(
    make_house: Build, frail: Any, kind: str, user_ids: set[int] | None
) -> None:
    house = make_house(stores=with_store(frail, ledger=None))  # a ledger has what was noted at once
    store, operation = WRITE[kind]
    for other, (name, write) in WRITE.items():
        if other != kind:
            getattr(frail, name).pause(write)
    gate = getattr(frail, store).pause(operation)
    await note_all(house)
    house.start_writers()
    read = asyncio.create_task(READS[kind](house.writers, user_ids))
    await until(lambda: operation in getattr(frail, store).calls)
    assert not read.done()
    gate.set()
    async with asyncio.timeout(5):
        await read


@pytest.mark.parametrize("ask", [Writers.records_written, Writers.mailboxes_written])
async def test_of_some_users_what_concerns_others_is_not_waited_for(
    make_house: Build, frail: Any, ask: Callable[[Writers, set[int]], Coroutine[Any, Any, None]]
) -> None:
    house = make_house(stores=frail)
    await note_all(house)  # and nothing writes it
    async with asyncio.timeout(5):
        await ask(house.writers, {2})
    assert frail.records.calls == frail.mailbox.calls == []


async def test_records_give_way_to_what_is_in_the_queues_that_come_first(make_house: Build) -> None:
    house, queue = make_house(), ["one"]
    house.writers.give_way_to(queue)
    assert [writer.name for writer in house.writers.all() if writer.gives_way] == ["records"]
    queue.clear()
    assert not house.writers.records.writer.gives_way


async def test_records_give_way_to_fan_outs(house: House) -> None:
    for user_id in range(1, 41):
        house.connect(user_id)
    fan_outs = house.dispatcher.fan_outs
    fan_outs.most_s = 1e-9
    end = fan_outs.add(FanOut("long", lambda dialect: b"\x81\x02{}", None), Priority.NORMAL)
    assert end is not None
    assert house.writers.records.writer.gives_way
    await end
    assert not house.writers.records.writer.gives_way


@pytest.mark.parametrize("kind", READS)
async def test_who_reads_is_told_when_nothing_is_written_any_more(make_house: Build, kind: str) -> None:
    house = make_house()
    await note_all(house)
    running = [asyncio.create_task(writer.run()) for writer in house.writers.all()]
    await asyncio.sleep(0)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    with pytest.raises(StoreUnavailable):
        await READS[kind](house.writers, None)
