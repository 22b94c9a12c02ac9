"""`server.tls_cert`: https:// and wss:// end to end, slow and broken clients included."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests import raw
from tests.certificates import certificate as certificate  # a fixture
from tests.daemon import PATIENCE_S, PREFIX, Client, Probe, until
from tests.raw import Raw

StartTls = Callable[..., Any]


@pytest.fixture
def trust(certificate: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate["tls_cert"])


@pytest.fixture
async def start_tls(start: Any, certificate: dict[str, str], trust: ssl.SSLContext) -> AsyncIterator[StartTls]:
    """As `start`; the probe's HTTP client speaks TLS."""
    clients: list[httpx.AsyncClient] = []

    async def start_one(**sections: Any) -> Probe:
        probe: Probe = await start(server=certificate | sections.pop("server", {}), **sections)
        await probe.http.aclose()
        probe.http = httpx.AsyncClient(base_url=f"https://localhost:{probe.port}", verify=trust, timeout=PATIENCE_S)
        clients.append(probe.http)
        return probe

    yield start_one
    for client in clients:
        await client.aclose()


async def test_https_and_wss(start_tls: StartTls, trust: ssl.SSLContext) -> None:
    probe = await start_tls()
    waiting = await probe.publish("你好", target="custom", user_ids=[7], data="x" * 60_000)
    async with connect(f"wss://localhost:{probe.port}/ws?user_id=7&ack=1", ssl=trust) as ws:
        client = Client(ws)
        assert (await client.receive())["type"] == "hello"
        assert (await client.receive())["content"] == "你好"
        await client.ack(waiting["message_id"])
        ids = [(await probe.publish(str(number), target="all"))["message_id"] for number in range(50)]
        assert await client.receive_ids(50) == ids
        await client.ack(*ids)
        await client.send({"type": "ping"})
        assert (await client.receive())["type"] == "pong"
        await (await ws.ping(b"payload"))
        origin = {"origin": f"https://localhost:{probe.port}"}
        assert (await probe.http.get(f"{PREFIX}/ws/stats", headers=origin)).status_code == 200
    assert (ws.close_code, ws.close_reason) == (1000, "")
    await until(lambda: not probe.node.gateway.open_sockets)
    assert await probe.mailbox(7) == []


async def test_compressed_and_plain_clients(start_tls: StartTls, trust: ssl.SSLContext) -> None:
    probe = await start_tls(server={"compression": "on"})
    url = f"wss://localhost:{probe.port}/ws"
    async with connect(url, ssl=trust) as squeezed, connect(url, ssl=trust, compression=None) as plain:
        assert squeezed.protocol.extensions
        clients = [Client(squeezed), Client(plain)]
        for client in clients:
            assert (await client.receive())["type"] == "hello"
        await probe.publish("again " * 80, target="online", data=["row"] * 5000)
        received = [await client.receive() for client in clients]
        assert received[0] == received[1]
        assert received[0]["data"] == ["row"] * 5000


async def test_a_browsers_upgrade_with_frames_behind_it(start_tls: StartTls, trust: ssl.SSLContext) -> None:
    probe = await start_tls()
    async with await Raw.connect(probe.port, tls=trust) as client:
        upgrade = raw.upgrade("/ws?user_id=7", "Connection: keep-alive, Upgrade", "User-Agent: " + "x" * 1000)
        client.send(upgrade, raw.frame(raw.PING, b"x"), raw.frame(raw.TEXT, b'{"type":"ping"}'))
        assert await client.head() == 101
        opcodes = sorted([(await client.frame()).opcode for _ in range(3)])
        assert opcodes == [raw.TEXT, raw.TEXT, raw.PONG]


@pytest.mark.parametrize(
    ("code", "frames"),
    [
        (1002, [raw.frame(raw.TEXT, b"x", masked=False)]),
        (1002, [raw.close(999)]),
        (1003, [raw.frame(raw.BINARY, b"x")]),
        (1007, [raw.frame(raw.TEXT, b"\xff")]),
        (1009, [raw.frame(raw.TEXT, b"x" * 17_000)]),
    ],
)
async def test_violations(start_tls: StartTls, trust: ssl.SSLContext, code: int, frames: list[bytes]) -> None:
    probe = await start_tls()
    async with await Raw.websocket(probe.port, tls=trust) as client:
        client.send(*frames)
        while (received := await client.frame()).opcode != raw.CLOSE:
            pass
        assert received.close_code == code
    await until(lambda: not probe.node.gateway.open_sockets)


@pytest.mark.parametrize("query", ["", "&ack=1"])
async def test_a_slow_reader(start_tls: StartTls, trust: ssl.SSLContext, query: str) -> None:
    probe = await start_tls(limits={"max_pending_bytes": 64 * 1024})
    hub = probe.node.hub
    ids = []
    async with (
        connect(f"wss://localhost:{probe.port}/ws?user_id=8", ssl=trust) as ws,
        await Raw.websocket(probe.port, f"/ws?user_id=7{query}", receive_buffer=4096, tls=trust) as slow,
    ):
        other = Client(ws)
        await other.receive()
        slow.writer.transport.pause_reading()
        while not hub.slow_consumers:
            ids.append((await probe.publish(target="custom", user_ids=[7, 8], data="x" * 16_000))["message_id"])
        assert await other.receive_ids(len(ids)) == ids
        waiting = await probe.mailbox(7)
        slow.writer.transport.resume_reading()
        received = []
        while (item := await slow.frame()).opcode != raw.CLOSE:
            received.append(json.loads(item.payload)["message_id"])
        assert item.close_code == 4008
    assert received == ids[: len(received)]
    assert waiting == ids[len(ids) - len(waiting) :]
    assert len(received) + len(waiting) >= len(ids)


async def test_a_slow_reader_that_never_reads_again(start_tls: StartTls, trust: ssl.SSLContext) -> None:
    probe = await start_tls(limits={"max_pending_bytes": 64 * 1024})
    async with await Raw.websocket(probe.port, "/ws?user_id=7", receive_buffer=4096, tls=trust) as slow:
        slow.writer.transport.pause_reading()
        while not probe.node.hub.slow_consumers:
            await probe.publish(target="custom", user_ids=[7], data="x" * 16_000)
        await until(lambda: not probe.node.gateway.open_sockets)


async def test_a_reset(start_tls: StartTls, trust: ssl.SSLContext) -> None:
    probe = await start_tls()
    client = await Raw.websocket(probe.port, "/ws?user_id=7", tls=trust)
    client.reset()
    await until(lambda: not probe.node.hub.connections_total and not probe.node.gateway.open_sockets)


async def test_no_answer_without_tls(start_tls: StartTls, trust: ssl.SSLContext) -> None:
    probe = await start_tls()
    async with await Raw.connect(probe.port) as client:
        client.send(raw.upgrade())
        assert not (await client.end()).startswith(b"HTTP")
    assert (await probe.http.get("/healthz")).status_code == 200


async def test_drain(start_tls: StartTls, trust: ssl.SSLContext) -> None:
    probe = await start_tls()
    async with connect(f"wss://localhost:{probe.port}/ws?user_id=7", ssl=trust) as ws:
        client = Client(ws)
        await client.receive()
        await probe.node.drain()
        assert await client.closed() == 1012
