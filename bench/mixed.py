"""A back office's day in a minute: 10,000 clients, 200 notices/s of every kind, 50 people a second who come and go.

    python bench/mixed.py [--quick]

Per second (`drive_plan.mixture`): one notice to everybody, two to a role of 500, 48 urgent ones to one user each, of
which 8 in the 60 ms behind the broadcast, and 149 to one to ten users. All clients acknowledge everything. A notice has
come when the kernel of the client's machine has it: one client program stands for 10,000 people's machines here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.loadlib import drive_log, drive_plan, rounds  # noqa: E402
from bench.loadlib.admin import Admin, Lag, Metrics, lag_between  # noqa: E402
from bench.loadlib.drive_client import Drive, Plan, driving  # noqa: E402
from bench.loadlib.drive_cost import Cpu, cpu_of, memory_of  # noqa: E402
from bench.loadlib.drive_plan import Notice  # noqa: E402
from bench.loadlib.figures import Spread, spread_of  # noqa: E402
from bench.loadlib.rounds import Result, below  # noqa: E402
from bench.loadlib.servers import Server, cores, daemon, scratch  # noqa: E402

MEMBERS, SMALL_ROLE_MEMBERS = 10_000, 500
SECONDS, QUICK_SECONDS = 60, 10
VISITS_PER_S, STAY_MS = 50, 2000
PUBLISHERS = 32
WARM_SHARE = 0.25  # of the time, in which caches fill: RSS is compared from then on
SETTLE_S = 2.0
BROADCASTS = frozenset({"all", "online"})
CONFIG = drive_plan.CONFIG + "[limits]\nmax_connections = 20000\n"


@dataclass(frozen=True)
class Day:
    """`during`: urgent notices that were sent while a broadcast was under way."""

    urgent: Spread
    during: Spread
    broadcast: Spread
    others: Spread
    accept: Spread
    to_hello: Spread
    cpu: Cpu
    wall_s: float
    drift_bytes: float
    lag: Lag
    client_percent: float


class Memory:
    """Resident memory, once a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.samples: list[int] = []

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.samples.append(memory_of(self._pid).rss_bytes)
            await asyncio.sleep(1)


