"""The threads that read what may take long, each on a connection of its own: writing goes on meanwhile.

They see what is committed when a statement begins, and do not wait for what was submitted to the writing thread before.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import TypeVar

from pushd.errors import StartError, StoreError, StoreUnavailable
from pushd.ports import Observe
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.failures import translated

Result = TypeVar("Result")

# One that takes long does not hold up all others.
READERS = 2


class Readers:
    """Runs what only reads, READERS at a time. Construct it on the loop, with a connection for each."""

    def __init__(self, connections: list[sqlite3.Connection], observe: Observe | None = None) -> None:
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        for connection in connections:
            self._idle.put(connection)
        self._observe = observe
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(len(connections), "pushd-sqlite-reader")
        self._loop = asyncio.get_running_loop()

    async def read(self, store: str, name: str, run: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `run` makes of a connection. Raises StoreError of `store`."""
        if self._pool is None:
            raise StoreUnavailable(store, "closed")
        began_s, is_done = monotonic(), False
        try:
            result = await self._loop.run_in_executor(self._pool, self._run, store, run)
            is_done = True
        except StoreError:
            raise
        except Exception as error:
            raise translated(store, error) from error
        finally:
            if self._observe is not None:
                self._observe(store, name, monotonic() - began_s, is_done)
        return result

    def _run(self, store: str, run: Callable[[sqlite3.Connection], Result]) -> Result:
        connection = self._idle.get()  # there are as many as threads
        try:
            return run(connection)
        except BaseException as error:  # a panic of a library as well
            raise translated(store, error) from error
        finally:
            self._idle.put(connection)

    async def aclose(self) -> None:
        """Finish what was begun. May be called again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)


@asynccontextmanager
async def reading(path: Path, observe: Observe | None = None) -> AsyncIterator[Readers]:
    """Readers of the database at `path` until the end of the block. Raises StartError."""
    with ExitStack() as opened:
        try:
            connections = [opened.enter_context(closing(_open(path))) for _ in range(READERS)]
        except sqlite3.Error as error:
            raise StartError(f"cannot use {path}: {error}") from error
        readers = Readers(connections, observe)
        try:
            yield readers
        finally:
            await readers.aclose()


def _open(path: Path) -> sqlite3.Connection:
    connection = open_connection(path, synchronous="NORMAL", checkpoint_pages=0)
    connection.execute("PRAGMA query_only = ON")
    return connection
