"""What the embedded stores are made to do in tests that kill them, and what can be seen of it afterwards.

Each step is one call, and may be repeated. `states` are what is seen after none, one, two ... of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from pushd.config.schema import Config, MailboxConfig, ServerConfig
from pushd.model import (
    Channel,
    DeliveryStatus,
    MailboxItem,
    Mark,
    Notice,
    Outcome,
    PushRecord,
    Receipt,
    Target,
    TargetKind,
)
from pushd.ports import Stores
from pushd.records import Part, PushFilter, PushSort, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite import open_stores

START_MS = 1_700_000_000_000
USERS = range(1, 13)
FEW = 1400  # notices for three users each: more receipts than a page holds
Run = Callable[[Stores], Awaitable[Any]]


class Step(NamedTuple):
    """One call; `is_durable`: what is promised to survive a power cut."""

    run: Run
    is_durable: bool = False


def notice(seq: int, kind: TargetKind = TargetKind.ALL, **fields: Any) -> Notice:
    """The notice of that number."""
    return Notice(
        seq=seq,
        message_id=f"m{seq}",
        content=f"content {seq}",
        target=Target(kind),
        accepted_ms=START_MS + seq,
        **fields,
    )


def receipt(seq: int, user_id: int, received_ms: int = 0) -> Receipt:
    """Of that user, who was absent or has received it."""
    status = DeliveryStatus.DELIVERED if received_ms else DeliveryStatus.OFFLINE
    outcome = Outcome(START_MS + seq, received_ms=received_ms, status=status, channel=Channel.OFFLINE)
    return Receipt(f"m{seq}", user_id, f"user{user_id}", user_id % 3, f"c{user_id}", "10.0.0.1", "Firefox", outcome)


def item(seq: int) -> MailboxItem:
    """What waits of the notice."""
    return MailboxItem(type="system_notice", content=f"content {seq}", message_id=f"m{seq}", ts=START_MS + seq)


def steps() -> list[Step]:
    """Broadcasts, one after the other, and many notices for few at once; answers until blocks are written anew."""
    made: list[Step] = []
    for seq in (1, 2, 3):
        made += published([notice(seq, expires_ms=START_MS + 5000 if seq == 2 else 0)], list(USERS))
    for user_id in USERS:
        made.append(Step(lambda s, user=user_id: s.records.mark(user, ["m1", "m3"], Mark.READ, START_MS + 100 + user)))  # type: ignore[misc]
    some = [notice(seq, TargetKind.CUSTOM) for seq in range(10, 10 + FEW)]
    made += published(some, [1, 2, 3])
    late = [receipt(seq, 2, START_MS + 900) for seq in range(10, 10 + FEW, 7)]
    made += [
        Step(lambda s: s.records.write([], late)),
        Step(lambda s: s.mailbox.remove({2: [one.message_id for one in late], 3: ["m20"]})),
        Step(lambda s: s.mailbox.clear(1)),
        Step(lambda s: s.records.expire(0, START_MS + 6000, 100)),
        Step(lambda s: s.records.delete("m3")),
        Step(lambda s: s.journal.settle([1, 2, *range(10, 500)])),
    ]
    made += published([notice(2000)], list(USERS))
    made.append(Step(lambda s: s.records.mark(4, ["m2000"], Mark.CONFIRMED, START_MS + 3000)))
    made.append(Step(lambda s: s.records.purge(START_MS + 100, 10_000)))
    return made


def published(notices: list[Notice], user_ids: list[int]) -> list[Step]:
    """Accepted, on record and waiting."""
    records = [PushRecord(one, "success", len(user_ids), 0) for one in notices]
    receipts = [receipt(one.seq, user_id) for one in notices for user_id in user_ids]
    return [
        Step(lambda s: s.journal.append(notices), is_durable=True),
        Step(lambda s: s.records.write(records, receipts)),
        Step(lambda s: s.mailbox.save([(item(one.seq), user_ids) for one in notices])),
    ]


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Stores]:
    """The stores in `directory`."""
    config = Config(server=ServerConfig(data_dir=str(directory)), mailbox=MailboxConfig(max_per_user=FEW + 10))
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    async with open_stores(config, clock=lambda: START_MS + 4000) as stores:
        await stores.journal.unsettled()
        yield stores


async def seen(stores: Stores) -> dict[str, Any]:
    """All that the ports show; nothing is there twice."""
    records = stores.records
    rows = await records.receive_records(ReceiptFilter(), ReceiptSort.CREATED_AT, Part(0, 100_000))
    receipts = {
        (row.message_id, row.user_id): (
            row.delivery_status, row.received_ms, row.read_ms, row.confirmed_ms, row.username, row.connection_id
        )
        for row in rows
    }  # fmt: skip
    assert len(receipts) == len(rows)
    boxes = {user: [one.message_id for one in found] for user, found in (await stores.mailbox.read(USERS)).items()}
    assert all(len(set(box)) == len(box) for box in boxes.values())
    pushed = await records.push_records(PushFilter(), PushSort.PUSH_TIME, Part(0, 100_000))
    return {
        "unsettled": [one.message_id for one in await stores.journal.unsettled()],
        "records": [(row.message_id, row.status, row.total_count, row.delivered_count) for row in pushed],
        "receipts": receipts,
        "mailboxes": boxes,
        "unread": await records.unread_counts(USERS),
    }


async def work(directory: Path, told: Path) -> None:
    """Does all steps, and adds a byte to the file `told` when one has returned."""
    descriptor = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    async with opened(directory) as stores:
        for step in steps():
            await step.run(stores)
            os.write(descriptor, b".")


async def states(directory: Path) -> list[dict[str, Any]]:
    """What is seen before each step, and after the last."""
    async with opened(directory) as stores:
        found = [await seen(stores)]
        for step in steps():
            await step.run(stores)
            found.append(await seen(stores))
    return found


async def resumed(directory: Path, done: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is seen after another start, and after the steps behind the first `done` were done."""
    async with opened(directory) as stores:
        first = await seen(stores)
        for step in steps()[done:]:
            await step.run(stores)
        return first, await seen(stores)


def run(call: Any) -> Any:
    """The result of a coroutine."""
    return asyncio.run(call)
