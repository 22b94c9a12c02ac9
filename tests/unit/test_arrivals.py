"""Arrivals, replays, departures, heartbeats and drain, with stores that fail or are slow to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import CloseCode
from pushd.model import MailboxItem, Mark
from pushd.presence import arrivals
from pushd.protocol import frames
from tests.daemon import until
from tests.unit.parts import NODE_ID, Client, House, item

Build = Callable[..., House]


async def fill(house: House, user_id: int, count: int, size: int = 1) -> list[str]:
    """Put so many items into a mailbox; their ids, oldest first."""
    ids = [f"w{index}" for index in range(count)]
    await house.stores.mailbox.save([(item(message_id, size), [user_id]) for message_id in ids])
    return ids


async def greeted(*clients: Client) -> None:
    for client in clients:
        await until(lambda client=client: client.is_greeted)


async def emptied(house: House, user_id: int) -> None:
    async def is_empty() -> bool:
        await house.writers.flushed()
        return not await house.mailbox(user_id)

    await until(is_empty)


@pytest.fixture
async def frail_house(make_house: Build, frail: Any) -> House:
    house = make_house(stores=frail)
    house.start_all()
    return house


# ---- arriving


async def test_hello_says_who_and_where(house: House) -> None:
    client = house.arrive(7)
    await greeted(client)
    assert client.messages == [
        {
            "type": "hello",
            "code": 200,
            "data": {
                "user_id": 7,
                "conn_id": "c0",
                "status": "connected",
                "heartbeat_s": 25,
                "unread_count": 0,
                "node_id": NODE_ID,
            },
        }
    ]
    assert await house.stores.directory.all_ids() == [7]
    assert house.metrics.connects.value == 1


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


async def test_the_unread_count(house: House) -> None:
    flights = [await house.publish(target="custom", user_ids=[7]) for _ in range(3)]
    await house.quiet()
    await house.acknowledgements.mark(7, [flights[0].notice.message_id], Mark.READ)
    client = house.arrive(7)
    await greeted(client)
    assert client.messages[0]["data"]["unread_count"] == 2


async def test_records_give_way_while_some_wait_for_others_to_be_welcomed(
    frail_house: House, frail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "ARRIVALS_PER_BATCH", 1)
    answer = frail.mailbox.pause("read")
    served = [frail_house.arrive(user_id) for user_id in range(1, arrivals.WELCOMES_AT_ONCE + 1)]
    await until(lambda: frail.mailbox.calls.count("read") == len(served))
    assert not frail_house.writers.records.writer.gives_way
    late = frail_house.arrive(100)
    await asyncio.sleep(0)
    assert frail_house.writers.records.writer.gives_way
    answer.set()
    await greeted(*served, late)
    assert not frail_house.writers.records.writer.gives_way


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


async def test_acknowledging_clients_keep_their_mailbox_until_they_acknowledge(house: House) -> None:
    ids = await fill(house, 7, 3)
    client = house.arrive(7, is_acking=True)
    await greeted(client)
    assert client.ids == ids
    client.ack(ids[1])
    client.leave()
    await house.quiet()
    assert await house.mailbox(7) == [ids[0], ids[2]]
    again = house.arrive(7, is_acking=True)
    await greeted(again)
    assert again.ids == [ids[0], ids[2]]


async def test_each_connection_gets_the_whole_mailbox(house: House) -> None:
    ids = await fill(house, 7, 2)
    clients = [house.arrive(7, is_acking=True) for _ in range(2)]
    await greeted(*clients)
    assert [client.ids for client in clients] == [ids, ids]


@pytest.mark.parametrize("dialect", [0, 1])
async def test_dialects(house: House, dialect: int) -> None:
    ids = await fill(house, 7, 2)
    client = house.arrive(7, dialect=dialect)
    await greeted(client)
    assert client.ids == ids


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


# ---- the limit of connections per user


async def test_one_connection_too_many_closes_the_oldest(make_house: Build) -> None:
    house = make_house(limits={"max_connections_per_user": 2})
    house.start_all()
    clients = [house.arrive(7) for _ in range(4)]
    other = house.arrive(8)
    await greeted(clients[3], other)
    for client in [*clients, other]:
        client.receive()
    assert [client.close_code for client in clients] == [CloseCode.REPLACED] * 2 + [0, 0]
    assert house.hub.connections_of(7) == [clients[2].connection, clients[3].connection]
    assert other.close_code == 0


# ---- stores that fail


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
    assert frail_house.presence.failure
    frail.mailbox.work()
    await until(lambda: client.notices == ["live", *ids])
    assert frail_house.presence.failure == ""
    await emptied(frail_house, 7)


async def test_stores_that_do_not_answer_count_as_down(
    frail_house: House, frail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "STORES_WITHIN_S", 0.01)
    ids = await fill(frail_house, 7, 2)
    answer = frail.mailbox.pause("read")
    client = frail_house.arrive(7)
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


async def test_without_a_count_of_unread_notices_the_mailbox_comes_all_the_same(frail_house: House, frail: Any) -> None:
    ids = await fill(frail_house, 7, 2)
    frail.records.fail("unread_counts", 10_000)
    client = frail_house.arrive(7)
    await greeted(client)
    await until(lambda: client.ids == ids)


async def test_who_leaves_while_stores_are_down_is_not_replayed_to(frail_house: House, frail: Any) -> None:
    ids = await fill(frail_house, 7, 2)
    frail.mailbox.fail("read", 10_000)
    client = frail_house.arrive(7)
    await greeted(client)
    client.leave()
    frail.mailbox.work()
    await until(lambda: not frail_house.presence._replays)
    assert await frail_house.mailbox(7) == ids


async def test_the_mailbox_does_not_wait_for_the_records(
    frail_house: House, frail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONTRACT section 6: live delivery goes on while the records store is down; a mailbox that answers may too."""
    monkeypatch.setattr(arrivals, "STORES_WITHIN_S", 0.01)
    ids = await fill(frail_house, 7, 2)
    frail.records.fail("write", 10_000)
    await frail_house.publish(target="custom", user_ids=[8])
    await until(lambda: "write" in frail.records.calls)
    client = frail_house.arrive(7)
    await greeted(client)
    await until(lambda: client.ids == ids, within_s=0.2)


