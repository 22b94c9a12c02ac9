"""Connections that arrive: greeted in batches, and what fails then costs one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import CloseCode
from pushd.presence import arrivals
from pushd.protocol import frames
from tests.daemon import until
from tests.unit.parts import House
from tests.unit.waiting import emptied, fill, greeted

Build = Callable[..., House]


async def test_guests_are_greeted_at_once_and_leave_no_trace(frail_house: House, frail: Any) -> None:
    guest = frail_house.arrive(-1)
    assert guest.is_greeted
    await frail_house.publish("x", target="online")
    await frail_house.quiet()
    assert guest.notices == ["x"]
    guest.leave()
    await frail_house.writers.statuses.writer.flushed()
    assert not {"learn", "read", "unread_counts"} & {*frail.directory.calls, *frail.mailbox.calls, *frail.records.calls}
    assert frail.presence.calls == ["reset"]  # of the start


async def test_records_give_way_while_some_wait_for_others_to_be_welcomed(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    house.start_writers()
    house.start(house.arrivals.run(per_batch=1))
    answer = frail.mailbox.pause("read")
    served = [house.arrive(user_id) for user_id in range(1, arrivals.WELCOMES_AT_ONCE + 1)]
    await until(lambda: frail.mailbox.calls.count("read") == len(served))
    assert not house.writers.records.writer.gives_way
    late = house.arrive(100)
    await asyncio.sleep(0)
    assert house.writers.records.writer.gives_way
    answer.set()
    await greeted(*served, late)
    assert not house.writers.records.writer.gives_way


async def test_hello_then_mailbox_then_live(frail_house: House, frail: Any) -> None:
    waiting = await fill(frail_house, 7, 3)
    answer = frail.mailbox.pause("read")
    client = frail_house.arrive(7)
    await until(lambda: "read" in frail.mailbox.calls)
    for number in range(3):
        await frail_house.publish(f"live {number}", target="custom", user_ids=[7])
    await until(lambda: frail_house.dispatcher.is_idle)
    assert not client.is_greeted
    answer.set()
    await greeted(client)
    assert client.messages[0]["type"] == "hello"
    assert client.notices == [*waiting, "live 0", "live 1", "live 2"]
    assert [message.get("offline") for message in client.messages[1:]] == [True] * 3 + [None] * 3
    await emptied(frail_house, 7)
    assert await frail_house.unsettled() == []
    assert frail_house.metrics.mailbox_delivered.value == 3


async def test_many_arrivals_share_round_trips(frail_house: House, frail: Any) -> None:
    clients = [frail_house.arrive(user_id) for user_id in range(1, 301)]
    await greeted(*clients)
    assert frail.mailbox.calls.count("read") == -(-300 // arrivals.ARRIVALS_PER_BATCH)
    for client in clients:
        client.leave()


async def test_who_leaves_before_the_stores_answer(frail_house: House, frail: Any) -> None:
    ids = await fill(frail_house, 7, 2)
    answer = frail.mailbox.pause("read")
    gone, stays = frail_house.arrive(7), frail_house.arrive(8)
    await until(lambda: "read" in frail.mailbox.calls)
    gone.leave()
    answer.set()
    await greeted(stays)
    await frail_house.quiet()
    assert await frail_house.mailbox(7) == ids


async def test_while_stores_are_down_users_are_greeted_and_live_delivery_goes_on(
    frail_house: House, frail: Any
) -> None:
    ids = await fill(frail_house, 7, 2)
    frail.mailbox.fail("read", 10_000)
    client = frail_house.arrive(7)
    await greeted(client)
    assert client.messages[0]["data"]["unread_count"] == 0
    await frail_house.publish("live", target="custom", user_ids=[7])
    await frail_house.quiet()
    assert client.notices == ["live"]
    assert frail_house.mailboxes.failure
    frail.mailbox.work()
    await until(lambda: client.notices == ["live", *ids])
    assert frail_house.mailboxes.failure == ""
    await emptied(frail_house, 7)


# ---- what fails otherwise costs one connection


class Unexpected(Exception):
    """What nobody has thought of."""


@pytest.mark.parametrize(
    ("store", "operation"), [("mailbox", "read"), ("directory", "learn"), ("records", "unread_counts")]
)
async def test_an_unexpected_failure_costs_the_connection_it_is_about(
    frail_house: House, frail: Any, store: str, operation: str
) -> None:
    """The first attempt, for all together, and the one for the second user fail."""
    calls: list[Any] = []

    async def failing(users: Any) -> Any:
        calls.append(users)
        if len(users) > 1 or 2 in {getattr(user, "user_id", user) for user in users}:
            raise Unexpected("odd data")
        return await getattr(getattr(frail, store)._store, operation)(users)

    setattr(getattr(frail, store), operation, failing)
    with capture_logs() as logs:
        clients = [frail_house.arrive(user_id) for user_id in (1, 2, 3)]
        await greeted(clients[0], clients[2])
        await until(lambda: clients[1].connection.close_code)
        clients[1].receive()
        assert clients[1].close_code == CloseCode.INTERNAL_ERROR
        again = [frail_house.arrive(user_id) for user_id in (2, 4)]
        await greeted(again[1])
        await until(lambda: again[0].connection.close_code)
    assert [line["event"] for line in logs] == ["arrival failed"]
    assert frail_house.metrics.errors.value == 2
    await frail_house.publish("live", target="custom", user_ids=[1, 3, 4])
    await frail_house.quiet()
    assert clients[0].notices == clients[2].notices == again[1].notices == ["live"]


async def test_whatever_fails_after_the_stores_have_answered(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = await fill(house, 2, 2)

    def failing(user_id: int, items: Any) -> None:
        raise Unexpected("odd items")

    monkeypatch.setattr(house.acknowledgements, "replaying", failing)
    clients = [house.arrive(user_id) for user_id in (1, 2, 3)]
    await greeted(clients[0], clients[2])
    await until(lambda: clients[1].connection.close_code == CloseCode.INTERNAL_ERROR)
    monkeypatch.undo()
    again = house.arrive(2, is_acking=True)
    await greeted(again)
    await until(lambda: again.ids == ids)


async def test_a_greeting_that_fails_costs_a_guest_only(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> bytes:
        raise Unexpected("no frame")

    monkeypatch.setattr(frames, "frame", failing)
    guest = house.arrive(-1)
    assert guest.connection.close_code == CloseCode.INTERNAL_ERROR
    monkeypatch.undo()
    other = house.arrive(-2)
    assert other.is_greeted
