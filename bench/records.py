"""Lists of records over HTTP: 10,000 users × 30 notices stored, every kind of page timed, the loop's lag watched.

    python bench/records.py [--users 10000] [--notices 30] [--repeat 15] [--json FILE]
    python bench/records.py --stored 1000000 3000000 10000000 [--kind broadcasts]

Runs the daemon in a process of its own, with a data directory of its own, on this machine.

With --stored so many receipts, of broadcasts or of notices to one user each, are made for a daemon that is then
started; memory, disk, lists and the start are measured, as `bench.growth` does with what it has published. 10 million
notices to one user each take some five minutes to make.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import growth  # noqa: E402
from bench.loadlib import filled, rounds  # noqa: E402
from bench.loadlib.admin import Admin  # noqa: E402
from bench.loadlib.drive_cost import memory_of  # noqa: E402
from bench.loadlib.rounds import Result, at_most  # noqa: E402
from bench.loadlib.servers import cores, daemon, on_core, scratch  # noqa: E402
from pushd.config import toml  # noqa: E402
from pushd.model import (  # noqa: E402
    Channel,
    DeliveryStatus,
    Mark,
    Notice,
    Outcome,
    Priority,
    PushRecord,
    Receipt,
    Target,
    TargetKind,
)
from pushd.stores import open_stores  # noqa: E402
from pushd.telemetry.health import Health  # noqa: E402
from pushd.telemetry.metrics import Metrics  # noqa: E402
from pushd.telemetry.supervision import supervised  # noqa: E402

API = "/api/admin/notification"
PAGES = (
    "/records",
    "/records?page=3",
    "/records?keyword=notice%201&sort_by=priority",
    "/stats",
    "/admin-receive-records",
    "/admin-receive-records?page=100",
    "/admin-receive-records?page=100&page_size=100",
    "/admin-receive-records?message_id=m7",
    "/admin-receive-records?message_id=m7&page=100",
    "/admin-receive-records?user_id=4711",
    "/admin-receive-records?is_read=true",
    "/admin-receive-records?is_received=false&page=100",
    "/admin-receive-records?delivery_status=offline&push_channel=offline",
    "/admin-receive-records?start_date={since}&end_date={newest}",
    "/admin-receive-records?sort_by=received_at",
    "/admin-receive-records?sort_by=username&sort_order=asc",
    "/admin-receive-records?username=user4711",
    "/admin-receive-records?username=user47",
    "/admin-receive-records?username=user4",
    "/admin-receive-records?username=user4&page=100",
    "/admin-receive-records?username=user4&page=100&sort_by=received_at",
    "/admin-receive-records?username=user4&page=100&sort_by=read_at",
    "/admin-receive-records?username=user4&page=100&sort_by=user_id&sort_order=asc",
    "/admin-receive-records?username=user4&page=3333",
    "/admin-receive-records?username=user4&page=1667",
    "/admin-receive-records?username=user4&sort_by=read_at",
    "/admin-receive-records?username=user4&sort_by=username&page=100",
    "/admin-receive-records?username=user4&is_read=true&page=50",
    "/admin-receive-records?username=user4&is_read=false&page=100",
    "/admin-receive-records?username=user4&is_read=false&page=100&sort_by=received_at",
    "/admin-receive-records?username=user4&is_read=false&page=100&sort_by=read_at",
    "/admin-receive-records?username=user4&is_read=true&page=50&sort_by=read_at",
    "/admin-receive-records?username=user4&is_received=false&page=100",
    "/admin-receive-records?username=user4&start_date={since}&page=10",
    "/admin-receive-records?sort_by=read_at&page=100&message_id=m7",
    # The very middle of 300,000 records, of those that are unread, those of a ninth and of a third of the users.
    "/admin-receive-records?page=15000",
    "/admin-receive-records?page=15000&sort_by=received_at",
    "/admin-receive-records?page=15000&sort_by=read_at",
    "/admin-receive-records?page=15000&sort_by=confirmed_at",
    "/admin-receive-records?page=15000&sort_by=user_id",
    "/admin-receive-records?page=15000&sort_by=username",
    "/admin-receive-records?page=14250&is_read=false",
    "/admin-receive-records?page=14250&is_read=false&sort_by=received_at",
    "/admin-receive-records?page=14250&is_read=false&sort_by=user_id",
    "/admin-receive-records?page=14250&is_read=false&sort_by=username",
    "/admin-receive-records?page=12750&is_read=false&is_online=true&delivery_status=delivered&sort_by=received_at",
    "/admin-receive-records?username=user4&page=1667&sort_by=received_at",
    "/admin-receive-records?username=user4&page=1667&sort_by=read_at",
    "/admin-receive-records?username=user4&page=1667&sort_by=user_id",
    "/admin-receive-records?username=user4&page=1667&sort_by=username",
    "/admin-receive-records?username=user4&page=1583&is_read=false&sort_by=received_at",
    "/admin-receive-records?username=4",
    "/admin-receive-records?username=4&page=100",
    "/admin-receive-records?username=4&page=100&sort_by=received_at",
    "/admin-receive-records?username=4&page=5158",
    "/admin-receive-records?username=4&page=5158&sort_by=received_at",
    "/admin-receive-records?username=4&page=5158&sort_by=read_at",
    "/admin-receive-records?username=4&page=5158&sort_by=user_id",
    "/admin-receive-records?username=4&page=5158&sort_by=username",
    "/admin-receive-records?username=4&page=4894&is_read=false",
    "/admin-receive-records?username=4&page=4894&is_read=false&sort_by=received_at",
    "/admin-receive-records?username=4&page=264&is_read=true",
    "/admin-receive-records?username=4&page=264&is_read=true&sort_by=received_at",
    # Of two thirds of the time, and of a third long past.
    "/admin-receive-records?username=4&start_date={since}&page=3438",
    "/admin-receive-records?username=4&start_date={since}&page=3438&sort_by=received_at",
    "/admin-receive-records?username=4&start_date={since}&page=3261&is_read=false",
    "/admin-receive-records?username=4&start_date={since}&page=3261&is_read=false&sort_by=received_at",
    "/admin-receive-records?username=4&start_date={since}&page=3261&is_read=false&sort_by=user_id",
    "/admin-receive-records?username=4&start_date={since}&page=2700&is_read=false&is_online=true&sort_by=received_at",
    "/admin-receive-records?username=4&start_date={since}&page=2700&is_read=false&is_online=true&sort_by=username",
    "/admin-receive-records?start_date={since}&page=9500&is_read=false&sort_by=username",
    "/admin-receive-records?start_date={since}&page=9500&is_read=false&sort_by=received_at",
    "/admin-receive-records?end_date={until}&page=200&is_read=false&sort_by=received_at",
    "/admin-receive-records?end_date={until}&page=4750&is_read=false&sort_by=received_at",
    "/admin-receive-records?end_date={until}&page=4250&is_read=false&is_online=true&sort_by=user_id",
    "/messages/m7/receive-status",
    "/user-summary?user_id=4711",
)


async def fill(data_dir: str, users: int, notices: int) -> None:
    """Stored records as a month of use leaves them: a tenth absent, a twentieth of the users have read theirs."""
    config = toml.parse(f'[server]\ndata_dir = "{data_dir}"\n', source="bench", environ={})
    now_ms = time.time_ns() // 1_000_000
    async with (
        open_stores(config, lambda *_: None) as stores,
        supervised(stores.background, Health(Metrics(), time.monotonic)),
    ):
        for number in range(notices):
            at_ms = now_ms - (notices - number) * 3_600_000
            notice = Notice(
                seq=number + 1,
                message_id=f"m{number}",
                content=f"notice {number} of a month",
                target=Target(TargetKind.ALL),
                accepted_ms=at_ms,
                priority=Priority(number % 4),
            )
            await stores.journal.append([notice])
            receipts = [receipt(notice.message_id, user_id, at_ms) for user_id in range(1, users + 1)]
            await stores.records.write([PushRecord(notice, "success", users, users * 9 // 10)], receipts)
        message_ids = [f"m{number}" for number in range(notices)]
        for user_id in range(1, users + 1, 20):
            await stores.records.mark(user_id, message_ids, Mark.READ, now_ms)


def receipt(message_id: str, user_id: int, at_ms: int) -> Receipt:
    is_online = user_id % 10 != 0
    outcome = Outcome(
        created_ms=at_ms,
        is_online=is_online,
        received_ms=at_ms + user_id % 1000 if is_online else 0,
        status=DeliveryStatus.DELIVERED if is_online else DeliveryStatus.OFFLINE,
        channel=Channel.WEBSOCKET if is_online else Channel.OFFLINE,
    )
    return Receipt(message_id, user_id, f"user{user_id}", 2, f"c{user_id}", "10.0.0.1", "bench", outcome)


def start(directory: str) -> tuple[subprocess.Popen[bytes], str]:
    """The daemon, and its address."""
    config = Path(directory) / "pushd.toml"
    config.write_text(f'[server]\nport = 0\ndata_dir = "{directory}/data"\n[log]\nformat = "json"\n')
    log = Path(directory) / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "pushd", "--config", str(config)]
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                return process, f"http://127.0.0.1:{event['port']}"
        time.sleep(0.05)
    process.kill()
    raise SystemExit(log.read_text())


def get(url: str) -> bytes:
    """The body of a 200."""
    with urllib.request.urlopen(url, timeout=30) as response:
        return bytes(response.read())


def lag_over_5_ms(base: str) -> float:
    """How many of the loop's lag readings so far were over 5 ms."""
    counts = {}
    for line in get(f"{base}/metrics").decode().splitlines():
        if line.startswith("pushd_loop_lag_seconds_bucket"):
            counts[line.split('"')[1]] = float(line.rsplit(" ", 1)[1])
    return counts["+Inf"] - counts["0.005"]


