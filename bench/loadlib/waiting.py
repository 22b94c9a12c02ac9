"""What the offline path does, part by part: saving for absent users, replaying to those who return, a storm of them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.loadlib.admin import Admin, Lag, Metrics, lag_between, notice
from bench.loadlib.boxes import Boxes, RedisBoxes, SqliteBoxes
from bench.loadlib.canned import CONTENT
from bench.loadlib.figures import Histogram, Spread
from bench.loadlib.lean import Spec, Took
from bench.loadlib.machine import Stopwatch
from bench.loadlib.options import LoadError
from bench.loadlib.servers import ROOT, Server, cores, daemon, on_core, redis_server, scratch
from bench.loadlib.watchers import Watchers

WITHIN_S = 180.0
LOOK_EVERY_S = 0.02
NICE = 10  # of the storm's clients: who watches the live traffic goes first on their common core
CALM_S = 2.0
ATTACH_S = 1.0
CONTENT_TEXT = CONTENT.decode()


def check(is_so: bool, otherwise: str) -> None:
    """Raises LoadError: what was to be measured did not happen."""
    if not is_so:
        raise LoadError(f"not done: {otherwise}")


# ---- the node under load


@dataclass
class Node:
    """A daemon, its Redis if it has one, and what is seen of both."""

    kind: str
    server: Server
    redis: Server | None
    boxes: Boxes
    admin: Admin

    async def settled(self) -> None:
        """Return when nothing that was published has anything left to be written."""
        await until(self._is_settled, 0.05)

    async def _is_settled(self) -> bool:
        return (await self.admin.metrics()).total("pushd_journal_pending") == 0


async def until(condition: Callable[[], Awaitable[bool]], every_s: float = LOOK_EVERY_S) -> None:
    """Raises LoadError when it takes too long."""
    ends = time.monotonic() + WITHIN_S
    while not await condition():
        check(time.monotonic() < ends, f"nothing after {WITHIN_S:g} s")
        await asyncio.sleep(every_s)


@asynccontextmanager
async def node(kind: str, users: int) -> AsyncIterator[Node]:
    """A fresh daemon with so many users, its mailbox in `kind` (sqlite, redis), on data of its own."""
    with scratch() as directory, _redis(kind, directory) as redis:
        url = f"redis://127.0.0.1:{redis.port}/0" if redis else "sqlite:"
        config = f'[mailbox]\nurl = "{url}"\n[delivery]\nheartbeat_s = 600\n'
        with daemon(directory, config, users, core=cores().daemon) as server:
            boxes: Boxes = RedisBoxes(redis.port) if redis else SqliteBoxes(directory / "data")
            async with Admin(server.port) as admin:
                yield Node(kind, server, redis, boxes, admin)


@contextmanager
def _redis(kind: str, directory: Path) -> Iterator[Server | None]:
    if kind != "redis":
        yield None
        return
    with on_core(cores().others), redis_server(directory) as server:
        yield server


# ---- what a part cost


@dataclass
class Costs:
    """Between two moments: CPU seconds by process, and how late the daemon's loop was."""

    wall_s: float = 0.0
    daemon_s: float = 0.0
    redis_s: float = 0.0
    tool_percent: float = 0.0
    lag: Lag = field(default_factory=lambda: Lag(0, 0.0, 0.0, 0, 0))


class Meter:
    """Reads the clocks at both ends."""

    def __init__(self, on: Node) -> None:
        self._on = on
        self._watch = Stopwatch()
        self._before: tuple[Metrics, float, float] | None = None
        self._profiler: asyncio.subprocess.Process | None = None

    async def begin(self) -> None:
        self._profiler = await _profiler(self._on.server)
        self._before = (await self._on.admin.metrics(), *self._cpu())
        self._watch = Stopwatch()

    async def end(self) -> Costs:
        assert self._before is not None, "not begun"
        wall_s, busy = self._watch.elapsed_s, self._watch.busy_percent
        (before, *cpu_before), cpu = self._before, self._cpu()
        if self._profiler is not None:
            self._profiler.send_signal(signal.SIGINT)
            await self._profiler.wait()
        await asyncio.sleep(0.12)  # the reading of a lag that has just been
        lag = lag_between(before, await self._on.admin.metrics())
        return Costs(wall_s, cpu[0] - cpu_before[0], cpu[1] - cpu_before[1], busy, lag)

    def _cpu(self) -> tuple[float, float]:
        return self._on.server.cpu_s, self._on.redis.cpu_s if self._on.redis else 0.0


