"""What inboxes cost: opened one after the other and all at once while notices go out, and `unread=1` beside broadcasts.

    python -m bench.inbox [--quick]

Every user has the same broadcasts in the inbox, half of them received. Pages of 20 are asked for by a backend over a
few connections, at a steady pace, then for everybody at the same moment; a bystander's notices go out meanwhile. Then
ten broadcasts a second go to users who are told how many notices they have not read, and to users who are not: each
kind has a daemon of its own, and rounds alternate.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

from bench.broadcast import NOTICE, quiet, template
from bench.loadlib import drive_plan, rounds
from bench.loadlib.bystander import Bystander
from bench.loadlib.drive_cost import cpu_of
from bench.loadlib.figures import Spread, spread_of
from bench.loadlib.filled import fill
from bench.loadlib.http import AnswerParser
from bench.loadlib.native import LoadClient, load_client
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import Result, alternate, at_most, below, ratios, rounds_for
from bench.loadlib.servers import Server, cores, daemon, scratch

USERS, QUICK_USERS = 10_000, 1_000
BROADCASTS = 40  # in every inbox
PER_S = 1_000
SECONDS, QUICK_SECONDS = 10, 3
CONNECTIONS = 100
WITHIN_S = 60.0
ROUND_NOTICES, GAP_MS = 10, 90  # ten broadcasts within a second
TOLD_S = 1.5  # until the frames of a round have gone out


class Reader:
    """One connection of the backend: pages in, and how long each took since it was due."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], port: int) -> None:
        self._reader, self._writer = streams
        self._port = port
        self._due: deque[float] = deque()
        self.took_ns: list[int] = []

    def ask(self, user_id: int, due: float) -> None:
        """Ask for the newest page of a user's inbox."""
        self._due.append(due)
        self._writer.write(drive_plan.get(self._port, f"/notification/inbox?user_id={user_id}&limit=20"))

    async def run(self) -> None:
        """Take answers until it is cancelled."""
        parser = AnswerParser()
        while data := await self._reader.read(1 << 20):
            now = time.monotonic()
            for answer in parser.feed(data):
                if answer.status != 200 or answer.body.count(b'"message_id"') != 20:
                    raise LoadError(f"a page: {answer.status} {answer.body[:200]!r}")
                self.took_ns.append(int((now - self._due.popleft()) * 1e9))
        raise LoadError("the daemon ended a connection")

    def close(self) -> None:
        self._writer.close()


class Backend:
    """Asks for inboxes over its connections in turn."""

    def __init__(self, readers: list[Reader], users: int) -> None:
        self._readers = readers
        self._users = users
        self._asked = count()

    async def paced(self, seconds: int) -> Spread:
        """PER_S of them a second."""
        begins = time.monotonic()
        for number in range(seconds * PER_S):
            due = begins + number / PER_S
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            self._ask(due)
        return spread_of(await self._answered())

    async def at_once(self) -> float:
        """One of every user at the same moment: seconds until the last answer."""
        begins = time.monotonic()
        for _ in range(self._users):
            self._ask(begins)
        return max(await self._answered()) / 1e9

    def _ask(self, due: float) -> None:
        number = next(self._asked)
        self._readers[number % len(self._readers)].ask(1 + number % self._users, due)

    async def _answered(self) -> list[int]:
        wanted = next(self._asked)
        self._asked = count()
        async with asyncio.timeout(WITHIN_S):
            while sum(len(reader.took_ns) for reader in self._readers) < wanted:
                await asyncio.sleep(0.005)
        took = [nanoseconds for reader in self._readers for nanoseconds in reader.took_ns]
        for reader in self._readers:
            reader.took_ns = []
        return took


@asynccontextmanager
async def backend(port: int, users: int) -> AsyncIterator[Backend]:
    """A backend of a daemon on this port, until the end of the block."""
    readers = [Reader(await asyncio.open_connection("127.0.0.1", port), port) for _ in range(CONNECTIONS)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reader.run()) for reader in readers]
        try:
            yield Backend(readers, users)
        finally:
            for task in tasks:
                task.cancel()
            for reader in readers:
                reader.close()


