"""From the lanes to the sockets: order, priorities, workers, absent directories, what a former process left."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from pushd._fastpath import FanOut
from pushd.delivery.dispatch import SHRINK_AFTER_S
from pushd.delivery.fan_out import ROUND_S, SHORT_SLICE_S, SLICE_S, FanOutQueue, next_slice_s
from pushd.errors import StoreError
from pushd.in_flight import InFlight
from pushd.model import Arrival, Channel, DeliveryStatus, Priority, Target, TargetKind, User
from pushd.ports import Stores
from pushd.protocol import frames
from pushd.protocol.deflate import inflated
from pushd.protocol.frames import DEFLATED, ws_frame
from tests.daemon import until
from tests.unit.parts import START_MS, Client, Clock, House, notice, receipt
from tests.unit.test_frames import parse

Build = Callable[..., House]
ANN, BEN = User(1, "ann", 1), User(2, "ben", 2)


SHORTEST = 0.0  # a slice that ends after 16 connections


@pytest.fixture
async def frail_house(make_house: Build, frail: Any) -> House:
    house = make_house(stores=frail)
    house.start_all()
    return house


def crowd(house: House, size: int, first_user: int = 100) -> list[Client]:
    return [house.connect(first_user + index) for index in range(size)]


# ---- who gets it


async def test_targets(house: House) -> None:
    await house.stores.directory.learn([ANN, BEN])
    clients = {user_id: house.connect(user_id) for user_id in (1, 2, 3, -1)}
    expected = {
        "all": {1, 2, 3, -1},
        "online": {1, 2, 3, -1},
        "without ben": {1, 3, -1},
        "custom": {1, 3},
        "custom without": {3},
        "role": {2},
        "admin": {1},
    }
    await house.publish("all")
    await house.publish("online", target="online")
    await house.publish("without ben", target="online", exclude_ids=[2])
    await house.publish("custom", target="custom", user_ids=[1, 3])
    await house.publish("custom without", target="custom", user_ids=[1, 3], exclude_ids=[1])
    await house.publish("role", target="role", roles=[2])
    await house.publish("admin", target="admin")
    await house.quiet()
    for content, users in expected.items():
        assert {user_id for user_id, client in clients.items() if content in client.notices} == users, content


async def test_counts_and_the_push_record(house: House) -> None:
    await house.stores.directory.learn([ANN, BEN, User(4)])
    house.connect(1)
    house.connect(1)
    house.connect(3)  # not in the directory: connected all the same
    flight = await house.publish("x", exclude_ids=[4])
    await house.quiet()
    assert (flight.total_count, flight.online_count, flight.offline_count) == (3, 2, 1)
    assert await house.received_by(flight) == {1, 3}
    assert await house.mailbox(2) == [flight.notice.message_id]
    assert await house.mailbox(4) == []
    assert house.ids_settled == [flight.notice.message_id]


async def test_nobody_there_at_all(house: House) -> None:
    for fields in ({"target": "online"}, {"target": "all"}, {"target": "role", "roles": [9]}):
        flight = await house.publish(**fields)
        await house.quiet()
        assert flight.is_delivered
        assert await house.stores.records.receive_status(flight.notice.message_id) is not None
    assert await house.unsettled() == []


async def test_many_absent_users(house: House) -> None:
    flight = await house.publish(target="custom", user_ids=list(range(1, 4502)))
    await house.quiet()
    assert flight.offline_count == 4501
    waiting = await house.stores.mailbox.read(range(1, 4502))
    assert len(waiting) == 4501
    assert house.metrics.mailbox_saved.value == 4501


@pytest.mark.parametrize("dialect", [0, 1])
async def test_each_dialect_is_encoded(house: House, dialect: int) -> None:
    client = house.connect(1, dialect=dialect)
    await house.publish("你好", target="online", data={"n": 1}, priority="high")
    await house.quiet()
    (message,) = client.receive()
    assert (message["content"], message["data"], message["priority"]) == ("你好", {"n": 1}, 2)


async def test_a_notice_is_deflated_once_for_all(house: House) -> None:
    clients = [house.connect(1 + number, dialect=number % 4) for number in range(12)]
    await house.publish("long " * 100, target="online")
    await house.quiet()
    by_dialect: dict[int, set[bytes]] = {}
    for client in clients:
        by_dialect.setdefault(client.connection.dialect, set()).add(client.transport.received())
    assert all(len(texts) == 1 for texts in by_dialect.values())
    plain_json, plain_msgpack, json_frame, msgpack_frame = (by_dialect[dialect].pop() for dialect in range(4))
    assert (plain_json[0], plain_msgpack[0], json_frame[0], msgpack_frame[0]) == (0x81, 0x82, 0xC1, 0xC2)
    assert inflated(json_frame[4:], 4096) == plain_json[4:]
    assert inflated(msgpack_frame[4:], 4096) == plain_msgpack[4:]


async def test_a_short_notice_is_not_deflated(house: House) -> None:
    clients = [house.connect(1 + number, dialect=dialect) for number, dialect in enumerate((0, DEFLATED))]
    await house.publish("short", target="online")
    await house.quiet()
    assert len({client.transport.received() for client in clients}) == 1


# ---- order


async def end_of(under_way: asyncio.Future[None] | None) -> None:
    if under_way is not None:
        await under_way


def numbered(number: int, _dialect: int) -> bytes:
    return ws_frame(1, b"%d" % number)


async def test_order_within_a_priority(house: House) -> None:
    clients = crowd(house, 3)
    users = [client.connection.user_id for client in clients]
    for index in range(60):
        await house.publish(str(index), target=("all", "online", "custom")[index % 3], user_ids=users)
    await house.quiet()
    for client in clients:
        assert client.notices == [str(index) for index in range(60)]


async def test_the_highest_lane_comes_first(make_house: Build) -> None:
    house = make_house()
    client = house.connect(1)
    for priority in ("low", "normal", "high", "urgent", "low", "urgent"):
        await house.publish(priority, target="online", priority=priority)
    house.start_all()
    await house.quiet()
    assert client.notices == ["urgent", "urgent", "high", "normal", "low", "low"]


async def test_urgent_overtakes_a_broadcast_between_its_slices(make_house: Build) -> None:
    house = make_house()
    clients = crowd(house, 64)
    fan_outs = FanOutQueue(house.hub, most_s=SHORTEST)
    serving = asyncio.create_task(fan_outs.serve())
    order: list[str] = []

    async def run(name: str, priority: int) -> None:
        job = FanOut(name, lambda dialect: b"\x81\x02{}", None)
        await end_of(fan_outs.add(job, Priority(priority)))
        order.append(name)

    jobs = [("low", 0), ("normal 1", 1), ("normal 2", 1), ("urgent", 3), ("high", 2)]
    tasks = [asyncio.create_task(run(name, priority)) for name, priority in jobs]
    await asyncio.gather(*tasks)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert order == ["urgent", "high", "normal 1", "normal 2", "low"]
    assert {len(client.transport.received()) for client in clients} == {5 * 4}


async def test_equal_priorities_do_not_overtake_each_other_between_slices(house: House) -> None:
    house.dispatcher.fan_outs.most_s = SHORTEST
    clients = crowd(house, 50)
    for index in range(10):
        await house.publish(str(index), target="online")
    last = house.connect(1)  # the last in the array
    await house.quiet()
    for client in [*clients, last]:
        numbers = [int(content) for content in client.notices]
        assert numbers == sorted(numbers)
    assert [len(client.notices) for client in clients] == [10] * 50


async def test_a_frame_that_cannot_be_encoded_concerns_its_notice_only(make_house: Build) -> None:
    house = make_house()
    crowd(house, 40)
    fan_outs = FanOutQueue(house.hub, most_s=SHORTEST)

    def refuse(dialect: int) -> bytes:
        raise ValueError("not encodable")

    serving = asyncio.create_task(fan_outs.serve())
    blocking = FanOut("first", lambda dialect: b"\x81\x02{}", None)
    priority = Priority.NORMAL
    first = fan_outs.add(blocking, priority)
    broken = fan_outs.add(FanOut("broken", refuse, None), priority)
    third = fan_outs.add(FanOut("third", lambda dialect: b"\x81\x02{}", None), priority)
    with pytest.raises(ValueError, match="not encodable"):
        await end_of(broken)
    await end_of(first)
    await end_of(third)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_broadcasts_that_wait_for_one_another_are_one_write(make_house: Build) -> None:
    house = make_house()
    clients = crowd(house, 40)
    fan_outs = FanOutQueue(house.hub, most_s=SHORTEST)
    jobs = [FanOut(str(number), partial(numbered, number), None) for number in range(5)]
    ends = [fan_outs.add(job, Priority.NORMAL) for job in jobs]
    apart = FanOut("apart", lambda dialect: ws_frame(1, b"apart"), [100, 101])
    ends.append(fan_outs.add(apart, Priority.NORMAL))
    ends.append(fan_outs.add(FanOut("last", lambda dialect: ws_frame(1, b"last"), None), Priority.NORMAL))
    serving = asyncio.create_task(fan_outs.serve())
    await asyncio.gather(*(end for end in ends if end is not None))
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    for client in clients:
        mine = [b"0", b"1", b"2", b"3", b"4", *([b"apart"] if client.connection.user_id in (100, 101) else []), b"last"]
        assert client.transport.received() == b"".join(ws_frame(1, payload) for payload in mine)
    everybody = {client.connection.user_id for client in clients}
    assert all(set(job.handed) | set(job.waiting) == everybody for job in jobs)
    # The first had begun; of those behind it, the second took three along.
    assert jobs[2].handed == jobs[1].handed
    assert not len(fan_outs)


async def publish_together(house: House, *contents: str, **fields: Any) -> list[InFlight]:
    """They are durable, and enter the lanes, at the same time."""
    return await asyncio.gather(*(house.publish(content, **fields) for content in contents))


@pytest.mark.parametrize("target", ["all", "online"])
@pytest.mark.parametrize("most_s", [SLICE_S, SHORTEST])
async def test_broadcasts_that_come_together_are_one_write(house: House, target: str, most_s: float) -> None:
    house.dispatcher.fan_outs.most_s = most_s
    clients = [house.connect(100 + number, kind=socket.SOCK_SEQPACKET) for number in range(40)]
    contents = [f"{number} {'x' * 10 * number}" for number in range(6)]
    flights = await publish_together(house, *contents, target=target)
    await house.quiet()
    for client in clients:
        (write,) = client.transport.writes()
        assert [json.loads(frame.data)["content"] for frame in parse(write)] == contents
    everybody = {client.connection.user_id for client in clients}
    for flight in flights:
        assert await house.received_by(flight) == everybody
        assert (flight.online_count, flight.delivered_count) == (40, 40)
    assert sorted(house.ids_settled) == sorted(flight.notice.message_id for flight in flights)


async def test_a_broadcast_that_comes_alone_does_not_wait(house: House) -> None:
    client = house.connect(1, kind=socket.SOCK_SEQPACKET)
    for content in ("first", "second"):
        await house.publish(content, target="online")
        await house.quiet()
    assert len(client.transport.writes()) == 2


async def test_what_comes_together_for_different_users_keeps_to_them(house: House) -> None:
    clients = {user_id: house.connect(user_id) for user_id in (1, 2)}
    await asyncio.gather(
        house.publish("a", target="custom", user_ids=[1]),
        house.publish("b", target="custom", user_ids=[2]),
        house.publish("c", target="custom", user_ids=[1, 2]),
        house.publish("d", target="online", exclude_ids=[1]),
        house.publish("e", target="online", exclude_ids=[1]),
        house.publish("f", target="online"),
    )
    await house.quiet()
    assert {user_id: client.notices for user_id, client in clients.items()} == {1: list("acf"), 2: list("bcdef")}


@pytest.mark.parametrize("target", ["online", "custom"])
@pytest.mark.parametrize("bad", [0, 1, 2])
async def test_one_of_a_burst_that_cannot_be_encoded_harms_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch, target: str, bad: int
) -> None:
    encode = frames.shared_frame

    def refuse(message: Any, dialect: int) -> bytes:
        if message.content == str(bad):
            raise ValueError("not encodable")
        return encode(message, dialect)

    monkeypatch.setattr(frames, "shared_frame", refuse)
    clients = [house.connect(number) for number in range(1, 30)]
    flights = await publish_together(house, "0", "1", "2", target=target, user_ids=list(range(1, 30)))
    await until(lambda: len(house.ids_settled) == 3)
    others = [str(number) for number in range(3) if number != bad]
    assert all(client.notices == others for client in clients)
    assert [flight.is_delivered for flight in flights] == [number != bad for number in range(3)]


async def test_who_leaves_amid_a_burst_finds_all_of_it_later(house: House) -> None:
    house.dispatcher.fan_outs.most_s = SHORTEST
    clients = crowd(house, 40)
    stuck = house.connect(7)
    stuck.clog()
    flights = await publish_together(house, "a", "b", target="online")
    await until(lambda: stuck.connection.unsent_bytes > 0)
    stuck.leave()
    await house.quiet()
    assert all(client.notices == ["a", "b"] for client in clients)
    assert await house.mailbox(7) == [flight.notice.message_id for flight in flights]


async def test_fan_outs_that_begin_within_a_slice_or_after_all_are_through_are_served(make_house: Build) -> None:
    house = make_house()
    clients = crowd(house, 40)
    fan_outs = FanOutQueue(house.hub, most_s=SHORTEST)
    serving = asyncio.create_task(fan_outs.serve())
    urgent: list[asyncio.Future[None] | None] = []

    def begin_another(dialect: int) -> bytes:
        job = FanOut("urgent", lambda dialect: ws_frame(1, b"urgent"), None)
        urgent.append(fan_outs.add(job, Priority.URGENT))
        return ws_frame(1, b"first")

    first = fan_outs.add(FanOut("zeroth", lambda dialect: ws_frame(1, b"zeroth"), None), Priority.NORMAL)
    within = fan_outs.add(FanOut("first", begin_another, None), Priority.NORMAL)
    await end_of(first)
    await end_of(within)
    assert urgent, "it was encoded"
    assert not len(fan_outs), "what is urgent goes first"
    await asyncio.sleep(0)
    await end_of(fan_outs.add(FanOut("last", lambda dialect: ws_frame(1, b"last"), None), Priority.NORMAL))
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    for client in clients:
        got = client.transport.received()
        assert got.endswith(ws_frame(1, b"last"))
        assert len(got) == sum(len(ws_frame(1, text)) for text in (b"zeroth", b"first", b"urgent", b"last"))


async def test_an_urgent_notice_to_a_few_needs_no_worker(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail, delivery={"min_workers": 1, "max_workers": 1})
    house.dispatcher.aside_most = 0  # a worker that waits for a store keeps its place
    client = house.connect(1)
    answer = frail.directory.pause("ids_by_role")
    house.start_all()
    await until(lambda: house.dispatcher.worker_count == 1)
    await house.publish("waits", target="role", roles=[1])
    await until(lambda: "ids_by_role" in frail.directory.calls)
    await house.publish("waits, too", target="online")
    await house.publish("first", target="custom", user_ids=[1], priority="urgent")
    assert client.notices == ["first"]
    answer.set()
    await house.quiet()
    assert client.notices == ["first", "waits, too"]


async def test_a_notice_that_fails_is_set_aside_and_harms_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = house.connect(1)

    def refuse(message: Any, dialect: int) -> bytes:
        raise ValueError("not encodable")

    with monkeypatch.context() as patched:
        patched.setattr(frames, "shared_frame", refuse)
        broken = await house.publish("broken", target="online")
        await until(lambda: house.dispatcher.is_idle)
    await house.publish("next", target="online")
    await until(lambda: client.notices == ["next"])
    await house.set_aside.finished()
    await house.writers.flushed()
    assert await house.unsettled() == []
    assert not broken.is_delivered
    assert await house.stores.set_aside.counts() == {"notice": 1}
    assert 'pushd_set_aside_total{kind="notice"} 1.0' in house.metrics.text().decode()


async def test_a_notice_that_cannot_even_be_set_aside_stays_in_the_journal(
    frail_house: House, frail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    frail_house.connect(1)
    frail.set_aside.fail("keep")
    with monkeypatch.context() as patched:
        patched.setattr(frames, "shared_frame", lambda message, dialect: 1 / 0)
        broken = await frail_house.publish("broken", target="online")
        await until(lambda: frail_house.dispatcher.is_idle)
    await frail_house.set_aside.finished()
    await frail_house.writers.flushed()
    assert await frail_house.unsettled() == [broken.notice.message_id]
    assert frail_house.metrics.errors.labels("set_aside").value == 1


async def test_recipients_that_cannot_be_had_in_a_way_nobody_foresaw_are_asked_for_again(
    frail_house: House, frail: Any
) -> None:
    await frail.directory.learn([ANN])
    client = frail_house.connect(1)
    frail.directory.fail("ids_by_role", 2, TypeError("odd"))
    await frail_house.publish("twice", target="role", roles=[1])
    await frail_house.quiet()
    frail.directory.fail("ids_by_role", 3, TypeError("odd"))
    frail_house.clock.move(400)  # the cache is stale
    await frail_house.publish("thrice", target="role", roles=[1])
    await frail_house.quiet()
    await frail_house.set_aside.finished()
    assert client.notices == ["twice"]
    assert await frail.set_aside.counts() == {"notice": 1}


async def test_a_notice_that_was_set_aside_goes_to_those_who_have_not_received_it(house: House) -> None:
    await house.stores.directory.learn([ANN, BEN])
    first, second = house.connect(1), house.connect(2)
    entry = notice(7, target=Target(TargetKind.ALL), content="again")
    await house.stores.journal.append([entry])
    await house.stores.journal.settle([entry.seq])
    await house.stores.records.write([], [receipt("m7", 1, received_ms=START_MS, status=DeliveryStatus.DELIVERED)])
    settled: list[str] = []
    await house.intake.take_back(msgspec.json.encode(entry), lambda: settled.append("m7"))
    await house.quiet()
    assert (first.notices, second.notices) == ([], ["again"])
    assert settled == ["m7"]


# ---- who comes and goes meanwhile


async def test_who_connects_during_a_broadcast_gets_it_once(house: House) -> None:
    house.dispatcher.fan_outs.most_s = SHORTEST
    crowd(house, 40)
    await house.stores.directory.learn([ANN])
    flight = await house.publish("x")
    await until(lambda: len(house.lanes) == 0)
    late = house.connect(1)
    await house.quiet()
    assert late.ids == [flight.notice.message_id]
    assert await house.mailbox(1) == []
    assert await house.received_by(flight) >= {1}


async def test_who_connects_between_fan_out_and_settling_gets_it_live_once(frail_house: House, frail: Any) -> None:
    """A broadcast asks who is absent after it was sent: whoever came by then is not absent."""
    await frail.directory.learn([ANN, BEN])
    answer = frail.directory.pause("all_ids")
    flight = await frail_house.publish("x")
    await until(lambda: "all_ids" in frail.directory.calls)
    late = [frail_house.connect(1), frail_house.connect(1)]
    answer.set()
    await frail_house.quiet()
    assert [client.ids for client in late] == [[flight.notice.message_id]] * 2
    assert await frail_house.mailbox(1) == []
    assert await frail_house.mailbox(2) == [flight.notice.message_id]
    assert (flight.online_count, flight.offline_count) == (1, 1)
    assert frail_house.ids_settled == [flight.notice.message_id]


async def test_who_comes_and_goes_again_in_late_rounds_finds_it_in_the_mailbox(make_house: Build, frail: Any) -> None:
    house = make_house(stores=frail)
    house.dispatcher.fan_outs.most_s = SHORTEST
    house.start_all()
    await frail.directory.learn([ANN])
    answer = frail.directory.pause("all_ids")
    flight = await house.publish("x")
    await until(lambda: "all_ids" in frail.directory.calls)
    client = house.connect(1, is_acking=True)
    answer.set()
    await house.quiet()
    client.leave()
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert flight.total_count == 1


async def test_held_connections_get_it_behind_their_mailbox(house: House) -> None:
    client = house.open(1)
    house.hub.add(client.connection)
    flight = await house.publish("x", target="custom", user_ids=[1])
    await house.quiet()
    assert client.ids == []
    assert house.ids_settled == []
    house.hub.release(client.connection)
    await house.quiet()
    assert client.ids == house.ids_settled == [flight.notice.message_id]


# ---- expiry


async def test_an_expired_notice_reaches_nobody(make_house: Build, clock: Clock) -> None:
    house = make_house()
    client = house.connect(1)
    flight = await house.publish(target="custom", user_ids=[1, 2], expires_in_s=1)
    intime = await house.publish(target="custom", user_ids=[1], expires_in_s=3)
    clock.move(1)
    house.start_all()
    await house.quiet()
    assert client.ids == [intime.notice.message_id]
    assert await house.mailbox(2) == []
    found = await house.stores.records.receive_status(flight.notice.message_id)
    assert found is not None
    assert (found.total_users, found.received_users) == (2, 0)
    assert await house.stores.records.unread_counts([1, 2]) == {1: 1}
    assert await house.unsettled() == []


# ---- a directory that does not answer


async def test_what_expires_while_the_directory_is_asked_reaches_nobody(
    make_house: Build, frail: Any, clock: Clock
) -> None:
    house = make_house(stores=frail)
    await frail.directory.learn([ANN, BEN])
    client = house.connect(1)
    house.start_all()
    answer = frail.directory.pause("ids_by_role")
    flight = await house.publish(target="role", roles=[ANN.role, BEN.role], expires_in_s=2)
    await until(lambda: "ids_by_role" in frail.directory.calls)
    clock.move(3)
    answer.set()
    await house.quiet()
    assert client.ids == []
    assert await house.mailbox(2) == []
    row = await frail.records.push_record(flight.notice.message_id)
    assert (row.status, row.total_count, row.delivered_count, row.failed_count) == ("expired", 2, 0, 2)
    assert await house.unsettled() == []


async def test_who_must_be_looked_up_steps_aside(make_house: Build, frail: Any) -> None:
    """However many wait for the directory, those that do not need it go on: CONTRACT section 6."""
    house = make_house(stores=frail, delivery={"min_workers": 1, "max_workers": 2})
    await frail.directory.learn([ANN])
    client = house.connect(1)
    answer = frail.directory.pause("ids_by_role")
    house.start_all()
    waiting = [await house.publish("role", target="role", roles=[1]) for _ in range(20)]
    overtaking = [await house.publish("custom", target="custom", user_ids=[1]) for _ in range(3)]
    await until(lambda: len(client.notices) == 3)
    assert client.ids == [one.notice.message_id for one in overtaking]
    assert not house.dispatcher.is_idle
    assert house.dispatcher.worker_count <= 2
    answer.set()
    await house.quiet()
    assert client.ids[3:] == [one.notice.message_id for one in waiting]
    assert frail.directory.calls.count("ids_by_role") == 1
    await until(lambda: house.dispatcher.worker_count <= 2)
    assert await house.unsettled() == []


async def test_only_so_many_step_aside(make_house: Build, frail: Any) -> None:
    """What waits aside is in memory: beyond that, notices wait in their lanes, which are bounded."""
    house = make_house(stores=frail, delivery={"min_workers": 1, "max_workers": 1})
    house.dispatcher.aside_most = 3
    answer = frail.directory.pause("ids_by_role")
    house.start_all()
    for _ in range(6):
        await house.publish(target="role", roles=[1])
    await until(lambda: len(house.lanes) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(house.lanes) == 2
    answer.set()
    await house.quiet()
    assert len(house.ids_settled) == 6


@pytest.mark.parametrize("error", [None, StoreError("directory", "odd")])
async def test_a_directory_that_fails_is_asked_again(frail_house: House, frail: Any, error: Exception | None) -> None:
    await frail.directory.learn([ANN])
    frail.directory.fail("ids_by_role", 5, error)
    frail.directory.fail("all_ids", 5, error)
    client = frail_house.connect(2)
    by_role = await frail_house.publish(target="role", roles=[1])
    to_all = await frail_house.publish(target="all")
    await until(lambda: to_all.notice.message_id in client.ids)  # without waiting for the directory
    await frail_house.quiet()
    assert set(await frail_house.mailbox(1)) == {by_role.notice.message_id, to_all.notice.message_id}
    assert frail_house.metrics.errors.value == 10
    assert len(frail_house.ids_settled) == 2


# ---- after a crash


async def restored(house: House, *notices: Any) -> None:
    await house.stores.journal.append(notices)
    house.intake.restore(list(notices), queue=True)
    await house.quiet()


async def test_restored_notices_go_to_those_who_have_not_received_them(house: House) -> None:
    entry = notice(1, user_ids=(1, 2, 3, 4))
    await house.stores.journal.append([entry])
    await house.stores.records.write(
        [],
        [
            receipt("m1", 1, received_ms=START_MS, status=DeliveryStatus.DELIVERED),
            receipt("m1", 2, status=DeliveryStatus.OFFLINE, channel=Channel.OFFLINE),
            receipt("m1", 3, is_online=True),
        ],
    )
    here = {user_id: house.connect(user_id) for user_id in (1, 4)}
    await restored(house, entry)
    assert here[1].ids == []
    assert here[4].ids == ["m1"]
    assert [await house.mailbox(user_id) for user_id in (1, 2, 3, 4)] == [[], ["m1"], ["m1"], []]
    assert house.ids_settled == ["m1"]
    assert await house.unsettled() == []


async def test_restored_again_nothing_is_doubled(house: House) -> None:
    await restored(house, notice(1, user_ids=(1, 2)))
    house.intake.restore([notice(1, user_ids=(1, 2))], queue=True)
    await house.quiet()
    assert await house.mailbox(1) == ["m1"]


async def test_restored_broadcasts(make_house: Build, stores: Stores) -> None:
    await stores.directory.learn([ANN, BEN, User(3)])
    await stores.presence.connected([Arrival(user_id, "", "c", "", "", START_MS) for user_id in (2, 5)])
    house = make_house()
    house.start_all()
    guest, ann = house.connect(-1), house.connect(1)
    await restored(
        house,
        notice(1, target=Target(TargetKind.ALL, exclude_ids=(3,))),
        notice(2, target=Target(TargetKind.ONLINE, exclude_ids=(5,))),
    )
    assert ann.ids == ["m1"]
    assert guest.ids == []  # whatever it was, it was for those who were there then
    assert sorted(await house.mailbox(2)) == ["m1", "m2"]
    assert await house.mailbox(3) == await house.mailbox(5) == []
    assert sorted(house.ids_settled) == ["m1", "m2"]


async def test_restored_notices_wait_for_the_directory(frail_house: House, frail: Any) -> None:
    await frail.directory.learn([ANN])
    frail.directory.fail("all_ids", 3)
    await restored(frail_house, notice(1, target=Target(TargetKind.ALL)))
    assert await frail_house.mailbox(1) == ["m1"]
    assert frail_house.metrics.errors.value == 3


async def test_restored_notices_rather_come_twice_than_wait_for_records(frail_house: House, frail: Any) -> None:
    entry = notice(1, user_ids=(1,))
    await frail.journal.append([entry])
    await frail.records.write([], [receipt("m1", 1, received_ms=START_MS, status=DeliveryStatus.DELIVERED)])
    frail.records.fail("received_by", 1000)
    await restored(frail_house, entry)
    assert await frail_house.mailbox(1) == ["m1"]


async def test_restored_and_expired(house: House, clock: Clock) -> None:
    clock.move(10)
    await restored(house, notice(1, expires_ms=START_MS + 1000))
    assert await house.mailbox(1) == []
    assert house.ids_settled == ["m1"]


# ---- the worker pool


async def test_workers_come_with_waiting_notices_and_go_when_idle(make_house: Build, frail: Any, clock: Clock) -> None:
    house = make_house(stores=frail, delivery={"min_workers": 1, "max_workers": 3})
    house.dispatcher.aside_most = 0  # so that workers are what is waited with
    answer = frail.directory.pause("ids_by_role")
    house.start_all()
    await until(lambda: house.dispatcher.worker_count == 1)
    for _ in range(6):
        await house.publish(target="role", roles=[1])
    await until(lambda: len(house.lanes) == 5)
    assert house.dispatcher.worker_count == 1  # nothing is old yet
    clock.move(1)
    await until(lambda: house.dispatcher.worker_count == 3)
    clock.move(10)
    for _ in range(20):
        await asyncio.sleep(0)
    assert house.dispatcher.worker_count == 3
    answer.set()
    await house.quiet()
    clock.move(0.1)
    assert len(house.ids_settled) == 6
    await asyncio.sleep(0.005)  # several looks of the pool: idle, but not yet for long
    clock.move(SHRINK_AFTER_S + 1)
    await until(lambda: house.dispatcher.worker_count == 1)
    await house.publish(target="custom", user_ids=[1])
    await house.quiet()
    assert len(house.ids_settled) == 7


async def test_utilisation_is_busy_time_over_wall_time(make_house: Build, frail: Any, clock: Clock) -> None:
    house = make_house(stores=frail, delivery={"min_workers": 2, "max_workers": 2})
    house.dispatcher.aside_most = 0
    answer = frail.directory.pause("ids_by_role")
    house.start_all()
    await until(lambda: house.dispatcher.worker_count == 2)
    assert house.dispatcher.utilization == 0.0
    await house.publish(target="role", roles=[1])
    await until(lambda: "ids_by_role" in frail.directory.calls)
    clock.move(10)
    # One of two workers has been busy all the time, and is still.
    await until(lambda: house.dispatcher.utilization == 0.5)
    answer.set()
    await house.quiet()
    clock.move(10)
    await until(lambda: house.dispatcher.utilization == 0.0)


def slices(others_s: Callable[[float], float]) -> float:
    """What slices come to, when everything else takes so long behind a slice."""
    slice_s = ROUND_S
    for _ in range(20):
        slice_s = next_slice_s(slice_s, others_s(slice_s))
    return slice_s


def test_slices_are_shorter_while_the_loop_is_busy_between_them() -> None:
    assert slices(lambda _: 0.0001) == pytest.approx(SLICE_S, rel=0.01)
    assert slices(lambda _: 0.001) == pytest.approx(ROUND_S - 0.001, rel=0.01)
    assert slices(lambda _: 0.0012) == pytest.approx(SHORT_SLICE_S, rel=0.01)
    # Where a round is long anyway, a fan-out gets its share of it.
    assert slices(lambda _: 0.004) == pytest.approx(0.001, rel=0.01)
    assert slices(lambda _: 1.0) == pytest.approx(SLICE_S, rel=0.01)
    # Acknowledgements take twice the time of the sends they answer.
    assert slices(lambda slice_s: 2 * slice_s) == pytest.approx(ROUND_S / 3, rel=0.01)


async def test_fan_outs_of_a_dispatcher_that_ended_are_not_under_way_any_more(
    make_house: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house()
    house.start_writers()
    client = house.connect(1, is_acking=True)
    begun: list[asyncio.Future[None]] = []

    def add(*_: object) -> asyncio.Future[None]:
        begun.append(asyncio.get_running_loop().create_future())
        return begun[0]

    monkeypatch.setattr(house.dispatcher.fan_outs, "add", add)
    running = asyncio.create_task(house.dispatcher.run())
    await house.publish(target="online")
    await until(lambda: begun)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    client.leave()
    assert not house.acknowledgements._left._user_ids