async def _profiler(server: Server) -> asyncio.subprocess.Process | None:
    """What $BENCH_PROFILE says to run beside the daemon while it is measured, {pid} being the daemon's."""
    command = os.environ.get("BENCH_PROFILE", "").format(pid=server.process.pid)
    if not command:
        return None
    process = await asyncio.create_subprocess_exec(*shlex.split(command))
    await asyncio.sleep(ATTACH_S)
    return process


# ---- a: save


@dataclass(frozen=True)
class Saved:
    """From the first POST until every copy is in the store; `settled_s`: until the records were, too."""

    saves: int
    elapsed_s: float
    answered_s: float
    settled_s: float
    costs: Costs

    @property
    def per_s(self) -> float:
        return self.saves / self.elapsed_s


async def save(kind: str, users: int, notices: int) -> Saved:
    """`notices` broadcasts to `users` known and absent users."""
    async with node(kind, users) as on:
        await on.admin.publish(notice("warm-up", "warm", target="custom", user_ids=[users + 1]), wait_ms=5000)
        await on.settled()
        warm, meter = await on.admin.saved_total(), Meter(on)
        await meter.begin()
        began = time.monotonic()
        for number in range(notices):
            await on.admin.publish(notice(CONTENT_TEXT, f"s{number:06d}"))
        answered = time.monotonic()

        async def is_saved() -> bool:
            return await on.admin.saved_total() - warm >= users * notices

        await until(is_saved)
        saved = time.monotonic()
        costs = await meter.end()
        total = (await on.admin.metrics()).total("pushd_mailbox_saved_total") - warm
        check(total == users * notices, f"{total:.0f} of {users * notices} copies counted")
        lengths = on.boxes.lengths(users)
        check(lengths == [notices] * users, f"mailboxes hold {min(lengths)} to {max(lengths)}, not {notices} each")
        await on.settled()
        return Saved(users * notices, saved - began, answered - began, time.monotonic() - began, costs)


# ---- b: replay


@dataclass(frozen=True)
class Replayed:
    """Until the last message arrived, and until nothing waits any more; `alone`: the clients without a daemon."""

    took: Took
    emptied_s: float
    alone: Took
    costs: Costs

    @property
    def per_s(self) -> float:
        return self.took.messages / self.emptied_s

    @property
    def headroom(self) -> float:
        """How much faster the clients are than what was measured."""
        return (self.alone.messages / self.alone.elapsed_s) / (self.took.messages / self.took.elapsed_s)


async def fill(on: Node, first: int, last: int, notices: int) -> list[str]:
    """So many wait for each of these users, and nothing is left to be written; their ids, oldest first."""
    ids = [f"w{number:06d}" for number in range(notices)]
    user_ids = list(range(first, last + 1))
    for known in ids:
        body = notice(CONTENT_TEXT, known, target="custom", user_ids=user_ids)
        data = await on.admin.publish(body, wait_ms=10_000)
        check(data["status"] == "delivered", f"{known} is {data['status']}")
    await on.settled()
    lengths = on.boxes.lengths(last)[first - 1 :]
    check(lengths == [notices] * len(user_ids), "the mailboxes are not full")
    return ids


