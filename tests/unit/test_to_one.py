"""Notices to one user: in one write, with everything that may become of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pushd.delivery.submission import Sender, Submission
from pushd.delivery.to_one import ToOne
from pushd.in_flight import InFlight
from pushd.model import Channel, DeliveryStatus
from pushd.protocol import frames
from pushd.records import Part, ReceiptFilter, ReceiptRow, ReceiptSort
from pushd.telemetry.metrics import Metrics
from tests.daemon import until
from tests.unit.parts import Clock, House

Build = Callable[..., House]


@pytest.fixture(params=["to one", "fan-out"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """What becomes of a notice must not depend on how it goes."""
    if request.param == "fan-out":
        monkeypatch.setattr(ToOne, "send", lambda self, flight: False)
    return str(request.param)


async def to(house: House, user_id: int, **fields: Any) -> InFlight:
    flight = await house.publish(target="custom", user_ids=[user_id], **fields)
    await house.quiet()
    return flight


async def row(house: House, flight: InFlight) -> ReceiptRow:
    (found,) = await house.stores.records.receive_records(
        ReceiptFilter(message_id=flight.notice.message_id), ReceiptSort.USER_ID, Part(0, 10, False)
    )
    return found


def counts(flight: InFlight) -> tuple[int, int, int, int]:
    return flight.online_count, flight.offline_count, flight.delivered_count, flight.recipients


def is_settled(house: House, flight: InFlight) -> bool:
    return house.ids_settled.count(flight.notice.message_id) == 1


async def test_who_acknowledges(house: House, way: str) -> None:
    client = house.connect(1, is_acking=True)
    flight = await to(house, 1)
    assert client.ids == [flight.notice.message_id]
    found = await row(house, flight)
    assert (found.is_online, found.is_received, found.delivery_status) == (True, False, DeliveryStatus.PENDING)
    assert (found.connection_id, found.client_ip) == ("c0", "127.0.0.1")
    assert flight.is_delivered
    assert not is_settled(house, flight)
    client.ack(*client.ids)
    await house.quiet()
    found = await row(house, flight)
    assert (found.is_received, found.received_ms, found.delivery_status) == (
        True,
        house.clock.wall_ms(),
        DeliveryStatus.DELIVERED,
    )
    assert counts(flight) == (1, 0, 1, 1)
    assert is_settled(house, flight)


async def test_who_does_not_acknowledge(house: House, way: str) -> None:
    client = house.connect(1)
    flight = await to(house, 1)
    assert client.ids == [flight.notice.message_id]
    found = await row(house, flight)
    assert (found.is_online, found.is_received, found.push_channel) == (True, True, Channel.WEBSOCKET)
    assert found.connection_id == "c0"
    assert counts(flight) == (1, 0, 1, 1)
    assert is_settled(house, flight)


async def test_who_is_absent(house: House, way: str) -> None:
    flight = await to(house, 1)
    found = await row(house, flight)
    assert (found.is_online, found.is_received, found.push_channel) == (False, False, Channel.OFFLINE)
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert counts(flight) == (0, 1, 0, 1)
    assert is_settled(house, flight)


async def test_a_frame_that_waits_for_the_kernel(house: House, way: str) -> None:
    client = house.connect(1)
    client.clog()
    flight = await to(house, 1)
    assert not is_settled(house, flight)
    assert not (await row(house, flight)).is_received
    client.unclog()
    await house.quiet()
    assert (await row(house, flight)).is_received
    assert is_settled(house, flight)


@pytest.mark.parametrize("is_acking", [True, False])
async def test_a_socket_that_breaks(house: House, way: str, is_acking: bool) -> None:
    """What went before returns with it."""
    client = house.connect(1, is_acking=is_acking)
    client.clog()
    before = await to(house, 1)
    client.connection.resume_writing()
    client.transport.buffer = b""
    client.transport.peer.close()
    flight = await to(house, 1)
    await house.quiet()
    assert not house.hub.has_user(1)
    assert set(await house.mailbox(1)) == {before.notice.message_id, flight.notice.message_id}
    assert counts(flight) == (1, 0, 0, 1)
    found = await row(house, flight)
    assert (found.is_online, found.is_received) == (True, False)
    assert is_settled(house, flight)


async def test_a_slow_consumer(make_house: Build, way: str) -> None:
    house = make_house(limits={"max_pending_bytes": 32_768})
    house.start_all()
    client = house.connect(1, is_acking=True)
    client.clog()
    flights = [await to(house, 1, data="x" * 20_000) for _ in range(2)]
    await house.quiet()
    assert client.connection.close_code == 4008
    assert await house.mailbox(1) == [flight.notice.message_id for flight in flights]
    assert all(is_settled(house, flight) for flight in flights)


async def test_what_comes_while_the_mailbox_comes_first(house: House, way: str) -> None:
    client = house.open(1, is_acking=True)
    house.hub.add(client.connection)
    flight = await to(house, 1)
    assert client.ids == []
    house.hub.release(client.connection)
    assert client.ids == [flight.notice.message_id]
    client.ack(*client.ids)
    await house.quiet()
    assert is_settled(house, flight)


async def test_every_connection_of_a_user_gets_it(house: House) -> None:
    clients = [house.connect(1, is_acking=is_acking) for is_acking in (True, False)]
    flight = await to(house, 1)
    assert [client.ids for client in clients] == [[flight.notice.message_id]] * 2
    assert not is_settled(house, flight)


async def test_who_acknowledges_in_time_is_not_asked_again_and_who_does_not_is(
    house: House, clock: Clock, way: str
) -> None:
    clients = [house.connect(user_id, is_acking=True) for user_id in (1, 2)]
    flights = [await to(house, user_id) for user_id in (1, 2)]
    clients[0].ack(*clients[0].ids)
    clock.move(31)
    house.acknowledgements.expire()
    await house.quiet()
    assert [await house.mailbox(user_id) for user_id in (1, 2)] == [[], [flights[1].notice.message_id]]
    assert not house.acknowledgements._deadlines


async def test_one_that_cannot_be_encoded_harms_no_other(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = house.connect(1)

    usual = frames.shared_frame

    def odd(message: Any, dialect: int) -> bytes:
        if message.content == "odd":
            raise TypeError("odd")
        return usual(message, dialect)

    monkeypatch.setattr(frames, "shared_frame", odd)
    flights = [house.intake.submit(one, sender) for one, sender in submissions("good", "odd", "also good")]
    await house.intake.finished()
    await house.quiet()
    assert client.notices == ["good", "also good"]
    assert await house.stores.set_aside.counts() == {"notice": 1}
    assert len(flights) == 3


def submissions(*contents: str) -> list[Any]:

    return [(Submission(content=content, target="custom", user_ids=[1]), Sender()) for content in contents]


async def test_how_long_it_took_is_reported_for_all_of_a_turn(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[int] = []
    usual = Metrics.observe_deliveries

    def noting(self: Metrics, latencies_s: list[float], fanout_s: float) -> None:
        reported.append(len(latencies_s))
        usual(self, latencies_s, fanout_s)

    monkeypatch.setattr(Metrics, "observe_deliveries", noting)
    house.connect(1)
    for one, sender in submissions("a", "b", "c"):
        house.intake.submit(one, sender)
    await house.intake.finished()
    await until(lambda: bool(reported))
    assert reported == [3]
    assert sum(house.metrics.latency.buckets) == sum(house.metrics.fanout.buckets) == 3