def hours_ago(hours: float) -> str:
    """A moment as the API reads it; a notice was sent every hour."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - hours * 3600))


def cpu_ms(pid: int) -> float:
    """What all threads of a process have used so far."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6


def measure(base: str, pid: int, page: str, repeat: int) -> dict[str, float]:
    """Milliseconds from request to answer, after one to warm up, and of the daemon's CPU."""
    url = base + API + page.format(since=hours_ago(20.5), until=hours_ago(20.5), newest=hours_ago(0))
    answer = json.loads(get(url))["data"]
    if "items" in answer and "page=" not in page and not answer["items"]:
        raise SystemExit(f"{page}: an empty page")
    times, used = [], []
    for _ in range(repeat):
        get(f"{base}{API}/admin-receive-records?user_id=1")  # or totals would be remembered from the request before
        used_ms, began = cpu_ms(pid), time.perf_counter()
        get(url)
        times.append((time.perf_counter() - began) * 1000)
        used.append(cpu_ms(pid) - used_ms)
    return summary(times) | {"cpu_ms": statistics.median(used), "cpu_max_ms": max(used)}


def post(url: str, body: object) -> Any:
    """The data of a 200."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())["data"]


def read_all(base: str, number: int, options: argparse.Namespace) -> None:
    """One user reads all notices."""
    message_ids = [f"m{notice}" for notice in range(options.notices)]
    marked = post(f"{base}{API}/batch-mark-read", {"user_id": 20 * number + 2, "message_ids": message_ids})
    if marked["success_count"] != options.notices:
        raise SystemExit(f"batch-mark-read: {marked}")


def notify(base: str, number: int, options: argparse.Namespace) -> None:
    """A notice to all users, until it is recorded."""
    body = {"content": "x", "target": "custom", "user_ids": list(range(1, options.users + 1))}
    message_id = post(f"{base}/api/admin/system/notice?wait_ms=10000", body)["message_id"]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if json.loads(get(f"{base}{API}/messages/{message_id}/receive-status"))["data"]["total_users"] == options.users:
            return
        time.sleep(0.1)
    raise SystemExit("the records of a notice were not written")


CHANGED = "/admin-receive-records?username=4&page=100&sort_by=received_at"
CHANGES = {"one user has read all": read_all, "a notice went to all": notify}


def listed(base: str) -> float:
    """Milliseconds of one list by name."""
    began = time.perf_counter()
    get(f"{base}{API}{CHANGED}")
    return (time.perf_counter() - began) * 1000


def after(base: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The same, once after each change: at once, and when it has been left alone for a second."""
    figures = {}
    for name, change in CHANGES.items():
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(2 * options.repeat):
            change(base, number, options)
            time.sleep(number % 2)
            times[number % 2].append(listed(base))
        figures[name], figures[f"{name}, a second ago"] = map(summary, times)
    return figures