class Clients:
    """The process of bench.loadlib.lean."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def go(self) -> Took:
        """All come back, and have everything. Raises LoadError."""
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.write(b"go\n")
        answer = await self._line()
        if error := json.loads(answer)["error"]:
            raise LoadError(f"not done: {error}")
        return msgspec.json.decode(answer, type=Took)

    async def _line(self) -> bytes:
        assert self._process.stdout is not None, "a pipe"
        async with asyncio.timeout(WITHIN_S):
            line = await self._process.stdout.readline()
        check(bool(line), "the clients' process ended")
        return line


@asynccontextmanager
async def program(module: str, argument: str, core: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of ours until the end of the block; it ends with its stdin."""
    pipe = asyncio.subprocess.PIPE
    with on_core(core):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, argument, stdin=pipe, stdout=pipe, cwd=ROOT
        )
    try:
        yield process
    finally:
        assert process.stdin is not None, "a pipe"
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def clients(spec: Spec) -> AsyncIterator[Clients]:
    """Ready to come back, on the core of the others; connected until the end of the block."""
    async with program("bench.loadlib.lean", json.dumps(msgspec.to_builtins(spec)), cores().others) as process:
        crew = Clients(process)
        check((await crew._line()).strip() == b"ready", "the clients did not start")
        yield crew


async def alone(users: int, ids: list[str], at_once: int) -> Took:
    """The clients against a server that does next to nothing, in the daemon's place."""
    async with program("bench.loadlib.canned", json.dumps(ids), cores().daemon) as process:
        assert process.stdout is not None, "a pipe"
        port = int(await process.stdout.readline())
        async with clients(Spec(port, (1, users), ids, at_once)) as crew:
            return await crew.go()


async def replay(kind: str, users: int, notices: int, at_once: int) -> Replayed:
    """`users` come back for `notices` each, and acknowledge."""
    async with node(kind, users) as on:
        ids = await fill(on, 1, users, notices)
        alone_took = await alone(users, ids, at_once)
        async with clients(Spec(on.server.port, (1, users), ids, at_once)) as crew:
            meter, before = Meter(on), await on.admin.metrics()
            await meter.begin()
            took = await crew.go()
            await emptied(on)
            emptied_s = (time.monotonic_ns() - took.began_ns) / 1e9
            costs = await meter.end()
            await acknowledged(on, before, took.messages)
        return Replayed(took, emptied_s, alone_took, costs)


async def emptied(on: Node) -> None:
    """Return when nothing waits in the store."""

    async def is_empty() -> bool:
        return on.boxes.waiting() == 0

    await until(is_empty, 0.005)


async def acknowledged(on: Node, before: Metrics, messages: int) -> None:
    """Raises LoadError unless exactly these were."""
    acks = (await on.admin.metrics()).total("pushd_acks_total") - before.total("pushd_acks_total")
    check(acks == messages, f"{acks:.0f} of {messages} acknowledged")


# ---- c: storm


@dataclass(frozen=True)
class Storm:
    """Live deliveries to those who watch, before it and while it lasted."""

    took: Took
    emptied_s: float
    calm: Spread
    live: Spread
    answers: Spread
    watcher_percent: float
    costs: Costs


async def storm(kind: str, users: int, notices: int, watching: int, rate: float, target: str) -> Storm:
    """`users` come back at once for `notices` each, while broadcasts go on and `watching` others time them."""
    async with node(kind, users + watching) as on:
        ids = await fill(on, 1, users, notices)
        watched = range(users + 1, users + watching + 1)
        async with (
            Watchers(on.server.port, watched, rate, target) as watchers,
            clients(Spec(on.server.port, (1, users), ids, users, nice=NICE)) as crew,
        ):
            await asyncio.sleep(CALM_S)
            meter, before, calm = Meter(on), await on.admin.metrics(), watchers.new_book()
            watchers.answers = Histogram()
            await meter.begin()
            took = await crew.go()
            live = watchers.new_book()
            await emptied(on)
            emptied_s = (time.monotonic_ns() - took.began_ns) / 1e9
            costs = await meter.end()
            await watchers.stop()
            await acknowledged(on, before, took.messages)
        answers = watchers.answers.spread()
        return Storm(took, emptied_s, calm.spread(), live.spread(), answers, costs.tool_percent, costs)
