"""15,000 browsers with tokens connect, 128 at a time: from the start of the TCP connect to hello.

python bench/connect.py [--quick]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.loadlib import drive_client, drive_log, drive_plan, rounds  # noqa: E402
from bench.loadlib.drive_cost import Cpu, cpu_of  # noqa: E402
from bench.loadlib.figures import Spread, per_second, spread_of  # noqa: E402
from bench.loadlib.rounds import Result, at_least, below  # noqa: E402
from bench.loadlib.servers import Server, cores, daemon, scratch  # noqa: E402

CLIENTS, QUICK_CLIENTS = 15_000, 3_000
AT_ONCE = 128
WRITTEN_WITHIN_S = 0.5  # who is online, to the store: a part of what a connect costs
LIMITS = "[limits]\nmax_connections = 20000\n"


@dataclass(frozen=True)
class Round:
    """One server, everybody connected."""

    per_s: float
    per_cpu_s: float
    to_hello: Spread
    cpu: Cpu
    client_percent: float


async def connect(server: Server, directory: Path, tokens: Sequence[str]) -> Round:
    """All come. Raises LoadError when one was not greeted."""
    handshakes = [drive_plan.upgrade(server.port, token) for token in tokens]
    plan = drive_client.Plan(server.port, handshakes, len(handshakes), at_once=AT_ONCE)
    before = cpu_of(server.process.pid)
    async with drive_client.driving(plan, directory) as drive:
        await asyncio.sleep(WRITTEN_WITHIN_S)
        cpu = cpu_of(server.process.pid) - before
        connected = drive.connected
        times = drive_log.hello_ns(drive.connects())
    wall_ns = connected.ended_ns - connected.began_ns
    return Round(
        per_second(len(tokens), wall_ns),
        len(tokens) / max(cpu.total_s, 0.01),
        spread_of(times),
        cpu,
        100 * connected.cpu_s / (wall_ns / 1e9),
    )


async def run(quick: bool) -> list[Result]:
    """Both servers in turn, each anew in each round. Raises LoadError."""
    count = QUICK_CLIENTS if quick else CLIENTS
    tokens = drive_plan.tokens(range(1, count + 1))

    async def to_daemon() -> Round:
        with scratch() as place, daemon(place, drive_plan.CONFIG + LIMITS, count, core=cores().daemon) as server:
            return await connect(server, place / "drive", tokens)

    async def to_bare_server() -> Round:
        with scratch() as place, drive_client.bare_server(place, cores().daemon) as server:
            return await connect(server, place / "drive", tokens)

    done = await rounds.alternate({"pushd": to_daemon, "bare": to_bare_server}, rounds.rounds_for(quick))
    return results(done["pushd"], done["bare"], count)


def results(ours: Sequence[Round], bare: Sequence[Round], count: int) -> list[Result]:
    """The lines of the table."""
    group = f"{count:,} connects with a token, {AT_ONCE} at a time"
    by_cpu = [1e6 * one.cpu.loop_s / count for one in ours]
    return [
        Result("handshakes per s of the daemon's CPU", [one.per_cpu_s for one in ours], "/s", at_least(6000), group),
        Result("handshakes per s of wall time", [one.per_s for one in ours], "/s", None, group),
        Result("... the same clients at a bare server", [one.per_s for one in bare], "/s", None, group),
        Result("connect to hello, p50", [one.to_hello.p50_ms for one in ours], "ms"),
        Result("connect to hello, p99", [one.to_hello.p99_ms for one in ours], "ms", below(100)),
        Result("connect to hello, longest", [one.to_hello.max_ms for one in ours], "ms"),
        Result("the loop's CPU per connect", by_cpu, "us"),
        Result("the store's thread, per connect", [1e6 * one.cpu.others_s / count for one in ours], "us"),
        Result("the clients' share of their core", [one.client_percent for one in ours], "%"),
    ]


if __name__ == "__main__":
    sys.exit(rounds.script("connect", run))