def first(directory: str, repeat: int) -> dict[str, float]:
    """The same as the first thing that a daemon is asked."""
    times = []
    for _ in range(repeat):
        process, base = start(directory)
        try:
            times.append(listed(base))
        finally:
            process.terminate()
            process.wait(20)
    return summary(times)


def summary(times: list[float]) -> dict[str, float]:
    """Of milliseconds."""
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}


DISK_TARGETS = {"broadcasts": at_most(20), "singles": at_most(400)}
MEMORY_TARGETS = {"broadcasts": at_most(16), "singles": at_most(32)}


async def stored(kind: filled.Kind, receipts: int) -> list[Result]:
    """What so many receipts cost a daemon that has just been started with them. Raises LoadError.

    Disk and memory of a receipt are the difference to a tenth of them: what all daemons need is in neither.
    """
    few = receipts // 10
    with scratch() as place:
        await filled.fill(place / "data", kind, growth.USERS, few)
        disk_of_few = growth.disk_of(place / "data")
        with daemon(place, growth.CONFIG, growth.USERS, core=cores().daemon) as server:
            rss_of_few = memory_of(server.process.pid).rss_bytes
    with scratch() as place:
        await filled.fill(place / "data", kind, growth.USERS, receipts)
        disk = (growth.disk_of(place / "data") - disk_of_few) / (receipts - few)
        with daemon(place, growth.CONFIG, growth.USERS, core=cores().daemon) as server:
            async with Admin(server.port) as admin:
                growing = growth.Growing(place, server, admin)
                growing.stored = receipts
                memory = (growing.rss_bytes() - rss_of_few) / (receipts - few)
                lists = await growth.page_results(growing, f"receipts of {kind}", False)
        return [
            Result(f"{kind}, {receipts:,}: disk per receipt, its notice included", [disk], "B", DISK_TARGETS[kind]),
            Result(f"{kind}, {receipts:,}: memory per receipt", [memory], "B", MEMORY_TARGETS[kind]),
            *lists,
            *await growth.start(place, receipts),
        ]


