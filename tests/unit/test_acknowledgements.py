"""What became of every notice for every recipient, whatever the order of answers, departures and timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pushd.delivery.acknowledgements import LEFT_AT_ONCE, Left
from pushd.in_flight import InFlight
from pushd.model import MailboxItem, Mark, PushRecord
from tests.daemon import until
from tests.unit.parts import Clock, House, notice

Build = Callable[..., House]
ACK_TIMEOUT_S = 30


async def to(house: House, *user_ids: int, **fields: Any) -> InFlight:
    flight = await house.publish(target="custom", user_ids=list(user_ids), **fields)
    await house.quiet()
    return flight


async def status_of(house: House, flight: InFlight) -> tuple[int, int, int]:
    """How many recipients there are, were online, have received it."""
    found = await house.stores.records.receive_status(flight.notice.message_id)
    assert found is not None
    return found.total_users, found.online_users, found.received_users


def is_settled(house: House, flight: InFlight) -> bool:
    return house.ids_settled.count(flight.notice.message_id) == 1


# ---- acknowledging clients


async def test_an_acknowledgement_settles(house: House) -> None:
    client = house.connect(1, is_acking=True)
    flight = await to(house, 1)
    assert flight.is_delivered
    assert not is_settled(house, flight)
    assert house.acknowledgements.waiting_total == 1
    assert await status_of(house, flight) == (1, 1, 0)
    client.ack(*client.ids)
    client.ack(*client.ids)
    await house.quiet()
    assert is_settled(house, flight)
    assert flight.delivered_count == 1
    assert house.acknowledgements.waiting_total == 0
    assert await status_of(house, flight) == (1, 1, 1)
    assert await house.mailbox(1) == []
    assert await house.unsettled() == []


async def test_unknown_ids_and_those_of_others_are_ignored(house: House) -> None:
    mine, other = house.connect(1, is_acking=True), house.connect(2, is_acking=True)
    flight = await to(house, 1)
    other.ack(flight.notice.message_id)
    mine.ack("unknown")
    await house.quiet()
    assert not is_settled(house, flight)
    assert await house.received_by(flight) == set()


async def test_one_of_several_connections_is_enough(house: House) -> None:
    clients = [house.connect(1, is_acking=True) for _ in range(3)]
    flight = await to(house, 1)
    clients[2].ack(flight.notice.message_id)
    for client in clients:
        assert client.ids == [flight.notice.message_id]
        client.leave()
    await house.quiet()
    assert is_settled(house, flight)
    assert flight.total_count == flight.delivered_count == 1
    assert await house.mailbox(1) == []


async def test_a_kernel_does_not_speak_for_a_client_that_acknowledges(house: House) -> None:
    acking, plain = house.connect(1, is_acking=True), house.connect(1)
    flight = await to(house, 1)
    assert not is_settled(house, flight)
    acking.leave()
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert is_settled(house, flight)
    plain.leave()
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]


async def test_the_last_acknowledging_connection_takes_everything_back(house: House) -> None:
    first, second = house.connect(1, is_acking=True), house.connect(1, is_acking=True)
    flights = [await to(house, 1) for _ in range(3)]
    first.ack(flights[1].notice.message_id)
    first.leave()
    await house.quiet()
    assert await house.mailbox(1) == []
    second.leave()
    await house.quiet()
    assert await house.mailbox(1) == [flights[index].notice.message_id for index in (0, 2)]
    assert all(is_settled(house, flight) for flight in flights)
    assert await status_of(house, flights[0]) == (1, 1, 0)


async def test_what_is_not_acknowledged_in_time_goes_to_the_mailbox(house: House, clock: Clock) -> None:
    client, prompt = house.connect(1, is_acking=True), house.connect(2, is_acking=True)
    flight = await to(house, 1, 2)
    prompt.ack(flight.notice.message_id)
    clock.move(ACK_TIMEOUT_S - 1)
    house.acknowledgements.expire()
    await house.quiet()
    assert not is_settled(house, flight)
    clock.move(1)
    house.acknowledgements.expire()
    house.acknowledgements.expire()
    await house.quiet()
    assert is_settled(house, flight)
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert await house.mailbox(2) == []
    # Late is better than never: the copy is not needed any more.
    client.ack(flight.notice.message_id)
    await house.quiet()
    assert await house.mailbox(1) == []
    assert await status_of(house, flight) == (2, 2, 2)
    assert is_settled(house, flight)


async def test_the_deadline_of_one_does_not_end_the_wait_for_another_of_its_id(make_house: Build, clock: Clock) -> None:
    house = make_house(delivery={"dedup_window_s": 5})
    house.start_all()
    clients = [house.connect(user_id, is_acking=True) for user_id in (1, 2)]
    former = await to(house, 1, 2, message_id="m")
    clock.move(10)
    later = await to(house, 1, message_id="m")
    clock.move(ACK_TIMEOUT_S - 10)
    house.acknowledgements.expire()
    await house.quiet()
    assert (former.waiting, later.waiting) == (0, 1)
    assert [await house.mailbox(user_id) for user_id in (1, 2)] == [[], ["m"]]
    for client in clients:
        client.ack("m")
    await house.quiet()
    assert (former.delivered_count, later.delivered_count) == (0, 1)
    assert house.ids_settled == ["m", "m"]


async def test_expiry_goes_by_deadline(house: House, clock: Clock) -> None:
    client = house.connect(1, is_acking=True)
    first = await to(house, 1)
    clock.move(10)
    second = await to(house, 1)
    clock.move(20)
    house.acknowledgements.expire()
    await house.quiet()
    assert (is_settled(house, first), is_settled(house, second)) == (True, False)
    client.ack(first.notice.message_id, second.notice.message_id)
    await house.quiet()
    assert await house.mailbox(1) == []
    assert is_settled(house, second)


async def test_what_many_did_not_acknowledge_expires_in_shares(house: House, clock: Clock) -> None:
    house.acknowledgements.expired_at_once = 2
    house.acknowledgements.expire_s = 0.0
    users = range(1, 8)
    for user_id in users:
        house.connect(user_id, is_acking=True)
    flight = await to(house, *users)
    clock.move(ACK_TIMEOUT_S)
    house.acknowledgements.expire()
    assert house.acknowledgements.waiting_total == 7, "the loop has its turn first"
    house.acknowledgements.expire_s = 0.001
    await until(lambda: house.acknowledgements.waiting_total == 0)
    await house.quiet()
    assert is_settled(house, flight)
    assert [await house.mailbox(user_id) for user_id in users] == [[flight.notice.message_id]] * 7


async def test_one_answer_is_for_all_fan_outs_of_an_id_that_are_under_way(house: House) -> None:
    flights = [InFlight(notice(seq, message_id="again"), accepted_at=0.0) for seq in (1, 2)]
    house.connect(1, is_acking=True)
    for flight in flights:
        house.acknowledgements.sending(flight)
    house.acknowledgements.acknowledge(1, ["again"])
    for flight in flights:
        house.acknowledgements.sent(flight, [], [1])
        house.acknowledgements.all_sent(flight)
    assert [flight.delivered_count for flight in flights] == [1, 1]
    assert house.acknowledgements.waiting_total == 0


async def test_nothing_is_kept_of_a_notice_that_all_have_answered(house: House) -> None:
    client = house.connect(1, is_acking=True)
    flight = await house.publish(target="custom", user_ids=[1])
    await until(lambda: house.acknowledgements.waiting_total == 1)
    assert list(house.acknowledgements._deadlines) == [flight]
    client.ack(flight.notice.message_id)
    assert not house.acknowledgements._deadlines


def test_who_left_is_noted_once_for_all_fan_outs() -> None:
    left = Left()
    places = []
    for user_id in range(10):
        places.append(left.place)
        left.note(user_id)
    assert [[*left.since(place)] for place in places] == [[*range(first, 10)] for first in range(10)]
    left.forget(places[4])
    assert [*left.since(places[6])] == [6, 7, 8, 9]
    left.forget(left.place)
    assert [*left.since(left.place)] == []
    left.note(10)
    assert left.place == 11
    assert [*left.since(10)] == [10]


def test_of_many_who_left_the_earliest_are_forgotten() -> None:
    left = Left()
    for user_id in range(3 * LEFT_AT_ONCE):
        left.note(user_id)
        left.forget(left.place - 1)
        assert len(left._user_ids) <= LEFT_AT_ONCE
    assert [*left.since(left.place - 1)] == [3 * LEFT_AT_ONCE - 1]


async def test_leaving_after_the_timeout_saves_nothing_twice(house: House, clock: Clock) -> None:
    client = house.connect(1, is_acking=True)
    flight = await to(house, 1)
    clock.move(ACK_TIMEOUT_S)
    house.acknowledgements.expire()
    client.leave()
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert is_settled(house, flight)


# ---- clients without acknowledgements: the kernel speaks for them


async def test_what_the_kernel_took_is_received(house: House) -> None:
    client = house.connect(1)
    flight = await to(house, 1)
    assert is_settled(house, flight)
    assert client.ids == [flight.notice.message_id]
    assert flight.delivered_count == 1
    assert await house.received_by(flight) == {1}


async def test_what_the_kernel_takes_later_is_received_then(house: House) -> None:
    client = house.connect(1)
    client.clog()
    flight = await to(house, 1)
    assert not is_settled(house, flight)
    client.unclog()
    await house.quiet()
    assert client.ids == [flight.notice.message_id]
    assert is_settled(house, flight)
    assert await status_of(house, flight) == (1, 1, 1)


async def test_what_the_kernel_never_took_goes_to_the_mailbox(house: House) -> None:
    client = house.connect(1)
    before = await to(house, 1)
    client.clog()
    flight = await to(house, 1)
    client.leave()
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert is_settled(house, before)
    assert is_settled(house, flight)


async def test_one_clogged_connection_of_two(house: House) -> None:
    clogged, other = house.connect(1), house.connect(1)
    clogged.clog()
    flight = await to(house, 1)
    clogged.leave()
    await house.quiet()
    assert other.ids == [flight.notice.message_id]
    assert is_settled(house, flight)
    # Which of the two connections took it is not known: rather twice than never.
    assert await house.mailbox(1) == [flight.notice.message_id]


async def test_guests_have_no_receipts(house: House) -> None:
    guest = house.connect(-1, is_acking=True)
    flight = await house.publish(target="all")
    await house.quiet()
    assert guest.ids == [flight.notice.message_id]
    assert is_settled(house, flight)
    assert flight.total_count == 0
    guest.leave()
    await house.quiet()
    assert await status_of(house, flight) == (0, 0, 0)


# ---- while the fan-out is still under way


@pytest.fixture
async def begun(make_house: Build) -> Any:
    """A notice in flight whose frames are being written, by the test's own hand."""
    house = make_house()
    house.start_writers()
    flight = await house.publish(target="custom", user_ids=[1])
    house.lanes.take()
    house.acknowledgements.sending(flight)
    return house, flight


