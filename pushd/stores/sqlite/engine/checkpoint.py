"""Moving the WAL into the database, beside the thread that writes.

SQLite would do it within a commit, and what waited to be committed would wait for it: 40 to 200 ms. A passive
checkpoint on another connection hinders nobody. But only one that nobody has overtaken lets the WAL begin anew: when it
has grown long, the writing thread does the last bit itself.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path

import structlog

from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.thread import SqliteThread

EVERY_S = 1.0
LONG_FRAMES = 8_192  # of 4 KB: 32 MB
PASSES = 4  # each moves what was written during the one before; two left the writing thread with up to 44 ms, four 7

log = structlog.get_logger("pushd.sqlite")


@asynccontextmanager
async def checkpointing(path: Path, thread: SqliteThread) -> AsyncIterator[None]:
    """Checkpoint `path` while `thread` writes to it, until the end of the block. Raises sqlite3.Error."""
    with (
        closing(open_connection(path, synchronous="NORMAL", checkpoint_pages=0)) as connection,
        ThreadPoolExecutor(1, "pushd-checkpoint") as executor,
    ):
        task = asyncio.create_task(_watch(connection, executor, thread))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _watch(connection: sqlite3.Connection, executor: ThreadPoolExecutor, thread: SqliteThread) -> None:
    """Until cancelled."""
    loop = asyncio.get_running_loop()
    seen = -1
    while True:
        await asyncio.sleep(EVERY_S)
        if thread.done_total == seen:
            continue
        seen = thread.done_total
        try:
            if await loop.run_in_executor(executor, checkpoint, connection) >= LONG_FRAMES:
                for _ in range(PASSES - 1):
                    await loop.run_in_executor(executor, checkpoint, connection)
                await thread.submit("journal", "checkpoint", checkpoint)
        except Exception as error:  # a full disk; the WAL keeps what is written, and the next one moves it
            log.warning("checkpoint failed", error=str(error))


def checkpoint(connection: sqlite3.Connection) -> int:
    """As far as nobody hinders it; how long the WAL is, in frames."""
    _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(frames)
