"""Moving the WAL into the database, beside the thread that writes.

SQLite would do it within a commit, and what waited to be committed would wait for it: 40 to 200 ms. A passive
checkpoint on another connection hinders nobody. But only one that nobody has overtaken lets the WAL begin anew: when it
has grown long, the writing thread does the last bit itself.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.failures import translated
from pushd.stores.sqlite.engine.thread import SqliteThread

EVERY_S = 1.0
LONG_FRAMES = 8_192  # of 4 KB: 32 MB
PASSES = 4  # each moves what was written during the one before; two left the writing thread with up to 44 ms, four 7


class Checkpoints:
    """Checkpoints of the database at the other end of `connection`, which is used on the one thread of `executor`.

    `every_s`: how often, while `thread` writes. From `long_frames` on, `thread` lets the WAL begin anew.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        executor: ThreadPoolExecutor,
        thread: SqliteThread,
        *,
        every_s: float = EVERY_S,
        long_frames: int = LONG_FRAMES,
    ) -> None:
        self._connection = connection
        self._executor = executor
        self._thread = thread
        self._every_s = every_s
        self._long_frames = long_frames

    async def run(self) -> None:
        """Until cancelled. Raises StoreError, as on a full disk: the WAL keeps what is written, for the next run."""
        seen = -1
        while True:
            await asyncio.sleep(self._every_s)
            if self._thread.done_total == seen:
                continue
            seen = self._thread.done_total
            try:
                await self._move()
            except (sqlite3.Error, MemoryError) as error:  # SQLITE_NOMEM comes as a MemoryError
                raise translated("journal", error) from error

    async def _move(self) -> None:
        if await self._beside() < self._long_frames:
            return
        for _ in range(PASSES - 1):
            await self._beside()
        await self._thread.submit("journal", "checkpoint", checkpoint)

    async def _beside(self) -> int:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, checkpoint, self._connection)


@contextmanager
def checkpoints(
    path: Path, thread: SqliteThread, *, every_s: float = EVERY_S, long_frames: int = LONG_FRAMES
) -> Iterator[Checkpoints]:
    """Those of the database at `path`, which `thread` writes to; usable in the block. Raises sqlite3.Error."""
    with (
        closing(open_connection(path, synchronous="NORMAL", checkpoint_pages=0)) as connection,
        ThreadPoolExecutor(1, "pushd-checkpoint") as executor,
    ):
        yield Checkpoints(connection, executor, thread, every_s=every_s, long_frames=long_frames)


def checkpoint(connection: sqlite3.Connection) -> int:
    """Move what nobody hinders it to; returns how long the WAL is, in frames."""
    _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(frames)
