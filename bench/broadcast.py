"""A notice from its POST to the last of 10,000 clients: the daemon, and the C server that does nothing but send.

    python -m bench.broadcast [--quick]

The daemon has its journal, its records and 10,000 known users on SQLite, and one core. Both servers have the same C
clients, connected at the same time, on the other core; rounds alternate. A delivery's time is from just before the POST
is written to the arrival of the frame, at every client; the clients check that each got every frame, intact and in
order.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.loadlib import rounds
from bench.loadlib.admin import Admin, Lag, Metrics, lag_between
from bench.loadlib.native import LoadClient, limit_server, load_client
from bench.loadlib.options import LoadError
from bench.loadlib.paired import middle
from bench.loadlib.rounds import Result, alternate, at_most, below, ratios, rounds_for
from bench.loadlib.servers import Server, cores, daemon, scratch

CLIENTS, QUICK_CLIENTS = 10_000, 4_000
NOTICES, QUICK_NOTICES = 6, 2  # per round
CONTENT = "a notice of a hundred characters, as they are short texts for people in a back office, more or less."
# What the daemon makes of the notice, so that both servers send frames of one size.
FRAME = {
    "type": "bench", "content": CONTENT, "data": {"t": "{t}", "n": "{n}"}, "time": "2026-01-01 00:00:00",
    "ts": 1767225600000, "message_id": "b{n}", "priority": 1, "need_confirm": False,
}  # fmt: skip
NOTICE = {"type": "bench", "content": CONTENT, "data": FRAME["data"], "message_id": "b{n}", "target": "online"}
CONFIG = ""  # everything as it is by default
QUIET_SHARE, QUIET_FOR_S, QUIET_WITHIN_S = 0.15, 0.3, 20.0  # longer than records wait for others (records.flush_ms)


@dataclass(frozen=True)
class Round:
    """Some broadcasts, one after the other. Shares are of a core, while notices are under way."""

    p50_ms: float
    p99_ms: float
    last_ms: float  # the median of the broadcasts
    answer_ms: float  # the median
    frame_bytes: int
    client_share: float
    cpu_ms: float  # the server's per broadcast, with all that comes after it


def template(shape: dict[str, Any]) -> str:
    """As JSON, the places for numbers left bare."""
    text = json.dumps(shape, separators=(",", ":"))
    return text.replace('"{t}"', "{t}").replace('"{n}"', "{n}")


async def broadcasts(client: LoadClient, server: Server, notices: int) -> Round:
    """One round; the next notice waits until the server is quiet again."""
    last, shares, size = [], [], 0
    cpu_s = server.cpu_s
    for _ in range(notices):
        said = await client.ask("rounds 1 0")
        last += said["last_ms"]
        shares.append(said["cpu"])
        size = said["frame_bytes"]
        await quiet(server)
    figures = await client.ask("report")
    took = figures["delivery"]
    return Round(
        p50_ms=took["p50_ms"],
        p99_ms=took["p99_ms"],
        last_ms=middle(last).median,
        answer_ms=figures["answer"]["p50_ms"],
        frame_bytes=size,
        client_share=middle(shares).median,
        cpu_ms=1000 * (server.cpu_s - cpu_s) / notices,
    )


async def quiet(server: Server, for_s: float = QUIET_FOR_S) -> None:
    """Return when a server has nothing left to do: records, acknowledgements. Raises LoadError."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + QUIET_WITHIN_S
    while loop.time() < ends:
        before = server.cpu_s
        await asyncio.sleep(for_s)
        if server.cpu_s - before <= QUIET_SHARE * for_s:
            return
    raise LoadError(f"{server.name} does not come to rest")


@asynccontextmanager
async def connected(
    directory: Path, server: Server, shape: dict[str, Any], post_path: str, clients: int, is_acking: bool
) -> AsyncIterator[LoadClient]:
    """Clients of one server, ready for a broadcast."""
    notice = directory / f"{server.name}.json"
    notice.write_text(template(shape))
    path = "/ws?user_id={uid}" + ("&ack=1" if is_acking else "")
    options = ["--port", str(server.port), "--connections", str(clients), "--path", path, "--match", '{"type":"bench"',
               "--notice", str(notice), "--post-path", post_path, *(["--ack"] if is_acking else [])]  # fmt: skip
    async with load_client(directory, f"{server.name}-clients", options, core=cores().others) as client:
        await quiet(server)
        yield client


