"""Notices, waiting items and records for tests of the stores: what is usual, but for what the test says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from pushd.model import (
    Channel,
    DeliveryStatus,
    MailboxItem,
    Notice,
    Outcome,
    PushRecord,
    Receipt,
    Target,
    TargetKind,
    UserId,
    parsed,
)
from pushd.ports import Mailbox
from pushd.protocol import frames

RECEIPTS = "admin_user_receive_records"  # their table, and their collection

# What delivery notes of a recipient: it went out live, waits, came too late, was received live, and from the mailbox.
PENDING = Outcome(1000, is_online=True)
OFFLINE = Outcome(1000, status=DeliveryStatus.OFFLINE, channel=Channel.OFFLINE)
EXPIRED = Outcome(1000, status=DeliveryStatus.EXPIRED, channel=Channel.OFFLINE)
DELIVERED = Outcome(1000, is_online=True, received_ms=1200, status=DeliveryStatus.DELIVERED)
FETCHED = Outcome(1000, received_ms=1300, status=DeliveryStatus.DELIVERED, channel=Channel.OFFLINE)
OUTCOMES = (PENDING, OFFLINE, EXPIRED, DELIVERED, FETCHED)


def at(accepted_ms: int, outcome: Outcome) -> Outcome:
    """The same of a notice that was accepted then."""
    received_ms = outcome.received_ms and outcome.received_ms - outcome.created_ms + accepted_ms
    return msgspec.structs.replace(outcome, created_ms=accepted_ms, received_ms=received_ms)


def notice(seq: int, **fields: Any) -> Notice:
    """A notice to all, accepted at 1000."""
    defaults = {"message_id": f"m{seq}", "content": "hello", "target": Target(TargetKind.ALL), "accepted_ms": 1000}
    return Notice(seq=seq, **(defaults | fields))


def item(message_id: str, **fields: Any) -> MailboxItem:
    """A notice that waits in a mailbox."""
    defaults = {"type": "system_notice", "content": f"content of {message_id}"}
    return MailboxItem(message_id=message_id, **(defaults | fields))


def item_of(accepted: Notice, saved_at: int = 0) -> MailboxItem:
    """The same, of an accepted notice, as delivery makes it; saved when it was accepted where nothing else is said."""
    return frames.mailbox_item(accepted, ZoneInfo("UTC"), saved_at or accepted.accepted_ms)


async def read_mailbox(mailbox: Mailbox, user_ids: Collection[UserId]) -> dict[UserId, list[MailboxItem]]:
    """What is read of a mailbox, with data as values, whichever form the store gives it."""
    found = await mailbox.read(user_ids)
    return {
        user_id: [msgspec.structs.replace(item, data=parsed(item.data)) for item in items]
        for user_id, items in found.items()
    }


def push_record(
    message_id: str, status: str = "accepted", total: int = 0, online: int = 0, **fields: Any
) -> PushRecord:
    """The record of `notice(1)`; `fields` are the notice's."""
    return PushRecord(notice(1, message_id=message_id, **fields), status, total, online)


def receipt(message_id: str, user_id: int, outcome: Outcome, **fields: Any) -> Receipt:
    """One user's receive record, over connection c1."""
    defaults = {
        "username": f"user{user_id}",
        "role": 1,
        "connection_id": "c1",
        "client_ip": "10.0.0.1",
        "user_agent": "Firefox",
    }
    return Receipt(message_id=message_id, user_id=user_id, outcome=outcome, **(defaults | fields))
