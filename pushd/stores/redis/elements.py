"""The JSON elements of a mailbox's list, our own and other programs'. Pure."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections import Counter
from hashlib import sha1
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from pushd.local_time import date_and_time
from pushd.model import MailboxItem, Priority, public_type
from pushd.values import is_deeper, usable_link, usable_tags, usable_title

# Decoders of clients, and our encoders, give up at a thousand levels or so.
MOST_DEPTH = 500
# Python's own limit is 4300; a number of more digits is delivered as a text.
MOST_DIGITS = 4000
MOST_VERSION = 2**31
PLAIN_ID_CHARS = 10  # fit into every client's frame, however it writes them
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
    title: str | msgspec.UnsetType
    url: str | msgspec.UnsetType
    tags: tuple[str, ...] | msgspec.UnsetType
    version: int | msgspec.UnsetType
    priority: int
    need_confirm: bool
    saved_at: int
    expires_ms: int | msgspec.UnsetType


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MailboxItem).decode
_decode_any = msgspec.json.Decoder().decode

# How `encode` ends: an element that another program wrote in just that form counts as ours.
_OWN_END = re.compile(rb',"priority":[0-3],"need_confirm":(true|false),"saved_at":\d+(,"expires_ms":\d+)?\}\Z')
_MOST_END = 120
_NUMBER_ID = re.compile(rb'"message_id"\s*:\s*(-?\d+)(?![\d.eE])')


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
            title=item.title or msgspec.UNSET,
            url=item.url or msgspec.UNSET,
            tags=item.tags or msgspec.UNSET,
            version=item.version if item.version > 1 else msgspec.UNSET,
            priority=item.priority,
            need_confirm=item.need_confirm,
            saved_at=item.saved_at or now_ms,
            expires_ms=item.expires_ms or msgspec.UNSET,
        )
    )


class Unusable(Exception):
    """An element says nothing that could be delivered; the text is the cause, without what is in the element."""


class Reader:
    """How elements are read. `ttl_ms`: how long an item may wait after it was saved; `most_id_bytes`: the longest
    `message_id` that a client can send back."""

    def __init__(self, ttl_ms: int, timezone: ZoneInfo, most_id_bytes: int) -> None:
        self._ttl_ms = ttl_ms
        self._timezone = timezone
        self._most_id_bytes = most_id_bytes

    def begin(self, now_ms: int) -> Reading:
        """For the elements of one user, as of now."""
        return Reading(self, now_ms)

    def is_past(self, item: MailboxItem, now_ms: int) -> bool:
        """Its time is over."""
        is_expired = 0 < item.expires_ms <= now_ms
        return is_expired or 0 < item.saved_at <= now_ms - self._ttl_ms

    def completed(self, item: MailboxItem, element: bytes, ts: int) -> MailboxItem:
        """With a time, and an id under which a client can acknowledge it."""
        item.ts = ts
        item.time = item.time or _time(ts, self._timezone)
        if len(item.message_id) > PLAIN_ID_CHARS and len(json.dumps(item.message_id)) > self._most_id_bytes:
            item.message_id = hashed_id(element)
        return item


class Reading:
    """One user's elements becoming items: `add` them from the oldest on, then ask for `items`."""

    def __init__(self, reader: Reader, now_ms: int) -> None:
        self._reader = reader
        self._now_ms = now_ms
        self._older_ms = 0
        self._found: dict[str, MailboxItem] = {}
        self._own: list[str] = []
        self.unusable: Counter[str] = Counter()  # elements left aside, by cause

    def add(self, element: bytes | int) -> None:
        """The next newer element; a number stands for one of so many bytes, which is too large."""
        try:
            self._add(element)
        except Unusable as error:
            self.unusable[str(error)] += 1
        except Exception as error:  # whatever is in it concerns nobody but this element
            self.unusable[type(error).__name__] += 1

    def _add(self, element: bytes | int) -> None:
        if isinstance(element, int):
            raise Unusable("too large")
        item = decode(element)
        ts = self._older_ms = item.ts or item.saved_at or self._older_ms or self._now_ms
        if self._reader.is_past(item, self._now_ms):
            return
        item = self._reader.completed(item, element, ts)
        if item.message_id not in self._found:
            self._found[item.message_id] = item
            if _OWN_END.search(element[-_MOST_END:]):
                self._own.append(item.message_id)

    def items(self) -> list[MailboxItem]:
        """In the order of the list, oldest first and each `message_id` once.

        Our own copies change places among each other: one whose recipients had to be looked up was saved late.
        """
        by_age = iter(sorted(self._own, key=lambda message_id: self._found[message_id].ts))
        own = set(self._own)
        return [self._found[next(by_age) if name in own else name] for name in self._found]


