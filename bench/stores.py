"""Our stores against the old way, one command or query per recipient, with the same drivers and servers.

    python bench/stores.py [--quick] [--recipients 10000] [--rounds 5] [--at-once 1]

Starts a redis-server, a mariadbd and a MongoDB of its own: $PUSHD_TEST_MONGO_URL, a mongod, mongo-java-server
(bench/install-mongo-java.sh) or the tests' stand-in, the first of these that there is. Rounds alternate between both
ways; round trips are counted by a proxy, in a round that is not timed. Beside the loop's longest delay stands what of
it can be this process's own doing: the rest is time in which others had the core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import pymongo  # noqa: E402
import pymysql  # type: ignore[import-untyped]  # noqa: E402
import redis  # noqa: E402
import structlog  # noqa: E402
import uvloop  # noqa: E402

from bench.loadlib.machine import describe  # noqa: E402
from bench.loadlib.options import LoadError  # noqa: E402
from bench.loadlib.paired import Cost, Middle, middle, timed  # noqa: E402
from bench.loadlib.servers import (  # noqa: E402
    Mongo,
    cores,
    mariadb_server,
    mongo_server,
    on_core,
    redis_server,
    scratch,
)
from bench.loadlib.turns import Turns, counting  # noqa: E402
from bench.loadlib.ways import OLD_PREFIX, Ports, Task, check, embedded, tasks  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "stores.json"
TABLE = "CREATE TABLE user (id BIGINT PRIMARY KEY, username VARCHAR(64), user_type INT, KEY (user_type))"
ROWS_AT_ONCE = 5000
COUNTED_FROM = 900_000  # numbers of rounds that are not timed


@dataclass(frozen=True)
class Compared:
    """One line of the table; without an old way there is nothing to compare with."""

    task: str
    wall_ms: Middle
    cpu_ms: Middle
    lag_ms: Middle
    own_lag_ms: Middle
    trips: int = 0
    old_wall_ms: Middle | None = None
    old_cpu_ms: Middle | None = None
    old_lag_ms: Middle | None = None
    old_own_lag_ms: Middle | None = None
    old_trips: int = 0
    speedup: Middle | None = None


@dataclass(frozen=True)
class Servers:
    """Running, filled, empty of mailboxes and records."""

    ports: Ports
    mongo: Mongo
    mongo_version: str


@asynccontextmanager
async def servers(directory: Path, users: int, core: int) -> AsyncIterator[Servers]:
    """All three. Raises LoadError."""
    with (
        on_core(core),
        redis_server(directory) as cache,
        mariadb_server(directory) as maria,
        mongo_server(directory) as mongo,
    ):
        database = f"pushd_bench_{os.getpid()}"
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo.url, serverSelectionTimeoutMS=10_000)
        try:
            version = str(client.server_info()["version"])
            _fill_directory(maria.port, users)
            yield Servers(Ports(cache.port, maria.port, mongo.url, database), mongo, version)
        finally:
            client.drop_database(database)
            client.close()


def _fill_directory(port: int, users: int) -> None:
    with (
        pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE DATABASE bench")
        cursor.execute("USE bench")
        cursor.execute(TABLE)
        rows = [(user_id, f"user{user_id}", 2) for user_id in range(1, users + 1)]
        for start in range(0, users, ROWS_AT_ONCE):
            cursor.executemany("INSERT INTO user VALUES (%s, %s, %s)", rows[start : start + ROWS_AT_ONCE])


# ---- rounds


async def compare(task: Task, rounds: int) -> Compared:
    """Alternating, after one round each to warm up; who is first changes."""
    ours: list[Cost] = []
    old: list[Cost] = []
    for number in range(rounds + 1):
        pair = [(task.ours, ours), *([(task.old, old)] if task.old else [])]
        for work, costs in pair if number % 2 else reversed(pair):
            await task.prepare(number)
            cost = await timed(lambda work=work, number=number: work(number))  # type: ignore[misc]
            if number:
                costs.append(cost)
    wall, cpu, lag, own_lag = _milliseconds(ours)
    if not old:
        return Compared(task.name, wall, cpu, lag, own_lag)
    speedup = middle([theirs.wall_s / mine.wall_s for mine, theirs in zip(ours, old, strict=True)])
    return Compared(task.name, wall, cpu, lag, own_lag, 0, *_milliseconds(old), 0, speedup)


def _milliseconds(costs: list[Cost]) -> tuple[Middle, Middle, Middle, Middle]:
    rows = ((cost.wall_s, cost.cpu_s, cost.lag_s, cost.own_lag_s) for cost in costs)
    wall, cpu, lag, own_lag = (middle([1000 * seconds for seconds in column]) for column in zip(*rows, strict=True))
    return wall, cpu, lag, own_lag


async def trips(directory: Path, ports: Ports, users: int) -> dict[str, tuple[int, int]]:
    """Round trips of both ways by task, through proxies; each is done once before, so that its connections are open."""
    async with AsyncExitStack() as stack:
        counts: dict[str, Turns] = {}
        url = urlsplit(ports.mongo)
        places = {"redis": ports.redis, "mysql": ports.mysql, "mongo": url.port or 27017}
        through: dict[str, int] = {}
        for name, port in places.items():
            through[name], counts[name] = await stack.enter_async_context(counting(port))
        # one server, not what it says of others: a replica set's members would be asked without the proxy
        mongo = f"mongodb://127.0.0.1:{through['mongo']}/?directConnection=true"
        proxied = Ports(through["redis"], through["mysql"], mongo, ports.database)
        directory.mkdir()
        found = {}
        for task in await stack.enter_async_context(tasks(directory, proxied, users, 1)):
            pair = []
            for index, work in enumerate((task.ours, task.old or task.ours)):
                await task.prepare(COUNTED_FROM + index)
                await work(COUNTED_FROM + index)
                await task.prepare(COUNTED_FROM + 10 + index)
                before = counts[task.server].total
                await work(COUNTED_FROM + 10 + index)
                pair.append(counts[task.server].total - before)
            found[task.name] = (pair[0], pair[1])
        return found


def check_written(ports: Ports, users: int, rounds: int) -> None:
    """What both ways say they wrote is there: the rounds, and the one to warm up. Raises LoadError."""
    pipeline = redis.Redis(port=ports.redis).pipeline(transaction=False)
    for prefix in ("new:", OLD_PREFIX):
        for user_id in range(1, users + 1):
            pipeline.llen(f"{prefix}{user_id}")
    lengths = set(pipeline.execute())
    check(lengths == {rounds + 1}, f"mailboxes hold {lengths}, not {rounds + 1} each")
    with pymongo.MongoClient[dict[str, Any]](ports.mongo) as client:
        for name in ("admin_user_receive_records", "old_receive_records"):
            found = client[ports.database][name].count_documents({})
            check(found == users * (rounds + 1), f"{name} holds {found}, not {users * (rounds + 1)}")


async def measure(options: argparse.Namespace) -> tuple[Servers, list[Compared]]:
    """Everything. Raises LoadError."""
    users = options.recipients
    with scratch() as directory:
        async with servers(directory, users, cores().others) as there:
            async with tasks(directory, there.ports, users, options.at_once) as outside:
                lines = [await compare(task, options.rounds) for task in outside]
            check_written(there.ports, users, options.rounds)
            counted = await trips(directory / "counted", there.ports, users)
            async with embedded(directory, users) as inside:
                lines += [await compare(task, options.rounds) for task in inside]
    return there, [_with_trips(line, counted.get(line.task, (0, 0))) for line in lines]


def _with_trips(line: Compared, counted: tuple[int, int]) -> Compared:
    fields = {**vars(line), "trips": counted[0], "old_trips": counted[1]}
    return Compared(**fields)


# ---- the table


def cell(figure: Middle | None) -> str:
    """Median and range."""
    if figure is None:
        return "-"
    return f"{number(figure.median)} ({number(figure.lowest)}-{number(figure.highest)})"


def number(value: float) -> str:
    """Three digits are enough."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def show(options: argparse.Namespace, there: Servers, lines: list[Compared]) -> None:
    """For people."""
    print(f"{options.recipients:,} recipients, {options.rounds} rounds, old way {options.at_once} at a time")
    why = f" ({there.mongo.why})" if there.mongo.why else ""
    print(f"ms, median (range); MongoDB: {there.mongo.kind}, says {there.mongo_version}{why}")
    print(f"{'':<30}{'ours':>22}{'old way':>24}{'faster by':>18}{'round trips':>16}{'fewer by':>9}")
    for line in lines:
        fewer = f"{line.old_trips / line.trips:,.0f}" if line.trips else "-"
        trip = f"{line.trips:,} / {line.old_trips:,}" if line.trips else "-"
        walls = f"{cell(line.wall_ms):>22}{cell(line.old_wall_ms):>24}{cell(line.speedup):>18}"
        print(f"{line.task:<30}{walls}{trip:>16}{fewer:>9}")
    _show_delays(lines)
    if there.mongo.kind == "stand-in":
        print("\nThe stand-in's own time, interpreted Python, dominates both ways' throughput in records write: only")
        print("round trips, and CPU and delay of this process, say something there.")
    print("targets: round trips 10 times fewer, 5 times faster, CPU of records write < 400 ms, loop delay < 5 ms")


