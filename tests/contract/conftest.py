"""Every contract test runs against every implementation of the ports, through a `Node`."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from pushd.config import Config, MailboxConfig, ServerConfig
from pushd.model import User
from pushd.ports import Stores
from pushd.stores.sqlite import import_users, open_stores

START_MS = 1_700_000_000_000
MAX_PER_USER = 5
TTL_DAYS = 7


class Clock:
    """The time, in milliseconds since the epoch; tests move it."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class Node(Protocol):
    """Opened stores, and what a test needs to see and do behind the ports' back."""

    stores: Stores
    clock: Clock

    async def restart(self) -> None:
        """Close the stores and open them again on the same data."""

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What is stored, with the names of CONTRACT section 5, times in milliseconds or None, flags 0 or 1."""

    def fill_directory(self, users: list[User]) -> None:
        """Put users where the directory reads them."""


class SqliteNode:
    def __init__(self, data_dir: Path) -> None:
        self.clock = Clock()
        self._data_dir = data_dir
        self._open = AsyncExitStack()

    async def start(self) -> None:
        config = Config(
            server=ServerConfig(data_dir=str(self._data_dir)),
            mailbox=MailboxConfig(max_per_user=MAX_PER_USER, ttl_days=TTL_DAYS),
        )
        self.stores = await self._open.enter_async_context(open_stores(config, clock=self.clock))

    async def stop(self) -> None:
        await self._open.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def rows(self, table: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self._data_dir / "pushd.db")) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]

    def fill_directory(self, users: list[User]) -> None:
        import_users(str(self._data_dir), users)


IMPLEMENTATIONS: dict[str, Callable[[Path], SqliteNode]] = {"sqlite": SqliteNode}


@pytest.fixture(params=list(IMPLEMENTATIONS))
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    opened = IMPLEMENTATIONS[request.param](tmp_path / "data")
    await opened.start()
    try:
        yield opened
    finally:
        await opened.stop()


@pytest.fixture
def stores(node: Node) -> Stores:
    return node.stores