async def ended(house: House, flight: InFlight, handed: list[int], waiting: list[int]) -> None:
    house.acknowledgements.sent(flight, handed, waiting)
    house.acknowledgements.all_sent(flight)
    flight.end_fan_out()
    await house.writers.flushed()


async def test_an_early_acknowledgement_counts(begun: tuple[House, InFlight]) -> None:
    house, flight = begun
    client = house.connect(1, is_acking=True)
    client.ack(flight.notice.message_id)
    client.leave()
    await ended(house, flight, [], [1])
    assert is_settled(house, flight)
    assert await house.received_by(flight) == {1}
    assert await house.mailbox(1) == []


async def test_who_leaves_early_finds_it_in_the_mailbox(begun: tuple[House, InFlight]) -> None:
    house, flight = begun
    house.connect(1, is_acking=True).leave()
    await ended(house, flight, [], [1])
    assert is_settled(house, flight)
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert await status_of(house, flight) == (1, 1, 0)


async def test_who_leaves_early_with_another_acknowledging_connection_is_waited_for(
    begun: tuple[House, InFlight],
) -> None:
    house, flight = begun
    stays, leaves = house.connect(1, is_acking=True), house.connect(1, is_acking=True)
    leaves.leave()
    await ended(house, flight, [], [1])
    assert not is_settled(house, flight)
    stays.ack(flight.notice.message_id)
    await house.writers.flushed()
    assert is_settled(house, flight)
    assert await house.mailbox(1) == []


