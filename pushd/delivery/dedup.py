"""The dedup window: by which keys, and how long, a repeated publish is recognised. Pure: the clock is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf
from typing import Generic, TypeVar

from pushd.model import Notice

T = TypeVar("T")


def id_key(message_id: str) -> str:
    """By what a repeat of a publisher's own message_id is recognised."""
    return f"id:{message_id}"


def dedup_keys(notice: Notice, *, is_named: bool) -> list[str]:
    """The keys by which a repeat is recognised: of the publisher's message_id and of the idempotency key."""
    keys = [id_key(notice.message_id)] if is_named else []
    if notice.idempotency_key:
        keys.append(f"key:{notice.idempotency_key}")
    return keys


class DedupWindow(Generic[T]):
    """Remembers for `window_s` what was published under a key: the first value stays that long.

    Of more than `most_bytes` altogether, the oldest are forgotten before. `most_bytes` may change at any time.
    """

    def __init__(self, window_s: float, most_bytes: float = inf) -> None:
        self.window_s = window_s
        self.most_bytes = most_bytes
        self._bytes = 0
        self._values: dict[str, list[T]] = {}  # in a list, which is empty once it is forgotten
        self._ends: deque[tuple[float, int, str, list[T]]] = deque()

    def __len__(self) -> int:
        return len(self._values)

    def find(self, keys: Iterable[str], now: float) -> T | None:
        """The value first kept under one of `keys`."""
        self._forget(now)
        for key in keys:
            kept = self._values.get(key)
            if kept is not None:
                return kept[0]
        return None

    def keep(self, keys: Iterable[str], value: T, now: float, size: int = 0) -> int:
        """Remember `value`, which takes `size` bytes, under `keys`; returns how many were forgotten for it."""
        for key in keys:
            kept = self._values[key] = [value]
            self._ends.append((now + self.window_s, size, key, kept))
            self._bytes += size
        forgotten = 0
        while self._bytes > self.most_bytes and len(self._ends) > 1:
            forgotten += self._forget_first()
        return forgotten

    def drop(self, keys: Iterable[str], value: T) -> None:
        """Forget `value` at once, and let go of it: the publish failed, a repeat is a new attempt."""
        for key in keys:
            kept = self._values.get(key)
            if kept is not None and kept[0] is value:
                del self._values[key]
                kept.clear()

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            self._forget_first()

    def _forget_first(self) -> bool:
        """Whether it was still remembered."""
        _, size, key, kept = self._ends.popleft()
        self._bytes -= size
        if self._values.get(key) is not kept:
            return False
        del self._values[key]
        return True
