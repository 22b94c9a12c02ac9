"""A store stalls, goes, is slow or dies during traffic: live delivery goes on, and every notice is accounted for."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.daemon import Client, Probe, until
from tests.mariadb import MariadbServer
from tests.mongo_server import MongoServer
from tests.proxy import Proxy, proxy_to
from tests.servers import RedisServer

LIVE, ABSENT = (1, 2, 3), (11, 12, 13)
EVERYBODY = [*LIVE, *ABSENT]
BEFORE_S, DURING_S, AFTER_S = 0.3, 2.0, 0.3
BACK_WITHIN_S = 20.0
LIMITS = {"max_frames_per_s": 100_000, "max_frame_bytes": 65_536}


class Traffic:
    """Notices to everybody, one after the other, and who got which."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.accepted: list[str] = []
        self.is_publishing = True
        self.got: dict[int, list[str]] = {user_id: [] for user_id in EVERYBODY}
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, **body: Any) -> None:
        for user_id in ABSENT:  # known from now on
            await (await self.probe.client(user_id)).ws.close()
        for user_id in LIVE:
            client = await self.probe.client(user_id, ack=True)
            self._tasks.append(asyncio.create_task(self._listen(user_id, client)))
        self._tasks.append(asyncio.create_task(self._publish(body)))

    async def _listen(self, user_id: int, client: Client) -> None:
        with suppress(ConnectionClosed):
            while True:
                notice = await client.receive(60)
                self.got[user_id].append(notice["message_id"])
                await client.ack(notice["message_id"])

    async def _publish(self, body: dict[str, Any]) -> None:
        """Every publish must be answered with 200, at once."""
        while self.is_publishing:
            answer = await self.probe.publish(f"n{len(self.accepted)}", wait_ms=0, **body)
            self.accepted.append(answer["message_id"])
            await asyncio.sleep(0.005)

    async def end(self) -> None:
        """Stop publishing; everybody who is connected has everything."""
        self.is_publishing = False
        await self._tasks.pop()
        await until(lambda: all(len(self.got[user_id]) >= len(self.accepted) for user_id in LIVE))

    async def listen_no_more(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def come_back(self, user_id: int) -> None:
        """An absent user connects and takes what waits."""
        client = await self.probe.client(user_id, ack=True)
        self.got[user_id] += await client.receive_ids(len(self.accepted))
        assert await client.is_quiet()


async def is_well(probe: Probe) -> bool:
    health, stats = await probe.get("/websocket/health"), await probe.get("/websocket/stats")
    return health["status"] == "healthy" and not any(stats["outbox_pending"].values())


async def is_degraded(probe: Probe) -> bool:
    return (await probe.get("/websocket/health"))["status"] == "degraded"


class Fault:
    """How a store behind a proxy fails, and how that ends."""

    def __init__(self, name: str, server: Any, proxy: Proxy) -> None:
        self._name = name
        self._server = server
        self._proxy = proxy

    async def begin(self) -> None:
        match self._name:
            case "stall":
                self._proxy.stall()
            case "cut":
                await self._proxy.cut()
            case "reset":
                self._proxy.reset()
            case "slow":
                self._proxy.delay_s = 0.2
            case "freeze":
                self._server.freeze()
            case "kill":
                await self._do(self._server.stop)

    async def end(self) -> None:
        match self._name:
            case "cut":
                await self._proxy.start()
            case "freeze":
                self._server.thaw()
            case "kill":
                await self._do(self._server.start)
            case _:
                self._proxy.flow()

    async def _do(self, step: Callable[[], Any]) -> None:
        """Some servers' steps are coroutines, others block."""
        waiting = await asyncio.to_thread(step)
        if isinstance(waiting, Awaitable):
            await waiting


@pytest.fixture
async def lasting_redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis that has on disk what it acknowledged."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path, options=["appendonly", "yes", "appendfsync", "always"])
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


FAULTS = ["stall", "cut", "reset", "slow", "freeze", "kill"]
FELT = {"stall", "cut", "freeze", "kill"}  # long enough to be noticed by health
Start = Callable[..., Awaitable[Probe]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def _nothing() -> None:
    pass


async def through_a_fault(
    probe: Probe,
    fault: Fault,
    name: str,
    stack: AsyncExitStack,
    meanwhile: Callable[[], Awaitable[None]] = _nothing,
    **body: Any,
) -> Traffic:
    """Traffic before, during and after the fault; returns when everything is written again."""
    traffic = Traffic(probe)
    stack.push_async_callback(traffic.listen_no_more)
    await traffic.begin(**body)
    await asyncio.sleep(BEFORE_S)
    await until(lambda: len(traffic.accepted) > 5)
    before = len(traffic.accepted)
    await fault.begin()
    await meanwhile()
    await asyncio.sleep(DURING_S)
    await until(lambda: len(traffic.accepted) > before + 50)  # publishing does not stand still
    if name in FELT:
        await until(lambda: is_degraded(probe))
    await fault.end()
    await asyncio.sleep(AFTER_S)
    await traffic.end()
    await until(lambda: is_well(probe), BACK_WITHIN_S)
    return traffic


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FAULTS)
async def test_mailboxes_over_a_fault_of_redis(
    name: str, start: Start, lasting_redis: RedisServer, stack: AsyncExitStack
) -> None:
    proxy = await stack.enter_async_context(proxy_to(lasting_redis.port))
    probe = await start(mailbox={"url": f"redis://127.0.0.1:{proxy.port}/0", "max_per_user": 100_000}, limits=LIMITS)
    fault = Fault(name, lasting_redis, proxy)
    traffic = await through_a_fault(probe, fault, name, stack, target="custom", user_ids=EVERYBODY)
    await asyncio.gather(*(traffic.come_back(user_id) for user_id in ABSENT))
    for user_id in EVERYBODY:
        assert traffic.got[user_id] == traffic.accepted  # all, in order, once


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FAULTS)
async def test_recipients_over_a_fault_of_mysql(
    name: str, start: Start, mariadb_server: MariadbServer, stack: AsyncExitStack
) -> None:
    """Roles that were asked for before serve from memory, stale or not; another one's notice waits."""
    mariadb_server.execute("CREATE TABLE user (id INT PRIMARY KEY, username TEXT, user_type INT)")
    rows = [*((user_id, 5) for user_id in EVERYBODY), (21, 6)]
    mariadb_server.execute("INSERT INTO user VALUES " + ",".join(f"({user}, 'u{user}', {role})" for user, role in rows))
    proxy = await stack.enter_async_context(proxy_to(mariadb_server.port))
    url = mariadb_server.url.replace(f":{mariadb_server.port}", f":{proxy.port}")
    probe = await start(directory={"url": url, "cache_ttl_s": 0.3}, mailbox={"max_per_user": 100_000}, limits=LIMITS)
    fault = Fault(name, mariadb_server, proxy)
    other: list[str] = []

    async def publish_to_another_role() -> None:
        other.append((await probe.publish(target="role", roles=[6], wait_ms=0))["message_id"])

    traffic = await through_a_fault(probe, fault, name, stack, publish_to_another_role, target="role", roles=[5])
    await until(lambda: _waits_for(probe, 21, other))
    await asyncio.gather(*(traffic.come_back(user_id) for user_id in ABSENT))
    for user_id in EVERYBODY:
        assert sorted(traffic.got[user_id]) == sorted(traffic.accepted)  # all, once; who must be looked up is overtaken