@pytest.mark.parametrize("others", [0, 100])
async def test_handed_to_one_connection_and_waiting_on_another(house: House, others: int) -> None:
    house.connect(1)
    house.connect(1, is_acking=True)
    flight = await to(house, 1, *range(2, 2 + others))
    assert flight.online_count == 1
    assert flight.delivered_count == 0
    assert not is_settled(house, flight)


async def test_answers_between_the_shares_of_a_large_fan_out(begun: tuple[House, InFlight]) -> None:
    house, flight = begun
    message_id = flight.notice.message_id
    clients = [house.connect(user_id, is_acking=True) for user_id in (1, 2, 3, 4, 5)]
    house.acknowledgements.sent(flight, [6], [1, 2])
    clients[0].ack(message_id)  # is waited for
    clients[2].ack(message_id)  # is to come
    clients[3].leave()
    house.acknowledgements.sent(flight, [7], [3, 4])
    house.acknowledgements.sent(flight, [], [5])
    house.acknowledgements.all_sent(flight)
    flight.end_fan_out()
    await house.writers.flushed()
    assert flight.online_count == 7
    assert await house.received_by(flight) == {1, 3, 6, 7}
    assert await house.mailbox(4) == [message_id]
    assert not is_settled(house, flight)
    for client in (clients[1], clients[4]):
        client.ack(message_id)
    await house.writers.flushed()
    assert await house.received_by(flight) == {1, 2, 3, 5, 6, 7}
    assert is_settled(house, flight)


