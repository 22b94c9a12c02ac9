"""Single-user notices by POST over kept-alive connections, durable; then many per POST.

    python bench/publish.py [--quick]

Every round has a daemon of its own. Who is present is an acknowledging client; who is absent comes afterwards and takes
what waits. Either way every notice has to come to its user, once.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.loadlib import drive_client, drive_log, drive_plan, rounds  # noqa: E402
from bench.loadlib.admin import Admin  # noqa: E402
from bench.loadlib.drive_client import Drive, Plan, driving  # noqa: E402
from bench.loadlib.drive_cost import Cpu, cpu_of  # noqa: E402
from bench.loadlib.figures import Spread, per_second, spread_of  # noqa: E402
from bench.loadlib.options import LoadError  # noqa: E402
from bench.loadlib.rounds import Result, Target, at_least, below  # noqa: E402
from bench.loadlib.servers import Server, cores, daemon, scratch  # noqa: E402

USERS = 1000
SINGLES, QUICK_SINGLES = 20_000, 5_000
BATCHED, QUICK_BATCHED = 50_000, 10_000
PUBLISHERS = 32
BATCH_SIZE, BATCH_PUBLISHERS = 500, 4
SETTLED_WITHIN_S = 60.0
CONFIG = drive_plan.CONFIG + '[delivery]\nfsync = "batch"\n'


@dataclass(frozen=True)
class Round:
    """`per_s`: notices, from the first request to the last answer; `written_per_s`: until all is in the stores, too."""

    per_s: float
    written_per_s: float
    accept: Spread
    delivery: Spread
    cpu: Cpu
    notices: int
    client_percent: float


async def settled(server: Server) -> int:
    """When nothing is left to be done for any notice, as the daemon has it. Raises LoadError."""
    ends = time.monotonic() + SETTLED_WITHIN_S
    async with Admin(server.port) as admin:
        while time.monotonic() < ends:
            if not (await admin.metrics()).total("pushd_journal_pending"):
                return time.monotonic_ns()
            await asyncio.sleep(0.05)
    raise LoadError(f"not all was written within {SETTLED_WITHIN_S:g} s")


async def publish(
    server: Server, directory: Path, requests: list[tuple[int, bytes]], notices: int, here: bool
) -> Round:
    """`notices` to USERS users, who are there or not. Raises LoadError when one was lost or came twice."""
    handshakes = [drive_plan.upgrade(server.port, token) for token in drive_plan.tokens(range(1, USERS + 1))]
    publishers = PUBLISHERS if len(requests) == notices else BATCH_PUBLISHERS
    present = handshakes if here else []
    plan = Plan(
        server.port, present, len(present), requests, publishers, notices if here else 0, is_acking=True
    )  # fmt: skip
    async with driving(plan, directory / "publish") as drive:
        before = cpu_of(server.process.pid)
        done = await drive.go()
        settled_ns = await settled(server)
        cpu = cpu_of(server.process.pid) - before
    answers, delivered = drive.answers(), drive.deliveries()
    drive_log.check_accepted(answers, notices)
    if here:
        check(drive, notices)
    else:
        await collect(server, directory / "collect", handshakes, notices)
    began_ns = min(answer.sent_ns for answer in answers)
    wall_ns = max(answer.answered_ns for answer in answers) - began_ns
    is_single = len(answers) == notices
    latency = drive_log.delivery_ns(delivered, answers, range(notices)) if is_single else []
    return Round(
        per_second(notices, wall_ns),
        per_second(notices, settled_ns - began_ns),
        spread_of(drive_log.accept_ns(answers)),
        spread_of(latency),
        cpu,
        notices,
        100 * done.cpu_s / ((done.ended_ns - done.began_ns) / 1e9),
    )


def check(drive: Drive, notices: int) -> None:
    """Each notice came to its user, once."""
    drive_log.check_delivered(drive.deliveries(), notices, lambda number: (number % USERS,), USERS)


async def collect(server: Server, directory: Path, handshakes: Sequence[bytes], notices: int) -> None:
    """All users come and take what waits."""
    plan = Plan(server.port, handshakes, USERS, deliveries=notices, is_acking=True)
    async with driving(plan, directory) as drive:
        await drive.go()
    check(drive, notices)


async def at_bare_server(requests_total: int) -> Round:
    """How fast the publishers are by themselves."""
    with scratch() as place, drive_client.bare_server(place, cores().daemon) as server:
        requests = drive_plan.singles(server.port, drive_plan.one_each(requests_total, range(1, USERS + 1)))
        async with driving(Plan(server.port, requests=requests, publishers=PUBLISHERS), place / "drive") as drive:
            done = await drive.go()
        answers = drive.answers()
        drive_log.check_accepted(answers, requests_total)
        wall_ns = max(answer.answered_ns for answer in answers) - min(answer.sent_ns for answer in answers)
        busy = 100 * done.cpu_s / ((done.ended_ns - done.began_ns) / 1e9)
        per_s = per_second(requests_total, wall_ns)
        return Round(per_s, per_s, spread_of(drive_log.accept_ns(answers)), Spread(), Cpu(0, 0), requests_total, busy)


async def run(quick: bool) -> list[Result]:
    """All ways in turn. Raises LoadError."""
    singles, batched = (QUICK_SINGLES, QUICK_BATCHED) if quick else (SINGLES, BATCHED)

    async def one_way(notices: int, here: bool, size: int) -> Round:
        with scratch() as place, daemon(place, CONFIG, USERS, core=cores().daemon) as server:
            planned = drive_plan.one_each(notices, range(1, USERS + 1))
            requests = (
                drive_plan.batches(server.port, planned, size) if size else drive_plan.singles(server.port, planned)
            )
            return await publish(server, place, requests, notices, here)

    ways = {
        "present": lambda: one_way(singles, True, 0),
        "absent": lambda: one_way(singles, False, 0),
        "batch": lambda: one_way(batched, True, BATCH_SIZE),
        "bare": lambda: at_bare_server(singles),
    }
    done = await rounds.alternate(ways, rounds.rounds_for(quick))
    return [
        *results("one user each, who is there", done["present"], at_least(20_000), below(20)),
        *results("one user each, who is absent", done["absent"], at_least(20_000), below(20)),
        *results(f"{BATCH_SIZE} to a POST, one user each, who is there", done["batch"], at_least(80_000), None),
        Result("POSTs/s of the same publishers at a bare server", [one.per_s for one in done["bare"]], "/s"),
        Result("... accepted after, p99", [one.accept.p99_ms for one in done["bare"]], "ms"),
    ]


def results(group: str, done: Sequence[Round], rate: Target, accept: Target | None) -> list[Result]:
    """The lines of one way."""
    is_single = bool(done[0].delivery.count)
    lines = [
        Result("notices accepted per s", [one.per_s for one in done], "/s", rate, group),
        Result("... and written to all stores", [one.written_per_s for one in done], "/s", None, group),
        Result(f"{group}: accepted after, p50", [one.accept.p50_ms for one in done], "ms"),
        Result(f"{group}: accepted after, p99", [one.accept.p99_ms for one in done], "ms", accept),
    ]
    if is_single:
        lines.append(Result(f"{group}: delivered after, p99", [one.delivery.p99_ms for one in done], "ms"))
    return [
        *lines,
        Result(f"{group}: the loop's CPU per notice", [1e6 * one.cpu.loop_s / one.notices for one in done], "us"),
        Result(f"{group}: the store's, per notice", [1e6 * one.cpu.others_s / one.notices for one in done], "us"),
        Result(f"{group}: the client's share of its core", [one.client_percent for one in done], "%"),
    ]


if __name__ == "__main__":
    sys.exit(rounds.script("publish", run))
