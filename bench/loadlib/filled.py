"""A database with many receipts, made through the stores as the daemon uses them: of broadcasts, or one a notice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from pushd.clock import wall_ms
from pushd.config.schema import Config, ServerConfig
from pushd.model import (
    Channel,
    DeliveryStatus,
    MailboxItem,
    Notice,
    Outcome,
    Target,
    TargetKind,
    User,
    UserId,
)
from pushd.ports import Stores
from pushd.stores import open_stores
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.telemetry.supervision import supervised

Kind = Literal["broadcasts", "singles"]

TEXT = "A notice for one user, who is somebody in a back office"  # 120 B of JSON with target and type
EVERY_MS = {"broadcasts": 60_000, "singles": 50}
AT_ONCE = {"broadcasts": 10, "singles": 500}  # notices
PRESENT_OF_10 = 5  # recipients; the others are absent, and it waits for them


async def fill(data_dir: Path, kind: Kind, users: int, receipts: int) -> None:
    """Store so many receipts, a whole number of notices, of users from 1 on; half of them have received theirs.

    Some 0.3 us for a receipt of a broadcast, 25 us for a notice to one.
    """
    config = Config(server=ServerConfig(data_dir=str(data_dir)))
    known: dict[UserId, User] = {user_id: User(user_id, f"user{user_id}", 2) for user_id in range(1, users + 1)}
    notices = receipts // (users if kind == "broadcasts" else 1)
    began_ms = wall_ms() - notices * EVERY_MS[kind]
    async with (
        open_stores(config, lambda *_: None) as stores,
        supervised(stores.background, Health(Metrics(), lambda: 0.0)),
    ):
        await stores.directory.learn(list(known.values()))
        for first in range(1, notices + 1, AT_ONCE[kind]):
            seqs = range(first, min(first + AT_ONCE[kind], notices + 1))
            await _store(stores, [_notice(seq, kind, users, began_ms + seq * EVERY_MS[kind]) for seq in seqs], known)


def _notice(seq: int, kind: Kind, users: int, at_ms: int) -> Notice:
    target = Target(TargetKind.ALL) if kind == "broadcasts" else Target(TargetKind.CUSTOM, (1 + seq % users,))
    return Notice(seq, f"{at_ms:012x}{seq:020x}", TEXT, target, at_ms)  # an id as long as pushd's own


async def _store(stores: Stores, notices: list[Notice], known: dict[UserId, User]) -> None:
    await stores.journal.append(notices)
    ledger, saves = stores.ledger, []
    assert ledger is not None, "embedded"
    for notice in notices:
        present, absent = _parted(notice, known)
        for outcome, some in _outcomes(notice, present, absent):
            clients = [ledger.client(f"c{user_id}", "10.0.0.1", "bench") for user_id in some]
            ledger.note(notice.seq, notice.message_id, some, outcome, clients if some is present else [], 0)
        ledger.conclude(notice.seq, notice.message_id, "success")
        if absent:
            item = MailboxItem(notice.type, TEXT, notice.message_id, ts=notice.accepted_ms, saved_at=notice.accepted_ms)
            saves.append((item, absent))
    ledger.name([(user, notices[0].seq) for user in known.values()] if notices[0].seq == 1 else [])
    for client, _ in ledger.undescribed():
        ledger.describe(client, ("desktop", "Linux", "bench"))
    await ledger.commit()
    await stores.mailbox.save(saves, is_first=True)
    await stores.journal.settle([notice.seq for notice in notices])


def _parted(notice: Notice, known: Collection[UserId]) -> tuple[list[UserId], list[UserId]]:
    """Who is there when it goes out, others at each, and who is not."""
    recipients = notice.target.user_ids or known
    turn = notice.seq // 10 if notice.target.user_ids else notice.seq
    present = [user_id for user_id in recipients if (int(user_id) + turn) % 10 < PRESENT_OF_10]
    absent = [user_id for user_id in recipients if (int(user_id) + turn) % 10 >= PRESENT_OF_10]
    return present, absent


def _outcomes(notice: Notice, present: list[UserId], absent: list[UserId]) -> list[tuple[Outcome, Sequence[UserId]]]:
    received = Outcome(notice.accepted_ms, True, notice.accepted_ms + 40, DeliveryStatus.DELIVERED, Channel.WEBSOCKET)
    missed = Outcome(notice.accepted_ms, status=DeliveryStatus.OFFLINE, channel=Channel.OFFLINE)
    return [(outcome, some) for outcome, some in ((received, present), (missed, absent)) if some]