def decode(element: bytes) -> MailboxItem:
    """What an element says, always with a `message_id`, as well as both dialects can carry it. Raises Unusable."""
    try:
        item = _decode(element)
    except (msgspec.DecodeError, UnicodeDecodeError):
        item = _decode_foreign(element)
    except RecursionError:
        raise Unusable("nested too deeply") from None
    if element.count(b"[") + element.count(b"{") > MOST_DEPTH and is_deeper(item.data, MOST_DEPTH):
        raise Unusable("nested too deeply")
    item.message_id = item.message_id or hashed_id(element)
    item.ts, item.saved_at = _moment_ms(item.ts), _moment_ms(item.saved_at)
    item.expires_ms = _moment_ms(item.expires_ms)
    item.priority = _priority(item.priority)
    item.type = public_type(item.type)
    item.version = _version(item.version)
    if item.title or item.url or item.tags:
        item.title, item.url, item.tags = usable_title(item.title), usable_link(item.url), usable_tags(item.tags)
    return item


def hashed_id(element: bytes) -> str:
    """What an element without `message_id` is called."""
    return "sha1:" + sha1(element, usedforsecurity=False).hexdigest()


def _decode_foreign(element: bytes) -> MailboxItem:
    """For elements that are not of our types, or no JSON in the strict sense."""
    try:
        return _of_fields(_decode_any(element), element)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        pass
    except RecursionError:
        raise Unusable("nested too deeply") from None
    item = _of_fields(_decode_any(_mended(element)), element)
    # Redis reads what was replaced in it in another way (scripts.py).
    if b"\0" in element or element.startswith(BOM_UTF8) or any(sign >= "\ud800" for sign in item.message_id):
        item.message_id = ""
    return item


def _mended(element: bytes) -> bytes:
    """The JSON closest to what other programs take for JSON.

    NaN and what is beyond the range of floats is null, as JavaScript writes it; a number of too many digits is a text;
    bytes that are no UTF-8 and lone surrogates are U+FFFD.
    """
    try:
        text = json.dumps(_lenient.decode(element.decode("utf-8-sig", "replace")), ensure_ascii=False)
    except RecursionError:
        raise Unusable("nested too deeply") from None
    except ValueError:
        raise Unusable("no JSON") from None
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _float(text: str) -> float | None:
    value = float(text)
    return value if abs(value) != float("inf") else None


_lenient = json.JSONDecoder(
    strict=False,
    parse_int=lambda text: int(text) if len(text) <= MOST_DIGITS else text,
    parse_float=_float,
    parse_constant=lambda _: None,
)


def _of_fields(fields: Any, element: bytes) -> MailboxItem:
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise Unusable("no object with a text as content")
    return MailboxItem(
        type=_text(fields.get("type")),
        content=fields["content"],
        message_id=_id(fields.get("message_id"), element),
        data=fields.get("data"),
        time=_text(fields.get("time")),
        ts=_moment_ms(fields.get("ts")),
        priority=_priority(fields.get("priority")),
        need_confirm=fields.get("need_confirm") in (True, 1),
        expires_ms=_moment_ms(fields.get("expires_ms")),
        saved_at=_moment_ms(fields.get("saved_at")),
        title=usable_title(fields.get("title")),
        url=usable_link(fields.get("url")),
        tags=usable_tags(fields.get("tags")),
        version=_version(fields.get("version")),
    )


def _id(value: Any, element: bytes) -> str:
    """A text, or the digits of a whole number as they stand there; scripts.py decides the same."""
    if not _is_whole(value):
        return _text(value)
    near = {digits for digits in _NUMBER_ID.findall(element) if float(digits) == float(str(value))}
    return near.pop().decode() if len(near) == 1 else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _priority(value: Any) -> int:
    return value if _is_whole(value) and 0 <= value <= Priority.URGENT else Priority.NORMAL


def _version(value: Any) -> int:
    return value if _is_whole(value) and 0 < value <= MOST_VERSION else 1


def _moment_ms(value: Any) -> int:
    """Milliseconds since the epoch, also of seconds; 0 for what is no moment."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST_MS:
        return 0
    return int(value * 1000) if value < LEAST_MS else int(value)


def _time(at_ms: int, timezone: ZoneInfo) -> str:
    try:
        return date_and_time(at_ms, timezone)
    except (ValueError, OverflowError, OSError):
        return ""
