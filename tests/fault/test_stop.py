"""Stopping, whatever clients and stores do meanwhile (CONTRACT section 1): exit 0 within `drain_s` + 5 s."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests import raw
from tests.certificates import certificate as certificate  # a fixture
from tests.daemon import PREFIX, Process, until
from tests.raw import Raw

DRAIN_S = 1
WITHIN_S = DRAIN_S + 5


async def stopped(daemon: Process, within_s: float = WITHIN_S) -> float:
    """SIGTERM, and how long it took; its exit status is 0."""
    began = time.monotonic()
    await daemon.signal(signal.SIGTERM)
    assert await daemon.ended(within_s) == 0
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def crowd(clients: int, client: Callable[[int], Awaitable[None]]) -> AsyncIterator[None]:
    """So many that do the same again and again, until the block ends; the daemon is gone by then."""
    is_over = False

    async def again(number: int) -> None:
        while not is_over:
            with contextlib.suppress(OSError, EOFError, ssl.SSLError):
                await client(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(again(number)) for number in range(clients)]
    try:
        yield
    finally:
        is_over = True
        _, late = await asyncio.wait(tasks, timeout=5)
        for task in late:
            task.cancel()


@contextlib.asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("is_secure", [False, True])
async def test_clients_that_reconnect_at_once(tmp_path: Path, is_secure: bool, certificate: dict[str, str]) -> None:
    trust = ssl.create_default_context(cafile=certificate["tls_cert"]) if is_secure else None
    options: dict[str, Any] = {"ssl": trust, "server_hostname": "localhost"} if is_secure else {}
    opened = asyncio.Event()

    async def client(number: int) -> None:
        async with connected(daemon.port, **options) as (reader, writer):
            writer.write(raw.upgrade(f"/ws?user_id={number + 1}&ack=1"))
            while await reader.read(4096):
                opened.set()

    server = {"drain_s": DRAIN_S} | (certificate if is_secure else {})
    async with Process(tmp_path, server=server) as daemon:
        await daemon.start()
        async with crowd(100 if is_secure else 300, client):
            await opened.wait()
            await stopped(daemon)


async def test_connections_that_open_and_go_without_a_word(tmp_path: Path) -> None:
    count = 0

    async def client(_: int) -> None:
        nonlocal count
        async with connected(daemon.port):
            count += 1

    async with Process(tmp_path, server={"drain_s": DRAIN_S}) as daemon:
        await daemon.start()
        async with crowd(100, client):
            await until(lambda: count > 1000)
            await stopped(daemon)


async def test_clients_that_do_nothing_any_more(tmp_path: Path) -> None:
    """They never answer a CLOSE, read nothing, stop in the midst of a head or a body, wait for an answer."""
    head = (
        f"POST {PREFIX}/system/notice?wait_ms=30000 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    body = b'{"content":"x","target":"custom","user_ids":[1]}'
    limits = {"handshake_timeout_s": 60}
    async with Process(tmp_path, server={"drain_s": DRAIN_S}, limits=limits) as daemon:
        probe = await daemon.start()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(probe)
            clients = []
            for number in range(20):
                stuck = await Raw.websocket(daemon.port, f"/ws?user_id={number + 1}&ack=1", receive_buffer=4096)
                clients.append(await stack.enter_async_context(stuck))
            for begun in (
                b"",
                b"GET /readyz HT",
                b"GET /readyz HTTP/1.1\r\nHost: loc",
                head.encode() + b"Content-Length: 100000\r\n\r\n" + b"x" * 1000,
                head.encode() + b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc",
                head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body,
            ):
                half = await stack.enter_async_context(await Raw.connect(daemon.port))
                half.send(begun)
                clients.append(half)
            for client in clients:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(10):
                await probe.publish("x" * 500, target="all", data="x" * 60_000, wait_ms=0)
            await stopped(daemon)


async def test_tls_handshakes_that_are_never_finished(tmp_path: Path, certificate: dict[str, str]) -> None:
    hello = bytes.fromhex("16030100f8010000f40303")  # a ClientHello's first bytes
    async with Process(tmp_path, server={"drain_s": DRAIN_S, **certificate}) as daemon:
        await daemon.start()
        async with contextlib.AsyncExitStack() as stack:
            for number in range(50):
                _, writer = await stack.enter_async_context(connected(daemon.port))
                writer.write(hello if number % 2 else b"")

            async def client(_: int) -> None:
                async with connected(daemon.port) as (_, writer):
                    writer.write(hello)

            async with crowd(20, client):
                await asyncio.sleep(0.2)
                await stopped(daemon)


async def test_a_database_that_another_process_holds(tmp_path: Path) -> None:
    async with Process(tmp_path, server={"drain_s": DRAIN_S}) as daemon:
        async with await daemon.start() as probe:
            accepted = [(await probe.publish(target="custom", user_ids=[7], wait_ms=0))["message_id"] for _ in range(5)]
            with contextlib.closing(sqlite3.connect(tmp_path / "data" / "pushd.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                waiting = [asyncio.create_task(probe.post("/system/notice", {"content": "x"})) for _ in range(3)]
                await asyncio.sleep(0.1)
                await stopped(daemon)
                other.execute("ROLLBACK")
            await asyncio.gather(*waiting, return_exceptions=True)
        async with await daemon.start() as probe:
            client = await probe.client(7, ack=True)
            assert set(accepted) <= {(await client.receive())["message_id"] for _ in accepted}


async def test_a_reader_of_the_log_that_has_stopped_reading(tmp_path: Path) -> None:
    daemon = Process(tmp_path, server={"drain_s": DRAIN_S}, log={"level": "debug"})
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as pipe:
        daemon.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pushd", "--config", str(daemon.config_file), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=writing,
        )  # fmt: skip
        os.close(writing)
        async with daemon:
            said = b""
            while b'"port":' not in said or not said.endswith(b"\n"):
                said += await asyncio.to_thread(pipe.read, 4096)
            port = int(said.partition(b'"port":')[2].partition(b",")[0])
            for number in range(500):  # two lines each, far more than a pipe holds
                async with await Raw.websocket(port, f"/ws?user_id={number + 1}"):
                    pass
            await stopped(daemon)
