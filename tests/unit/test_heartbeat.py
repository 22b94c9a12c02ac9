"""Presence once a connection is there: the stored status, heartbeats, expiry and drain."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import groupby
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.config.schema import Config
from pushd.errors import CloseCode
from pushd.presence import arrivals
from tests.conftest import MakeConfig
from tests.daemon import until
from tests.unit.parts import START_MS, Clock, House

Build = Callable[..., House]


@pytest.fixture
async def frail_house(make_house: Build, frail: Any) -> House:
    house = make_house(stores=frail)
    house.start_all()
    return house


# ---- the stored status


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    return make_config()


def status(config: Config, user_id: int) -> dict[str, Any]:
    with closing(sqlite3.connect(f"{config.server.data_dir}/pushd.db")) as connection:
        connection.row_factory = sqlite3.Row
        (row,) = connection.execute("SELECT * FROM admin_user_online_status WHERE user_id = ?", (user_id,))
        return dict(row)


async def test_the_first_connection_and_the_last(house: House, clock: Clock, config: Config) -> None:
    first, second = house.arrive(7, ip="192.0.2.1"), house.arrive(7)
    await house.writers.statuses.writer.flushed()
    found = status(config, 7)
    assert (found["is_online"], found["connection_id"], found["client_ip"]) == (1, "c0", "192.0.2.1")
    assert (found["username"], found["user_agent"], found["online_time"]) == ("user 7", "test", START_MS)
    clock.move(5)
    first.leave()
    await house.writers.statuses.writer.flushed()
    assert status(config, 7)["is_online"] == 1
    second.leave()
    await house.writers.statuses.writer.flushed()
    found = status(config, 7)
    assert (found["is_online"], found["total_online_count"], found["total_online_time"]) == (0, 1, 5000)


async def test_changes_are_written_in_order_and_in_batches(frail_house: House, frail: Any, config: Config) -> None:
    frail.presence.fail("connected", 3)
    frail.presence.fail("disconnected", 3)
    for user_id in (1, 2, 1):
        client = frail_house.arrive(user_id)
        frail_house.clock.move(1)
        if user_id == 1:
            client.leave()
            frail_house.clock.move(1)
    for _ in range(3):
        frail_house.arrive(9).leave()
    await frail_house.writers.statuses.writer.flushed()
    written = [name for name, _ in groupby(frail.presence.calls) if name != "reset"]
    assert written == ["connected", "disconnected"] * (len(written) // 2)
    assert [status(config, user_id)["is_online"] for user_id in (1, 2, 9)] == [0, 1, 0]
    assert status(config, 1)["total_online_count"] == 2


async def test_arrivals_in_a_row_are_one_write(frail_house: House, frail: Any) -> None:
    clients = [frail_house.arrive(user_id) for user_id in range(1, 21)]
    await frail_house.writers.statuses.writer.flushed()
    for client in clients:
        client.leave()
    await frail_house.writers.statuses.writer.flushed()
    assert frail.presence.calls == ["reset", "connected", "disconnected"]


async def test_a_replaced_connection_does_not_leave_its_user_offline(make_house: Build, config: Config) -> None:
    house = make_house(limits={"max_connections_per_user": 1})
    house.start_all()
    house.arrive(7)
    house.clock.move(1)
    house.arrive(7)
    await house.writers.statuses.writer.flushed()
    assert house.hub.has_user(7)
    assert status(config, 7)["is_online"] == 1


# ---- watching


def sweeps(house: House) -> None:
    for _ in range(arrivals.SWEEPS_PER_ROUND + 1):
        house.presence._sweep(house.clock())


async def test_silent_connections_are_pinged_and_then_closed(house: House, clock: Clock) -> None:
    silent, alive = house.connect(1, is_acking=True), house.connect(2)
    flight = await house.publish(target="custom", user_ids=[1])
    await house.quiet()
    clock.move(24)
    sweeps(house)
    assert silent.transport.received()[-2:] != b"\x89\x00"
    clock.move(1)
    sweeps(house)
    assert silent.transport.received() == alive.transport.received() == b"\x89\x00"
    clock.move(9)
    alive.connection.last_seen = clock()
    sweeps(house)
    assert house.hub.connections_total == 2
    clock.move(1)
    sweeps(house)
    silent.receive()
    alive.receive()
    assert (silent.close_code, alive.close_code) == (CloseCode.NO_PONG, 0)
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]


async def test_connections_end_with_their_token(house: House, clock: Clock) -> None:
    client, eternal = house.connect(1), house.connect(2)
    client.connection.expires_at = clock() + 60
    for _ in range(59):
        clock.move(1)
        client.connection.last_seen = eternal.connection.last_seen = clock()
        sweeps(house)
    assert house.hub.has_user(1)
    clock.move(1)
    sweeps(house)
    client.receive()
    assert client.close_code == CloseCode.TOKEN_INVALID
    assert house.hub.has_user(2)


async def test_a_sweep_expires_acknowledgements(house: House, clock: Clock) -> None:
    house.connect(1, is_acking=True)
    await house.publish(target="custom", user_ids=[1])
    await house.quiet()
    clock.move(30)
    house.presence._sweep(clock())
    assert house.acknowledgements.waiting_total == 0


async def test_closed_connections_do_not_linger_for_ever(house: House) -> None:
    client = house.connect(1)
    house.hub.close(client.connection, CloseCode.REVOKED)
    assert not client.transport.closed  # the peer may still answer
    house.presence._sweep(float("inf"))
    assert client.transport.closed


async def test_watching_goes_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "SWEEP_EVERY_S", 0.0)
    house.start(house.presence.watch())
    client = house.connect(1)
    house.clock.move(25)
    await until(lambda: client.transport.received() == b"\x89\x00")


# ---- the end


async def test_a_step_that_fails_does_not_end_the_watch(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def failing(step: str) -> Any:
        def fail(*_: Any) -> Any:
            calls.append(step)
            raise ZeroDivisionError(step)

        return fail

    monkeypatch.setattr(arrivals, "SWEEP_EVERY_S", 0.0)
    monkeypatch.setattr(arrivals, "ALIVE_EVERY_S", 0.0)
    monkeypatch.setattr(house.acknowledgements, "expire", failing("expire"))
    monkeypatch.setattr(house.stores.presence, "alive", failing("alive"))
    with capture_logs() as logs:
        house.start(house.presence.watch(), house.presence.stay_alive())
        await until(lambda: calls.count("expire") > 2 and calls.count("alive") > 2)
    assert sorted(line["event"] for line in logs) == ["alive failed", "sweep failed"]


async def test_drain_closes_everybody_a_few_at_a_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [house.connect(user_id) for user_id in range(1, 41)]
    house.connect(-1)
    left: list[int] = []
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        left.append(house.hub.connections_total)

    monkeypatch.setattr(arrivals.asyncio, "sleep", pause)
    await house.presence.drain(0.5)
    monkeypatch.undo()
    assert house.hub.connections_total == 0
    assert left == [36, 31, 26, 21, 16, 11, 6, 1]
    assert sum(pauses) <= 0.5
    for client in clients:
        client.receive()
        assert client.close_code == CloseCode.SERVICE_RESTART


@pytest.mark.parametrize("within_s", [0.0, 0.01])
async def test_drain_of_few_or_none(house: House, within_s: float) -> None:
    await house.presence.drain(within_s)
    client = house.connect(1)
    await house.presence.drain(within_s)
    client.receive()
    assert client.close_code == CloseCode.SERVICE_RESTART


async def test_drained_acknowledging_clients_find_everything_in_the_mailbox(house: House) -> None:
    house.connect(1, is_acking=True)
    flight = await house.publish(target="custom", user_ids=[1])
    await house.quiet()
    await house.presence.drain(0)
    await house.quiet()
    assert await house.mailbox(1) == [flight.notice.message_id]
    assert await house.unsettled() == []