async def compare(clients: int, notices: int, count: int, is_acking: bool) -> tuple[dict[str, list[Round]], Lag]:
    """Both servers, alternating. The daemon's lag is over its rounds, pauses included."""
    core = cores().daemon
    with (
        scratch() as directory,
        limit_server(directory, clients, core=core) as limit,
        daemon(directory, CONFIG, clients, core=core) as ours,
    ):
        async with (
            connected(directory, ours, NOTICE, "/api/admin/system/notice", clients, is_acking) as our_clients,
            connected(directory, limit, FRAME, "/", clients, is_acking) as limit_clients,
            Admin(ours.port) as admin,
        ):
            before = await admin.metrics()
            done = await alternate(
                {
                    "limit": lambda: broadcasts(limit_clients, limit, notices),
                    "pushd": lambda: broadcasts(our_clients, ours, notices),
                },
                count,
            )
            after = await admin.metrics()
            check(done, before, after, clients * notices * (count + 1), is_acking)
            return done, lag_between(before, after)


def check(done: dict[str, list[Round]], before: Metrics, after: Metrics, deliveries: int, is_acking: bool) -> None:
    """What the clients say happened is what the daemon says. Raises LoadError."""
    sizes = {turn.frame_bytes for turns in done.values() for turn in turns}
    if max(sizes) - min(sizes) > 8:  # numbers of notices grow
        raise LoadError(f"frames are of different sizes: {sizes}")
    acks = after.total("pushd_acks_total") - before.total("pushd_acks_total")
    if is_acking and acks != deliveries:
        raise LoadError(f"{deliveries} notices were acknowledged, the daemon counted {acks:.0f}")


def results(done: dict[str, list[Round]], lag: Lag, clients: int, is_acking: bool) -> list[Result]:
    """The lines of one comparison."""
    kind = "with acks" if is_acking else "no acks"
    group = f"broadcast to {clients:,} clients, {kind}"

    def line(what: str, name: str, read: Callable[[Round], float], unit: str = "ms") -> Result:
        return Result(f"{what}, {name}", [read(turn) for turn in done[name]], unit, group=group)

    times: list[tuple[str, Callable[[Round], float]]] = [
        ("p50", lambda turn: turn.p50_ms),
        ("p99", lambda turn: turn.p99_ms),
        ("time to last", lambda turn: turn.last_ms),
        ("CPU of a broadcast", lambda turn: turn.cpu_ms),
    ]
    p99 = ratios([turn.p99_ms for turn in done["pushd"]], [turn.p99_ms for turn in done["limit"]])
    shares = {name: [100 * turn.client_share for turn in turns] for name, turns in done.items()}
    return [
        *(line(what, name, read) for what, read in times for name in done),
        line("POST to its 200", "pushd", lambda turn: turn.answer_ms),
        Result(f"p99, pushd to limit, {kind}", p99, "x", at_most(2.0 if is_acking else 1.25)),
        Result(f"loop lag, p99 at or below, {kind}", [lag.p99_below_ms], "ms", at_most(5.0), details=vars(lag)),
        Result(f"loop lag, readings over 5 ms, {kind}", [100 * lag.over_5_ms / max(1, lag.readings)], "%"),
        Result(f"clients' share of their core, limit, {kind}", shares["limit"], "%", below(90)),
        Result(f"clients' share of their core, pushd, {kind}", shares["pushd"], "%"),
    ]


async def run(quick: bool) -> list[Result]:
    """Without acknowledgements, then with them."""
    clients, notices = (QUICK_CLIENTS, QUICK_NOTICES) if quick else (CLIENTS, NOTICES)
    found: list[Result] = []
    for is_acking in (False, True):
        done, lag = await compare(clients, notices, rounds_for(quick), is_acking)
        found += results(done, lag, clients, is_acking)
    return found


if __name__ == "__main__":
    sys.exit(rounds.script("broadcast", run))
