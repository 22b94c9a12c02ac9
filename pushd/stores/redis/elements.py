"""The JSON elements of a mailbox's list, our own and other programs'. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from pushd.model import MailboxItem
from pushd.moments import local_time

DEFAULT_TYPE = "system_notice"
# Milliseconds since the epoch are above, seconds below, for all moments from 1973 on.
LEAST_MS = 100_000_000_000
MOST_MS = 253_402_300_800_000  # the year 10000, which no clock shows


class _Element(msgspec.Struct):
    """CONTRACT section 5, in its order; `expires_ms` is ours."""

    type: str
    content: str
    data: Any
    time: str
    ts: int
    message_id: str
    priority: int
    need_confirm: bool
    saved_at: int
    expires_ms: int | msgspec.UnsetType


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MailboxItem).decode
_decode_any = msgspec.json.Decoder().decode


def encode(item: MailboxItem, now_ms: int) -> bytes:
    """The element of `item`, as saved now unless it says when."""
    return _encode(
        _Element(
            type=item.type,
            content=item.content,
            data=msgspec.UNSET if item.data is None else item.data,
            time=item.time,
            ts=item.ts,
            message_id=item.message_id,
            priority=item.priority,
            need_confirm=item.need_confirm,
            saved_at=item.saved_at or now_ms,
            expires_ms=item.expires_ms or msgspec.UNSET,
        )
    )


class Reader:
    """Makes items of one user's elements. `ttl_ms` is how long an item may wait after it was saved."""

    def __init__(self, ttl_ms: int, timezone: ZoneInfo) -> None:
        self._ttl_ms = ttl_ms
        self._timezone = timezone

    def items(self, elements: Sequence[bytes], now_ms: int) -> tuple[list[MailboxItem], int]:
        """The items of `elements` (newest first), oldest first and each `message_id` once, without those past their
        time; and how many elements cannot be read."""
        found: dict[str, MailboxItem] = {}
        unreadable = 0
        older_ms = 0
        for element in reversed(elements):
            item = decode(element)
            if item is None:
                unreadable += 1
                continue
            item.ts = older_ms = item.ts or item.saved_at or older_ms or now_ms
            if self._is_past(item, now_ms):
                continue
            item.time = item.time or _time(item.ts, self._timezone)
            found.setdefault(item.message_id, item)
        return list(found.values()), unreadable

    def _is_past(self, item: MailboxItem, now_ms: int) -> bool:
        is_expired = 0 < item.expires_ms <= now_ms
        return is_expired or 0 < item.saved_at <= now_ms - self._ttl_ms


def decode(element: bytes) -> MailboxItem | None:
    """What an element says, always with a `message_id`; None where it says nothing."""
    item: MailboxItem | None
    try:
        item = _decode(element)
    except (msgspec.DecodeError, UnicodeDecodeError):
        item = _decode_foreign(element)
    except RecursionError:
        return None
    if item is None:
        return None
    item.message_id = item.message_id or hashed_id(element)
    if item.ts < LEAST_MS or item.saved_at < LEAST_MS:
        item.ts, item.saved_at = _moment_ms(item.ts), _moment_ms(item.saved_at)
    return item


def hashed_id(element: bytes) -> str:
    """What an element without `message_id` is called."""
    return "sha1:" + sha1(element, usedforsecurity=False).hexdigest()


def _decode_foreign(element: bytes) -> MailboxItem | None:
    """For elements whose fields are not of our types."""
    try:
        fields = _decode_any(element)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        return None
    return MailboxItem(
        type=_text(fields.get("type")) or DEFAULT_TYPE,
        content=fields["content"],
        message_id=_id(fields.get("message_id")),
        data=fields.get("data"),
        time=_text(fields.get("time")),
        ts=_moment_ms(fields.get("ts")),
        priority=_priority(fields.get("priority")),
        need_confirm=fields.get("need_confirm") in (True, 1),
        expires_ms=_moment_ms(fields.get("expires_ms")),
        saved_at=_moment_ms(fields.get("saved_at")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _id(value: Any) -> str:
    """A text, or the digits of a whole number; scripts.py decides the same."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value)


def _priority(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3 else 1


def _moment_ms(value: Any) -> int:
    """Milliseconds since the epoch, also of seconds; 0 for what is no moment."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST_MS:
        return 0
    return int(value * 1000) if value < LEAST_MS else int(value)


def _time(at_ms: int, timezone: ZoneInfo) -> str:
    try:
        return local_time(at_ms, timezone)
    except (ValueError, OverflowError, OSError):
        return ""
