"""What one client can make the daemon hold: bodies, answers, connections. All from outside."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any

import pytest
from prometheus_client.core import Metric

from pushd.api.probes import FRESH_EXPOSITIONS
from tests import raw
from tests.daemon import PREFIX, Probe, until
from tests.raw import Raw
from tests.tokens import API_KEY, JWT, token

SIZE = 1_000_000
NOTICE = f"{PREFIX}/system/notice"
ADMIN = f"Authorization: Bearer {API_KEY}"
JSON = "Content-Type: application/json"


def announce(path: str, *headers: str, method: str = "POST", size: int = SIZE) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {size}", "", ""]
    return "\r\n".join(lines).encode()


def held(probe: Probe) -> int:
    count: int = probe.node.server.shared.bodies.held_bytes
    return count


class TestBodiesBeforeCredentials:
    @pytest.mark.parametrize(
        ("path", "headers", "status"),
        [
            (NOTICE, [JSON], 401),
            (NOTICE, [JSON, "X-API-Key: wrong"], 401),
            (NOTICE, [JSON, f"Authorization: Bearer {token(7)}"], 403),
            (NOTICE, [JSON, ADMIN, "Origin: https://elsewhere.example"], 403),
            (NOTICE, [ADMIN], 415),
            (NOTICE, [ADMIN, "Content-Type: text/plain"], 415),
            (f"{PREFIX}/notification/stats", [JSON, ADMIN], 405),
            (f"{PREFIX}/notification/batch-mark-read", [JSON], 401),
            ("/nowhere", [JSON, ADMIN], 404),
            ("/ws", [JSON], 405),
        ],
    )
    @pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]])
    async def test_refused_at_the_head(
        self, start: Any, path: str, headers: list[str], status: int, expect: list[str]
    ) -> None:
        probe = await start(auth=JWT)
        async with await Raw.connect(probe.port) as client:
            client.send(announce(path, *headers, *expect))
            found, body = await client.answer()
            assert found == status, body
            assert json.loads(body)["code"] == status
            assert client.headers["connection"] == "close"
            assert await client.end() == b""

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json"])
    async def test_a_body_for_a_probe_is_not_kept(self, start: Any, path: str, method: str) -> None:
        probe = await start(auth=JWT)
        async with await Raw.connect(probe.port) as client:
            client.send(announce(path, method=method), bytes(SIZE - 1))
            await client.writer.drain()
            await asyncio.sleep(0.02)
            assert held(probe) == 0
            client.send(b"x")
            assert await client.head() == (405 if method in ("POST", "OPTIONS") else 200)

    async def test_a_body_that_no_handler_reads_is_not_kept(self, start: Any) -> None:
        probe = await start(auth=JWT)
        async with await Raw.connect(probe.port) as client:
            client.send(announce(f"{PREFIX}/websocket/stats", ADMIN, method="GET"), bytes(SIZE - 1))
            await client.writer.drain()
            await asyncio.sleep(0.02)
            assert held(probe) == 0
            client.send(b"x")
            assert (await client.answer())[0] == 200

    async def test_who_may_is_asked_for_the_body(self, start: Any) -> None:
        probe = await start(auth=JWT)
        body = json.dumps({"content": "x"}).encode()
        async with await Raw.connect(probe.port) as client:
            client.send(announce(NOTICE, JSON, ADMIN, "Expect: 100-continue", size=len(body)))
            assert await client.head() == 100
            client.send(body)
            assert (await client.answer())[0] == 200


async def test_all_bodies_under_way_have_a_limit(start: Any) -> None:
    probe = await start(auth=JWT, limits={"max_bodies_bytes": 200_000})
    async with await Raw.connect(probe.port) as first, await Raw.connect(probe.port) as second:
        for client in (first, second):
            client.send(announce(NOTICE, JSON, ADMIN, size=150_000), bytes(140_000))
        done, waiting = await asyncio.wait(
            {asyncio.create_task(client.answer()): client for client in (first, second)},
            return_when=asyncio.FIRST_COMPLETED,
            timeout=10,
        )
        assert (len(done), len(waiting)) == (1, 1)
        status, body = done.pop().result()
        assert (status, json.loads(body)["error"]) == (503, "QUEUE_FULL")
        await until(lambda: held(probe) == 140_000)
        published = await probe.post("/system/notice", {"content": "x"}, headers={"X-API-Key": API_KEY})
        assert published.status_code == 200, "what comes whole is served"
        assert 'pushd_handshakes_rejected_total{reason="bodies_full"} 1.0' in (await probe.http.get("/metrics")).text
        for task in waiting:
            task.cancel()
    await until(lambda: held(probe) == 0)


async def test_scrapes_are_fresh_now_and_then(probe: Probe) -> None:
    made: list[float] = []

    def note_time() -> list[Metric]:
        made.append(time.monotonic())
        return []

    async def has_made(count: int) -> bool:
        await probe.http.get("/metrics")
        return len(made) >= count

    probe.node.metrics.read_at_scrape(note_time)
    for count in range(1, FRESH_EXPOSITIONS + 1):
        await until(partial(has_made, count))  # the making rests in between
    assert made[-1] - made[0] < FRESH_EXPOSITIONS / 2, "they wait for that alone"
    answers = {(await probe.http.get("/metrics")).text for _ in range(50)}
    assert len(made) <= FRESH_EXPOSITIONS + 1 + made[-1] - made[0]
    published = await probe.publish()
    assert published["status"] == "delivered"
    await until(lambda: _has_another(probe, answers))


async def _has_another(probe: Probe, answers: set[str]) -> bool:
    return (await probe.http.get("/metrics")).text not in answers


class TestPerAddress:
    async def test_http_and_websockets_count_together_and_once(self, start: Any) -> None:
        probe = await start(limits={"max_connections_per_ip": 3})
        addresses = probe.node.shared.addresses
        clients = [await Raw.websocket(probe.port, f"/ws?user_id={user_id}") for user_id in (1, 2)]
        assert addresses.open_from("127.0.0.1") == 2
        async with await Raw.connect(probe.port) as third:
            third.send(raw.upgrade("/ws?user_id=3"))
            assert await third.head() == 101
            async with await Raw.connect(probe.port) as fourth:
                fourth.send(raw.upgrade("/ws?user_id=4"))
                status, body = await fourth.answer()
                assert (status, json.loads(body)["error"]) == (429, "RATE_LIMITED")
        await until(lambda: addresses.open_from("127.0.0.1") == 2)
        for client in clients:
            client.reset()
        await until(lambda: addresses.open_from("127.0.0.1") == 0)

    async def test_an_upgrade_is_one_connect(self, start: Any) -> None:
        probe = await start(limits={"connects_per_ip_per_min": 2})
        for user_id in (1, 2):
            (await Raw.websocket(probe.port, f"/ws?user_id={user_id}")).reset()
        async with await Raw.connect(probe.port) as third:
            third.send(raw.upgrade("/ws?user_id=3"))
            assert await third.head() == 429

    async def test_behind_a_proxy_ipv6_counts_by_64(self, start: Any) -> None:
        probe = await start(limits={"max_connections_per_ip": 1}, server={"trusted_proxies": ["127.0.0.0/8"]})
        statuses, clients = [], []
        for address in ("2001:db8::1", "2001:DB8:0:0::2", "2001:db8:0:1::1", "192.0.2.1", "::ffff:192.0.2.1"):
            client = await Raw.connect(probe.port)
            clients.append(client)
            client.send(raw.upgrade("/ws", f"X-Forwarded-For: {address}"))
            statuses.append(await client.head())
        for client in clients:
            client.reset()
        assert statuses == [101, 429, 101, 101, 429]
