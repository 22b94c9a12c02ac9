"""Mailbox copies, online status and settled entries on their way: their order, and what holds a notice until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pushd.errors import StoreError
from pushd.in_flight import InFlight
from pushd.model import Arrival, MailboxItem
from pushd.ports import Stores
from pushd.writing.mailbox import MailboxWriter
from pushd.writing.settled import SettledWriter
from tests.daemon import until
from tests.unit.parts import START_MS, Counted, House, notice, with_store

Build = Callable[..., House]


async def test_saves_and_removals_keep_their_order(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: MailboxWriter = house.writers.mailbox
    counted = [Counted(seq) for seq in range(1, 5)]

    def save(index: int, *user_ids: int) -> None:
        writer.save(counted[index].flight, house.item_of(counted[index].flight.notice), user_ids)

    save(0, 1, 2)
    writer.remove(1, ["m1"])
    writer.remove(2, ["m1"])
    save(1, 1)
    save(2, 1)
    writer.remove(1, ["m2", "m4"])
    save(3, 1)
    save(0, 2)
    for one in counted:
        one.flight.end_fan_out()
    frail.mailbox.fail("save", 2)
    frail.mailbox.fail("remove", 2)
    house.start_writers()
    await writer.writer.flushed()
    assert await house.mailbox(1) == ["m3", "m4"]
    assert await house.mailbox(2) == ["m1"]
    assert [one.settled for one in counted] == [1, 1, 1, 1]
    assert house.metrics.mailbox_saved.value == 6


async def test_saved_only_after_the_store_says_so(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    counted = Counted()
    gate = frail.mailbox.pause("save")
    house.writers.mailbox.save(counted.flight, house.item_of(counted.flight.notice), [1])
    counted.flight.end_fan_out()
    house.start_writers()
    await until(lambda: "save" in frail.mailbox.calls)
    assert not counted.flight.is_delivered
    gate.set()
    await house.writers.flushed()
    assert counted.flight.is_delivered
    assert counted.settled == 1


async def test_on_disk_whatever_json_can_say(make_house: Build, frail: Any) -> None:
    """Integers that MessagePack cannot carry, and rows of an older version, which are MessagePack."""
    house = make_house(stores=frail)
    writer = house.writers.mailbox
    saves: list[Any] = [(MailboxItem("t", "x", message_id="a", data={"n": 10**30}), [1, 2])]
    writer.save(Counted().flight, *saves[0])
    writer.remove(3, ["b"])
    (batch,) = writer.collect()
    decoded = writer.decode(await writer.encode(batch))
    assert (decoded.saves, decoded.removals) == (saves, {3: ["b"]})
    older = msgspec.msgpack.encode(([(MailboxItem("t", "y", message_id="c"), [7])], {8: ["d"]}))
    decoded = writer.decode(older)
    assert (decoded.saves, decoded.removals) == ([(MailboxItem("t", "y", message_id="c"), [7])], {8: ["d"]})


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


# ---- one of many is to blame

NEVER = [StoreError("store", "never"), TypeError("odd")]


class Picky:
    """A store that never takes anything about user 999777."""

    def __init__(self, store: Any, error: Exception) -> None:
        self._store = store
        self._error = error

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._store, name)

        async def call(given: Any, **options: Any) -> Any:
            if "999777" in repr(given):
                raise self._error
            return await operation(given, **options)

        return call if name in ("save", "remove", "connected", "disconnected", "settle") else operation


@pytest.mark.parametrize("error", NEVER)
async def test_a_copy_that_cannot_be_saved_is_set_aside_and_all_others_are_saved(
    make_house: Build, stores: Stores, error: Exception
) -> None:
    house = make_house(stores=with_store(stores, mailbox=Picky(stores.mailbox, error)))
    writer = house.writers.mailbox
    good, mixed = Counted(1), Counted(2)
    for counted, user_ids in ((good, [1, 2]), (mixed, [3, 999_777, 4, 1])):
        writer.save(counted.flight, house.item_of(counted.flight.notice), user_ids)
    writer.remove(5, ["m9"])
    writer.remove(999_777, ["m9", "m8"])
    for counted in (good, mixed):
        counted.flight.end_fan_out()
    house.start_writers()
    await house.writers.flushed()
    assert [await house.mailbox(user_id) for user_id in (1, 2, 3, 4)] == [["m1", "m2"], ["m1"], ["m2"], ["m2"]]
    assert (good.settled, mixed.settled) == (1, 1)
    assert (good.flight.is_delivered, mixed.flight.is_delivered) == (True, False)
    assert await stores.set_aside.counts() == {"mailbox": 2}


@pytest.mark.parametrize("error", NEVER)
async def test_a_status_that_cannot_be_written_is_set_aside_and_all_others_are_written(
    make_house: Build, stores: Stores, error: Exception
) -> None:
    house = make_house(stores=with_store(stores, presence=Picky(stores.presence, error)))
    for user_id in (1, 999_777, 2, 3):
        house.writers.statuses.arrived(Arrival(user_id, "", f"c{user_id}", "", "", START_MS))
    house.writers.statuses.left(999_777, START_MS + 5)
    house.writers.statuses.left(3, START_MS + 5)
    house.start_writers()
    await house.writers.flushed()
    statuses = await stores.presence.statuses([1, 2, 3, 999_777])
    assert {user_id: status.is_online for user_id, status in statuses.items()} == {1: True, 2: True, 3: False}
    assert await stores.set_aside.counts() == {"presence": 2}


async def test_a_reset_that_fails_for_good_keeps_nobody_waiting_and_is_not_repeated_later(
    make_house: Build, frail: Any
) -> None:
    house = make_house(stores=frail)
    frail.presence.fail("reset", 5, TypeError("odd"))
    house.writers.statuses.arrived(Arrival(1, "", "c1", "", "", START_MS))
    house.start_writers()
    await house.writers.flushed()
    assert await house.writers.statuses.were_online() == []
    assert (await frail.presence.statuses([1]))[1].is_online
    assert await frail.set_aside.counts() == {}
    assert house.metrics.errors.labels("store_write").value == 1


async def test_a_reset_is_not_repeated_with_what_came_after_it(make_house: Build, frail: Any) -> None:
    """It would send home who has come since."""
    house = make_house(stores=frail)
    frail.presence.fail("disconnected", 2)
    house.writers.statuses.arrived(Arrival(1, "", "c1", "", "", START_MS))
    house.writers.statuses.left(2, START_MS)
    house.start_writers()
    await house.writers.flushed()
    assert frail.presence.calls.count("reset") == 1
    assert (await frail.presence.statuses([1]))[1].is_online


async def test_an_entry_that_cannot_be_settled_is_set_aside_and_settled_when_retried(
    make_house: Build, stores: Stores
) -> None:
    house = make_house(stores=with_store(stores, journal=Picky(stores.journal, TypeError("odd"))))
    for seq in (1, 999_777, 2):
        house.writers.settled.settle(Counted(seq).flight)
    house.start_writers()
    await house.writers.flushed()
    assert await stores.set_aside.counts() == {"settled": 1}


async def test_who_hears_that_a_notice_is_settled_cannot_keep_the_others_from_hearing_it(house: House) -> None:
    failing, other = InFlight(notice(1), accepted_at=0.0, on_settled=lambda flight: 1 / 0), Counted(2).flight
    for flight in (failing, other):
        house.writers.mailbox.save(flight, house.item_of(flight.notice), [1])
        flight.end_fan_out()
    await house.writers.flushed()
    assert other.is_delivered
    assert house.metrics.errors.labels("settle").value == 1
