"""Calls to a store outside this process: timed, counted, given up in time, not tried while it is known to be away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from pushd.errors import StoreError, StoreLost
from pushd.ports import Observe
from pushd.retry import Circuit

T = TypeVar("T")
TIMEOUT_S = 1.0

# What a driver's exception means: StoreLost, StoreUnavailable or StoreError; None for one that is not the driver's.
Translate = Callable[[Exception], StoreError | None]


class Guard:
    """One remote store's calls. While its circuit is open they fail at once; only a probe is let through."""

    def __init__(self, store: str, observe: Observe, translate: Translate, timeout_s: float = TIMEOUT_S) -> None:
        self.store = store
        self._observe = observe
        self._translate = translate
        self._timeout_s = timeout_s
        self._circuit = Circuit()

    async def call(self, operation: str, work: Callable[[], Awaitable[T]], *, is_probe: bool = False) -> T:
        """What `work()` returns. Raises StoreLost within the time limit, else what the driver's error means."""
        if self._circuit.is_open and not is_probe:
            raise StoreLost(self.store, f"{operation} not tried: no answer before")
        began = monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await work()
        except Exception as error:
            failure = self._failure(operation, error)
            if isinstance(failure, StoreLost):
                self._circuit.lost()
            elif failure is not None:
                self._circuit.answered()
            self._observe(self.store, operation, monotonic() - began, False)
            if failure is None or failure is error:
                raise
            raise failure from error
        self._circuit.answered()
        self._observe(self.store, operation, monotonic() - began, True)
        return result

    async def read(self, operation: str, work: Callable[[], Awaitable[T]]) -> T:
        """The same for what may be done twice: a connection that was lost while it lay idle is no reason to fail."""
        try:
            return await self.call(operation, work)
        except StoreLost as error:
            if isinstance(error.__cause__, TimeoutError) or self._circuit.is_open:
                raise
        return await self.call(operation, work)

    def _failure(self, operation: str, error: Exception) -> StoreError | None:
        if isinstance(error, StoreError):
            return error
        if isinstance(error, TimeoutError):
            return StoreLost(self.store, f"{operation}: no answer within {self._timeout_s:g} s")
        if isinstance(error, RuntimeError) and "closed" in str(error):
            # uvloop's word for a write to a connection that the peer has reset; drivers do not expect it.
            return StoreLost(self.store, f"{operation}: the connection was closed")
        return self._translate(error)
