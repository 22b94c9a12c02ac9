"""Whenever the daemon is killed: what is scheduled goes out once, and what was cancelled does not."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from pushd.delivery.schedule import put_off
from pushd.model import Notice, Target, TargetKind
from pushd.ports import Stores
from pushd.records import Part, PushFilter, PushSort
from tests import native
from tests.daemon import PREFIX, Probe, Process, until
from tests.fault.ledger_work import START_MS, Step, notice, opened
from tests.mongo_server import MongoServer

# ---- between any two writes of the stores


def later(number: int) -> Notice:
    """Due a second behind the one before."""
    at_ms = START_MS + 1000 * number
    return Notice(0, f"s{number}", f"content {number}", Target(TargetKind.ALL), at_ms, send_at_ms=at_ms, submitted_ms=1)


def due(*numbers: int) -> list[Notice]:
    """The same when they are journalled."""
    return [msgspec.structs.replace(later(number), seq=number, accepted_ms=START_MS + number) for number in numbers]


def steps() -> list[Step]:
    """Each is one call, of which what is promised is durable when it returns."""
    many = [later(number) for number in range(100, 400)]
    at = {"accepted_ms": START_MS + 500}
    moved = [msgspec.structs.replace(one, seq=number, **at) for number, one in enumerate(many, 600)]
    return [
        Step(lambda s: s.schedule.put([later(1), later(2), later(3)])),
        Step(lambda s: s.schedule.put(many)),
        Step(lambda s: s.schedule.cancel("s2", START_MS)),
        Step(lambda s: s.schedule.replace(put_off(later(3), START_MS + 9000))),
        Step(lambda s: s.journal.append(due(1))),
        Step(lambda s: asyncio.gather(s.journal.append([notice(50)]), s.schedule.put([later(4)]))),
        Step(lambda s: s.journal.append(moved)),
        Step(lambda s: s.journal.settle([1, *range(600, 700)])),
        Step(lambda s: s.schedule.drop(["s2"])),
        Step(lambda s: s.journal.append(due(4))),
    ]


async def seen(stores: Stores) -> dict[str, Any]:
    """What is scheduled, what is in the journal, and what lists say: each id is in one of them."""
    scheduled = await stores.schedule.due(1 << 60, 1000)
    entries = await stores.journal.since(0)
    rows = await stores.records.push_records(PushFilter(), PushSort.PUSH_TIME, Part(0, 1000))
    ids = [one.message_id for one in (*scheduled.notices, *entries)]
    assert max(Counter(ids).values(), default=1) == 1
    assert max(Counter(row.message_id for row in rows).values(), default=1) == 1
    return {
        "scheduled": [(one.message_id, one.send_at_ms) for one in scheduled.notices],
        "count": await stores.schedule.count(),
        "keys": sorted(await stores.schedule.keys()),
        "journal": sorted(one.message_id for one in entries),
        "states": sorted((row.message_id, row.state) for row in rows),
    }


async def work(directory: Path, told: Path) -> None:
    """Does all steps, and adds a byte to the file `told` when one has returned."""
    with told.open("wb", buffering=0) as file:
        async with opened(directory) as stores:
            for step in steps():
                await step.run(stores)
                file.write(b".")


async def states(directory: Path) -> list[dict[str, Any]]:
    """What is seen before each step, and after the last."""
    async with opened(directory) as stores:
        found = [await seen(stores)]
        for step in steps():
            await step.run(stores)
            found.append(await seen(stores))
    return found


async def after_another_start(directory: Path) -> dict[str, Any]:
    async with opened(directory) as stores:
        return await seen(stores)


@pytest.mark.timeout(120)
def test_a_notice_is_in_the_schedule_or_in_the_journal_whenever_it_is_killed(tmp_path: Path) -> None:
    told = native.run(tmp_path, "tests.fault.test_schedule_kill:killed_at_each", tmp_path, timeout_s=110)
    assert int(told.split()[-1]) > 20


def killed_at_each(directory: str) -> None:
    """Kills the work at one write after the other; prints how often."""
    made, data, told = (Path(directory) / name for name in ("made", "data", "told"))
    expected = asyncio.run(states(made))

    def task() -> None:
        asyncio.run(work(data, told))

    changes = native.changes_of(data, task)
    kills = sorted({*range(1, changes + 1, max(1, changes // 60)), *range(max(1, changes - 20), changes + 1)})
    for kill in kills:
        shutil.rmtree(data)
        assert native.ends_at(kill, data, task), kill
        done = len(told.read_bytes()) if told.exists() else 0
        found = asyncio.run(after_another_start(data))
        both = _together(expected, done)
        assert found in both, (kill, done, found, both)
        told.unlink(missing_ok=True)
    print(len(kills))


def _together(expected: list[dict[str, Any]], done: int) -> list[dict[str, Any]]:
    """What may be seen: before or after the step that was under way. Of two calls the first may be done alone."""
    may = expected[done : done + 2]
    if done == 5:
        first, second = may
        may = [*may, first | {"journal": second["journal"], "states": sorted([*first["states"], ("m50", "sent")])}]
    return may


# ---- a whole daemon, around the second when they are due

ROUNDS, NOTICES = 8, 30
USER = 7


class Told:
    """What the daemon has answered with 200, and what its client got."""

    def __init__(self) -> None:
        self.scheduled: list[str] = []
        self.cancelled: set[str] = set()
        self.in_doubt: set[str] = set()  # nobody knows whether it was cancelled
        self.got: Counter[str] = Counter()


@pytest.mark.timeout(180)
async def test_what_was_answered_is_true_whenever_it_is_killed(tmp_path: Path) -> None:
    rng, told = random.Random(20261130), Told()
    async with Process(tmp_path, mailbox={"max_per_user": 10_000}) as daemon:
        for number in range(ROUNDS):
            async with await daemon.start() as probe:
                await _live_and_die(daemon, probe, told, rng, number)
        async with await daemon.start() as probe:
            await until(lambda: _is_through(probe))
            await _collect(probe, told)
            for message_id in told.scheduled:
                await _check(probe, told, message_id)
    assert len(told.scheduled) > ROUNDS * NOTICES // 3
    assert told.cancelled
    assert not told.cancelled & set(told.got)


async def _live_and_die(daemon: Process, probe: Probe, told: Told, rng: random.Random, number: int) -> None:
    """Schedules around the second to come, cancels some, and is killed in the midst of it."""
    due_ms = int(time.time() * 1000) + 700

    async def schedule(place: int) -> None:
        message_id = f"r{number}-{place}"
        body = {"content": "x", "target": "custom", "user_ids": [USER], "message_id": message_id}
        response = await probe.post("/system/notice", body | {"send_at": due_ms + rng.randrange(-200, 200)})
        if response.status_code == 200:
            told.scheduled.append(message_id)
        await asyncio.sleep(rng.uniform(0.2, 0.7))
        if place % 3 == 0:
            told.in_doubt.add(message_id)
            response = await probe.post(f"/notification/records/{message_id}/cancel", {})
            told.in_doubt.discard(message_id)
            if response.status_code == 200:
                told.cancelled.add(message_id)

    tasks = [asyncio.create_task(schedule(place)) for place in range(NOTICES)]
    await asyncio.sleep((due_ms - time.time() * 1000) / 1000 + rng.uniform(-0.25, 0.25))  # the moment is the point
    await daemon.kill()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, httpx.TransportError), result


async def _is_through(probe: Probe) -> bool:
    text = (await probe.http.get("/metrics")).text
    return "pushd_scheduled 0.0" in text and "pushd_journal_pending 0.0" in text


async def _collect(probe: Probe, told: Told) -> None:
    """All that waits for the user."""
    waiting = await probe.mailbox(USER)
    told.got.update(waiting)
    assert max(told.got.values()) == 1


async def _check(probe: Probe, told: Told, message_id: str) -> None:
    record = (await probe.get(f"/notification/records/{message_id}"))["record"]
    if message_id in told.cancelled:
        assert record["state"] == "cancelled"
    elif message_id in told.in_doubt:
        assert (record["state"] == "sent") == (message_id in told.got)
    else:
        assert (record["state"], message_id in told.got) == ("sent", True)


async def test_what_fell_due_meanwhile_goes_out_at_the_start_and_the_rest_when_it_is_due(tmp_path: Path) -> None:
    async with Process(tmp_path) as daemon:
        async with await daemon.start() as probe:
            for message_id, delay_s in (("past", 0.3), ("next", 4), ("far", 3600)):
                whom = {"target": "custom", "user_ids": [USER]}
                body = {"content": message_id, **whom, "message_id": message_id, "delay_s": delay_s}
                assert (await probe.post("/system/notice", body)).json()["data"]["status"] == "scheduled"
        await daemon.kill()
        await asyncio.sleep(0.4)  # past the time of the first
        async with await daemon.start() as probe:
            client = await probe.client(USER)
            assert await client.receive_ids(2) == ["past", "next"]
            rows = (await probe.get("/notification/records"))["items"]
            assert [(row["message_id"], row["state"]) for row in rows] == [
                ("far", "scheduled"), ("next", "sent"), ("past", "sent"),
            ]  # fmt: skip
            repeat = await probe.post("/system/notice", {"content": "again", "message_id": "far"})
            assert repeat.json()["data"]["duplicate"] is True


async def test_a_store_of_records_that_was_away_hears_of_it_after_a_crash(
    tmp_path: Path, mongo_server: MongoServer
) -> None:
    records = {"url": mongo_server.url, "database": f"pushd_{uuid.uuid4().hex}"}
    async with Process(tmp_path, records=records) as daemon:
        await mongo_server.stop()
        async with await daemon.start() as probe:
            for message_id in ("kept", "cancelled"):
                body = {"content": message_id, "message_id": message_id, "delay_s": 3600}
                assert (await probe.post("/system/notice", body)).status_code == 200
            assert (await probe.post("/notification/records/cancelled/cancel", {})).status_code == 200
            assert (await probe.http.get(f"{PREFIX}/notification/records/kept")).status_code == 503
        await daemon.kill()
        await mongo_server.start()
        async with await daemon.start() as probe:
            for message_id, state in (("kept", "scheduled"), ("cancelled", "cancelled")):
                await until(lambda name=message_id: _is_known(probe, name))
                record = (await probe.get(f"/notification/records/{message_id}"))["record"]
                assert (record["state"], record["content"]) == (state, message_id)


async def _is_known(probe: Probe, message_id: str) -> bool:
    return (await probe.http.get(f"{PREFIX}/notification/records/{message_id}")).status_code == 200