def _show_delays(lines: list[Compared]) -> None:
    delays = "".join(f"{head:>20}" for head in ("loop delay, ours", "old way", "ours, own", "old way, own"))
    print(f"\n{'':<30}{'CPU, ours':>22}{'CPU, old way':>24}{delays}")
    for line in lines:
        figures = (line.lag_ms, line.old_lag_ms, line.own_lag_ms, line.old_own_lag_ms)
        delays = "".join(f"{cell(figure):>20}" for figure in figures)
        print(f"{line.task:<30}{cell(line.cpu_ms):>22}{cell(line.old_cpu_ms):>24}{delays}")
    print("own: at most this much of it, which is CPU of this process; the rest is others' time on its core")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the recipients, 2 rounds: does it work?")
    parser.add_argument("--recipients", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--at-once", type=int, default=1, help="commands of the old way at a time (1)")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(argv)
    options.recipients = options.recipients or (1000 if options.quick else 10_000)
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


def main() -> int:
    """0 measured; 1 something was not done, or could not be."""
    options = parse(sys.argv[1:])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    places = cores()  # before this process is bound to one
    print(f"this process on core {places.daemon}, the servers on core {places.others}; load {os.getloadavg()[0]:.2f}")
    try:
        with on_core(places.daemon), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            there, lines = runner.run(measure(options))
    except LoadError as error:
        print(f"stores: {error}", file=sys.stderr)
        return 1
    show(options, there, lines)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    mongo = f"{there.mongo.kind} {there.mongo_version}"
    options.json.parent.mkdir(parents=True, exist_ok=True)
    figures = {"machine": describe(), "options": given, "mongodb": mongo, "lines": [asdict(line) for line in lines]}
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
