"""What is scheduled costs: CPU while nothing is due, memory, the start; and many that fall due in the same second.

    python -m bench.schedule [--quick]

100,000 notices of 120 bytes to one user each, all of them absent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from bench.loadlib import rounds
from bench.loadlib.admin import PREFIX, Admin, lag_between, notice
from bench.loadlib.drive_cost import cpu_of, memory_of
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import Result, below
from bench.loadlib.servers import Server, cores, daemon, daemon_again, scratch

USERS = 10_000
COUNT, QUICK_COUNT = 100_000, 10_000
AT_ONCE = 1000  # of a POST
IDLE_S, QUICK_IDLE_S = 30.0, 5.0
DUE_AFTER_S = 20.0  # at least, from when the last ones are scheduled
WITHIN_S = 300.0
CONTENT = "A notice for one user, who is somebody in a back office and to be told of it later on"
CONFIG = "[limits]\nmax_body_bytes = 4194304\n"


async def schedule(admin: Admin, first: int, count: int, **when: int) -> None:
    """So many notices, for later. Raises LoadError."""
    for start in range(first, first + count, AT_ONCE):
        notices = [
            {"content": CONTENT, "target": "custom", "user_ids": [number % USERS + 1], **when}
            for number in range(start, min(start + AT_ONCE, first + count))
        ]
        answer = await admin.ask("POST", f"{PREFIX}/system/notices", json.dumps({"notices": notices}).encode())
        items = json.loads(answer.body)["data"]["items"] if answer.status == 200 else []
        if any(item.get("status") != "scheduled" for item in items) or not items:
            raise LoadError(f"schedule: {answer.status} {answer.body[:300]!r}")


async def idle_cpu(server: Server, seconds: float) -> float:
    """CPU of the daemon per second while nothing happens, ms."""
    before, began = cpu_of(server.process.pid), time.perf_counter()
    await asyncio.sleep(seconds)
    return (cpu_of(server.process.pid) - before).total_s / (time.perf_counter() - began) * 1000


async def scheduled(directory: Path, count: int, idle_s: float) -> list[Result]:
    """Schedule them, wait, and start again."""
    with daemon(directory, CONFIG, USERS, core=cores().daemon) as server:
        async with Admin(server.port) as admin:
            await schedule(admin, 0, 1000, delay_s=86_400)
            await asyncio.sleep(2)
            nothing_ms, before = await idle_cpu(server, idle_s), memory_of(server.process.pid).rss_bytes
            began, used = time.perf_counter(), cpu_of(server.process.pid)
            await schedule(admin, 1000, count, delay_s=86_400)
            took_s, used_s = time.perf_counter() - began, (cpu_of(server.process.pid) - used).total_s
            await asyncio.sleep(2)
            idle_ms, held = await idle_cpu(server, idle_s), memory_of(server.process.pid).rss_bytes - before
    began = time.perf_counter()
    with daemon_again(directory, core=cores().daemon) as server:
        served_s = time.perf_counter() - began
        resident = memory_of(server.process.pid).rss_bytes
        async with Admin(server.port) as admin:
            known = (await admin.metrics()).total("pushd_scheduled")
            if known != count + 1000:
                raise LoadError(f"after the start: {known:g} are scheduled")
    name = f"{count:,} scheduled"
    return [
        Result(f"{name}: scheduled per second, {AT_ONCE} to a POST", [count / took_s], "/s"),
        Result(f"{name}: CPU of the daemon for each", [used_s / count * 1e6], "us"),
        Result(f"{name}: CPU while nothing is due, ms in a second", [idle_ms], "ms", below(nothing_ms + 3)),
        Result("1,000 scheduled: CPU while nothing is due, ms in a second", [nothing_ms], "ms"),
        Result(f"{name}: memory for each", [held / count], "B", below(400)),
        Result(f"{name}: serving after a start", [served_s], "s", below(3)),
        Result(f"{name}: memory behind a start", [resident / 1e6], "MB"),
    ]


async def backlog(directory: Path, count: int) -> list[Result]:
    """All of them fall due in one second, while somebody publishes."""
    with daemon(directory, CONFIG, USERS, core=cores().daemon) as server:
        async with Admin(server.port) as admin:
            due_ms = int((time.time() + DUE_AFTER_S + count / 2000) * 1000)
            await schedule(admin, 0, count, send_at=due_ms)
            if time.time() * 1000 > due_ms:
                raise LoadError("they fell due before the last was scheduled")
            before = await admin.metrics()
            resident = memory_of(server.process.pid).rss_bytes
            await asyncio.sleep(due_ms / 1000 - time.time())
            answers_ms: list[float] = []
            most_bytes = resident
            while (await admin.metrics()).total("pushd_scheduled"):
                if time.time() * 1000 > due_ms + WITHIN_S * 1000:
                    raise LoadError(f"not all have gone out within {WITHIN_S:g} s")
                began = time.perf_counter()
                await admin.publish(notice(CONTENT, f"live-{len(answers_ms)}", target="custom", user_ids=[1]))
                answers_ms.append((time.perf_counter() - began) * 1000)
                most_bytes = max(most_bytes, memory_of(server.process.pid).rss_bytes)
                await asyncio.sleep(0.02)
            took_s = time.time() - due_ms / 1000
            lag = lag_between(before, await admin.metrics())
    name = f"{count:,} due in the same second"
    answers_ms.sort()
    return [
        Result(f"{name}: gone out per second", [count / took_s], "/s"),
        Result(
            f"{name}: a publish meanwhile is answered after, p99",
            [answers_ms[int(len(answers_ms) * 0.99)]],
            "ms",
            below(50),
        ),
        Result(f"{name}: loop lag, p99 at or below", [lag.p99_below_ms], "ms"),
        Result(f"{name}: loop lag, worst at or below", [lag.max_below_ms], "ms"),
        Result(f"{name}: memory more than before", [(most_bytes - resident) / 1e6], "MB"),
    ]


async def run(quick: bool) -> list[Result]:
    """One round of each."""
    count = QUICK_COUNT if quick else COUNT
    with scratch() as directory:
        found = await scheduled(directory, count, QUICK_IDLE_S if quick else IDLE_S)
    with scratch() as directory:
        return found + await backlog(directory, count)


if __name__ == "__main__":
    sys.exit(rounds.script("schedule", run))
