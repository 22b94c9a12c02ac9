"""Receipts that are noted in the ledger: at once, and a notice is held until they are on disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from pushd.model import Channel, DeliveryStatus, Mark, Outcome, PushRecord, User
from pushd.ports import Stores
from pushd.records import Part, ReceiptFilter, ReceiptRow, ReceiptSort
from pushd.turns import SLICE_S
from pushd.users.devices import Device
from pushd.writing.receipts import LedgerWriter
from tests.samples import receipt
from tests.unit.parts import START_MS, House

Build = Callable[..., House]
OFFLINE = Outcome(created_ms=START_MS, status=DeliveryStatus.OFFLINE, channel=Channel.OFFLINE)
RECEIVED = Outcome(created_ms=START_MS, is_online=True, received_ms=START_MS + 5, status=DeliveryStatus.DELIVERED)
FETCHED = Outcome(START_MS, received_ms=START_MS + 9, status=DeliveryStatus.DELIVERED, channel=Channel.OFFLINE)


def writer_of(house: House) -> LedgerWriter:
    writer = house.writers.records
    assert isinstance(writer, LedgerWriter)
    return writer


async def rows(stores: Stores) -> list[ReceiptRow]:
    return await stores.records.receive_records(ReceiptFilter(), ReceiptSort.USER_ID, Part(0, 1000, False))


async def test_what_is_noted_is_seen_at_once_and_holds_its_notice_once_until_it_is_on_disk(
    make_house: Build, frail: Any
) -> None:
    house = make_house(stores=frail)
    writer = writer_of(house)
    (counted,) = await house.counted("m1")
    writer.note(counted.flight, "m1", [1, 2], OFFLINE)
    writer.note(counted.flight, "m1", [2, 3], RECEIVED)
    writer.note(counted.flight, "m1", [], RECEIVED)
    writer.note(None, "m1", (1,), FETCHED)
    writer.conclude(counted.flight, "success")
    counted.flight.end_fan_out()
    assert await frail.records.received_by("m1") == {1, 2, 3}
    assert counted.settled == 0
    frail.ledger.fail("commit", 2)
    house.start_writers()
    await writer.writer.flushed()
    assert counted.settled == 1
    assert frail.ledger.calls.count("commit") == 3
    row = await frail.records.push_record("m1")
    assert row is not None
    assert (row.status, row.total_count, row.delivered_count) == ("success", 3, 3)


async def test_a_late_answer_alone_is_flushed(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    await house.accept("m1")
    house.start_writers()
    writer_of(house).note(None, "m1", (1,), FETCHED)
    await house.writers.flushed()
    assert "commit" in frail.ledger.calls
    assert await frail.records.received_by("m1") == {1}


async def test_a_notice_that_is_not_known_by_its_number_is_found_by_its_id(make_house: Build, frail: Any) -> None:
    """As after a start, for answers to what waited; and one that there is not is passed over."""
    house = make_house(stores=frail)
    writer = writer_of(house)
    (counted,) = await house.counted("m1")
    for one, message_id in ((counted.flight, "m1"), (None, "m1"), (None, "unknown")):
        frail.ledger.answer("note", False)
        writer.note(one, message_id, [1 if one else 2], FETCHED)
    frail.ledger.answer("conclude", False)
    writer.conclude(counted.flight, "success")
    counted.flight.end_fan_out()
    assert await frail.records.received_by("m1") == set()
    house.start_writers()
    await house.writers.records_written({2})
    assert await frail.records.received_by("m1") == {1, 2}
    row = await frail.records.push_record("m1")
    assert row is not None
    assert row.status == "success"
    assert counted.settled == 1


@pytest.mark.parametrize("refused", [(), (False,), (False, False)])
async def test_what_is_noted_of_one_user(make_house: Build, frail: Any, refused: tuple[bool, ...]) -> None:
    """At first he is not known by a number; later the ledger does not know the notice, and then not at once."""
    house = make_house(stores=frail)
    writer = writer_of(house)
    counted = await house.counted("m1", "m2", "m3", "m4")
    connections = [house.connect(user_id).connection for user_id in (1, 2)]
    for index, one in enumerate(counted):
        for call in ("sent",) if index % 2 else ("sent", "received"):
            for name, answer in zip((call, "note"), refused if index >= 2 else (), strict=False):
                frail.ledger.answer(name, answer)
        connection = connections[index % 2]
        if index % 2:
            writer.sent(one.flight, connection, START_MS + 5)
        else:
            writer.sent(one.flight, connection, 0)
            writer.received(one.flight, 1, START_MS + 5)
        one.flight.end_fan_out()
    assert [one.settled for one in counted] == [0] * 4
    house.start_writers()
    await house.writers.records_written()
    await house.writers.flushed()
    assert [one.settled for one in counted] == [1] * 4
    found = [(row.message_id, row.user_id, row.is_online, row.received_ms) for row in await rows(frail)]
    assert sorted(found) == [(f"m{number}", 2 - number % 2, True, START_MS + 5) for number in range(1, 5)]
    assert {row.connection_id for row in await rows(frail)} == {"c0", "c1"}


async def test_who_reads_for_some_users_does_not_wait_for_the_disk(make_house: Build) -> None:
    house = make_house(records={"flush_ms": 60_000})
    house.start_all()
    flight = await house.publish(target="custom", user_ids=[1])
    async with asyncio.timeout(1):
        await house.writers.records_written({1})
    assert await house.stores.records.not_received_by(flight.notice.message_id) == [1]


async def test_names_are_there_for_whoever_reads_all_and_follow_the_directory(make_house: Build) -> None:
    house = make_house(records={"flush_ms": 60_000})
    house.start_all()
    await house.directory.learn([User(1, "ann", 2, 1)])
    for number, name in enumerate(["ann", "bob"], 1):
        await house.directory.learn([User(1, name, 2, number)])
        await house.publish(target="custom", user_ids=[1, 2])
        await house.writers.records_written()
    found = await rows(house.stores)
    assert [(row.user_id, row.username, row.user_role) for row in found if row.user_id == 1] == [
        (1, "bob", 2),
        (1, "ann", 2),
    ]
    assert {row.username for row in found if row.user_id == 2} == {""}


async def test_names_that_cannot_be_had_keep_no_receipt_from_the_disk(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    frail.directory.fail("users", 5, TypeError("odd"))
    (counted,) = await house.counted("m1")
    writer_of(house).note(counted.flight, "m1", [1, 2], RECEIVED)
    counted.flight.end_fan_out()
    house.start_writers()
    await house.writers.flushed()
    assert await frail.records.received_by("m1") == {1, 2}
    assert counted.settled == 1


@pytest.mark.parametrize("operation", ["mark", "received"])
async def test_receipts_do_not_wait_for_the_directory(make_house: Build, frail: Any, operation: str) -> None:
    house = make_house(stores=frail)
    house.start_writers()
    frail.directory.fail("users", 1000)
    (counted,) = await house.counted("m1")
    writer_of(house).note(counted.flight, "m1", [1], RECEIVED)
    checks: dict[str, Callable[[], Awaitable[Any]]] = {
        "mark": lambda: house.acknowledgements.mark(1, ["m1"], Mark.READ),
        "received": house.writers.flushed,
    }
    async with asyncio.timeout(5):
        await checks[operation]()
    assert await frail.records.received_by("m1") == {1}


async def test_the_loop_runs_while_devices_are_looked_up(make_house: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many User-Agents there are and however long each takes; noting looks none up."""
    house = make_house()
    for user_id in range(1, 101):
        house.connect(user_id)
    looked_up, runs = 0, []

    def slowly(user_agent: str) -> Device:
        nonlocal looked_up
        looked_up += 1
        until = time.monotonic() + SLICE_S / 4
        while time.monotonic() < until:
            pass
        return Device("phone", "", "")

    async def run() -> None:
        while True:
            runs.append(looked_up)
            await asyncio.sleep(0)

    monkeypatch.setattr("pushd.writing.receipts.device_of", slowly)
    (counted,) = await house.counted("m1")
    writer_of(house).note(counted.flight, "m1", range(1, 101), RECEIVED)
    assert looked_up == 0
    house.start_writers()
    running = asyncio.create_task(run())
    await house.writers.flushed()
    running.cancel()
    assert looked_up == 100
    assert max(later - earlier for earlier, later in pairwise(runs)) <= 8
    assert {row.device_type for row in await rows(house.stores)} == {"phone"}


async def test_what_an_outbox_has_from_before_is_written(make_house: Build, stores: Stores) -> None:
    """Records may have been kept elsewhere, and have come in halves."""
    house = make_house()
    (accepted,) = await house.accept("m1")
    writer = writer_of(house)
    receipts = [receipt("m1", user_id, RECEIVED) for user_id in (1, 2, 3)]
    body = msgspec.msgpack.encode(([PushRecord(accepted, "success", 3, 3)], receipts))
    batch = writer.decode(body)
    assert (batch.push_records[0].notice, batch.receipts) == (accepted, receipts)
    again = writer.decode(await writer.encode(batch))
    assert (again.push_records, again.receipts) == (batch.push_records, batch.receipts)
    parts = writer.parts(batch)
    assert len(parts) > 1
    for part in parts:
        await writer.write(part)
    assert await stores.records.received_by("m1") == {1, 2, 3}
    (alone,) = writer.parts(writer.decode(msgspec.msgpack.encode(([], receipts[:1]))))
    assert alone.receipts == receipts[:1]
    assert writer.parts(writer.decode(msgspec.msgpack.encode(([], [])))) == []
