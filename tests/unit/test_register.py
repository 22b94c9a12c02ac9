"""Registered connections: how many a user may have, and the stored online status."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import groupby
from typing import Any

import pytest

from pushd.config.schema import Config
from pushd.errors import CloseCode
from tests.conftest import MakeConfig
from tests.unit.parts import START_MS, Clock, House
from tests.unit.waiting import greeted

Build = Callable[..., House]


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
