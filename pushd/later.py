"""Answers that are decided later: nobody needs a task to wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Later(Generic[T]):
    """An answer that is known once `decided` is done: a future that many may share, and that says little by itself.

    The work behind it goes on whoever waits or leaves. A waiter who is cancelled does not cancel `decided`.
    """

    __slots__ = ("decided",)

    def __init__(self, decided: asyncio.Future[Any]) -> None:
        self.decided = decided

    def result(self) -> T:
        """The answer. Raises what it failed with, and InvalidStateError before it is decided."""
        answer: T = self.decided.result()
        return answer

    def then(self, step: Callable[[T], U], failed: Callable[[Exception], U] | None = None) -> Later[U]:
        """What `step` makes of the answer, or `failed` of a failure, of that of `step` as well.

        Both are called when the result is asked for, each time.
        """
        return _Step(self, step, failed)

    def __await__(self) -> Generator[Any, None, T]:
        if not self.decided.done():
            yield from asyncio.shield(self.decided)
        return self.result()


class _Step(Later[U], Generic[T, U]):
    """What is made of another answer, decided with that."""

    __slots__ = ("_before", "_failed", "_step")

    def __init__(self, before: Later[T], step: Callable[[T], U], failed: Callable[[Exception], U] | None) -> None:
        self.decided = before.decided
        self._before = before
        self._step = step
        self._failed = failed

    def result(self) -> U:
        """What the step makes of the answer before it. Raises what that failed with, unless `failed` takes it."""
        try:
            return self._step(self._before.result())
        except Exception as error:
            if self._failed is None:
                raise
            return self._failed(error)


async def all_decided(answers: Iterable[Later[Any]]) -> None:
    """Return when each of these is decided, whatever they say; those that share a future are waited for once."""
    undecided = {answer.decided for answer in answers}
    if undecided:
        await asyncio.wait(undecided)
