"""Clients that do not read, flood, or vanish: bounded, gone without a trace, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from typing import Any

import pytest

from tests import raw
from tests.daemon import Client, Probe, until
from tests.raw import Raw

SMALL = 4096
SLOW_LIMITS = {"limits": {"max_pending_bytes": 64 * 1024, "max_frames_per_s": 100_000}}


async def _is_forgotten(probe: Probe) -> None:
    hub, gateway = probe.node.hub, probe.node.gateway
    await until(lambda: not hub.connections_total and not hub.users_total and not gateway.open_sockets)


async def _publish_until(probe: Probe, is_enough: Any, *user_ids: int) -> list[str]:
    """Big notices to these users until the condition holds; their ids."""
    ids = []
    body = {"content": "x", "data": "x" * 16_000, "target": "custom", "user_ids": list(user_ids)}
    for _ in range(500):
        response = await probe.post("/system/notice?wait_ms=5000", body)
        ids.append(response.json()["data"]["message_id"])
        if is_enough():
            return ids
    raise AssertionError("it never came to that")


class TestSlowReader:
    @pytest.mark.parametrize("query", ["", "&ack=1"])
    async def test_4008_and_the_missed_frames_are_in_the_mailbox(self, start: Any, query: str) -> None:
        probe = await start(**SLOW_LIMITS)
        hub = probe.node.hub
        async with await Raw.websocket(probe.port, f"/ws?user_id=7{query}", receive_buffer=SMALL) as slow:
            slow.writer.transport.pause_reading()
            ids = await _publish_until(probe, lambda: hub.slow_consumers, 7)
            assert not hub.has_user(7)
            waiting = await probe.mailbox(7)
            slow.writer.transport.resume_reading()
            received = []
            while (item := await slow.frame()).opcode != raw.CLOSE:
                received.append(json.loads(item.payload)["message_id"])
            assert item.close_code == 4008
            slow.send(raw.close(4008))
        # Nothing is lost, all in order; what was on its way may come twice.
        assert received == ids[: len(received)]
        assert waiting == ids[len(ids) - len(waiting) :]
        assert len(received) + len(waiting) >= len(ids)
        await _is_forgotten(probe)
        client = await probe.client(7)
        assert await client.receive_ids(len(waiting)) == waiting

    async def test_one_that_never_reads_again_is_cut_off(self, start: Any) -> None:
        probe = await start(**SLOW_LIMITS)
        async with await Raw.websocket(probe.port, "/ws?user_id=7", receive_buffer=SMALL) as slow:
            slow.writer.transport.pause_reading()
            await _publish_until(probe, lambda: probe.node.hub.slow_consumers, 7)
            await _is_forgotten(probe)
        assert 'pushd_disconnects_total{code="4008"} 1.0' in (await probe.http.get("/metrics")).text

    async def test_nobody_else_notices(self, start: Any) -> None:
        probe = await start(**SLOW_LIMITS)
        hub = probe.node.hub
        other = await probe.client(8)
        async with await Raw.websocket(probe.port, "/ws?user_id=7", receive_buffer=SMALL) as slow:
            slow.writer.transport.pause_reading()
            reading = asyncio.create_task(_read_with_latency(other))
            ids = await _publish_until(probe, lambda: hub.slow_consumers, 7, 8)
            await probe.publish("last", target="custom", user_ids=[8])
            received, slowest_ms = await reading
        assert received == ids
        assert slowest_ms < 2000
        assert hub.has_user(8)

    async def test_a_mailbox_bigger_than_the_limit_comes_at_the_clients_pace(self, start: Any) -> None:
        probe = await start(**SLOW_LIMITS)
        body = {"content": "x", "data": "x" * 16_000, "target": "custom", "user_ids": [7]}
        batch = await probe.post("/system/notices", {"notices": [body] * 40})
        ids = [item["message_id"] for item in batch.json()["data"]["items"]]
        assert await probe.mailbox(7) == ids
        async with await Raw.websocket(probe.port, "/ws?user_id=7", receive_buffer=SMALL) as slow:
            live = await probe.publish(target="custom", user_ids=[7], wait_ms=0)
            received = [json.loads((await slow.frame()).payload)["message_id"] for _ in range(41)]
            assert received == [*ids, live["message_id"]]
        assert not probe.node.hub.slow_consumers


async def _read_with_latency(client: Client) -> tuple[list[str], float]:
    received, slowest_ms = [], 0.0
    while (message := await client.receive())["content"] != "last":
        received.append(message["message_id"])
        slowest_ms = max(slowest_ms, time.time_ns() / 1e6 - message["ts"])
    return received, slowest_ms


class TestFloods:
    async def test_pings_from_a_peer_that_does_not_read(self, start: Any) -> None:
        probe = await start(**SLOW_LIMITS)
        other = await probe.client(8)
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with await Raw.websocket(probe.port, receive_buffer=SMALL) as flooder:
            flooder.writer.transport.pause_reading()
            pings = raw.frame(raw.PING, b"x" * 125) * 100
            while not probe.node.hub.slow_consumers:
                flooder.send(pings)
                with contextlib.suppress(ConnectionResetError):  # it is not read from any more once it is closed
                    async with asyncio.timeout(10):
                        await flooder.writer.drain()
            await until(lambda: probe.node.gateway.open_sockets == 1)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 32 * 1024
        await other.send({"type": "ping"})
        assert (await other.receive())["type"] == "pong"

    async def test_pings_over_the_rate(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as flooder:
            flooder.send(raw.frame(raw.PING, b"x" * 125) * 5000)
            assert await flooder.close_code() == 4029
        await _is_forgotten(probe)

    async def test_errors_are_not_a_way_around_the_rate(self, probe: Probe) -> None:
        async with await Raw.websocket(probe.port) as flooder:
            flooder.send(raw.frame(raw.TEXT, b"?") * 1000)
            assert await flooder.close_code() == 4029


class TestVanishing:
    async def test_reset(self, probe: Probe) -> None:
        published = await probe.publish(target="custom", user_ids=[7])
        for _ in range(3):
            client = await Raw.websocket(probe.port, "/ws?user_id=7&ack=1")
            await client.frame()
            client.reset()
            await _is_forgotten(probe)
        assert await probe.mailbox(7) == [published["message_id"]]

    async def test_end_of_stream_without_a_close(self, probe: Probe) -> None:
        client = await Raw.websocket(probe.port, "/ws?user_id=7")
        client.writer.write_eof()
        assert await client.end() == b""
        await _is_forgotten(probe)
        client.writer.close()

    async def test_in_the_middle_of_a_frame(self, probe: Probe) -> None:
        client = await Raw.websocket(probe.port, "/ws?user_id=7")
        client.send(raw.frame(raw.TEXT, b'{"type":"ping"}')[:5])
        await client.writer.drain()
        client.reset()
        await _is_forgotten(probe)

    async def test_right_behind_the_request(self, probe: Probe) -> None:
        for _ in range(20):
            client = await Raw.connect(probe.port)
            client.send(raw.upgrade("/ws?user_id=7"))
            await client.writer.drain()
            client.reset()
        await until(lambda: probe.node.server.connections <= 1)  # the probe's own
        await _is_forgotten(probe)
        published = await probe.publish(target="custom", user_ids=[7])
        assert published["offline_count"] == 1

    async def test_while_notices_come(self, probe: Probe) -> None:
        stay = await probe.client(1)
        goers = [await Raw.websocket(probe.port, f"/ws?user_id={user_id}") for user_id in range(2, 32)]
        bodies = [{"content": str(number), "target": "all"} for number in range(100)]
        publishing = asyncio.create_task(probe.post("/system/notices", {"notices": bodies}))
        for goer in goers:
            goer.reset()
            await asyncio.sleep(0)
        ids = [item["message_id"] for item in (await publishing).json()["data"]["items"]]
        assert await stay.receive_ids(100) == ids
        await until(lambda: probe.node.hub.connections_total == 1)
        await until(lambda: probe.node.dispatcher.is_idle)
        # Every notice is accounted for: the kernel took it, or it waits, once.
        mailboxes = [await probe.mailbox(user_id) for user_id in range(2, 32)]
        for message_id in (ids[0], ids[50], ids[99]):
            status = await probe.receive_status(message_id)
            waiting = sum(mailbox.count(message_id) for mailbox in mailboxes)
            assert (status["total_users"], status["received_users"] + waiting) == (31, 31)

    async def test_presence_shows_no_ghosts(self, probe: Probe) -> None:
        client = await Raw.websocket(probe.port, "/ws?user_id=7")
        stats = await probe.get("/websocket/stats")
        assert (stats["active_connections"], stats["unique_users"]) == (1, 1)
        client.reset()
        await _is_forgotten(probe)
        stats = await probe.get("/websocket/stats")
        assert (stats["active_connections"], stats["unique_users"], stats["total_connections"]) == (0, 0, 1)
        published = await probe.publish(target="online")
        assert published["total_count"] == 0