async def test_reading_before_the_fan_out_ends(begun: tuple[House, InFlight]) -> None:
    house, flight = begun
    house.connect(1)
    marking = asyncio.create_task(house.acknowledgements.mark(1, [flight.notice.message_id], Mark.READ))
    await asyncio.sleep(0)
    house.acknowledgements.sent(flight, [1], [])
    house.acknowledgements.all_sent(flight)
    flight.end_fan_out()
    assert await marking == [flight.notice.message_id]


async def test_an_id_that_is_used_again_while_the_first_waits(make_house: Build, clock: Clock) -> None:
    house = make_house(delivery={"dedup_window_s": 1})
    house.start_all()
    client = house.connect(1, is_acking=True)
    first = await to(house, 1, message_id="m")
    clock.move(2)
    second = await to(house, 1, message_id="m")
    assert first is not second
    client.ack("m")
    client.leave()
    clock.move(ACK_TIMEOUT_S)
    house.acknowledgements.expire()
    await house.quiet()
    assert house.ids_settled == ["m", "m"]


# ---- replays


@pytest.fixture
async def replayed(house: House) -> House:
    """User 1 is connected and is being sent "a" and "b" from the mailbox."""
    notices = await house.accept("a", "b")
    items = [house.item_of(one) for one in notices]
    await house.stores.records.write([PushRecord(one, "success", 1, 0) for one in notices], [])
    await house.stores.mailbox.save([(one, [1]) for one in items])
    house.connect(1, is_acking=True)
    house.acknowledgements.replaying(1, items)
    return house


async def test_replayed_items_stay_until_they_are_acknowledged(replayed: House) -> None:
    replayed.acknowledgements.acknowledge(1, ["a", "unknown"])
    await replayed.quiet()
    assert await replayed.mailbox(1) == ["b"]
    assert await replayed.stores.records.received_by("a") == {1}
    assert await replayed.stores.records.received_by("b") == set()


