"""How push records and receive records are written and merged.

Merging receipts is commutative, associative and idempotent, so that they may be written twice and in any order: flags
are only ever set, times keep the earliest, the status goes forward, "offline" as a channel stays. Where two
receipts of one recipient name the user or the connection differently, the greater stays as a whole: "" gives way to
what is known, and no row mixes two connections.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import orjson

from pushd.model import PushRecord, Receipt, recipients_text

# The last write says how far the notice is.
WRITE_PUSH_RECORDS = """
INSERT INTO push_records (
  message_id, content, message_type, target, target_user_ids, target_roles, status, success, push_time, expires_at,
  sender_id, sender_name, priority, need_confirm, extra_data, total_count, online_count, created_at, updated_at,
  recipients_count
)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
       json_extract(value, '$[6]'), json_extract(value, '$[6]') <> 'failed', json_extract(value, '$[7]'),
       nullif(json_extract(value, '$[8]'), 0), json_extract(value, '$[9]'), json_extract(value, '$[10]'),
       json_extract(value, '$[11]'), json_extract(value, '$[12]'), json_extract(value, '$[13]'),
       json_extract(value, '$[14]'), json_extract(value, '$[15]'), json_extract(value, '$[7]'),
       json_extract(value, '$[16]'), json_extract(value, '$[17]')
  FROM json_each(CAST(:rows AS TEXT))
 WHERE true
    ON CONFLICT (message_id) DO UPDATE
   SET status = excluded.status, success = excluded.success, total_count = excluded.total_count,
       online_count = excluded.online_count, updated_at = excluded.updated_at
"""

# The place of a status in this text is its rank (model.DeliveryStatus).
_RANKED = "'pending offline expired delivered'"

_IS_USER_GREATER = "(excluded.username, excluded.user_role) > (username, user_role)"

_IS_CONNECTION_GREATER = """
(excluded.connection_id, excluded.client_ip, excluded.user_agent) > (connection_id, client_ip, user_agent)
"""

# :rows are receipts as arrays in the order of model.Receipt, with the outcome as an object.
WRITE_RECEIPTS = f"""
INSERT INTO admin_user_receive_records (
  message_id, user_id, username, user_role, connection_id, client_ip, user_agent, is_online, is_received,
  received_at, delivery_status, push_channel, created_at, updated_at, device_type, platform, browser
)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
       json_extract(value, '$[6]'), json_extract(value, '$[7].is_online'),
       json_extract(value, '$[7].received_ms') > 0, nullif(json_extract(value, '$[7].received_ms'), 0),
       json_extract(value, '$[7].status'), json_extract(value, '$[7].channel'),
       json_extract(value, '$[7].created_ms'),
       max(json_extract(value, '$[7].created_ms'), json_extract(value, '$[7].received_ms')),
       json_extract(value, '$[8]'), json_extract(value, '$[9]'), json_extract(value, '$[10]')
  FROM json_each(CAST(:rows AS TEXT))
 WHERE NOT json_extract(value, '$[11]')
    OR EXISTS (SELECT 1 FROM push_records WHERE message_id = json_extract(value, '$[0]'))
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
"""  # noqa: S608 - constants only


def push_rows(records: Sequence[PushRecord], now_ms: int) -> bytes:
    """The :rows of WRITE_PUSH_RECORDS; `now_ms` becomes updated_at."""
    return orjson.dumps([_push_row(record, now_ms) for record in records])


def receipt_rows(receipts: Sequence[Receipt]) -> bytes:
    """The :rows of WRITE_RECEIPTS. Costs the loop about 1 us a receipt: none of it is Python code per row."""
    return msgspec.json.encode(list(map(msgspec.structs.astuple, receipts)))


def _push_row(record: PushRecord, now_ms: int) -> tuple[object, ...]:
    notice = record.notice
    return (
        notice.message_id,
        # SQLite's JSON functions end a text at U+0000.
        notice.content.replace("\0", "\ufffd"),
        notice.type,
        notice.target.kind,
        _json_text(notice.target.user_ids or None),
        _json_text(notice.target.roles or None),
        record.status,
        notice.accepted_ms,
        notice.expires_ms,
        notice.sender_id,
        notice.sender_name,
        notice.priority,
        notice.need_confirm,
        _json_text(notice.data),
        record.total_count,
        record.online_count,
        now_ms,
        recipients_text(notice.target),
    )


def _json_text(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
