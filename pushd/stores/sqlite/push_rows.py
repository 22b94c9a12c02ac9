"""Rows of push records: a notice as it is stored, with what the ledger says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from pushd.ledger.labels import Label
from pushd.model import Notice, Target, TargetKind, recipients_text
from pushd.records import PushFilter, PushRow, RecordState
from pushd.stores.sqlite.notices import OVER, REVOKED
from pushd.values import MAX_MS

_FLAGS = {
    RecordState.SENT: (OVER | REVOKED, 0),
    RecordState.EXPIRED: (OVER | REVOKED, OVER),
    RecordState.REVOKED: (REVOKED, REVOKED),
}

# By the two bits of a notice's state.
STATUSES = ("accepted", "success", "expired", "failed")

Counts = tuple[int, int, int, int, int]  # of receipts: all, online, delivered, expired; latest time

_notice = msgspec.json.Decoder(Notice)


def statuses_of(where: PushFilter) -> bytes | None:
    """A mark for each of STATUSES that a filter wants; None: any. Those of what has not gone out are elsewhere."""
    if where.state in (RecordState.SCHEDULED, RecordState.CANCELLED):
        return bytes(len(STATUSES))
    if where.status is None and where.success is None:
        return None
    return bytes(where.status in (None, status) and where.success in (None, is_success(status)) for status in STATUSES)


def flags_of(where: PushFilter) -> tuple[int, int]:
    """Bits of a notice's state, and how these are where its record has the state that a filter wants."""
    return _FLAGS.get(where.state, (0, 0))  # type: ignore[arg-type]


def state_of(state: int) -> RecordState:
    """How far a notice is that has gone out."""
    if state & REVOKED:
        return RecordState.REVOKED
    return RecordState.EXPIRED if state & OVER else RecordState.SENT


def is_success(status: str) -> bool:
    """What a push record says of itself."""
    return status != "failed"


def read_notice(seq: int, message_id: str, body: bytes, label: Label | None) -> Notice:
    """A notice as it is stored; of a damaged one what can be read of it, and what its label says.

    Costs microseconds, a millisecond with 10,000 user_ids.
    """
    try:
        return _notice.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _mended(seq, message_id, _fields(body), label)


def push_row(notice: Notice, state: int, created_ms: int, counts: Counts) -> PushRow:
    """The row of a notice whose state in the ledger is `state`."""
    status = STATUSES[state >> 6]
    total, online, delivered, failed, latest_ms = counts
    return PushRow(
        message_id=notice.message_id,
        content=notice.content,
        message_type=notice.type,
        target=notice.target.kind.value,
        target_user_ids=list(notice.target.user_ids) or None,
        target_roles=list(notice.target.roles) or None,
        recipients_count=recipients_text(notice.target),
        status=status,
        success=is_success(status),
        error=None,
        push_ms=created_ms,
        expires_ms=min(notice.expires_ms, MAX_MS),
        sender_id=notice.sender_id,
        sender_name=notice.sender_name,
        priority=int(notice.priority),
        need_confirm=notice.need_confirm,
        extra_data=notice.data,
        total_count=total,
        online_count=online,
        delivered_count=delivered,
        failed_count=failed,
        created_ms=notice.submitted_ms or created_ms,
        state=state_of(state).value,
        send_at_ms=notice.send_at_ms,
        updated_ms=max(created_ms, latest_ms),
        title=notice.title,
        url=notice.url,
        tags=notice.tags,
        target_groups=list(notice.target.groups) or None,
        version=notice.version,
    )


def _fields(body: bytes) -> Mapping[str, Any]:
    """Those of a body that is nearly JSON."""
    try:
        value = json.loads(body.decode(errors="replace"))
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))  # without half surrogates
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _mended(seq: int, message_id: str, fields: Mapping[str, Any], label: Label | None) -> Notice:
    """A notice of those fields that can be understood."""
    given: dict[str, Any] = {"content": "", "target": Target(TargetKind.CUSTOM), "accepted_ms": 0}
    said: dict[str, Any] = {}
    if label is not None:
        said = label._asdict()
        said["target"] = {"kind": said.pop("target")}
    for source in (said, dict(fields) | {"seq": seq, "message_id": message_id}):
        for field in msgspec.structs.fields(Notice):
            if field.name in source:
                try:
                    given[field.name] = msgspec.convert(source[field.name], field.type, strict=False)
                except (msgspec.ValidationError, RecursionError):
                    continue
    return Notice(**given)
