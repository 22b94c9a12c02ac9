"""What a receipt costs the more of them are stored: CPU, disk, memory, lists and the start, up to 10 million.

    python -m bench.growth [--quick] [--receipts N] [--singles N]

Daemons with the embedded stores and 10,000 known users, all of them absent. To one broadcasts go out until so many
receipts are stored, to another notices to one user each, a quarter of which are read; those after that are measured, as
are pages of the lists, and a start with all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
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
SINGLES, QUICK_SINGLES = 1_000_000, 20_000
SINGLES_AT_ONCE, READ_AT_ONCE = 500, 125  # of a POST, and how many of these are to a user who reads them
WARM, QUICK_WARM = 200_000, 5_000  # singles before those that are measured: what is remembered of the newest is full
SETTLE_EVERY = 20  # POSTs of singles
REPEAT, QUICK_REPEAT = 7, 3
LISTING_S, QUICK_LISTING_S = 10.0, 2.0  # at least, for the loop's lag meanwhile
SETTLED_WITHIN_S = 120.0
MOST_S = 3600.0
CONTENT = "a notice of a hundred characters, as they are short texts for people in a back office, more or less."
SINGLE = "A notice for one user, who is somebody in a back office"  # 120 B of JSON with target and type
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
    """Some notices behind a size: what a receipt costs all of the daemon, and how late its loop was."""

    cpu_us: float
    disk_bytes: float
    lag: Lag


class Growing:
    """One daemon, filled step by step, with broadcasts."""

    def __init__(self, directory: Path, server: Server, admin: Admin) -> None:
        self._data = directory / "data"
        self._server = server
        self._admin = admin
        self._newest = ""
        self._users_of_newest = USERS
        self.stored = 0

    async def fill(self, receipts: int) -> None:
        """Publish until so many receipts are stored."""
        while self.stored < receipts:
            await self._publish(receipts - self.stored)
        await self._settled()

    async def stretch(self, receipts: int = MEASURED * USERS) -> Stretch:
        """Publish, and measure until all is written."""
        cpu, disk, metrics = cpu_of(self._server.process.pid), self.disk_bytes(), await self._admin.metrics()
        before = self.stored
        await self.fill(self.stored + receipts)
        used, done = cpu_of(self._server.process.pid) - cpu, self.stored - before
        return Stretch(
            1e6 * used.total_s / done,
            (self.disk_bytes() - disk) / done,
            lag_between(metrics, await self._admin.metrics()),
        )

    async def page(self, path: str, repeat: int) -> list[float]:
        """Milliseconds of a list each time."""
        path, times = path.format(middle=self.stored // 20), []
        for _ in range(repeat):
            await self._ask("/admin-receive-records?user_id=1")  # or the totals would be known from the time before
            began = time.perf_counter()
            await self._ask(path)
            times.append(1000 * (time.perf_counter() - began))
        return times

    async def lag_of_lists(self, seconds: float) -> Lag:
        """The loop's lag while lists are made one after the other, all there are at least once."""
        before, ends = await self._admin.metrics(), time.monotonic() + seconds
        while time.monotonic() < ends:
            for path in (*PAGES, STATISTICS):
                await self._ask(path.format(middle=self.stored // 20))
        return lag_between(before, await self._admin.metrics())

    def rss_bytes(self) -> int:
        """The daemon's resident memory."""
        return memory_of(self._server.process.pid).rss_bytes

    def disk_bytes(self) -> int:
        """Of the database, what is not in it yet included."""
        return disk_of(self._data)

    async def _publish(self, most: int) -> None:
        await self._post([{"content": CONTENT, "type": "bench"}] * min(AT_ONCE, -(-most // USERS)))

    async def _post(self, notices: Sequence[dict[str, object]]) -> list[str]:
        answer = await self._admin.ask("POST", f"{PREFIX}/system/notices", json.dumps({"notices": notices}).encode())
        if answer.status != 200:
            raise LoadError(f"publish: {answer.status} {answer.body[:300]!r}")
        message_ids = [item["message_id"] for item in json.loads(answer.body)["data"]["items"]]
        self._newest = message_ids[-1]
        self.stored += len(notices) * self._users_of_newest
        return message_ids

    async def _settled(self) -> None:
        """Return when every copy is in its mailbox, and every receipt on record."""
        ends = time.monotonic() + SETTLED_WITHIN_S
        while time.monotonic() < ends:
            if await self._admin.saved_total() == self.stored:
                answer = await self._admin.ask("GET", f"{LISTS}/messages/{self._newest}/receive-status")
                if answer.status == 200 and json.loads(answer.body)["data"]["total_users"] == self._users_of_newest:
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


class GrowingSingly(Growing):
    """The same with notices to one user each; a quarter of them goes to users who read them."""

    def __init__(self, directory: Path, server: Server, admin: Admin) -> None:
        super().__init__(directory, server, admin)
        self._users_of_newest = 1
        self._user_ids = cycle(range(1, USERS + 1))
        self._unread: list[tuple[int, list[str]]] = []

    async def _publish(self, most: int) -> None:
        count = min(SINGLES_AT_ONCE, most)
        read = count * READ_AT_ONCE // SINGLES_AT_ONCE
        reader = next(self._user_ids)
        user_ids = [next(self._user_ids) for _ in range(count - read)] + [reader] * read
        message_ids = await self._post(
            [{"content": SINGLE, "type": "bench", "target": "custom", "user_ids": [user_id]} for user_id in user_ids]
        )
        if read:
            self._unread.append((reader, message_ids[-read:]))
        if len(self._unread) >= SETTLE_EVERY:
            await self._settled()

    async def _settled(self) -> None:
        await super()._settled()
        for user_id, message_ids in self._unread:
            body = json.dumps({"user_id": user_id, "message_ids": message_ids}).encode()
            answer = await self._admin.ask("POST", f"{LISTS}/batch-mark-read", body)
            if answer.status != 200 or json.loads(answer.body)["data"]["success_count"] != len(message_ids):
                raise LoadError(f"batch-mark-read: {answer.status} {answer.body[:300]!r}")
        self._unread.clear()


def disk_of(data: Path) -> int:
    """The bytes of a database."""
    return sum(file.stat().st_size for file in data.glob("pushd.db*"))


async def start(directory: Path, receipts: int) -> list[Result]:
    """How long a start with all of them takes: until it serves, and until it has answered a list."""
    began = time.perf_counter()
    with daemon_again(directory, core=cores().daemon) as server:
        served_s, used_s = time.perf_counter() - began, cpu_of(server.process.pid).total_s
        async with Admin(server.port) as admin:
            answer = await admin.ask("GET", f"{LISTS}/admin-receive-records?sort_by=username&page=100")
            listed_s = time.perf_counter() - began
            if answer.status != 200 or not json.loads(answer.body)["data"]["total"] >= receipts:
                raise LoadError(f"after the start: {answer.status} {answer.body[:300]!r}")
    name = f"start with {receipts:,} receipts"
    return [
        Result(f"{name}: serving after", [served_s], "s", below(1.0)),
        Result(f"{name}: CPU of the daemon until then", [used_s], "s"),
        Result(f"{name}: a list answered after", [listed_s], "s", below(2.0)),
    ]


def sizes_up_to(receipts: int | None, quick: bool) -> list[int]:
    """At which the cost of receipts is measured; the last is the largest wanted."""
    sizes = QUICK_SIZES if quick else SIZES
    return [size for size in sizes if receipts is None or size < receipts] + ([] if receipts is None else [receipts])


async def run(quick: bool, receipts: int | None = None, singles: int | None = None) -> list[Result]:
    """Grow, measure at each size, start again: broadcasts, then notices to one user each. Raises LoadError."""
    found = await broadcasts(sizes_up_to(receipts, quick), quick)
    return found + await notices_to_one(singles or (QUICK_SINGLES if quick else SINGLES), quick)


async def broadcasts(sizes: Sequence[int], quick: bool) -> list[Result]:
    """To all users. Raises LoadError."""
    found: list[Result] = []
    with scratch() as directory:
        with daemon(directory, CONFIG, USERS, core=cores().daemon) as server:
            async with Admin(server.port) as admin:
                growing = Growing(directory, server, admin)
                await growing.fill(AT_ONCE * USERS)  # everything has been used once
                empty, began = growing.rss_bytes(), growing.stored
                for size in sizes:
                    await growing.fill(size)
                    found += _stretch_results(size, await growing.stretch())
                held = (growing.rss_bytes() - empty) / (growing.stored - began)
                found.append(Result("broadcasts: memory per receipt held", [held], "B", at_most(16)))
                found += await page_results(growing, "receipts of broadcasts", quick)
        found += await start(directory, growing.stored)
    return found


async def notices_to_one(count: int, quick: bool) -> list[Result]:
    """One receipt each. Raises LoadError."""
    with scratch() as directory:
        with daemon(directory, CONFIG, USERS, core=cores().daemon) as server:
            async with Admin(server.port) as admin:
                growing = GrowingSingly(directory, server, admin)
                unused = growing.disk_bytes()
                await growing.fill(QUICK_WARM if quick else WARM)
                empty = growing.rss_bytes()
                done = await growing.stretch(count)
                held = (growing.rss_bytes() - empty) / count
                found = [
                    Result("singles: CPU of a notice to one user", [done.cpu_us], "us"),
                    Result("singles: loop lag, p99 at or below", [done.lag.p99_below_ms], "ms", at_most(5.0)),
                    Result("singles: memory per receipt held", [held], "B", None if quick else at_most(32)),
                    *await page_results(growing, "receipts of singles", quick),
                ]
        disk = (disk_of(directory / "data") - unused) / growing.stored  # all of it is in the database now
        found.append(
            Result(
                "singles: disk of a notice to one user (120 B) with its receipt",
                [disk],
                "B",
                None if quick else at_most(400),
            )
        )
        return found + await start(directory, growing.stored)


def _stretch_results(size: int, done: Stretch) -> Sequence[Result]:
    group = f"broadcasts to {USERS:,} absent users, {size:,} receipts stored"
    return [
        Result("CPU per receipt, all of the daemon", [done.cpu_us], "us", at_most(1.0), group),
        Result("disk per receipt", [done.disk_bytes], "B", at_most(20), group),
        Result(f"{group}: loop lag, p99 at or below", [done.lag.p99_below_ms], "ms", at_most(5.0)),
    ]


async def page_results(growing: Growing, kind: str, quick: bool) -> list[Result]:
    """Of each list its time, and the loop's lag meanwhile. Raises LoadError."""
    found = []
    await growing.readable()
    for path in (*PAGES, STATISTICS):
        times = await growing.page(path, QUICK_REPEAT if quick else REPEAT)
        asked: Target = below(20 if path == STATISTICS else 25)
        name = f"{path.replace(MIDDLE, 'middle')}, {growing.stored:,} {kind}"
        found.append(Result(name, [statistics.median(times)], "ms", asked))
        found.append(Result(f"{name}: worst", [max(times)], "ms", below(60)))
    lag = await growing.lag_of_lists(QUICK_LISTING_S if quick else LISTING_S)
    name = f"all these lists, {growing.stored:,} {kind}: loop lag, p99 at or below"
    return [*found, Result(name, [lag.p99_below_ms], "ms", at_most(5.0), details={"readings": lag.readings})]


def main(argv: Sequence[str]) -> int:
    """As `rounds.script`, and how many are to be stored."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--receipts", type=int, help="of broadcasts, at the end")
    parser.add_argument("--singles", type=int, help="notices to one user that are measured")
    options, others = parser.parse_known_args(argv)
    measured = partial(run, receipts=options.receipts, singles=options.singles)
    return rounds.script("growth", measured, others, most_s=MOST_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
