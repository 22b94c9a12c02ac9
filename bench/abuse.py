"""Floods of all kinds, one at a time: what a bystander notices of them, and what they cost the daemon in memory.

    python -m bench.abuse [--seconds 8] [--json FILE] [NAME...]

For each flood of `bench/loadlib/floods.py` a daemon of its own, a bystander whose notices are published every 10 ms,
the flood for so many seconds from another process, and what the bystander saw of the calm before and of the flood.
Fails when a daemon ends, or one of the bystander's notices does not come; figures that are higher than they should be
are no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.loadlib import drive_plan  # noqa: E402
from bench.loadlib.admin import Admin, Metrics, lag_between  # noqa: E402
from bench.loadlib.bystander import Bystander  # noqa: E402
from bench.loadlib.figures import Spread  # noqa: E402
from bench.loadlib.floods import FLOODS, PREPARED  # noqa: E402
from bench.loadlib.machine import usage_of  # noqa: E402
from bench.loadlib.options import LoadError  # noqa: E402
from bench.loadlib.servers import ROOT, Server, cores, daemon, on_core, scratch  # noqa: E402

USERS = 1_500
# Without fsync: how long the disk takes with others on it is no flood's doing.
CONFIG = f'{drive_plan.CONFIG}[delivery]\nfsync = "off"\n'
CALM_S = 2.0
GRACE_S = 60.0  # for a flood to end by itself


@dataclass(frozen=True)
class Row:
    """One flood.

    `before_mb` and `most_mb`: resident memory of the daemon, in the calm and at its highest. `lag_ms`: the daemon's
    loop was never later with its timer; a bound of its histogram.
    """

    name: str
    calm: Spread
    flood: Spread
    before_mb: float
    most_mb: float
    lag_ms: float
    refused: int
    did: dict[str, int]


async def abuse(name: str, seconds: float) -> Row:
    """One flood. Raises LoadError."""
    with scratch() as place, daemon(place, CONFIG, USERS, core=cores().daemon) as server:
        bystander = Bystander(server.port, server.process.pid)
        async with bystander.watching():
            await asyncio.sleep(CALM_S / 2)
            bystander.take_spread()  # the first ones warm up
            await asyncio.sleep(CALM_S)
            await bystander.caught_up()
            calm, before = bystander.take_spread(), usage_of(server.process.pid).rss_bytes

            async def prepared() -> None:
                await bystander.caught_up()
                bystander.take_spread()  # what was published to fill the stores is no flood

            earlier = await scraped(server.port)
            did = await flooded(name, server, seconds, prepared)
            try:
                await bystander.caught_up()
            except LoadError as error:
                raise LoadError(f"{error}; the daemon ended with {server.process.poll()}") from None
            most = bystander.most_rss_bytes
            lag = lag_between(earlier, await scraped(server.port))
            return Row(
                name,
                calm,
                bystander.take_spread(),
                before / 1e6,
                most / 1e6,
                lag.max_below_ms,
                bystander.refused,
                did,
            )


async def scraped(port: int) -> Metrics:
    """What the daemon counts. Raises LoadError."""
    async with Admin(port) as admin:
        return await admin.metrics()


async def flooded(name: str, server: Server, seconds: float, prepared: Callable[[], Awaitable[None]]) -> dict[str, int]:
    """What the flood says it did; `prepared` is called when it has filled the stores it floods. Raises LoadError."""
    command = [sys.executable, "-m", "bench.loadlib.floods", name, str(server.port), str(seconds)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None  # for the type checker
    assert process.stderr is not None
    try:
        async with asyncio.timeout(seconds + GRACE_S):
            errors, output = await asyncio.gather(process.stderr.read(), _output(process.stdout, prepared))
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise LoadError(f"{name} does not end") from None
    if process.returncode:
        raise LoadError(f"{name}: {errors.decode(errors='replace')[-500:]}")
    return dict(json.loads(output))


async def _output(lines: asyncio.StreamReader, prepared: Callable[[], Awaitable[None]]) -> bytes:
    output = b""
    async for line in lines:
        if line.strip() == PREPARED.encode():
            await prepared()
        else:
            output += line
    return output


def table(rows: Sequence[Row]) -> str:
    """For people, and for docs/operations.md."""
    lines = [
        "| flood | it did | RSS before → most, MB | before, p50 / p99 / worst, ms | meanwhile, ms | loop late, ms |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {', '.join(f'{number:,} {what}' for what, number in row.did.items())} "
        f"| {row.before_mb:.0f} → {row.most_mb:.0f} | {_times(row.calm)} | {_times(row.flood)} | {row.lag_ms:g} |"
        for row in rows
    ]
    return "\n".join(lines)


def _times(spread: Spread) -> str:
    return f"{spread.p50_ms:.1f} / {spread.p99_ms:.1f} / {spread.max_ms:.1f}"


def main() -> int:
    """0 all was delivered, 1 something was not, or a daemon ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.abuse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each flood (default 8)")
    parser.add_argument("--json", metavar="FILE", help="the figures for programs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FLOODS)}; else all")
    options = parser.parse_args()
    if unknown := set(options.names).difference(FLOODS):
        parser.error(f"no such flood: {', '.join(sorted(unknown))}")
    cores()  # asked before this process is bound to one
    rows: list[Row] = []
    failed: list[str] = []
    for name in options.names or FLOODS:
        try:
            with on_core(cores().others), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                rows.append(runner.run(abuse(name, options.seconds)))
        except LoadError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
        else:
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(f"\n{table(rows)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
