"""kill -9 at any moment: what was answered with 200 reaches every recipient (CONTRACT section 6)."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.daemon import Client, Probe, Process

ROUNDS = 20
LIVE, ABSENT = (1, 2, 3), (11, 12, 13)
TARGETS: tuple[dict[str, object], ...] = (
    {"target": "all"},
    {"target": "custom", "user_ids": [*LIVE, *ABSENT]},
    {"target": "role", "roles": [0]},
)


class Ledger:
    """Who must have which notice, and who has."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.got: dict[int, list[str]] = {user_id: [] for user_id in (*LIVE, *ABSENT)}

    async def listen(self, user_id: int, client: Client) -> None:
        """Take and acknowledge whatever comes, until the daemon dies."""
        try:
            while True:
                notice = await client.receive(60)
                self.got[user_id].append(notice["message_id"])
                await client.ack(notice["message_id"])
        except (ConnectionClosed, OSError):
            pass

    async def publish(self, probe: Probe, rng: random.Random) -> None:
        """One after the other, until the daemon dies; a 200 that arrived is a promise."""
        try:
            while True:
                body = {"content": "x", "priority": rng.randrange(4), **rng.choice(TARGETS)}
                response = await probe.post("/system/notice", body)
                assert response.status_code == 200
                self.accepted.append(response.json()["data"]["message_id"])
        except httpx.TransportError:
            pass

    def missing(self) -> dict[int, set[str]]:
        return {user_id: lost for user_id, ids in self.got.items() if (lost := set(self.accepted) - set(ids))}


@pytest.mark.timeout(300)
async def test_nothing_answered_with_200_is_lost(tmp_path: Path) -> None:
    rng = random.Random(20260101)
    ledger = Ledger()
    limits = {"max_frames_per_s": 100_000, "max_frame_bytes": 16_384}
    async with Process(tmp_path, mailbox={"max_per_user": 100_000}, limits=limits) as daemon:
        async with await daemon.start() as probe:
            for user_id in ABSENT:  # known from now on
                await (await probe.client(user_id)).ws.close()
        await daemon.kill()
        for _ in range(ROUNDS):
            await _live_and_die(daemon, ledger, rng)
        probe = await daemon.start()
        async with probe:
            await asyncio.gather(*(_collect(probe, user_id, ledger) for user_id in (*LIVE, *ABSENT)))
    assert len(ledger.accepted) > ROUNDS * 10
    assert ledger.missing() == {}


async def _live_and_die(daemon: Process, ledger: Ledger, rng: random.Random) -> None:
    probe = await daemon.start()
    async with probe:
        clients = {user_id: await probe.client(user_id, ack=True) for user_id in LIVE}
        listeners = [asyncio.create_task(ledger.listen(*item)) for item in clients.items()]
        publishers = [asyncio.create_task(ledger.publish(probe, rng)) for _ in range(4)]
        await asyncio.sleep(rng.uniform(0.02, 0.4))  # the moment is the point
        await daemon.kill()
        await asyncio.gather(*listeners, *publishers)


async def _collect(probe: Probe, user_id: int, ledger: Ledger) -> None:
    """What is still waiting for a user, until nothing is."""
    while waiting := await probe.mailbox(user_id):
        client = await probe.client(user_id, ack=True)
        ids = await client.receive_ids(len(waiting))
        ledger.got[user_id] += ids
        for start in range(0, len(ids), 100):
            await client.ack(*ids[start : start + 100])
        await client.send({"type": "ping"})
        while (await client.receive())["type"] != "pong":
            pass
        await client.ws.close()


async def test_nothing_acknowledged_is_replayed_more_than_once(tmp_path: Path) -> None:
    async with Process(tmp_path) as daemon:
        async with await daemon.start() as probe:
            client = await probe.client(7, ack=True)
            ids = [(await probe.publish(target="custom", user_ids=[7], wait_ms=0))["message_id"] for _ in range(50)]
            assert await client.receive_ids(50) == ids
            await client.ack(*ids)
            await client.send({"type": "ping"})
            await client.receive()
            await daemon.kill()
        replayed = []
        for _ in range(2):
            async with await daemon.start() as probe:
                client = await probe.client(7, ack=True)
                waiting = await probe.mailbox(7)
                replayed += await client.receive_ids(len(waiting))
                await client.ack(*waiting) if waiting else None
                await asyncio.sleep(0.3)  # past records.flush_ms
                await daemon.kill()
        assert len(replayed) == len(set(replayed))
