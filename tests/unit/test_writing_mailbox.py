"""Mailbox copies on their way: their order, their form on disk, and what keeps a notice from being settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pushd.model import MailboxItem
from pushd.ports import Stores
from pushd.writing.mailbox import MailboxWriter
from tests.daemon import until
from tests.unit.parts import REFUSALS, REFUSED_USER, Counted, House, Picky, with_store

Build = Callable[..., House]


async def test_saves_and_removals_keep_their_order(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: MailboxWriter = house.writers.mailbox
    counted = await house.counted("m1", "m2", "m3", "m4")

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
    (counted,) = await house.counted("m1")
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


async def test_ids_on_disk_stay_of_their_kind(make_house: Build, frail: Any) -> None:
    """Names in JSON objects are texts: numbers and texts of digits would be the same."""
    writer = make_house(stores=frail).writers.mailbox
    for user_ids in ([7, 2**62], ["7", "a"]):
        writer.save(Counted().flight, MailboxItem("t", "x", message_id="a"), user_ids)
        for user_id in user_ids:
            writer.remove(user_id, ["b"])
        (batch,) = writer.collect()
        decoded = writer.decode(await writer.encode(batch))
        assert decoded.saves[0][1] == user_ids
        assert decoded.removals == dict.fromkeys(user_ids, ["b"])  # noqa: RUF024 - only compared
    older = msgspec.json.encode(([], {7: ["d"]}))
    assert writer.decode(older).removals == {7: ["d"]}


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_copy_that_cannot_be_saved_is_set_aside_and_all_others_are_saved(
    make_house: Build, stores: Stores, error: Exception
) -> None:
    house = make_house(stores=with_store(stores, mailbox=Picky(stores.mailbox, error)))
    writer = house.writers.mailbox
    good, mixed = await house.counted("m1", "m2")
    for counted, user_ids in ((good, [1, 2]), (mixed, [3, REFUSED_USER, 4, 1])):
        writer.save(counted.flight, house.item_of(counted.flight.notice), user_ids)
    writer.remove(5, ["m9"])
    writer.remove(REFUSED_USER, ["m9", "m8"])
    for counted in (good, mixed):
        counted.flight.end_fan_out()
    house.start_writers()
    await house.writers.flushed()
    assert [await house.mailbox(user_id) for user_id in (1, 2, 3, 4)] == [["m1", "m2"], ["m1"], ["m2"], ["m2"]]
    assert (good.settled, mixed.settled) == (1, 1)
    assert (good.flight.is_delivered, mixed.flight.is_delivered) == (True, False)
    assert await stores.set_aside.counts() == {"mailbox": 2}


async def test_who_hears_that_a_notice_is_settled_cannot_keep_the_others_from_hearing_it(house: House) -> None:
    first, second = await house.counted("m1", "m2")
    first.flight.on_settled = lambda flight: 1 / 0
    for counted in (first, second):
        house.writers.mailbox.save(counted.flight, house.item_of(counted.flight.notice), [1])
        counted.flight.end_fan_out()
    await house.writers.flushed()
    assert second.flight.is_delivered
    assert house.metrics.errors.labels("settle").value == 1
