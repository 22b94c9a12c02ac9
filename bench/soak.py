"""Many of `mixed`'s minutes on one daemon: is anything lost, does it grow, does it fail?

    python -m bench.soak [--minutes 10]

Every minute 10,000 clients connect, have their day (`bench/mixed.py`, which accounts for every notice) and leave. Fails
when a notice is lost or comes twice, when the daemon counts an error, does not settle, or grows from minute to minute.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import uvloop

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.loadlib.drive_cost import memory_of  # noqa: E402
from bench.loadlib.options import LoadError  # noqa: E402
from bench.loadlib.servers import Server, cores, daemon, on_core, scratch  # noqa: E402
from bench.mixed import CONFIG, Day, day, scraped  # noqa: E402

DAY_S = 60
GROWS_LESS_MB = 1.0  # a minute, from the second one on: what is remembered of visitors and notices
SETTLED_WITHIN_S = 120


async def soak(minutes: int) -> None:
    """Raises LoadError with what went wrong."""
    with scratch() as place, daemon(place, CONFIG, 0, core=cores().daemon) as server:
        resident: list[float] = []
        for minute in range(minutes):
            found = await day(server, place / f"drive{minute}", DAY_S)
            await quiet(server)
            resident.append(memory_of(server.process.pid).rss_bytes / 1e6)
            print(line(minute, found, resident[-1]), flush=True)
    check_growth(resident)


def line(minute: int, found: Day, resident_mb: float) -> str:
    """What a minute was like."""
    return (
        f"minute {minute + 1}: urgent p99 {found.urgent.p99_ms:.1f} ms, to all p99 {found.broadcast.p99_ms:.0f} ms, "
        f"CPU {100 * found.cpu.total_s / found.wall_s:.0f} %, RSS when all have left {resident_mb:.1f} MB"
    )


async def quiet(server: Server) -> None:
    """Everybody has left and everything is written. Raises LoadError when not, or when errors were counted."""
    for _ in range(SETTLED_WITHIN_S):
        metrics = await scraped(server)
        if errors := metrics.total("pushd_errors_total") + metrics.total("pushd_store_errors_total"):
            raise LoadError(f"the daemon counted {errors:g} errors")
        left = {name: metrics.total(name) for name in ("pushd_journal_pending", "pushd_connections")}
        if not any(left.values()):
            return
        await asyncio.sleep(1)
    raise LoadError(f"not settled within {SETTLED_WITHIN_S} s: {left}")


def check_growth(resident_mb: list[float]) -> None:
    """Raises LoadError when memory grew by more than GROWS_LESS_MB a minute. The first minute fills caches."""
    steady = resident_mb[1:]
    if len(steady) > 1 and (grown := (steady[-1] - steady[0]) / (len(steady) - 1)) > GROWS_LESS_MB:
        raise LoadError(f"memory grows by {grown:.2f} MB a minute: {', '.join(f'{mb:.1f}' for mb in resident_mb)}")


def main() -> int:
    """0 all is well, 1 it is not."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10, help="how long (default 10)")
    options = parser.parse_args()
    cores()  # asked before this process is bound to one
    try:
        with on_core(cores().others), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(soak(options.minutes))
    except LoadError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
