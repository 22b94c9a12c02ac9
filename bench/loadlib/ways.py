"""The same work for many recipients in two ways: through our stores, and with one command or query per recipient."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import aiomysql  # type: ignore[import-untyped]
from motor.motor_asyncio import AsyncIOMotorClient
from redis.asyncio import BlockingConnectionPool, Redis

from bench.loadlib.canned import CONTENT
from bench.loadlib.options import LoadError
from pushd.clock import wall_ms
from pushd.config.schema import Config, DirectoryConfig, MailboxConfig, RecordsConfig, ServerConfig
from pushd.model import (
    Channel,
    DeliveryStatus,
    MailboxItem,
    Notice,
    Outcome,
    PushRecord,
    Receipt,
    Target,
    TargetKind,
    User,
    UserId,
)
from pushd.ports import Stores
from pushd.stores import open_stores
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.telemetry.supervision import supervised

T = TypeVar("T")
Work = Callable[[int], Awaitable[None]]  # the number of the round, from 0; raises LoadError when it was not done

TEXT = CONTENT.decode()
MAX_PER_USER, TTL_S, WAITING = 100, 7 * 86_400, 5
FORGOTTEN_AT_ONCE = 200
OLD_PREFIX = "old:"
INDEXES = (([("user_id", 1), ("created_at", -1)], False), ([("message_id", 1), ("user_id", 1)], True),
           ([("is_online", 1), ("delivery_status", 1)], False))  # fmt: skip


async def nothing(number: int) -> None:
    """Nothing has to be prepared."""


@dataclass(frozen=True)
class Task:
    """What is compared. `server`: whose round trips count; `old` is None where there is nothing to compare with."""

    name: str
    server: str
    ours: Work
    old: Work | None
    prepare: Work = nothing  # not timed


@dataclass(frozen=True)
class Ports:
    """Where the servers are, or proxies before them."""

    redis: int
    mysql: int
    mongo: str
    database: str


def check(is_so: bool, otherwise: str) -> None:
    """Raises LoadError: what was to be measured did not happen."""
    if not is_so:
        raise LoadError(f"not done: {otherwise}")


def item(message_id: str) -> MailboxItem:
    """A notice that waits."""
    return MailboxItem("bench", TEXT, message_id, time="2026-01-01 00:00:00", ts=wall_ms())


def receipts(message_id: str, users: int) -> list[Receipt]:
    """Receive records as a fan-out to users who are connected leaves them."""
    outcome = received()
    return [
        Receipt(message_id, user_id, f"user{user_id}", 2, f"c{user_id}", "10.0.0.1", "bench", outcome)
        for user_id in range(1, users + 1)
    ]


def received() -> Outcome:
    """By whoever is connected."""
    at_ms = wall_ms()
    return Outcome(at_ms, True, at_ms, DeliveryStatus.DELIVERED, Channel.WEBSOCKET)


def push_record(message_id: str, users: int, seq: int) -> PushRecord:
    """That of the notice."""
    return PushRecord(Notice(seq, message_id, TEXT, Target(TargetKind.ALL), wall_ms()), "success", users, users)


class Round:
    """The records that both ways write, made before the clock runs: in the daemon a fan-out makes them in slices."""

    def __init__(self, users: int) -> None:
        self._users = users
        self.record = push_record("", 0, 0)
        self.receipts: list[Receipt] = []

    async def prepare(self, number: int) -> None:
        self.record = push_record(f"m{number}", self._users, number + 1)
        self.receipts = receipts(f"m{number}", self._users)


async def each(values: Iterable[T], work: Callable[[T], Awaitable[object]], at_once: int) -> None:
    """`work` for each value, so many at a time."""
    waiting = iter(values)

    async def worker() -> None:
        for value in waiting:
            await work(value)

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def let_go(found: dict[UserId, list[Any]]) -> None:
    """Forget what was read user by user: all of it at once would hold up the loop, and nobody keeps all of it."""
    while found:
        for _ in range(min(len(found), FORGOTTEN_AT_ONCE)):
            found.popitem()
        await asyncio.sleep(0)


# ---- the old way


class OldWay:
    """Plain driver calls, one recipient at a time, or `at_once`."""

    def __init__(self, redis: Any, pool: Any, collection: Any, this: Round, users: int, at_once: int) -> None:
        self._redis = redis
        self._pool = pool
        self._collection = collection
        self._round = this
        self._users = range(1, users + 1)
        self._readers = range(users + 1, 2 * users + 1)
        self._at_once = at_once

    async def save(self, number: int) -> None:
        element = json.dumps({"type": "bench", "content": TEXT, "message_id": f"m{number}", "ts": wall_ms()})

        async def one(user_id: int) -> None:
            key = f"{OLD_PREFIX}{user_id}"
            await self._redis.lpush(key, element)
            await self._redis.ltrim(key, 0, MAX_PER_USER - 1)
            await self._redis.expire(key, TTL_S)

        await each(self._users, one, self._at_once)

    async def read(self, number: int) -> None:
        found: dict[UserId, list[Any]] = {}

        async def one(user_id: int) -> None:
            elements = await self._redis.lrange(f"new:{user_id}", 0, -1)
            found[user_id] = [json.loads(element) for element in reversed(elements)]

        await each(self._readers, one, self._at_once)
        check(sum(map(len, found.values())) == WAITING * len(self._users), "old way: not all mailboxes read")
        await let_go(found)

    async def write(self, number: int) -> None:
        now = datetime.now(UTC)

        async def one(receipt: Receipt) -> None:
            await self._collection.insert_one(
                {
                    "message_id": receipt.message_id, "user_id": receipt.user_id, "username": receipt.username,
                    "user_role": receipt.role, "is_online": True, "is_received": True, "received_at": now,
                    "is_read": False, "read_at": None, "is_confirmed": False, "confirmed_at": None, "device_type": "",
                    "platform": "", "browser": "", "client_ip": receipt.client_ip, "user_agent": receipt.user_agent,
                    "connection_id": receipt.connection_id, "push_channel": "websocket",
                    "delivery_status": "delivered", "retry_count": 0, "error_message": None, "created_at": now,
                    "updated_at": now,
                }
            )  # fmt: skip

        await each(self._round.receipts, one, self._at_once)

    async def look_up(self, number: int) -> None:
        found: dict[int, User] = {}

        async def one(user_id: int) -> None:
            async with self._pool.acquire() as connection, connection.cursor() as cursor:
                await cursor.execute("SELECT id, username, user_type FROM user WHERE id = %s", (user_id,))
                row = await cursor.fetchone()
                found[user_id] = User(*row)

        await each(self._users, one, self._at_once)
        check(len(found) == len(self._users), "old way: not all users found")


@asynccontextmanager
async def old_way(ports: Ports, this: Round, users: int, at_once: int) -> AsyncIterator[OldWay]:
    """With connections enough for `at_once`."""
    redis = Redis(connection_pool=BlockingConnectionPool(host="127.0.0.1", port=ports.redis, max_connections=at_once))
    pool = await aiomysql.create_pool(
        host="127.0.0.1", port=ports.mysql, user="root", db="bench", minsize=1, maxsize=at_once, autocommit=True
    )
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(ports.mongo)
    collection = client[ports.database]["old_receive_records"]
    for keys, is_unique in INDEXES:
        unique: dict[str, Any] = {"unique": True} if is_unique else {}
        await collection.create_index(keys, **unique)
    try:
        yield OldWay(redis, pool, collection, this, users, at_once)
    finally:
        await redis.aclose()
        pool.close()
        await pool.wait_closed()
        client.close()


# ---- ours


class OurWay:
    """The ports, as the daemon uses them."""

    def __init__(self, stores: Stores, this: Round, users: int) -> None:
        self._stores = stores
        self._round = this
        self._users = range(1, users + 1)
        self._readers = range(users + 1, 2 * users + 1)
        self._known = {user_id: User(user_id, f"user{user_id}", 2) for user_id in self._users}
        self._saved: list[Notice] = []
        self._noted: list[Notice] = []

    async def prepare(self) -> None:
        """Some have something waiting."""
        for number in range(WAITING):
            await self.append(f"r{number}")
            await self._stores.mailbox.save([(item(f"r{number}"), self._readers)])

    async def save(self, number: int) -> None:
        await self._stores.mailbox.save([(item(f"m{number}"), self._users)])

    async def read(self, number: int) -> None:
        found = await self._stores.mailbox.read(self._readers)
        check(sum(map(len, found.values())) == WAITING * len(self._users), "ours: not all mailboxes read")
        await let_go(found)

    async def write(self, number: int) -> None:
        await self._stores.records.write([self._round.record], self._round.receipts)

    async def append(self, message_id: str) -> Notice:
        """Accept a notice: what becomes of others the ledger ignores."""
        seq = await self._stores.journal.last_seq() + 1
        notice = Notice(seq, message_id, TEXT, Target(TargetKind.ALL), wall_ms())
        await self._stores.journal.append([notice])
        return notice

    async def prepare_save(self, number: int) -> None:
        self._saved.append(await self.append(f"m{number}"))

    async def prepare_note(self, number: int) -> None:
        self._noted.append(await self.append(f"n{number}"))
        self._round.record = PushRecord(self._noted[-1], "success", len(self._users), len(self._users))

    async def note(self, number: int) -> None:
        """As the daemon has it written, of recipients for whom no receipt has been made."""
        record = self._round.record
        notice, ledger = record.notice, self._stores.ledger
        assert ledger is not None, "embedded"
        clients = [ledger.client(*_client_of(user_id)) for user_id in self._users]
        ledger.note(notice.seq, notice.message_id, self._users, received(), clients, 0)
        ledger.name([(user, notice.seq) for user in self._known.values()])
        for client, _ in ledger.undescribed():
            ledger.describe(client, ("desktop", "Linux", "bench"))
        ledger.conclude(notice.seq, notice.message_id, record.status)
        await ledger.commit()

    async def check_written(self) -> None:
        """What was saved waits, and what was noted is on record. Raises LoadError."""
        for notice in self._noted:
            status = await self._stores.records.receive_status(notice.message_id)
            check(status is not None and status.received_users == len(self._users), "ours: not all is on record")
        found = await self._stores.mailbox.read(self._users)
        waiting = [notice.message_id for notice in self._saved]
        check(
            all([item.message_id for item in found.get(user_id, ())] == waiting for user_id in self._users),
            "ours: not all waits",
        )

    async def look_up(self, number: int) -> None:
        found = await self._stores.directory.users(self._users)
        check(len(found) == len(self._users), "ours: not all users found")


def _client_of(user_id: int) -> tuple[str, str, str]:
    return f"c{user_id}", "10.0.0.1", "bench"


@asynccontextmanager
async def our_way(directory: Path, ports: Ports | None, this: Round, users: int) -> AsyncIterator[OurWay]:
    """The stores outside, or those embedded."""
    sections: dict[str, Any] = {}
    if ports is not None:
        sections = {
            "mailbox": MailboxConfig(url=f"redis://127.0.0.1:{ports.redis}/0", key_prefix="new:"),
            "records": RecordsConfig(url=ports.mongo, database=ports.database),
            "directory": DirectoryConfig(url=f"mysql://root:@127.0.0.1:{ports.mysql}/bench"),
        }
    directory.mkdir()
    config = Config(server=ServerConfig(data_dir=str(directory)), **sections)
    async with (
        open_stores(config, lambda *_: None) as stores,
        supervised(stores.background, Health(Metrics(), monotonic)),
    ):
        if ports is None:
            await stores.directory.learn([User(user_id, f"user{user_id}", 2) for user_id in range(1, users + 1)])
        yield OurWay(stores, this, users)


@asynccontextmanager
async def tasks(directory: Path, ports: Ports, users: int, at_once: int) -> AsyncIterator[list[Task]]:
    """Everything that is compared, ready to be done."""
    this = Round(users)
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(our_way(directory / "outside", ports, this, users))
        old = await stack.enter_async_context(old_way(ports, this, users, at_once))
        await ours.prepare()
        yield [
            Task("mailbox save", "redis", ours.save, old.save),
            Task("mailbox read, 5 waiting each", "redis", ours.read, old.read),
            Task("records write", "mongo", ours.write, old.write, this.prepare),
            Task("user look-ups", "mysql", ours.look_up, old.look_up),
        ]


@asynccontextmanager
async def embedded(directory: Path, users: int) -> AsyncIterator[list[Task]]:
    """The same on SQLite, which nobody did in another way."""
    this = Round(users)
    async with our_way(directory / "embedded", None, this, users) as ours:
        await ours.prepare()
        yield [
            Task("SQLite: mailbox save", "", ours.save, None, ours.prepare_save),
            Task("SQLite: mailbox read", "", ours.read, None),
            Task("SQLite: records write", "", ours.note, None, ours.prepare_note),
            Task("SQLite: user look-ups", "", ours.look_up, None),
        ]
        await ours.check_written()
