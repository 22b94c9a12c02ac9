"""The offline path from end to end: saving for absent users, replaying to those who return, and a storm of them.

    python bench/offline.py [--quick] [--mailbox sqlite|redis|both] [--part save|replay|storm] [--repeat 3]

Starts a daemon (on the first core) and a redis-server (on the last one, with the clients) of its own for every
measurement, on this machine, and ends them. Every figure is preceded by a check that the work was done.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import uvloop  # noqa: E402

from bench.loadlib.machine import describe  # noqa: E402
from bench.loadlib.options import LoadError  # noqa: E402
from bench.loadlib.paired import Middle, middle  # noqa: E402
from bench.loadlib.servers import cores, on_core  # noqa: E402
from bench.loadlib.waiting import Costs, Replayed, Saved, Storm, replay, save, storm  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "offline.json"
PARTS = ("save", "replay", "storm")
Result = Saved | Replayed | Storm


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; a quick run is a tenth of the size, once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, once: does it work?")
    parser.add_argument("--mailbox", choices=("sqlite", "redis", "both"), default="both")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be repeated")
    parser.add_argument("--repeat", type=int, help="runs of each part (3)")
    parser.add_argument("--users", type=int, help="absent users of the save (10000)")
    parser.add_argument("--notices", type=int, help="broadcasts to them (50; limits.max_per_user is 100)")
    parser.add_argument("--at-once", type=int, default=128, help="clients of the replay that connect at a time (128)")
    parser.add_argument("--rate", type=float, default=20, help="live broadcasts/s during the storm (20)")
    parser.add_argument(
        "--live",
        choices=("online", "custom"),
        default="custom",
        help="whom they go to: the 500 others (custom), or everyone connected, so also those who came back (20/s would "
        "be 110,000 deliveries/s)",
    )
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(argv)
    scale = 10 if options.quick else 1
    options.repeat = options.repeat or (1 if options.quick else 3)
    options.part = options.part or list(PARTS)
    options.users = options.users or 10_000 // scale
    options.notices = options.notices or 50 // (5 if options.quick else 1)
    options.returning = 1000 // scale
    options.storming, options.watching = 5000 // scale, 500 // scale
    return options


def part(options: argparse.Namespace, name: str, kind: str) -> Callable[[], Awaitable[Result]]:
    """One measurement."""
    if name == "save":
        return lambda: save(kind, options.users, options.notices)
    if name == "replay":
        return lambda: replay(kind, options.returning, 100, options.at_once)
    return lambda: storm(kind, options.storming, 10, options.watching, options.rate, options.live)


# ---- the table


def rows(results: list[Result]) -> list[tuple[str, str, Middle]]:
    """What is said of the runs of one part: what, target, figures."""
    said: list[tuple[str, str, Callable[[Any], float]]] = []
    match results[0]:
        case Saved():
            said = [
                ("copies saved/s", ">= 100,000 (Redis)", lambda run: run.per_s),
                ("... seconds", "", lambda run: run.elapsed_s),
                ("... all POSTs answered, s", "", lambda run: run.answered_s),
                ("... records written, too, s", "", lambda run: run.settled_s),
            ]
        case Replayed():
            said = [
                ("messages/s until all is acknowledged", ">= 50,000", lambda run: run.per_s),
                ("... until the last has arrived", "", lambda run: run.took.messages / run.took.elapsed_s),
                ("... one user, p50, ms", "", lambda run: run.took.by_user.p50_ms),
                ("... one user, p99, ms", "", lambda run: run.took.by_user.p99_ms),
                ("... the clients alone are faster by", "", lambda run: run.headroom),
                ("... the clients' share of their core, %", "", lambda run: run.took.busy_percent),
            ]
        case Storm():
            said = [
                ("seconds until all is there", "< 5", lambda run: run.took.elapsed_s),
                ("... until all is acknowledged", "", lambda run: run.emptied_s),
                ("live p50, ms", "", lambda run: run.live.p50_ms),
                ("live p99, ms", "< 50", lambda run: run.live.p99_ms),
                ("live max, ms", "", lambda run: run.live.max_ms),
                ("... of which until the 200, max", "", lambda run: run.answers.max_ms),
                ("live p99 before it, ms", "", lambda run: run.calm.p99_ms),
                ("... the clients' share of their core, %", "", lambda run: run.took.busy_percent),
                ("... the watchers' share of the same, %", "", lambda run: run.watcher_percent),
            ]
    costs: list[tuple[str, str, Callable[[Costs], float]]] = [
        ("daemon CPU, s", "", lambda cost: cost.daemon_s),
        ("... share of its core, %", "", lambda cost: 100 * cost.daemon_s / cost.wall_s),
        ("Redis CPU, s", "", lambda cost: cost.redis_s),
        ("loop lag, p99 below, ms", "", lambda cost: cost.lag.p99_below_ms),
        ("loop lag, max below, ms", "", lambda cost: cost.lag.max_below_ms),
    ]
    lines = [(what, target, middle([read(run) for run in results])) for what, target, read in said]
    return lines + [(what, target, middle([read(run.costs) for run in results])) for what, target, read in costs]


def number(value: float) -> str:
    """Three digits are enough."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def title(options: argparse.Namespace, name: str, kind: str) -> str:
    """What a part does, in numbers."""
    if name == "save":
        return f"save, {kind}: {options.notices} broadcasts to {options.users:,} absent users"
    if name == "replay":
        return f"replay, {kind}: {options.returning:,} users, 100 notices each, ack=1, {options.at_once} at a time"
    live = "everyone online" if options.live == "online" else f"those {options.watching}"
    return (
        f"storm, {kind}: {options.storming:,} users, 10 notices each, all at once; "
        f"{options.watching} others, {options.rate:g} notices/s to {live}"
    )


def show(options: argparse.Namespace, name: str, kind: str, results: list[Result]) -> None:
    """A part's rows."""
    print(f"\n{title(options, name, kind)}")
    for what, target, figure in rows(results):
        spread = f"({number(figure.lowest)}-{number(figure.highest)})" if len(results) > 1 else ""
        print(f"  {what:<40}{number(figure.median):>10} {spread:<22}{target}")


async def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All parts, one run after the other. Raises LoadError."""
    found = []
    for kind in ("sqlite", "redis") if options.mailbox == "both" else (options.mailbox,):
        for name in options.part:
            run = part(options, name, kind)
            results = [await run() for _ in range(options.repeat)]
            show(options, name, kind, results)
            figures = {what: asdict(figure) for what, _, figure in rows(results)}
            found.append({"part": name, "mailbox": kind, "figures": figures, "runs": [asdict(run) for run in results]})
    return found


def main() -> int:
    """0 measured; 1 something was not done, or could not be."""
    options = parse(sys.argv[1:])
    places = cores()  # before this process is bound to one
    gc.disable()
    print(f"daemon on core {places.daemon}; redis-server, clients and publisher on core {places.others}")
    print(f"load before: {os.getloadavg()[0]:.2f}")
    try:
        with on_core(places.others), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(measure(options))
    except LoadError as error:
        print(f"offline: {error}", file=sys.stderr)
        return 1
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": describe(), "options": given, "parts": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