async def test_a_late_answer_does_not_bring_a_deleted_record_back(replayed: House) -> None:
    await replayed.stores.records.delete("a")
    replayed.acknowledgements.acknowledge(1, ["a", "b"])
    await replayed.quiet()
    assert await replayed.mailbox(1) == []
    assert await replayed.stores.records.receive_status("a") is None
    assert await replayed.stores.records.received_by("b") == {1}


async def test_replayed_items_outlive_their_connection(replayed: House) -> None:
    replayed.hub.connections_of(1)[0].connection_lost(None)
    replayed.acknowledgements.acknowledge(1, ["a"])  # nobody was sent anything by now
    await replayed.quiet()
    assert await replayed.mailbox(1) == ["a", "b"]


async def test_one_acknowledgement_for_a_live_frame_and_its_replay(replayed: House) -> None:
    """After a crash a notice can be both: restored and sent live, and in the mailbox from before."""
    live = await to(replayed, 1, message_id="a")
    replayed.acknowledgements.acknowledge(1, ["a"])
    await replayed.quiet()
    assert is_settled(replayed, live)
    assert await replayed.mailbox(1) == ["b"]


# ---- read and confirmed


@pytest.mark.parametrize("mark", list(Mark))
async def test_marks(house: House, mark: Mark) -> None:
    reader, other, slow = house.connect(1), house.connect(1, is_acking=True), house.connect(2)
    flight = await to(house, 1, 2)
    unread = await to(house, 1)
    message_id = flight.notice.message_id
    assert await house.acknowledgements.mark(1, [message_id, "unknown"], mark, but=reader.connection) == [message_id]
    await house.quiet()
    found = await house.stores.records.receive_status(message_id)
    assert found is not None
    assert (found.read_users, found.confirmed_users) == (1, int(mark is Mark.CONFIRMED))
    receipt = {"type": "receipt", "message_id": message_id, "status": mark.value, "unread_count": 1}
    assert other.receive()[-1] == receipt
    assert is_settled(house, flight)  # who reads has received
    assert not is_settled(house, unread)
    for client in (reader, slow):
        client.receive()
        assert [message for message in client.messages if message["type"] == "receipt"] == []


async def test_what_was_read_elsewhere_leaves_the_mailbox(house: House) -> None:
    flight = await to(house, 1)
    message_id = flight.notice.message_id
    assert await house.mailbox(1) == [message_id]
    assert await house.acknowledgements.mark(1, [message_id], Mark.READ) == [message_id]
    await house.quiet()
    assert await house.mailbox(1) == []
    assert await status_of(house, flight) == (1, 0, 1)


async def test_marking_what_is_unknown(house: House) -> None:
    client = house.connect(1)
    assert await house.acknowledgements.mark(1, ["unknown"], Mark.READ) == []
    client.receive()
    assert client.messages == []


async def test_who_never_acknowledges_is_remembered_as_deep_as_the_mailbox(make_house: Build, clock: Clock) -> None:
    house = make_house(mailbox={"max_per_user": 5})
    house.stores.mailbox._ledger.max_waiting = 5  # type: ignore[attr-defined]  # the stores have a configuration of their own
    house.start_all()
    client = house.connect(1, is_acking=True)
    for number in range(12):
        await house.publish(target="custom", user_ids=[1], message_id=f"m{number}")
        await house.quiet()
        clock.move(ACK_TIMEOUT_S)
        house.acknowledgements.expire()
    await house.quiet()
    assert (
        list(house.acknowledgements._in_mailbox[1])
        == await house.mailbox(1)
        == [f"m{number}" for number in range(7, 12)]
    )
    client.ack(*(f"m{number}" for number in range(10)))
    await house.quiet()
    assert await house.mailbox(1) == ["m10", "m11"]


