"""Futures of all who wait for one thing to happen, however many they are. For the event loop alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice

RESOLVED_AT_ONCE = 64  # whoever waited goes on in the same turn of the loop: so many take it a few milliseconds


class Waiters:
    """Futures that are resolved once, in the order in which they came, a share in each turn of the loop.

    Joining, leaving and being resolved cost the same however many wait; who leaves leaves nothing behind.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> asyncio.Future[None]:
        """A future that is done once `resolve` has come to it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> None:
        """Ends the wait of one of them; harmless when it is over."""
        self._waiting.pop(waiter, None)

    async def wait(self, within_s: float) -> None:
        """Returns when it has happened, or when the time is over."""
        waiter = self.join()
        try:
            async with asyncio.timeout(within_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            self.leave(waiter)

    def present(self) -> list[asyncio.Future[None]]:
        """Those who wait now, to be resolved later without those who come after them."""
        return list(self._waiting)

    def resolve(self, those: Iterable[asyncio.Future[None]] | None = None) -> None:
        """It has happened: for everybody, or for `those`."""
        self._resolve(iter(self.present() if those is None else those))

    def _resolve(self, those: Iterable[asyncio.Future[None]]) -> None:
        share = list(islice(those, RESOLVED_AT_ONCE))
        for waiter in share:
            self._waiting.pop(waiter, None)
            if not waiter.done():
                waiter.set_result(None)
        if len(share) == RESOLVED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._resolve, those)

    def fail(self, error: BaseException) -> None:
        """It will never happen."""
        for waiter in self.present():
            self.leave(waiter)
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # who asked may have gone
