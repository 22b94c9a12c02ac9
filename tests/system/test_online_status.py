"""The stored online status, read past the daemon: counts and durations, also after a crash."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import stored
from tests.daemon import Probe, Process, until


def _status(directory: Path, user_id: int) -> dict[str, Any]:
    return next((row for row in stored.rows(directory, stored.STATUSES) if row["user_id"] == user_id), {})


async def _becomes(directory: Path, user_id: int, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    await until(lambda: (row := _status(directory, user_id)) and condition(row))
    return _status(directory, user_id)


async def test_connects_and_disconnects(probe: Probe, tmp_path: Path) -> None:
    total_ms = 0
    for count in (1, 2, 3):
        first = await probe.client(7, user_agent_header=f"agent/{count}")
        second = await probe.client(7, user_agent_header="another")
        row = await _becomes(tmp_path, 7, lambda row: row["is_online"])
        assert row["total_online_count"] == count
        assert row["connection_id"] == first.hello["data"]["conn_id"]
        assert (row["client_ip"], row["user_agent"]) == ("127.0.0.1", f"agent/{count}")
        assert row["last_seen"] == row["online_time"]
        await first.ws.close()
        await until(lambda: probe.node.hub.connections_total == 1)
        await probe.client(8)
        await _becomes(tmp_path, 8, lambda row: row["is_online"])  # what was noted before it is written
        assert _status(tmp_path, 7)["is_online"] == 1
        await second.ws.close()
        row = await _becomes(tmp_path, 7, lambda row: not row["is_online"])
        assert row["offline_time"] == row["last_seen"] == row["updated_at"]
        assert row["online_duration"] == row["offline_time"] - row["online_time"] >= 0
        total_ms += row["online_duration"]
        assert (row["total_online_time"], row["total_online_count"]) == (total_ms, count)
        assert await probe.http.post("/api/admin/websocket/disconnect", json={"user_id": 8})
        await until(lambda: not probe.node.hub.connections_total)


async def test_a_reconnect_faster_than_the_writer(probe: Probe, tmp_path: Path) -> None:
    for _ in range(5):
        client = await probe.client(7)
        await client.ws.close()
        await until(lambda: not probe.node.hub.connections_total)
    client = await probe.client(7)
    row = await _becomes(tmp_path, 7, lambda row: row["is_online"] and row["total_online_count"] == 6)
    assert row["connection_id"] == client.hello["data"]["conn_id"]


async def test_guests_leave_no_trace(probe: Probe, tmp_path: Path) -> None:
    await probe.client()
    await probe.client(7)
    await _becomes(tmp_path, 7, lambda row: row["is_online"])
    assert [row["user_id"] for row in stored.rows(tmp_path, stored.STATUSES)] == [7]


async def test_after_a_crash(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        async with await process.start() as probe:
            await probe.client(7)
            gone = await probe.client(8)
            before = await _becomes(tmp_path, 7, lambda row: row["is_online"])
            await gone.ws.close()
            left = await _becomes(tmp_path, 8, lambda row: not row["is_online"])
            await process.kill()
        assert _status(tmp_path, 7)["is_online"] == 1  # a ghost
        async with await process.start() as probe:
            ghost = _status(tmp_path, 7)
            assert (ghost["is_online"], ghost["total_online_count"]) == (0, 1)
            assert ghost["offline_time"] >= before["online_time"]
            assert ghost["online_duration"] == ghost["offline_time"] - before["online_time"]
            assert ghost["total_online_time"] == ghost["online_duration"]
            assert _status(tmp_path, 8) == left
            assert (await probe.get("/notification/online-users"))["users"] == []
            await probe.client(7)
            row = await _becomes(tmp_path, 7, lambda row: row["is_online"])
            assert (row["total_online_count"], row["total_online_time"]) == (2, ghost["total_online_time"])
            (user,) = (await probe.get("/notification/online-users"))["users"]
            assert (user["user_id"], user["total_online_count"]) == (7, 2)
            assert user["total_online_time_s"] == ghost["total_online_time"] / 1000


async def test_after_an_orderly_stop(tmp_path: Path) -> None:
    async with Process(tmp_path) as process:
        async with await process.start() as probe:
            await probe.client(7)
            await process.signal(signal.SIGTERM)
            assert await process.ended() == 0
        row = _status(tmp_path, 7)
        assert (row["is_online"], row["total_online_count"]) == (0, 1)
        assert row["online_duration"] == row["total_online_time"] == row["offline_time"] - row["online_time"]