def drift(samples: Sequence[int]) -> float:
    """By how much the last third of the samples behind the warm-up is above the first third."""
    steady = samples[int(len(samples) * WARM_SHARE) :]
    third = max(1, len(steady) // 3)
    return median(steady[-third:]) - median(steady[:third])


def recipients(notice: Notice) -> Collection[int]:
    """The members a notice is for, as clients are numbered: from 0, where users are from 1."""
    if notice.target in BROADCASTS:
        return range(MEMBERS)
    if notice.target == "role":
        return range(SMALL_ROLE_MEMBERS)
    return {user_id - 1 for user_id in notice.users}


async def day(server: Server, directory: Path, seconds: int) -> Day:
    """Raises LoadError when a member lacks a notice, has one twice, or has somebody else's."""
    notices = drive_plan.mixture(seconds, MEMBERS)
    visitors = range(MEMBERS + 1, MEMBERS + VISITS_PER_S * seconds + 1)
    tokens = drive_plan.tokens(range(1, SMALL_ROLE_MEMBERS + 1), drive_plan.SMALL_ROLE)
    tokens += drive_plan.tokens([*range(SMALL_ROLE_MEMBERS + 1, MEMBERS + 1), *visitors])
    plan = Plan(
        server.port,
        [drive_plan.upgrade(server.port, token) for token in tokens],
        MEMBERS,
        drive_plan.singles(server.port, notices),
        PUBLISHERS,
        deliveries=sum(len(recipients(notice)) for notice in notices),
        is_acking=True,
        visits_per_s=VISITS_PER_S,
        stay_ms=STAY_MS,
        within_s=seconds + 30,
    )
    async with driving(plan, directory) as drive:
        await asyncio.sleep(SETTLE_S)
        return await spent(server, drive, notices, seconds)


async def scraped(server: Server) -> Metrics:
    """Over a connection of its own: the daemon does not keep an idle one for a whole day."""
    async with Admin(server.port) as admin:
        return await admin.metrics()


async def spent(server: Server, drive: Drive, notices: Sequence[Notice], seconds: int) -> Day:
    """The day itself, and what came of it."""
    memory = Memory(server.process.pid)
    earlier, before = await scraped(server), cpu_of(server.process.pid)
    watch = asyncio.create_task(memory.watch())
    try:
        done = await drive.go()
    finally:
        watch.cancel()
    cpu, later = cpu_of(server.process.pid) - before, await scraped(server)
    answers, deliveries, connects = drive.answers(), drive.deliveries(), drive.connects()
    drive_log.check_accepted(answers, len(notices))
    drive_log.check_delivered(deliveries, len(notices), lambda number: recipients(notices[number]), MEMBERS)
    drive_log.check_visits(connects[MEMBERS:], VISITS_PER_S * seconds * 9 // 10)
    urgent = {notice.number for notice in notices if notice.priority == "urgent"}
    broadcasts = {notice.number for notice in notices if notice.target in BROADCASTS}
    others = set(range(len(notices))) - urgent - broadcasts
    windows = drive_log.windows((one for one in deliveries if one.client < MEMBERS), answers, broadcasts)
    wall_s = (done.ended_ns - done.began_ns) / 1e9
    return Day(
        urgent=spread_of(drive_log.delivery_ns(deliveries, answers, urgent)),
        during=spread_of(drive_log.delivery_ns(deliveries, answers, urgent, windows)),
        broadcast=spread_of([window.to_ns - window.from_ns for window in windows]),
        others=spread_of(drive_log.delivery_ns(deliveries, answers, others)),
        accept=spread_of(drive_log.accept_ns(answers)),
        to_hello=spread_of(drive_log.hello_ns(connects[MEMBERS:])),
        cpu=cpu,
        wall_s=wall_s,
        drift_bytes=drift(memory.samples),
        lag=lag_between(earlier, later),
        client_percent=100 * done.cpu_s / wall_s,
    )


async def run(quick: bool) -> list[Result]:
    """One day, which is long enough to be its own repetition. Raises LoadError."""
    seconds = QUICK_SECONDS if quick else SECONDS
    # Nobody is imported: the directory learns users and roles from the tokens.
    with scratch() as place, daemon(place, CONFIG, 0, core=cores().daemon) as server:
        return results(await day(server, place / "drive", seconds))


def results(found: Day) -> list[Result]:
    """The lines of the table."""
    group = "from the POST until it is there, p99"
    counted = {"count": found.during.count, "max_ms": found.during.max_ms, "p50_ms": found.during.p50_ms}
    return [
        Result("urgent, a broadcast under way", [found.during.p99_ms], "ms", below(10), group, counted),
        Result("urgent, any time", [found.urgent.p99_ms], "ms", None, group),
        Result("to a few, or a role", [found.others.p99_ms], "ms", None, group),
        Result("to the last of all", [found.broadcast.p99_ms], "ms", None, group),
        Result("accepted after, p99", [found.accept.p99_ms], "ms"),
        Result("connect to hello meanwhile, p99", [found.to_hello.p99_ms], "ms"),
        Result("CPU of the daemon's core", [100 * found.cpu.total_s / found.wall_s], "%", below(70)),
        Result("... of which the loop", [100 * found.cpu.loop_s / found.wall_s], "%"),
        Result("RSS, last third against first", [found.drift_bytes / 1e6], "MB"),
        Result("loop lag, p99 below", [found.lag.p99_below_ms], "ms"),
        Result("loop lag, max below", [found.lag.max_below_ms], "ms"),
        Result("the clients' share of their core", [found.client_percent], "%"),
    ]


if __name__ == "__main__":
    sys.exit(rounds.script("mixed", run))
