"""Heartbeats: silent and expired connections, the other steps of a sweep, and the node's life sign."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import CloseCode, StoreError, StoreUnavailable
from pushd.presence import heartbeat
from tests.daemon import until
from tests.unit.parts import Clock, House


def sweeps(house: House) -> None:
    for _ in range(heartbeat.SWEEPS_PER_ROUND + 1):
        house.heartbeat.sweep(house.clock())


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
    house.heartbeat.sweep(clock())
    assert house.acknowledgements.waiting_total == 0


async def test_closed_connections_do_not_linger_for_ever(house: House) -> None:
    client = house.connect(1)
    house.hub.close(client.connection, CloseCode.REVOKED)
    assert not client.transport.closed  # the peer may still answer
    house.heartbeat.sweep(float("inf"))
    assert client.transport.closed


async def test_watching_goes_on(house: House) -> None:
    house.start(house.heartbeat.run(every_s=0.0))
    client = house.connect(1)
    house.clock.move(25)
    await until(lambda: client.transport.received() == b"\x89\x00")


async def test_a_step_that_fails_does_not_end_the_watch(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def failing(step: str) -> Any:
        def fail(*_: Any) -> Any:
            calls.append(step)
            raise ZeroDivisionError(step)

        return fail

    monkeypatch.setattr(house.acknowledgements, "expire", failing("expire"))
    monkeypatch.setattr(house.stores.presence, "alive", failing("alive"))
    with capture_logs() as logs:
        house.start(house.heartbeat.run(every_s=0.0), house.life_sign.run())
        await until(lambda: calls.count("expire") > 2 and calls.count("alive") > 2)
    assert sorted(line["event"] for line in logs) == ["alive failed", "sweep failed"]


@pytest.mark.parametrize("error", [StoreUnavailable("presence", "away"), StoreError("presence", "never")])
async def test_a_life_sign_that_the_store_does_not_take_is_left_out(
    frail_house: House, frail: Any, error: StoreError
) -> None:
    """That the store fails is in health already."""
    frail.presence.fail("alive", 3, error)
    with capture_logs() as logs:
        frail_house.start(frail_house.life_sign.run())
        await until(lambda: frail.presence.calls.count("alive") > 3)
    assert frail_house.metrics.errors.labels("alive").value == 0
    assert {line["log_level"] for line in logs} == {"debug"}
