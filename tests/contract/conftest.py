"""Every contract test runs against every implementation of its port, through a `Node`.

A module names the implementations it is for as `IMPLEMENTATIONS`; without it there is the embedded one.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Any

import pytest

from pushd.config.schema import Config, MailboxConfig, ServerConfig
from pushd.model import Membership, Notice, PushRecord, Target, TargetKind, User
from pushd.ports import Stores
from pushd.stores import open_stores
from pushd.stores.sqlite import import_groups, import_users, journal
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.thread import Connections, SqliteThread
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.telemetry.supervision import supervised
from tests import stored
from tests.mariadb import found
from tests.samples import notice

START_MS = 1_700_000_000_000
MAX_PER_USER = 5
TTL_DAYS = 7
BOTH_SHAPES = (TargetKind.ONLINE, TargetKind.ALL)

# Where the other nodes are, and the server each one starts.
NODES = {
    "cold": ("cold_node", "ColdNode", ""),
    "redis": ("redis_node", "RedisNode", "redis-server"),
    "mongodb": ("mongo_node", "MongoNode", ""),
    "mysql": ("mysql_node", "MysqlNode", "mariadbd"),
}


class Clock:
    """The time, in milliseconds since the epoch; tests move it."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class Node:
    """Opened stores, and what a test needs to see and do behind the ports' back. This one has the embedded stores."""

    stores: Stores
    keeps_records = True  # in the ledger
    max_per_user = MAX_PER_USER

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.directory = self._root = directory
        self.accepted: dict[str, Notice] = {}
        self._last_seq = 0
        self._open = AsyncExitStack()

    def sections(self) -> dict[str, Any]:
        """What the configuration says beside the directory and the mailbox's limits."""
        return {}

    def mailbox_section(self) -> dict[str, Any]:
        """What it says of the mailbox beside its limits."""
        return {}

    def needs(self, what: str) -> None:
        """Skip the test where the server behind the stores has it not."""

    async def begin(self) -> None:
        """Start what the stores need."""

    async def end(self) -> None:
        """Stop it."""

    async def start(self) -> None:
        config = Config(
            server=ServerConfig(data_dir=str(self.directory / "data")),
            mailbox=MailboxConfig(max_per_user=self.max_per_user, ttl_days=TTL_DAYS, **self.mailbox_section()),
            **self.sections(),
        )
        self.stores = await self._open.enter_async_context(open_stores(config, _ignored, self.clock))
        self.metrics = Metrics()
        self.health = Health(self.metrics, monotonic)
        await self._open.enter_async_context(supervised(self.stores.background, self.health, first_pause_s=0.0))

    def renew(self) -> None:
        """Let the next start find nothing."""
        self.directory = Path(mkdtemp(dir=self._root))
        self.clock.now_ms = START_MS
        self.accepted.clear()
        self._last_seq = 0

    async def stop(self) -> None:
        await self._open.aclose()

    async def restart(self) -> None:
        """Close the stores and open them again on the same data."""
        await self.stop()
        await self.start()

    async def accept(self, *message_ids: str, **fields: Any) -> list[Notice]:
        """Appends a notice with each of these ids to the journal: the ledger has receipts and copies of such only.

        Accepted at 1000 where nothing else is said; the time never goes back from call to call. Half of them are to
        all: their receipts have blocks of their own.
        """
        notices = [
            notice(seq, message_id=message_id, **({"target": Target(BOTH_SHAPES[seq % 2])} | fields))
            for seq, message_id in enumerate(message_ids, self._last_seq + 1)
        ]
        self._last_seq += len(notices)
        await self.stores.journal.append(notices)
        for accepted in notices:
            self.accepted.setdefault(accepted.message_id, accepted)
        return notices

    def follow(self, seq: int) -> None:
        """What is accepted next comes behind it."""
        self._last_seq = seq

    def record(self, message_id: str, status: str = "accepted", total: int = 0, online: int = 0) -> PushRecord:
        """The push record of a notice that was accepted."""
        return PushRecord(self.accepted[message_id], status, total, online)

    @asynccontextmanager
    async def thread(self) -> AsyncIterator[SqliteThread]:
        """Another thread that writes to the database, for stores with limits of the test's own."""
        path = self.directory / "data" / "pushd.db"
        durable, relaxed = (open_connection(path, synchronous=mode) for mode in ("FULL", "NORMAL"))
        thread = SqliteThread(Connections(durable, relaxed), journal.commit)
        yield thread
        await thread.aclose()

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What is stored, with the names of CONTRACT section 5, times in milliseconds or None, flags 0 or 1."""
        return stored.rows(self.directory, table)

    def fill_directory(self, users: list[User]) -> None:
        """Put users where the directory reads them."""
        import_users(str(self.directory / "data"), users)

    def fill_groups(self, groups: dict[str, tuple[str, list[int]]]) -> None:
        """Let these groups have these titles and users from now on, where the directory reads them."""
        memberships = [
            Membership(line, name, user_id, title)
            for line, (name, (title, user_ids)) in enumerate(groups.items())
            for user_id in user_ids or [None]
        ]
        import_groups(str(self.directory / "data"), memberships, source="groups.csv")


def _ignored(store: str, operation: str, seconds: float, is_ok: bool) -> None:
    """Contract tests do not look at metrics."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "node" in metafunc.fixturenames:
        metafunc.parametrize("node", getattr(metafunc.module, "IMPLEMENTATIONS", ("sqlite",)), indirect=True)


def _node(name: str, directory: Path) -> Node:
    if name == "sqlite":
        return Node(directory)
    module, kind, server = NODES[name]
    if server and found(server) is None:
        pytest.skip(f"{server} is not installed")
    made: Node = getattr(importlib.import_module(f"tests.contract.{module}"), kind)(directory)
    return made


@pytest.fixture
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    opened = _node(request.param, tmp_path)
    try:
        await opened.begin()
        await opened.start()
        yield opened
    finally:
        await opened.stop()
        await opened.end()


@pytest.fixture
def stores(node: Node) -> Stores:
    return node.stores