async def _waits_for(probe: Probe, user_id: int, message_ids: list[str]) -> bool:
    return await probe.mailbox(user_id) == message_ids


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FAULTS)
async def test_records_over_a_fault_of_mongodb(
    name: str, start: Start, mongo_server: MongoServer, stack: AsyncExitStack
) -> None:
    proxy = await stack.enter_async_context(proxy_to(mongo_server.port))
    url = mongo_server.url.replace(f":{mongo_server.port}", f":{proxy.port}")
    probe = await start(records={"url": url}, mailbox={"max_per_user": 100_000}, limits=LIMITS)
    fault = Fault(name, mongo_server, proxy)
    traffic = await through_a_fault(probe, fault, name, stack, target="custom", user_ids=EVERYBODY)
    await asyncio.gather(*(traffic.come_back(user_id) for user_id in ABSENT))
    for user_id in EVERYBODY:
        assert traffic.got[user_id] == traffic.accepted
    count = len(traffic.accepted)
    records = await probe.get("/notification/records")
    assert records["total"] == records["stats"]["success_records"] == count
    stats = (await probe.get("/notification/admin-receive-records"))["stats"]
    assert stats["total_users"] == count * len(EVERYBODY)  # none lost, none doubled
    assert stats["received_users"] == count * len(LIVE)
