"""Stores that are away when pushd starts, when it is killed and when it stops; and those that can never be used."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Probe, Process, until
from tests.fault.test_outages import is_degraded, is_well
from tests.mariadb import MariadbServer
from tests.mongo_server import MongoServer
from tests.proxy import proxy_to
from tests.servers import RedisServer, free_port

Start = Callable[..., Awaitable[Probe]]


def nowhere() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


async def are_down(probe: Probe) -> bool:
    health = await probe.get("/websocket/health")
    return bool(health["stores"] == {"mailbox": "down", "records": "down", "directory": "down"})


async def test_it_starts_without_any_of_its_stores(start: Start) -> None:
    probe = await start(
        mailbox={"url": f"redis://{nowhere()}/0"},
        records={"url": f"mongodb://{nowhere()}/"},
        directory={"url": f"mysql://user@{nowhere()}/db"},
    )
    client = await probe.client(7, ack=True)
    await until(lambda: are_down(probe))
    assert await is_degraded(probe)
    assert (await probe.http.get("/readyz")).status_code == 200
    published = await probe.publish("live all the same", wait_ms=0, target="custom", user_ids=[7, 8])
    assert (await client.receive())["message_id"] == published["message_id"]
    online = await probe.publish("whoever is here", wait_ms=0, target="online")
    assert (await client.receive())["message_id"] == online["message_id"]
    refused = await probe.http.get("/api/admin/notification/records")
    assert (refused.status_code, refused.json()["error"]) == (503, "STORE_UNAVAILABLE")


async def test_what_was_missing_at_the_start_is_used_when_it_comes(start: Start, redis_server: RedisServer) -> None:
    await redis_server.stop()
    probe = await start(mailbox={"url": redis_server.url})
    client = await probe.client(7, ack=True)
    published = await probe.publish(wait_ms=0, target="custom", user_ids=[7, 8])
    assert await client.receive_ids(1) == [published["message_id"]]
    await redis_server.start()
    await until(lambda: is_well(probe))
    assert await probe.mailbox(8) == [published["message_id"]]


async def test_killed_during_an_outage_nothing_is_lost(tmp_path: Path, redis_server: RedisServer) -> None:
    published: list[str] = []

    async def publish(probe: Probe, count: int) -> None:
        for _ in range(count):
            published.append((await probe.publish(wait_ms=0, target="custom", user_ids=[8, 9]))["message_id"])

    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxy_to(redis_server.port))
        url = f"redis://127.0.0.1:{proxy.port}/0"
        daemon = await stack.enter_async_context(Process(tmp_path, mailbox={"url": url, "max_per_user": 1000}))
        for outage in range(2):
            async with await daemon.start() as probe:
                await publish(probe, 10)
                await proxy.cut()
                await publish(probe, 10)
                if outage:
                    await until(lambda: _has_on_disk(probe))
                await daemon.kill()
        async with await daemon.start() as probe:  # and is away still
            await publish(probe, 10)
            await proxy.start()
            await until(lambda: is_well(probe))
            for user_id in (8, 9):
                client = await probe.client(user_id, ack=True)
                assert sorted(await client.receive_ids(len(published))) == sorted(published)
                assert await client.is_quiet()


async def _has_on_disk(probe: Probe) -> bool:
    return bool((await probe.get("/websocket/stats"))["outbox_pending"]["mailbox"])


async def test_a_stop_during_an_outage_is_in_time_and_leaves_all_on_disk(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    async with Process(tmp_path, mailbox={"url": redis_server.url}) as daemon:
        async with await daemon.start() as probe:
            redis_server.freeze()
            ids = [(await probe.publish(wait_ms=0, target="custom", user_ids=[8]))["message_id"] for _ in range(5)]
            await daemon.signal(signal.SIGTERM)
            assert await daemon.ended(within_s=6) == 0
        redis_server.thaw()
        async with await daemon.start() as probe:
            await until(lambda: is_well(probe))
            assert await probe.mailbox(8) == ids


# ---- what waiting cannot mend


async def refused_start(where: Path, /, **sections: dict[str, Any]) -> str:
    """The one line with which the daemon ends."""
    daemon = Process(where, **sections)
    daemon.log_file.unlink(missing_ok=True)
    with pytest.raises(AssertionError):
        await daemon.start()
    assert await daemon.ended() == 1
    (line,) = [line for line in daemon.log_file.read_text().splitlines() if not line.startswith("{")]
    return line


async def test_refused_credentials_of_redis(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, password="right")
    try:
        await server.start()
        line = await refused_start(tmp_path, mailbox={"url": f"redis://:wr0ng-one@127.0.0.1:{server.port}/0"})
    finally:
        await server.stop()
    assert line.startswith("pushd: mailbox.url: ")
    assert "wr0ng-one" not in line


async def test_a_missing_table_and_column_of_mysql(tmp_path: Path, mariadb_server: MariadbServer) -> None:
    line = await refused_start(tmp_path, directory={"url": mariadb_server.url, "table": "accounts"})
    assert line.startswith("pushd: directory.table: ")
    mariadb_server.execute("CREATE TABLE accounts (id INT PRIMARY KEY, name TEXT, user_type INT)")
    line = await refused_start(tmp_path, directory={"url": mariadb_server.url, "table": "accounts"})
    assert line.startswith("pushd: directory.name_column: ")


async def test_an_index_of_mongodb_that_contradicts(tmp_path: Path, mongo_server: MongoServer) -> None:
    with mongo_server.client() as client:
        client["notification_log_db"]["push_records"].create_index("message_id")
    line = await refused_start(tmp_path, records={"url": mongo_server.url})
    assert "push_records" in line
