"""The contract of ports.PresenceStore. Durations are milliseconds."""

from __future__ import annotations

from typing import Any

from pushd.model import Arrival
from pushd.records import OnlineStatus

from .conftest import Node

IMPLEMENTATIONS = ("sqlite", "mongodb")


def arrival(user_id: int, at_ms: int, connection_id: str = "c1") -> Arrival:
    return Arrival(user_id, f"user{user_id}", connection_id, "10.0.0.1", "Firefox", at_ms)


def status(node: Node, user_id: int) -> dict[str, Any]:
    (row,) = (row for row in node.rows("admin_user_online_status") if row["user_id"] == user_id)
    return row


async def test_an_arrival_is_stored(node: Node) -> None:
    await node.stores.presence.connected([arrival(1, 1000)])
    assert status(node, 1) == {
        "user_id": 1,
        "username": "user1",
        "is_online": 1,
        "last_seen": 1000,
        "online_time": 1000,
        "offline_time": None,
        "online_duration": 0,
        "connection_id": "c1",
        "client_ip": "10.0.0.1",
        "user_agent": "Firefox",
        "total_online_count": 1,
        "total_online_time": 0,
        "created_at": 1000,
        "updated_at": 1000,
    }


async def test_coming_and_going_adds_up(node: Node) -> None:
    presence = node.stores.presence
    await presence.connected([arrival(1, 1000)])
    await presence.disconnected([(1, 1500)])
    await presence.connected([arrival(1, 2000, "c2")])
    await presence.disconnected([(1, 2030)])
    row = status(node, 1)
    assert (row["is_online"], row["online_time"], row["offline_time"], row["last_seen"]) == (0, 2000, 2030, 2030)
    assert (row["online_duration"], row["total_online_time"], row["total_online_count"]) == (30, 530, 2)
    assert (row["connection_id"], row["created_at"], row["updated_at"]) == ("c2", 1000, 2030)


async def test_writing_twice_is_writing_once(node: Node) -> None:
    presence = node.stores.presence
    await presence.connected([arrival(1, 1000), arrival(1, 1000)])
    await presence.connected([arrival(1, 1000)])
    await presence.disconnected([(1, 1500), (1, 1600)])
    await presence.disconnected([(1, 1500)])
    await presence.connected([arrival(1, 1000)])
    row = status(node, 1)
    assert (row["is_online"], row["total_online_count"], row["total_online_time"]) == (0, 1, 500)


async def test_late_news_does_not_undo_newer(node: Node) -> None:
    presence = node.stores.presence
    await presence.connected([arrival(1, 1000)])
    await presence.disconnected([(1, 1500)])
    await presence.connected([arrival(1, 2000, "c2")])
    await presence.disconnected([(1, 1500)])
    await presence.connected([arrival(1, 1000)])
    row = status(node, 1)
    assert (row["is_online"], row["connection_id"], row["total_online_count"]) == (1, "c2", 2)


async def test_unknown_departures_are_ignored(node: Node) -> None:
    await node.stores.presence.disconnected([(1, 1000)])
    await node.stores.presence.connected([])
    await node.stores.presence.disconnected([])
    assert node.rows("admin_user_online_status") == []


async def test_reset_closes_ghosts_only(node: Node) -> None:
    await node.stores.presence.connected([arrival(user_id, 1000) for user_id in range(1, 1202)])
    await node.stores.presence.disconnected([(1, 1100)])
    await node.restart()
    assert sorted(await node.stores.presence.reset(3000)) == list(range(2, 1202))
    assert await node.stores.presence.reset(4000) == []
    assert (status(node, 1)["offline_time"], status(node, 1)["total_online_time"]) == (1100, 100)
    ghost = status(node, 2)
    assert (ghost["is_online"], ghost["offline_time"], ghost["last_seen"]) == (0, 3000, 3000)
    assert (ghost["total_online_time"], ghost["total_online_count"]) == (2000, 1)


async def test_ghosts_were_online_until_the_node_was_last_alive(node: Node) -> None:
    """The time a node was down is nobody's time online."""
    presence = node.stores.presence
    await presence.connected([arrival(1, 1000), arrival(2, 2600)])
    await presence.alive(500)
    await presence.alive(2500)
    await node.restart()
    assert sorted(await node.stores.presence.reset(90_000)) == [1, 2]
    assert (status(node, 1)["offline_time"], status(node, 1)["total_online_time"]) == (2500, 1500)
    assert (status(node, 2)["offline_time"], status(node, 2)["total_online_time"]) == (2600, 0)


async def test_statuses_of_the_known(node: Node) -> None:
    presence = node.stores.presence
    await presence.connected([arrival(user_id, 1000) for user_id in range(1, 1202)])
    await presence.disconnected([(2, 1500)])
    await presence.connected([arrival(2, 2000, "c2")])
    await presence.disconnected([(2, 2030)])
    found = await presence.statuses([*range(1, 1202), 5000])
    assert set(found) == set(range(1, 1202))
    assert found[2] == OnlineStatus(
        user_id=2,
        username="user2",
        is_online=False,
        last_seen_ms=2030,
        online_ms=2000,
        offline_ms=2030,
        online_duration_ms=30,
        connection_id="c2",
        client_ip="10.0.0.1",
        user_agent="Firefox",
        total_online_count=2,
        total_online_ms=530,
    )
    assert (found[1].is_online, found[1].offline_ms, found[1].online_ms) == (True, 0, 1000)
    assert await presence.statuses([]) == {}