async def opened(users: int, seconds: int, times: int) -> list[Result]:
    """Inboxes opened at a pace and all at once, and what a bystander sees of both. Raises LoadError."""
    paced: list[Spread] = []
    at_once_s: list[float] = []
    cpu_us: list[float] = []
    live: list[Spread] = []
    with scratch() as place:
        await fill(place / "data", "broadcasts", users, users * BROADCASTS)
        with daemon(place, drive_plan.CONFIG, 0, core=cores().daemon) as server:
            bystander = Bystander(server.port, server.process.pid)
            async with bystander.watching(), backend(server.port, users) as asker:
                for _ in range(times):
                    paced.append(await asker.paced(seconds))
                    before = cpu_of(server.process.pid)
                    at_once_s.append(await asker.at_once())
                    cpu_us.append(1e6 * (cpu_of(server.process.pid) - before).total_s / users)
                    live.append(bystander.take_spread())
                await bystander.caught_up()
    group = f"inboxes of {users:,} users, 20 notices a page"
    return [
        Result(f"p99 of {PER_S:,} a second", [spread.p99_ms for spread in paced], "ms", below(100), group=group),
        Result("median", [spread.p50_ms for spread in paced], "ms", group=group),
        Result("one of each user at once, until the last", at_once_s, "s", at_most(3), group=group),
        Result("CPU of the daemon meanwhile, per page", cpu_us, "us", group=group),
        Result("p99 of notices to a bystander meanwhile", [it.p99_ms for it in live], "ms", below(50), group=group),
    ]


async def told(users: int, times: int) -> list[Result]:
    """CPU of broadcasts to users with and without `unread=1`. Raises LoadError."""
    paths = {"without": "/ws?user_id={uid}", "unread=1": "/ws?user_id={uid}&unread=1"}
    with scratch() as place:
        async with AsyncExitStack() as stack:
            ways: dict[str, Callable[[], Awaitable[float]]] = {}
            for number, (name, path) in enumerate(paths.items()):
                directory = place / str(number)
                directory.mkdir()
                server = stack.enter_context(daemon(directory, "", users, core=cores().daemon))
                body = directory / "notice.json"
                body.write_text(template(NOTICE))
                options = ["--port", str(server.port), "--connections", str(users), "--path", path,
                           "--match", '{"type":"bench"', "--notice", str(body),
                           "--post-path", "/api/admin/system/notice"]  # fmt: skip
                client = await stack.enter_async_context(
                    load_client(directory, "clients", options, core=cores().others)
                )
                ways[name] = _way(client, server)
                await quiet(server)
            done = await alternate(ways, times)
    group = f"CPU of ten broadcasts within a second to {users:,} users"
    return [
        *(Result(name, taken, "ms", group=group) for name, taken in done.items()),
        Result("unread=1, to without", ratios(done["unread=1"], done["without"]), "x", at_most(1.3)),
    ]


def _way(client: LoadClient, server: Server) -> Callable[[], Awaitable[float]]:
    async def broadcast() -> float:
        before = cpu_of(server.process.pid)
        await client.ask(f"rounds {ROUND_NOTICES} {GAP_MS}")
        await asyncio.sleep(TOLD_S)
        await quiet(server)
        await client.ask("report")
        return 1e3 * (cpu_of(server.process.pid) - before).total_s

    return broadcast


async def run(quick: bool) -> list[Result]:
    """Both parts."""
    users, times = (QUICK_USERS, 2) if quick else (USERS, rounds_for(quick))
    found = await opened(users, QUICK_SECONDS if quick else SECONDS, times)
    return [*found, *await told(users, times)]


if __name__ == "__main__":
    sys.exit(rounds.script("inbox", run))
