"""How many chunks of one save are on their way to Redis at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

C = TypeVar("C")
CHUNKS_PER_WRITER = 8


class Writers:
    """Between `least` and `most`: one more for every CHUNKS_PER_WRITER chunks that wait."""

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most
        self.count = least

    def adapt(self, waiting: int) -> None:
        """So many chunks wait."""
        self.count = max(self._least, min(self._most, waiting // CHUNKS_PER_WRITER))

    async def write_all(self, chunks: Iterator[C], write: Callable[[C], Awaitable[None]]) -> None:
        """`write` them, in no order. After a failure no more are begun; the first is raised when all have ended."""
        is_failed = False

        async def writer() -> None:
            nonlocal is_failed
            for chunk in chunks:
                try:
                    await write(chunk)
                except BaseException:
                    is_failed = True
                    raise
                if is_failed:
                    return

        ended = await asyncio.gather(*(writer() for _ in range(self.count)), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error
