"""Texts for ids with every store outside: Redis, MongoDB and MySQL have the same id, also after they were away."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from tests.daemon import Probe, until
from tests.mariadb import MariadbServer
from tests.mongo_server import MongoServer
from tests.servers import RedisServer

ANN, LOWER, BOB = "Ann", "ann", "u:bob@x.de"
TABLE = "CREATE TABLE user (id VARCHAR(64) COLLATE utf8mb4_bin PRIMARY KEY, username VARCHAR(64), user_type INT)"
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture
async def probe(
    start: Any, redis_server: RedisServer, mongo_server: MongoServer, mariadb_server: MariadbServer
) -> Probe:
    mariadb_server.execute(TABLE)
    mariadb_server.execute(f"INSERT INTO user VALUES ('{ANN}', 'A', 1), ('{LOWER}', 'a', 2), ('{BOB}', 'b', 2)")
    return await start(
        mailbox={"url": redis_server.url},
        records={"url": mongo_server.url},
        directory={"url": mariadb_server.url, "user_ids": "string"},
    )


@needs_redis
async def test_one_user_everywhere(probe: Probe, redis_server: RedisServer, mongo_server: MongoServer) -> None:
    ann = await probe.client(ANN, ack=True)
    sent = await probe.publish(message_id="n", target="role", roles=[1, 2])
    assert (sent["online_count"], sent["offline_count"]) == (1, 2)
    assert (await ann.receive())["message_id"] == "n"
    await ann.ack("n")
    keys = await redis_server.command("KEYS", "*")
    assert {key.decode() for key in keys} == {f"offline_msg:{LOWER}", f"offline_msg:{BOB}"}
    by_id = {"sort_by": "user_id", "sort_order": "asc"}
    items = (await probe.get("/notification/admin-receive-records", params=by_id))["items"]
    assert [(item["user_id"], item["username"], item["is_online"]) for item in items] == [
        (ANN, "A", True),
        (LOWER, "a", False),
        (BOB, "b", False),
    ]
    with mongo_server.client() as client:
        stored = client["notification_log_db"]["admin_user_receive_records"].find({"message_id": "n"})
        assert {document["user_id"] for document in stored} == {ANN, LOWER, BOB}
    lower = await probe.client(LOWER, ack=True)
    assert (await lower.receive())["message_id"] == "n"
    await lower.send({"type": "read", "message_ids": ["n"]})
    await until(lambda: is_read(probe, LOWER))
    assert not await is_read(probe, ANN)
    for user_id, is_marked in ((LOWER, True), (ANN, False)):
        (notice,) = (await probe.get("/notification/inbox", params={"user_id": user_id}))["items"]
        assert (notice["message_id"], notice["is_read"]) == ("n", is_marked)
    online = {user["user_id"] for user in (await probe.get("/notification/online-users"))["users"]}
    assert online == {ANN, LOWER}


async def is_read(probe: Probe, user_id: str) -> bool:
    summary = await probe.get("/notification/user-summary", params={"user_id": user_id})
    return summary["unread_count"] == 0


async def on_disk(probe: Probe) -> bool:
    return (await probe.node.stores.outbox.counts()).get("mailbox", 0) > 1


@needs_redis
async def test_what_waited_on_disk(probe: Probe, redis_server: RedisServer) -> None:
    """Saves and removals that Redis could not take name the same users when it is back."""
    await probe.publish(message_id="first", target="custom", user_ids=[BOB, "7"])
    digits = await probe.client("7", ack=True)
    assert (await digits.receive())["message_id"] == "first"
    redis_server.freeze()
    await digits.ack("first")
    await probe.publish(message_id="second", wait_ms=0, target="custom", user_ids=[BOB, LOWER])
    await until(lambda: on_disk(probe), 20)
    redis_server.thaw()

    async def waiting() -> dict[str, list[str]]:
        found = {}
        for user_id in (BOB, LOWER, "7"):
            elements = await redis_server.command("LRANGE", f"offline_msg:{user_id}", 0, -1)
            found[user_id] = [json.loads(element)["message_id"] for element in elements]
        return found

    async def is_as_it_should_be() -> bool:
        return await waiting() == {BOB: ["second", "first"], LOWER: ["second"], "7": []}

    await until(is_as_it_should_be, 20)
