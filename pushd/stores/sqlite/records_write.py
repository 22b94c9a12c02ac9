"""How push records and receive records are written and merged.

Merging receipts is commutative, associative and idempotent, so that they may be written twice and in any order: flags
are only ever set, times keep the earliest, the status goes forward, "offline" as a channel stays. Where two
receipts of one recipient name the user or the connection differently, the greater stays as a whole: "" gives way to
what is known, and no row mixes two connections.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pushd.model import Channel, DeliveryStatus, Notice, PushRecord, Receipt, TargetKind, recipients_text
from pushd.stores.sqlite.engine.statements import Rows, Value

PUSH_COLUMNS = (
    "message_id",
    "content",
    "message_type",
    "target",
    "target_user_ids",
    "target_roles",
    "recipients_count",
    "status",
    "success",
    "push_time",
    "expires_at",
    "sender_id",
    "sender_name",
    "priority",
    "need_confirm",
    "extra_data",
    "total_count",
    "online_count",
    "created_at",
    "updated_at",
)

# The last write says how far the notice is.
PUSH_RECORDS = Rows(
    PUSH_COLUMNS,
    f"""
INSERT INTO push_records ({", ".join(PUSH_COLUMNS)})
SELECT * FROM given
 WHERE true
    ON CONFLICT (message_id) DO UPDATE
   SET status = excluded.status, success = excluded.success, total_count = excluded.total_count,
       online_count = excluded.online_count, updated_at = excluded.updated_at
""",  # noqa: S608 - constants only
)

# The place of a status in this text is its rank (model.DeliveryStatus).
_RANKED = "'pending offline expired delivered'"

_IS_USER_GREATER = "(excluded.username, excluded.user_role) > (username, user_role)"

_IS_CONNECTION_GREATER = """
(excluded.connection_id, excluded.client_ip, excluded.user_agent) > (connection_id, client_ip, user_agent)
"""

RECEIPT_COLUMNS = (
    "message_id",
    "user_id",
    "username",
    "user_role",
    "connection_id",
    "client_ip",
    "user_agent",
    "device_type",
    "platform",
    "browser",
    "is_online",
    "is_received",
    "received_at",
    "delivery_status",
    "push_channel",
    "created_at",
    "updated_at",
)

RECEIPTS = Rows(
    (*RECEIPT_COLUMNS, "is_late"),
    f"""
INSERT INTO admin_user_receive_records ({", ".join(RECEIPT_COLUMNS)})
SELECT {", ".join(RECEIPT_COLUMNS)}
  FROM given
 WHERE NOT is_late OR EXISTS (SELECT 1 FROM push_records WHERE push_records.message_id = given.message_id)
    ON CONFLICT (message_id, user_id) DO UPDATE
   SET username = CASE WHEN {_IS_USER_GREATER} THEN excluded.username ELSE username END,
       user_role = CASE WHEN {_IS_USER_GREATER} THEN excluded.user_role ELSE user_role END,
       connection_id = CASE WHEN {_IS_CONNECTION_GREATER} THEN excluded.connection_id ELSE connection_id END,
       client_ip = CASE WHEN {_IS_CONNECTION_GREATER} THEN excluded.client_ip ELSE client_ip END,
       user_agent = CASE WHEN {_IS_CONNECTION_GREATER} THEN excluded.user_agent ELSE user_agent END,
       device_type = CASE WHEN {_IS_CONNECTION_GREATER} THEN excluded.device_type ELSE device_type END,
       platform = CASE WHEN {_IS_CONNECTION_GREATER} THEN excluded.platform ELSE platform END,
       browser = CASE WHEN {_IS_CONNECTION_GREATER} THEN excluded.browser ELSE browser END,
       is_online = max(is_online, excluded.is_online),
       is_received = max(is_received, excluded.is_received),
       received_at = min(ifnull(received_at, excluded.received_at), ifnull(excluded.received_at, received_at)),
       delivery_status = CASE WHEN instr({_RANKED}, excluded.delivery_status) > instr({_RANKED}, delivery_status)
                              THEN excluded.delivery_status ELSE delivery_status END,
       push_channel = CASE WHEN excluded.push_channel = 'offline' THEN 'offline' ELSE push_channel END,
       created_at = min(created_at, excluded.created_at),
       updated_at = max(updated_at, excluded.updated_at)
""",  # noqa: S608 - constants only
)

_STATUSES = {status: status.value for status in DeliveryStatus}
_KINDS = {kind: kind.value for kind in TargetKind}
_CHANNELS = {channel: channel.value for channel in Channel}


def push_values(records: Sequence[PushRecord], now_ms: int) -> list[Value]:
    """The rows of PUSH_RECORDS; `now_ms` becomes updated_at."""
    values: list[Value] = []
    for record in records:
        values += _push_row(record, record.notice, now_ms)
    return values


def receipt_values(receipts: Sequence[Receipt]) -> list[Value]:
    """The rows of RECEIPTS. Costs the loop half a microsecond a receipt."""
    values: list[Value] = []
    for receipt in receipts:
        outcome = receipt.outcome
        created_ms, received_ms = outcome.created_ms, outcome.received_ms
        values += (
            receipt.message_id, receipt.user_id, receipt.username, receipt.role, receipt.connection_id,
            receipt.client_ip, receipt.user_agent, receipt.device_type, receipt.platform, receipt.browser,
            1 if outcome.is_online else 0, 1 if received_ms else 0, received_ms or None, _STATUSES[outcome.status],
            _CHANNELS[outcome.channel], created_ms, received_ms if received_ms > created_ms else created_ms,
            1 if receipt.is_late else 0,
        )  # fmt: skip
    return values


def _push_row(record: PushRecord, notice: Notice, now_ms: int) -> tuple[Value, ...]:
    target, status = notice.target, record.status
    return (
        # SQLite's JSON functions, which read it again, end a text at U+0000.
        notice.message_id, notice.content.replace("\0", "\ufffd"), notice.type, _KINDS[target.kind],
        _json_text(target.user_ids or None), _json_text(target.roles or None), recipients_text(target),
        status, 1 if status != "failed" else 0, notice.accepted_ms, notice.expires_ms or None,
        notice.sender_id, notice.sender_name, int(notice.priority), 1 if notice.need_confirm else 0,
        _json_text(notice.data), record.total_count, record.online_count, notice.accepted_ms, now_ms,
    )  # fmt: skip


def _json_text(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
