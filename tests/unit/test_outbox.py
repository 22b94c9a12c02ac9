"""Mailbox copies, online status and settled entries on their way: their order, and what holds a notice until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pushd.model import MailboxItem
from pushd.outbox import MailboxWriter, SettledWriter
from tests.daemon import until
from tests.unit.parts import Counted, House

Build = Callable[..., House]


async def test_saves_and_removals_keep_their_order(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: MailboxWriter = house.outbox.mailbox
    counted = [Counted(seq) for seq in range(1, 5)]

    def save(index: int, *user_ids: int) -> None:
        writer.save(counted[index].publication, house.item_of(counted[index].publication.notice), user_ids)

    save(0, 1, 2)
    writer.remove(1, ["m1"])
    writer.remove(2, ["m1"])
    save(1, 1)
    save(2, 1)
    writer.remove(1, ["m2", "m4"])
    save(3, 1)
    save(0, 2)
    for one in counted:
        one.publication.end_fan_out()
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
    gate = frail.mailbox.hold("save")
    house.outbox.mailbox.save(counted.publication, house.item_of(counted.publication.notice), [1])
    counted.publication.end_fan_out()
    house.start_writers()
    await until(lambda: "save" in frail.mailbox.calls)
    assert not counted.publication.is_delivered
    gate.set()
    await house.outbox.flushed()
    assert counted.publication.is_delivered
    assert counted.settled == 1


async def test_on_disk_whatever_json_can_say(make_house: Build, frail: Any) -> None:
    """Integers that MessagePack cannot carry, and rows of an older version, which are MessagePack."""
    house = make_house(stores=frail)
    writer = house.outbox.mailbox
    saves: list[Any] = [(MailboxItem("t", "x", message_id="a", data={"n": 10**30}), [1, 2])]
    writer.save(Counted().publication, *saves[0])
    writer.remove(3, ["b"])
    (batch,) = writer.collect()
    decoded = writer.decode(await writer.encode(batch))
    assert (decoded.saves, decoded.removals) == (saves, {3: ["b"]})
    older = msgspec.msgpack.encode(([(MailboxItem("t", "y", message_id="c"), [7])], {8: ["d"]}))
    decoded = writer.decode(older)
    assert (decoded.saves, decoded.removals) == ([(MailboxItem("t", "y", message_id="c"), [7])], {8: ["d"]})


async def test_settled_entries_leave_the_journal(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    writer: SettledWriter = house.outbox.settled
    counted = [Counted(seq) for seq in (1, 2, 3)]
    await frail.journal.append([one.publication.notice for one in counted])
    frail.journal.fail("settle", 2)
    house.start_writers()
    writer.settle(counted[0].publication)
    writer.settle(counted[2].publication)
    await writer.writer.flushed()
    assert await house.unsettled() == ["m2"]