async def test_a_notice_returns_once_for_all_who_are_lost_at_once(house: House, frail: Any) -> None:
    clients = [house.connect(user_id, is_acking=True) for user_id in range(1, 51)]
    flights = [await to(house, *range(1, 51)) for _ in range(3)]
    saves: list[Any] = []
    original = house.writers.mailbox.save

    def counted(flight: InFlight, item: MailboxItem, user_ids: Any) -> None:
        saves.append((item, len(user_ids)))
        original(flight, item, user_ids)

    house.writers.mailbox.save = counted  # type: ignore[method-assign]
    for client in clients:
        client.leave()
    await house.quiet()
    assert [count for _, count in saves] == [50] * 3
    assert {tuple(await house.mailbox(user_id)) for user_id in range(1, 51)} == {
        tuple(flight.notice.message_id for flight in flights)
    }
    assert all(is_settled(house, flight) for flight in flights)


async def test_who_returns_at_once_finds_what_was_just_lost(house: House) -> None:
    house.start(house.arrivals.run())
    first = house.connect(1, is_acking=True)
    flight = await to(house, 1)
    first.leave()
    second = house.arrive(1, is_acking=True)
    await asyncio.sleep(0)
    third = house.arrive(1, is_acking=True)
    for client in (second, third):
        await until(lambda client=client: client.ids == [flight.notice.message_id])


async def test_what_returns_stays_before_what_comes_after_it(house: House) -> None:
    client = house.connect(1, is_acking=True)
    first = await to(house, 1)
    client.leave()
    second = await house.publish(target="custom", user_ids=[1])
    await house.quiet()
    assert await house.mailbox(1) == [first.notice.message_id, second.notice.message_id]


@pytest.mark.parametrize("shares", [1, 3])
async def test_what_was_read_while_it_returned_leaves_the_mailbox(make_house: Build, frail: Any, shares: int) -> None:
    house = make_house(stores=frail)
    house.acknowledgements.returned_at_once = 1
    house.start_all()
    client = house.connect(1, is_acking=True)
    ids = [(await to(house, 1)).notice.message_id for _ in range(shares)]
    gate = frail.mailbox.pause("save")
    client.leave()
    if shares > 1:
        await until(lambda: "save" in frail.mailbox.calls)
    else:
        gate.set()
    assert await house.acknowledgements.mark(1, ids, Mark.READ) == ids
    gate.set()
    await house.quiet()
    assert await house.mailbox(1) == []


async def test_two_fan_outs_of_one_id_each_know_who_left(house: House) -> None:
    for user_id in (1, 2):
        house.connect(user_id, is_acking=True)
    flights = [InFlight(notice(seq, message_id="again"), accepted_at=0.0) for seq in (1, 2)]
    house.acknowledgements.sending(flights[0])
    house.connect(3, is_acking=True).leave()
    house.acknowledgements.sending(flights[1])
    house.connect(4, is_acking=True).leave()
    house.acknowledgements.all_sent(flights[1])
    house.acknowledgements.sent(flights[0], [], [1, 3, 4])
    assert house.acknowledgements.waiting_total == 1
    house.acknowledgements.all_sent(flights[0])
    assert not house.acknowledgements._left._user_ids
    house.acknowledgements.sending(flights[0])
    house.acknowledgements.sending(flights[1])
    house.acknowledgements.all_sent(flights[0])
    house.connect(5, is_acking=True).leave()
    house.acknowledgements.sent(flights[1], [], [2, 5])
    assert house.acknowledgements.waiting_total == 2
    house.acknowledgements.all_sent(flights[1])


async def test_marking_what_has_no_record(house: House) -> None:
    """It was deleted, or another program put it there: it leaves the mailbox, and that is all."""
    waiting = [house.item_of(one) for one in await house.accept("a", "b", "c")]
    for one in waiting:
        await house.stores.records.delete(one.message_id)
    await house.stores.mailbox.save([(one, [1]) for one in waiting])
    assert await house.acknowledgements.mark(1, ["a", "unknown"], Mark.READ) == ["a"]
    client = house.connect(1, is_acking=True)
    house.acknowledgements.replaying(1, waiting)
    assert await house.acknowledgements.mark(1, ["c", "unknown"], Mark.CONFIRMED, but=client.connection) == ["c"]
    await house.quiet()
    assert await house.mailbox(1) == ["b"]
