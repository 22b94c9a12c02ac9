"""Real servers that tests start for themselves, on free ports and in directories of their own."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.daemon import until


def redis_version() -> str:
    """What the installed server calls itself."""
    program = shutil.which("redis-server")
    if program is None:
        return "no Redis"
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return "Redis " + next(word for word in words if word.startswith("v=")).removeprefix("v=")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RedisServer:
    """A redis-server that keeps nothing. It can be stopped, started again on the same port, and frozen.

    `options` are the server's, without the dashes: ("maxmemory", "5mb").
    """

    def __init__(self, directory: Path, *, password: str = "", options: Sequence[str] = ()) -> None:
        self.port = free_port()
        secret = f":{password}@" if password else ""
        self.url = f"redis://{secret}127.0.0.1:{self.port}/0"
        self._directory = directory
        self._options = [*options, *(("requirepass", password) if password else ())]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        pairs = zip(self._options[::2], self._options[1::2], strict=True)
        self._process = await asyncio.create_subprocess_exec(
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            *(word for name, value in pairs for word in (f"--{name}", *(value.split() or [""]))),
            cwd=self._directory, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await until(self._answers)

    async def _answers(self) -> bool:
        try:
            async with self.client() as client:
                return bool(await client.ping())
        except RedisError:
            return False

    async def stop(self) -> None:
        """At once; connections are reset."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        """It neither answers nor refuses."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> Redis:
        """A client of the test's own, for `async with`."""
        return Redis.from_url(self.url)

    async def command(self, *words: str | int) -> Any:
        """Any command, and its answer."""
        async with self.client() as client:
            return await client.execute_command(*words)

    async def set(self, key: str, value: str = "1") -> None:
        await self.command("SET", key, value)


SLOTS = 16384


class RedisClusterServers:
    """A Redis Cluster of so many primaries, without replicas; `url` is the first one's."""

    def __init__(self, directory: Path, count: int) -> None:
        self._buses = [free_port() for _ in range(count)]
        self.nodes = [
            RedisServer(
                directory,
                options=(
                    "cluster-enabled", "yes", "cluster-port", str(bus), "cluster-config-file", f"nodes-{bus}.conf",
                ),
            )
            for bus in self._buses
        ]  # fmt: skip
        self.url = self.nodes[0].url

    async def start(self) -> None:
        share = SLOTS // len(self.nodes)
        for index, node in enumerate(self.nodes):
            await node.start()
            last = SLOTS - 1 if node is self.nodes[-1] else (index + 1) * share - 1
            await node.command("CLUSTER ADDSLOTSRANGE", index * share, last)
            await node.command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for node, bus in zip(self.nodes[1:], self._buses[1:], strict=True):
            await self.nodes[0].command("CLUSTER MEET", "127.0.0.1", node.port, bus)
        for node in self.nodes:
            await until(lambda node=node: self._is_complete(node))

    async def _is_complete(self, node: RedisServer) -> bool:
        about = await node.command("CLUSTER INFO")
        text = about.decode() if isinstance(about, bytes) else str(about)
        return about["cluster_state"] == "ok" if isinstance(about, dict) else "cluster_state:ok" in text

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A running Redis."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
