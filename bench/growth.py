"""What a receipt costs the more of them are stored: CPU, disk, memory, lists and the start, up to 10 million.

    python -m bench.growth [--quick]

One daemon with the embedded stores and 10,000 known users, all of them absent. Broadcasts go out until so many receipts
are stored; those after that are measured, as are pages of the lists, and a start with all of them.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.loadlib import rounds
from bench.loadlib.admin import PREFIX, Admin, Lag, lag_between
from bench.loadlib.drive_cost import cpu_of, memory_of
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import Result, Target, at_most, below
from bench.loadlib.servers import Server, cores, daemon, daemon_again, scratch

USERS = 10_000
SIZES, QUICK_SIZES = (500_000, 1_000_000, 3_000_000, 10_000_000), (200_000, 500_000)
MEASURED = 50  # broadcasts, behind each size
AT_ONCE = 10  # broadcasts to a POST
REPEAT, QUICK_REPEAT = 7, 3
SETTLED_WITHIN_S = 120.0
CONTENT = "a notice of a hundred characters, as they are short texts for people in a back office, more or less."
CONFIG = "[limits]\nmax_body_bytes = 4194304\n"
LISTS = f"{PREFIX}/notification"
MIDDLE = "{middle}"  # the page in the middle of everything
PAGES = (
    "/admin-receive-records",
    f"/admin-receive-records?page={MIDDLE}",
    f"/admin-receive-records?page={MIDDLE}&sort_by=received_at",
    f"/admin-receive-records?page={MIDDLE}&sort_by=username&sort_order=asc",
    f"/admin-receive-records?page={MIDDLE}&is_read=false",
    f"/admin-receive-records?page={MIDDLE}&is_read=false&sort_by=user_id",
    "/admin-receive-records?sort_by=received_at&is_read=true",
    "/admin-receive-records?username=user4&page=100",
    "/admin-receive-records?username=user4&page=100&sort_by=read_at",
    "/admin-receive-records?user_id=4711",
    "/records",
    "/records?sort_by=total_count",
    "/user-summary?user_id=4711",
)
STATISTICS = "/admin-receive-stats"


@dataclass(frozen=True)
class Stretch:
    """Some broadcasts behind a size: what a receipt costs all of the daemon, and how late its loop was."""

    cpu_us: float
    disk_bytes: float
    lag: Lag


class Growing:
    """One daemon, filled step by step."""

    def __init__(self, directory: Path, server: Server, admin: Admin) -> None:
        self._data = directory / "data"
        self._server = server
        self._admin = admin
        self._newest = ""
        self.stored = 0

    async def fill(self, receipts: int) -> None:
        """Broadcast until so many receipts are stored."""
        while self.stored < receipts:
            await self._broadcast(min(AT_ONCE, -(-(receipts - self.stored) // USERS)))
        await self._settled()

    async def stretch(self) -> Stretch:
        """Broadcast, and measure until all is written."""
        cpu, disk, metrics = cpu_of(self._server.process.pid), self.disk_bytes(), await self._admin.metrics()
        for _ in range(MEASURED // AT_ONCE):
            await self._broadcast(AT_ONCE)
        await self._settled()
        used = cpu_of(self._server.process.pid) - cpu
        receipts = MEASURED * USERS
        return Stretch(
            1e6 * used.total_s / receipts,
            (self.disk_bytes() - disk) / receipts,
            lag_between(metrics, await self._admin.metrics()),
        )

    async def page(self, path: str, repeat: int) -> tuple[list[float], Lag]:
        """Milliseconds of a list each time, and the loop's lag meanwhile."""
        path = path.format(middle=self.stored // 20)
        before, times = await self._admin.metrics(), []
        for _ in range(repeat):
            await self._ask("/admin-receive-records?user_id=1")  # or the totals would be known from the time before
            began = time.perf_counter()
            await self._ask(path)
            times.append(1000 * (time.perf_counter() - began))
        return times, lag_between(before, await self._admin.metrics())

    def disk_bytes(self) -> int:
        """Of the database, what is not in it yet included."""
        return sum(file.stat().st_size for file in self._data.glob("pushd.db*"))

    async def _broadcast(self, count: int) -> None:
        notices = [{"content": CONTENT, "type": "bench"}] * count
        answer = await self._admin.ask("POST", f"{PREFIX}/system/notices", json.dumps({"notices": notices}).encode())
        if answer.status != 200:
            raise LoadError(f"publish: {answer.status} {answer.body[:300]!r}")
        self._newest = json.loads(answer.body)["data"]["items"][-1]["message_id"]
        self.stored += count * USERS

    async def _settled(self) -> None:
        """Return when every copy is in its mailbox, and every receipt on record."""
        ends = time.monotonic() + SETTLED_WITHIN_S
        while time.monotonic() < ends:
            if await self._admin.saved_total() == self.stored:
                answer = await self._admin.ask("GET", f"{LISTS}/messages/{self._newest}/receive-status")
                if answer.status == 200 and json.loads(answer.body)["data"]["total_users"] == USERS:
                    return
            await asyncio.sleep(0.05)
        raise LoadError(f"not all was written within {SETTLED_WITHIN_S:g} s")

    async def _ask(self, path: str) -> None:
        answer = await self._admin.ask("GET", LISTS + path)
        if answer.status != 200:
            raise LoadError(f"{path}: {answer.status} {answer.body[:300]!r}")

    async def readable(self) -> None:
        """Return when lists are answered: what is written comes first."""
        ends = time.monotonic() + SETTLED_WITHIN_S
        while (await self._admin.ask("GET", LISTS + PAGES[0])).status != 200:
            if time.monotonic() > ends:
                raise LoadError(f"no list within {SETTLED_WITHIN_S:g} s")
            await asyncio.sleep(0.5)


async def start(directory: Path, receipts: int) -> list[Result]:
    """How long a start with all of them takes: until it serves, and until it has answered a list."""
    began = time.perf_counter()
    with daemon_again(directory, core=cores().daemon) as server:
        served_s = time.perf_counter() - began
        async with Admin(server.port) as admin:
            answer = await admin.ask("GET", f"{LISTS}/admin-receive-records?sort_by=username&page=100")
            listed_s = time.perf_counter() - began
            if answer.status != 200 or not json.loads(answer.body)["data"]["total"] >= receipts:
                raise LoadError(f"after the start: {answer.status} {answer.body[:300]!r}")
    name = f"start with {receipts:,} receipts"
    return [
        Result(f"{name}: serving after", [served_s], "s", below(1.0)),
        Result(f"{name}: a list answered after", [listed_s], "s", below(2.0)),
    ]


async def run(quick: bool) -> list[Result]:
    """Grow, measure at each size, start again. Raises LoadError."""
    sizes = QUICK_SIZES if quick else SIZES
    found: list[Result] = []
    with scratch() as directory:
        with daemon(directory, CONFIG, USERS, core=cores().daemon) as server:
            async with Admin(server.port) as admin:
                growing = Growing(directory, server, admin)
                await growing.fill(AT_ONCE * USERS)  # everything has been used once
                empty = memory_of(server.process.pid).rss_bytes
                began = growing.stored
                for size in sizes:
                    await growing.fill(size)
                    found += _stretch_results(size, await growing.stretch())
                held = memory_of(server.process.pid).rss_bytes - empty
                found.append(Result("memory per receipt held", [held / (growing.stored - began)], "B", at_most(16)))
                found += await _page_results(growing, QUICK_REPEAT if quick else REPEAT)
                stored = growing.stored
        found += await start(directory, stored)
    return found


def _stretch_results(size: int, done: Stretch) -> Sequence[Result]:
    group = f"broadcasts to {USERS:,} absent users, {size:,} receipts stored"
    return [
        Result("CPU per receipt, all of the daemon", [done.cpu_us], "us", at_most(1.0), group),
        Result("disk per receipt", [done.disk_bytes], "B", at_most(20), group),
        Result(f"{group}: loop lag, p99 at or below", [done.lag.p99_below_ms], "ms", at_most(5.0)),
    ]


async def _page_results(growing: Growing, repeat: int) -> list[Result]:
    found = []
    await growing.readable()
    for path in (*PAGES, STATISTICS):
        times, lag = await growing.page(path, repeat)
        asked: Target = below(20 if path == STATISTICS else 25)
        name = path.replace(MIDDLE, "middle")
        found.append(Result(f"{name}, {growing.stored:,} stored", [statistics.median(times)], "ms", asked))
        found.append(Result(f"{name}: worst", [max(times)], "ms", below(60)))
        found.append(Result(f"{name}: loop lag, p99 at or below", [lag.p99_below_ms], "ms", at_most(5.0)))
    return found


if __name__ == "__main__":
    sys.exit(rounds.script("growth", run))