async def test_the_failure_is_over_when_nobody_waits_and_the_store_is_back(frail_house: House, frail: Any) -> None:
    frail.mailbox.fail("read", 10_000)
    client = frail_house.arrive(7)
    await greeted(client)
    client.leave()
    await until(lambda: not frail_house.presence._replays)
    frail.mailbox.work()
    await frail_house.publish(target="custom", user_ids=[7])
    await frail_house.quiet()
    assert frail_house.presence.failure == ""


# ---- a big mailbox and a slow client


async def test_a_big_mailbox_is_replayed_at_the_clients_pace(make_house: Build) -> None:
    house = make_house(limits={"max_pending_bytes": 262_144})
    house.start_all()
    ids = await fill(house, 7, 100, size=4000)
    client = house.arrive(7)
    await until(lambda: client.connection.pending_bytes > 0)
    await house.publish("live", target="custom", user_ids=[7])
    for _ in range(100):
        assert client.connection.pending_bytes <= 262_144
        await asyncio.sleep(0)
    assert client.connection.is_registered
    await until(lambda: client.unclog() or len(client.ids) == 101)
    assert client.ids[:100] == ids
    assert client.notices[100] == "live"
    assert client.close_code == 0
    await emptied(house, 7)


async def test_a_slow_replay_ends_with_its_connection(make_house: Build) -> None:
    house = make_house(limits={"max_pending_bytes": 262_144})
    house.start_all()
    ids = await fill(house, 7, 100, size=4000)
    client = house.arrive(7, is_acking=True)
    await until(lambda: client.connection.pending_bytes > 0)
    client.leave()
    await until(lambda: not house.presence._replays)
    await house.quiet()
    assert await house.mailbox(7) == ids


async def test_a_slow_replay_removes_what_was_handed_only(make_house: Build) -> None:
    house = make_house(limits={"max_pending_bytes": 262_144})
    house.start_all()
    ids = await fill(house, 7, 100, size=4000)
    client = house.arrive(7)
    await until(lambda: client.connection.pending_bytes > 0)
    client.receive()
    client.leave()
    await house.quiet()
    left = await house.mailbox(7)
    assert left
    assert left == ids[len(ids) - len(left) :]
    assert set(ids) - set(left) <= set(client.ids)


