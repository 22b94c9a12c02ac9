"""Settled notices leave the journal, but for those that it refuses to settle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pushd.ports import Stores
from pushd.telemetry.metrics import Metrics
from pushd.writing.set_aside import SetAsideData
from pushd.writing.settled import SettledWriter
from pushd.writing.write_behind import Backing
from tests.unit.parts import REFUSED_USER, Counted, House, Picky, with_store

Build = Callable[..., House]


async def test_settled_entries_leave_the_journal(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: SettledWriter = house.writers.settled
    counted = [Counted(seq) for seq in (1, 2, 3)]
    await frail.journal.append([one.flight.notice for one in counted])
    frail.journal.fail("settle", 2)
    house.start_writers()
    writer.settle(counted[0].flight)
    writer.settle(counted[2].flight)
    await writer.writer.flushed()
    assert await house.unsettled() == ["m2"]


async def test_an_entry_that_cannot_be_settled_is_set_aside_and_the_others_are_settled(
    make_house: Build, stores: Stores
) -> None:
    house = make_house(stores=with_store(stores, journal=Picky(stores.journal, TypeError("odd"))))
    counted = [Counted(seq) for seq in (1, REFUSED_USER, 2)]
    await stores.journal.append([one.flight.notice for one in counted])
    for one in counted:
        house.writers.settled.settle(one.flight)
    house.start_writers()
    await house.writers.flushed()
    assert await house.unsettled() == [f"m{REFUSED_USER}"]
    assert await stores.set_aside.counts() == {"settled": 1}


async def test_nothing_in_the_outbox_is_its_own(stores: Stores) -> None:
    """Whoever put it there: it is not read, and nobody waits for it."""
    metrics = Metrics()
    backing = Backing(metrics, SetAsideData(stores.set_aside, metrics), stores.outbox, {"settled": 1})
    writer = SettledWriter(stores.journal, backing, delay_s=0.0).writer
    running = asyncio.create_task(writer.run())
    async with asyncio.timeout(5):
        await writer.secured()
        await writer.flushed()
    assert (writer.on_disk, writer.failure) == (0, "")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
