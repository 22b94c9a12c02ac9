"""The ledger's file of a test's own, without the stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pushd.stores.sqlite import journal
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.readers import reading
from pushd.stores.sqlite.engine.schema import prepare
from pushd.stores.sqlite.engine.thread import Connections, SqliteThread
from pushd.stores.sqlite.ledger_file import LedgerFile, open_ledger
from pushd.stores.sqlite.ledger_load import UNBOUNDED


@asynccontextmanager
async def opened_file(
    path: Path, *, max_waiting: int = 100, has_records: bool = True, memory_bytes: int = UNBOUNDED
) -> AsyncIterator[LedgerFile]:
    """The ledger in the database at `path`, which is made where there is none."""
    prepare(path)
    durable, relaxed = (open_connection(path, synchronous=mode, checkpoint_pages=0) for mode in ("FULL", "NORMAL"))
    thread = SqliteThread(Connections(durable, relaxed), journal.commit)
    try:
        async with (
            reading(path) as readers,
            open_ledger(
                path,
                thread,
                readers.read,
                max_waiting=max_waiting,
                has_records=has_records,
                memory_bytes=memory_bytes,
            ) as file,
        ):
            yield file
    finally:
        await thread.aclose()