async def test_a_mailbox_bigger_than_small_pending_bytes(make_house: Build) -> None:
    house = make_house(limits={"max_pending_bytes": 16_384})
    house.start_all()
    ids = await fill(house, 7, 100, size=400)
    client = house.arrive(7)
    await greeted(client)
    await until(lambda: client.unclog() or client.close_code or len(client.ids) == 100)
    assert client.close_code == 0
    assert client.ids == ids


async def test_a_client_that_takes_nothing_of_its_mailbox_is_closed(make_house: Build) -> None:
    house = make_house(limits={"max_pending_bytes": 262_144}, delivery={"ack_timeout_s": 0.1})
    house.start_all()
    ids = await fill(house, 7, 100, size=4000)
    client = house.arrive(7, is_acking=True)
    await until(lambda: client.connection.close_code == CloseCode.SLOW_CONSUMER)
    await until(lambda: not house.presence._replays)
    await house.quiet()
    assert await house.mailbox(7) == ids


async def test_a_slow_replay_encodes_what_it_sends(make_house: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house(limits={"max_pending_bytes": 262_144})
    house.start_all()
    await fill(house, 7, 100, size=4000)
    encoded: list[str] = []

    def counted(item: MailboxItem) -> frames.NoticeFrame:
        encoded.append(item.message_id)
        return original(item)

    original = frames.replayed_frame
    monkeypatch.setattr(frames, "replayed_frame", counted)
    client = house.arrive(7)
    await until(lambda: client.connection.pending_bytes > 0)
    assert len(encoded) < 100
    await until(lambda: client.unclog() or len(client.ids) == 100)
    assert len(encoded) == 100


# ---- what fails otherwise costs one connection


@pytest.mark.parametrize("dialect", [0, 1])
async def test_what_cannot_be_sent_is_left_where_it_is(house: House, dialect: int) -> None:
    items = [item(name) for name in "abcdef"]
    items[1].data = {"n": 10**30, "far": 10**400}
    items[2].data = ["\ud83d"]
    items[3].data = "x" * 2_000_000
    for _ in range(3000):
        items[4].data = [items[4].data]
    waiting = {7: items}
    house.presence._mailbox = Canned(waiting)  # type: ignore[assignment]
    with capture_logs() as logs:
        client = house.arrive(7, dialect=dialect)
        await greeted(client)
    assert [line["message_id"] for line in logs] == ["c", "d", "e"]
    assert client.ids == ["a", "b", "f"]
    far = "1" + "0" * 400
    assert client.messages[2]["data"] == ({"n": 1e30, "far": far} if dialect else {"n": 10**30, "far": int(far)})
    assert house.metrics.errors.value == 3
    assert client.close_code == 0


class Canned:
    """A mailbox that holds what no store of ours would."""

    def __init__(self, waiting: dict[int, list[MailboxItem]]) -> None:
        self._waiting = waiting

    async def read(self, user_ids: set[int]) -> dict[int, list[MailboxItem]]:
        return {user_id: self._waiting[user_id] for user_id in user_ids if user_id in self._waiting}


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


async def test_a_replay_that_fails_later_closes_its_connection(frail_house: House, frail: Any) -> None:
    await fill(frail_house, 7, 2)
    frail.mailbox.fail("read", 1)
    frail.mailbox.fail("read", 1, Unexpected("odd data"))
    client = frail_house.arrive(7)
    await greeted(client)
    await until(lambda: client.connection.close_code == CloseCode.INTERNAL_ERROR)
    again = frail_house.arrive(7)
    await until(lambda: len(again.ids) == 2)


async def test_a_greeting_that_fails_costs_a_guest_only(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> bytes:
        raise Unexpected("no frame")

    monkeypatch.setattr(frames, "frame", failing)
    guest = house.arrive(-1)
    assert guest.connection.close_code == CloseCode.INTERNAL_ERROR
    monkeypatch.undo()
    other = house.arrive(-2)
    assert other.is_greeted
