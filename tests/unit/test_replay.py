"""Replays of mailboxes: at once, at the pace of a slow client, and after the store was away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import CloseCode
from pushd.model import MailboxItem
from pushd.ports import Mailbox, Stores
from pushd.protocol import frames
from tests.daemon import until
from tests.unit.parts import House, item, with_store
from tests.unit.waiting import emptied, fill, greeted

Build = Callable[..., House]


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


async def test_who_leaves_while_stores_are_down_is_not_replayed_to(frail_house: House, frail: Any) -> None:
    ids = await fill(frail_house, 7, 2)
    frail.mailbox.fail("read", 10_000)
    client = frail_house.arrive(7)
    await greeted(client)
    client.leave()
    frail.mailbox.work()
    await until(lambda: not frail_house.replays._tasks)
    assert await frail_house.mailbox(7) == ids


async def test_a_replay_that_fails_later_closes_its_connection(frail_house: House, frail: Any) -> None:
    await fill(frail_house, 7, 2)
    frail.mailbox.fail("read", 1)
    frail.mailbox.fail("read", 1, TypeError("odd data"))
    client = frail_house.arrive(7)
    await greeted(client)
    await until(lambda: client.connection.close_code == CloseCode.INTERNAL_ERROR)
    again = frail_house.arrive(7)
    await until(lambda: len(again.ids) == 2)


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
    await until(lambda: not house.replays._tasks)
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
    await until(lambda: not house.replays._tasks)
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


# ---- what cannot be sent


@pytest.mark.parametrize("dialect", [0, 1])
async def test_what_cannot_be_sent_is_left_where_it_is(make_house: Build, stores: Stores, dialect: int) -> None:
    items = [item(name) for name in "abcdef"]
    items[1].data = {"n": 10**30, "far": 10**400}
    items[2].data = ["\ud83d"]
    items[3].data = "x" * 2_000_000
    for _ in range(3000):
        items[4].data = [items[4].data]
    house = make_house(stores=with_store(stores, mailbox=Canned(stores.mailbox, {7: items})))
    house.start_all()
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

    def __init__(self, store: Mailbox, waiting: dict[int, list[MailboxItem]]) -> None:
        self._store = store
        self._waiting = waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, user_ids: set[int]) -> dict[int, list[MailboxItem]]:
        return {user_id: self._waiting[user_id] for user_id in user_ids if user_id in self._waiting}
