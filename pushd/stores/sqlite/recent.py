"""What was used last, kept in memory up to a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key. What was not asked for while `most` others came goes; twice as many are kept at most.

    `weigh` says what a value counts towards `most`: 1 without it. Two generations instead of an order: 0.1 us a call.
    """

    def __init__(self, most: int, weigh: Callable[[Value], int] | None = None) -> None:
        self._most = most
        self._weigh = weigh
        self._newer: dict[Key, Value] = {}
        self._older: dict[Key, Value] = {}
        self._weight = 0  # of the newer ones

    def __len__(self) -> int:
        """How many there are; what is in both generations counts twice."""
        return len(self._newer) + len(self._older)

    def get(self, key: Key) -> Value | None:
        """The value of `key`, None where it is not kept."""
        value = self._newer.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, in place of the one that `key` had."""
        if self._weight >= self._most:
            self._newer, self._older, self._weight = {}, self._newer, 0
        self._newer[key] = value
        self._weight += 1 if self._weigh is None else self._weigh(value)

    def put_all(self, entries: Sequence[tuple[Key, Value]]) -> None:
        """`put` for each; a new generation begins before them or behind."""
        if self._weight >= self._most:
            self._newer, self._older, self._weight = {}, self._newer, 0
        self._newer.update(entries)
        self._weight += len(entries) if self._weigh is None else sum(self._weigh(value) for _, value in entries)

    def drop(self, key: Key) -> None:
        """Forget it."""
        self._newer.pop(key, None)
        self._older.pop(key, None)
