"""How push records and receive records are written and merged.

Merging receipts is commutative, associative and idempotent, so that they may be written twice and in any order: flags
are only ever set, times keep the earliest, the status goes forward, "offline" as a channel stays. Where two
receipts of one recipient name the user or the connection differently, the greater stays as a whole: "" gives way to
what is known, and no row mixes two connections.

Most of the work of a write is json_extract(). What rows of a chunk have in common is therefore sent, and taken apart,
once: nearly half of the time of a broadcast's receipts is saved by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import msgspec
import orjson

from pushd.model import Notice, PushRecord, Receipt, recipients_text

# The last write says how far the notice is. Parameters as those of WRITE_RECEIPTS.
WRITE_PUSH_RECORDS = """
WITH said AS MATERIALIZED (
  SELECT key AS place, json_extract(value, '$[0]') AS status, json_extract(value, '$[1]') AS success,
         json_extract(value, '$[2]') AS message_type, json_extract(value, '$[3]') AS target,
         json_extract(value, '$[4]') AS recipients_count, json_extract(value, '$[5]') AS sender_id,
         json_extract(value, '$[6]') AS sender_name, json_extract(value, '$[7]') AS priority,
         json_extract(value, '$[8]') AS need_confirm, json_extract(value, '$[9]') AS total_count,
         json_extract(value, '$[10]') AS online_count, json_extract(value, '$[11]') AS updated_at
    FROM json_each(CAST(:shared AS TEXT))
)
INSERT INTO push_records (
  status, success, message_type, target, recipients_count, sender_id, sender_name, priority, need_confirm,
  total_count, online_count, updated_at,
  message_id, content, target_user_ids, target_roles, extra_data, push_time, created_at, expires_at
)
SELECT status, success, message_type, target, recipients_count, sender_id, sender_name, priority, need_confirm,
       total_count, online_count, updated_at,
       json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'),
       json_extract(value, '$[4]'), json_extract(value, '$[5]'), json_extract(value, '$[6]'),
       json_extract(value, '$[6]'), json_extract(value, '$[7]')
  FROM json_each(CAST(:rows AS TEXT))
 CROSS JOIN said ON place = json_extract(value, '$[0]')
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

# :shared are what receipts have in common, :rows what each has of its own, which begin with the place of the former.
WRITE_RECEIPTS = f"""
WITH said AS MATERIALIZED (
  SELECT key AS place, json_extract(value, '$[0]') AS message_id, json_extract(value, '$[2].created_ms') AS created_ms,
         json_extract(value, '$[2].is_online') AS is_online, json_extract(value, '$[2].received_ms') AS received_ms,
         json_extract(value, '$[2].status') AS status, json_extract(value, '$[2].channel') AS channel,
         json_extract(value, '$[3]') AS role, json_extract(value, '$[4]') AS user_agent,
         json_extract(value, '$[5]') AS device_type, json_extract(value, '$[6]') AS platform,
         json_extract(value, '$[7]') AS browser
    FROM json_each(CAST(:shared AS TEXT))
   WHERE NOT json_extract(value, '$[1]')
      OR EXISTS (SELECT 1 FROM push_records WHERE message_id = json_extract(value, '$[0]'))
)
INSERT INTO admin_user_receive_records (
  message_id, user_role, user_agent, device_type, platform, browser, is_online, is_received, received_at,
  delivery_status, push_channel, created_at, updated_at, user_id, username, connection_id, client_ip
)
SELECT said.message_id, role, user_agent, device_type, platform, browser, is_online, received_ms > 0,
       nullif(received_ms, 0), status, channel, created_ms, max(created_ms, received_ms),
       json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'),
       json_extract(value, '$[4]')
  FROM json_each(CAST(:rows AS TEXT))
 CROSS JOIN said ON place = json_extract(value, '$[0]')
 WHERE true
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


_shared: Callable[[Receipt], tuple[object, ...]] = attrgetter(
    "message_id", "is_late", "outcome", "role", "user_agent", "device_type", "platform", "browser"
)


def push_rows(records: Sequence[PushRecord], now_ms: int) -> dict[str, bytes]:
    """The parameters of WRITE_PUSH_RECORDS; `now_ms` becomes updated_at."""
    places: dict[tuple[object, ...], int] = {}
    rows = []
    for record in records:
        shared = _shared_by_notices(record, now_ms)
        rows.append((places.setdefault(shared, len(places)), *_push_row(record.notice)))
    return {"shared": orjson.dumps(list(places)), "rows": orjson.dumps(rows)}


def receipt_rows(receipts: Sequence[Receipt]) -> dict[str, bytes]:
    """The parameters of WRITE_RECEIPTS. Costs the loop half a microsecond a receipt."""
    places: dict[tuple[object, ...], int] = {}
    rows = [
        (
            places.setdefault(_shared(receipt), len(places)),
            receipt.user_id,
            receipt.username,
            receipt.connection_id,
            receipt.client_ip,
        )
        for receipt in receipts
    ]
    return {"shared": msgspec.json.encode(list(places)), "rows": msgspec.json.encode(rows)}


def _shared_by_notices(record: PushRecord, now_ms: int) -> tuple[object, ...]:
    notice = record.notice
    return (
        record.status,
        record.status != "failed",
        notice.type,
        notice.target.kind,
        recipients_text(notice.target),
        notice.sender_id,
        notice.sender_name,
        notice.priority,
        notice.need_confirm,
        record.total_count,
        record.online_count,
        now_ms,
    )


def _push_row(notice: Notice) -> tuple[object, ...]:
    return (
        notice.message_id,
        # SQLite's JSON functions end a text at U+0000.
        notice.content.replace("\0", "\ufffd"),
        _json_text(notice.target.user_ids or None),
        _json_text(notice.target.roles or None),
        _json_text(notice.data),
        notice.accepted_ms,
        notice.expires_ms or None,
    )


def _json_text(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
