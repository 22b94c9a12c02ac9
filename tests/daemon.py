"""Clients we did not write, pointed at a daemon: `websockets` and `httpx`; and a daemon in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import tomli_w
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PREFIX = "/api/admin"
PATIENCE_S = 10.0


async def until(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """Wait for a condition that something else brings about."""
    async with asyncio.timeout(within_s):
        while True:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.005)


class Client:
    """One WebSocket client, speaking JSON."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.hello: dict[str, Any] = {}

    async def receive(self, within_s: float = PATIENCE_S) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            return json.loads(await self.ws.recv())

    async def receive_ids(self, count: int) -> list[str]:
        return [(await self.receive())["message_id"] for _ in range(count)]

    async def receive_until_close(self) -> list[dict[str, Any]]:
        messages = []
        try:
            while True:
                messages.append(await self.receive())
        except ConnectionClosed:
            return messages

    async def send(self, message: dict[str, Any]) -> None:
        await self.ws.send(json.dumps(message))

    async def ack(self, *message_ids: str) -> None:
        await self.send({"type": "ack", "message_ids": list(message_ids)})

    async def closed(self, within_s: float = PATIENCE_S) -> int:
        """The code the server closed with."""
        async with asyncio.timeout(within_s):
            await self.receive_until_close()
            await self.ws.wait_closed()
        return self.ws.close_code or 0

    async def is_quiet(self, for_s: float = 0.15) -> bool:
        """Nothing arrives for a while. For what must not come: there is no event to wait for."""
        try:
            await self.receive(for_s)
        except TimeoutError:
            return True
        return False


class Probe:
    """HTTP and WebSocket clients of one daemon."""

    def __init__(self, port: int, node: Any = None, *, host: str = "127.0.0.1", headers: dict[str, str] | None = None):
        self.port = port
        self.node = node
        self.host = host
        self._stack = AsyncExitStack()
        self.http = httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers, timeout=PATIENCE_S)

    async def __aenter__(self) -> Probe:
        await self._stack.enter_async_context(self.http)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def open(self, path: str = "/ws", **options: Any) -> ClientConnection:
        """A raw WebSocket, closed at the end."""
        url = f"ws://{self.host}:{self.port}{path}"
        return await self._stack.enter_async_context(connect(url, **{"compression": None, **options}))

    async def client(self, user_id: int | None = None, *, ack: bool = False, query: str = "", **options: Any) -> Client:
        """A client that has had its hello."""
        fields = [f"user_id={user_id}" if user_id is not None else "", "ack=1" if ack else "", query]
        client = Client(await self.open("/ws?" + "&".join(filter(None, fields)), **options))
        client.hello = await client.receive()
        return client

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.http.post(PREFIX + path, json=body, **options)

    async def get(self, path: str, **options: Any) -> Any:
        response = await self.http.get(PREFIX + path, **options)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def publish(self, content: str = "notice", *, wait_ms: int = 5000, **fields: Any) -> dict[str, Any]:
        response = await self.post(f"/system/notice?wait_ms={wait_ms}", {"content": content, **fields})
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def mailbox(self, user_id: int) -> list[str]:
        """What waits for a user, oldest first."""
        data = await self.get("/notification/offline-messages", params={"user_id": user_id})
        return [item["message_id"] for item in reversed(data["offline_messages"])]

    async def receive_status(self, message_id: str) -> dict[str, Any]:
        return await self.get(f"/notification/messages/{message_id}/receive-status")


class Process:
    """A daemon in a process of its own: it can be signalled and killed, and started again on the same data."""

    def __init__(self, directory: Path, /, **sections: dict[str, Any]) -> None:
        server = {"port": 0, "data_dir": str(directory / "data"), "drain_s": 1} | sections.pop("server", {})
        log = {"level": "info", "format": "json"} | sections.pop("log", {})
        self.config_file = directory / "pushd.toml"
        self.config_file.write_text(tomli_w.dumps({"server": server, "log": log, **sections}))
        self.log_file = directory / "pushd.log"
        self.port = 0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *, environ: dict[str, str] | None = None) -> Probe:
        """Run it; the probe is not entered yet."""
        offset = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pushd", "--config", str(self.config_file),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(environ or {})},
            )  # fmt: skip
        self.port = await until(lambda: self._serving_port(offset))
        return Probe(self.port)

    def _serving_port(self, offset: int) -> int:
        assert self.process is not None
        assert self.process.returncode is None, self.log_file.read_text()
        for event in self.events(offset):
            if event.get("event") == "serving":
                return int(event["port"])
        return 0

    def events(self, offset: int = 0) -> Iterable[dict[str, Any]]:
        """What it logged."""
        with self.log_file.open() as log:
            log.seek(offset)
            lines = log.read().splitlines()
        for line in lines:
            if line.startswith("{"):
                yield json.loads(line)

    async def signal(self, signum: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    async def ended(self, within_s: float = 20.0) -> int:
        """Its exit status; negative: the signal that killed it."""
        assert self.process is not None
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def kill(self) -> None:
        """As a power cut to the process: no time for anything."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.kill()