def main_stored(options: argparse.Namespace) -> None:
    """Each size by itself, and its table."""
    cores()  # asked before this process is bound to one
    for receipts in options.stored:
        print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
        with on_core(cores().others):
            print(rounds.table({"records": asyncio.run(stored(options.kind, receipts))}), flush=True)


def main() -> None:
    """Fill, serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--notices", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--stored", type=int, nargs="+", metavar="N", help="receipts of a database that is made first")
    parser.add_argument("--kind", choices=("broadcasts", "singles"), default="broadcasts")
    options = parser.parse_args()
    if options.stored:
        main_stored(options)
        return
    with tempfile.TemporaryDirectory(prefix="pushd-") as directory:
        began = time.perf_counter()
        asyncio.run(fill(f"{directory}/data", options.users, options.notices))
        print(f"{options.users * options.notices:,} receive records written in {time.perf_counter() - began:.1f} s")
        process, base = start(directory)
        try:
            time.sleep(2)  # while records are read beside the start, which is measured below
            figures = {page: measure(base, process.pid, page, options.repeat) for page in PAGES}
            late = lag_over_5_ms(base)
            changed = after(base, options)
        finally:
            process.terminate()
            process.wait(20)
        changed["a daemon has just started"] = first(directory, 5)
    print(f"{'median':>8} {'min':>8} {'max':>8} {'CPU':>8} {'max':>8}  ms")
    for page, figure in figures.items():
        print("".join(f"{value:8.1f} " for value in figure.values()), page)
    print(f"loop lag readings over 5 ms: {late:.0f}")
    print(f"{CHANGED}, the first time after")
    for name, figure in changed.items():
        print("".join(f"{value:8.1f} " for value in figure.values()), name)
    if options.json:
        Path(options.json).write_text(
            json.dumps({"pages": figures, "changed": changed, "late": late, "cpus": os.cpu_count()}, indent=1)
        )


if __name__ == "__main__":
    main()
