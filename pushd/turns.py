"""Sharing the event loop: a slice of work, then everybody else's turn, and again while something is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

SLICE_S = 0.001


class Slice:
    """How long one piece of work may take of the present turn of the loop: about `seconds`, from now on."""

    __slots__ = ("_ends", "_now", "_seconds")

    def __init__(self, seconds: float = SLICE_S, now: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._ends = now() + seconds

    @property
    def is_over(self) -> bool:
        """It is time for others."""
        return self._now() >= self._ends

    async def rest(self) -> None:
        """When it is over: let the loop do what else there is to do, and begin another one."""
        if self.is_over:
            await asyncio.sleep(0)
            self._ends = self._now() + self._seconds


class Repeated:
    """Work that is done a slice at a time: once in each turn of the loop, from `wake` on until nothing is left.

    `work` says whether something is left. When it raises, the loop's exception handler is told, and it is asked again.
    """

    __slots__ = ("_is_due", "_loop", "_work")

    def __init__(self, work: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._is_due = False

    def wake(self) -> None:
        """There is something to do."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._is_due, is_left = False, True
        try:
            is_left = self._work()
        finally:
            if is_left:
                self.wake()


async def sliced(items: Iterable[T], seconds: float = SLICE_S) -> AsyncIterator[T]:
    """The same items; whenever they have taken so long, the loop does what else there is to do before the next one."""
    one_slice = Slice(seconds)
    for item in items:
        await one_slice.rest()
        yield item


class Share:
    """What one kind of work may take of a turn of the loop, however many are at it: about `most_s`."""

    def __init__(self, most_s: float, now: Callable[[], float] = monotonic) -> None:
        self._most_s = most_s
        self._now = now
        self._ends = 0.0  # 0: nothing has been taken of this turn

    async def turn(self) -> None:
        """Return when there is time for a little more of it."""
        while not self.has_time():
            await asyncio.sleep(0)

    def has_time(self) -> bool:
        """Whether there is time for a little more of it in this turn of the loop."""
        now = self._now()
        if not self._ends:
            self._ends = now + self._most_s
            asyncio.get_running_loop().call_soon(self._end_turn)
        return now < self._ends

    def _end_turn(self) -> None:
        self._ends = 0.0
