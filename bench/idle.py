"""What 10,000 connections cost that have nothing to say: memory, and CPU while heartbeats go round.

    python bench/idle.py [--quick]

Each client is a browser with a token of its own that acknowledges. A quick run has a heartbeat each 5 s instead of 25.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.loadlib import drive_log, drive_plan, rounds  # noqa: E402
from bench.loadlib.drive_client import Plan, driving  # noqa: E402
from bench.loadlib.drive_cost import Cpu, cpu_of, memory_of  # noqa: E402
from bench.loadlib.options import LoadError  # noqa: E402
from bench.loadlib.rounds import Result, at_most, below  # noqa: E402
from bench.loadlib.servers import cores, daemon, scratch  # noqa: E402

CLIENTS, QUICK_CLIENTS = 10_000, 2_000
ROUNDS = 2  # a round takes most of a minute, and memory hardly differs
WARM_CLIENTS = 100  # who come and go before memory is first looked at
HEARTBEAT_S, QUICK_HEARTBEAT_S = 25, 5
LONGER_S = 5.0  # than a heartbeat: so that every connection is asked
SETTLE_S = 2.0


@dataclass(frozen=True)
class Round:
    """One daemon; `cpu` over `wall_s` of idleness."""

    rss_bytes: float
    pss_bytes: float
    empty_bytes: float
    cpu: Cpu
    wall_s: float
    pings: int


async def idle(count: int, heartbeat_s: float, tokens: Sequence[str]) -> Round:
    """Everybody comes and stays. Raises LoadError when one was not pinged, or is gone."""
    config = f"{drive_plan.CONFIG}[delivery]\nheartbeat_s = {heartbeat_s}\nheartbeat_timeout_s = 5\n"
    with scratch() as place, daemon(place, config, count, core=cores().daemon) as server:
        handshakes = [drive_plan.upgrade(server.port, token) for token in tokens]
        pid = server.process.pid
        async with driving(Plan(server.port, handshakes[:WARM_CLIENTS], WARM_CLIENTS), place / "warm"):
            await asyncio.sleep(SETTLE_S)
        await asyncio.sleep(SETTLE_S)
        empty = memory_of(pid)
        # It waits for a notice that never comes.
        plan = Plan(server.port, handshakes, count, deliveries=1, within_s=heartbeat_s + LONGER_S)
        async with driving(plan, place / "drive") as drive:
            await asyncio.sleep(SETTLE_S)
            full, before = memory_of(pid), cpu_of(pid)
            waited = await drive.go()
            cpu = cpu_of(pid) - before
            connects = drive.connects()
        drive_log.check_connects(connects, count)
        unasked = sum(1 for one in connects if not one.pings)
        if unasked:
            raise LoadError(f"{unasked} connections saw no heartbeat")
        return Round(
            full.rss_bytes - empty.rss_bytes,
            full.pss_bytes - empty.pss_bytes,
            empty.rss_bytes,
            cpu,
            (waited.ended_ns - waited.began_ns) / 1e9,
            sum(one.pings for one in connects),
        )


async def run(quick: bool) -> list[Result]:
    """A daemon per round. Raises LoadError."""
    count, heartbeat_s = (QUICK_CLIENTS, QUICK_HEARTBEAT_S) if quick else (CLIENTS, HEARTBEAT_S)
    tokens = drive_plan.tokens(range(1, count + 1))
    done = [await idle(count, heartbeat_s, tokens) for _ in range(1 if quick else ROUNDS)]
    return results(done, count, heartbeat_s)


def results(done: Sequence[Round], count: int, heartbeat_s: float) -> list[Result]:
    """The lines of the table."""
    group = f"{count:,} idle connections, memory of each"
    return [
        Result("resident (VmRSS)", [one.rss_bytes / count for one in done], "B", at_most(6000), group),
        Result("proportional (Pss)", [one.pss_bytes / count for one in done], "B", None, group),
        Result(
            f"CPU, heartbeats every {heartbeat_s:g} s",
            [100 * one.cpu.total_s / one.wall_s for one in done],
            "%",
            below(2),
        ),
        Result("... per heartbeat", [1e6 * one.cpu.total_s / one.pings for one in done], "us"),
        Result("resident without any", [one.empty_bytes / 1e6 for one in done], "MB"),
    ]


if __name__ == "__main__":
    sys.exit(rounds.script("idle", run))
