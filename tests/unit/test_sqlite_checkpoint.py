"""Checkpoints beside the thread that writes: the WAL gets into the database, and begins anew."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import StartError
from pushd.stores.sqlite.engine.checkpoint import Checkpoints, checkpoints
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import prepare
from pushd.stores.sqlite.engine.thread import Connections, SqliteThread
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.telemetry.supervision import supervised
from tests.daemon import until

ROW = b"x" * 4000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pushd.db"
    prepare(file)
    return file


@pytest.fixture
async def thread(path: Path) -> AsyncIterator[SqliteThread]:
    durable, relaxed = (open_connection(path, synchronous=mode, checkpoint_pages=0) for mode in ("FULL", "NORMAL"))
    relaxed.execute("CREATE TABLE filling (row BLOB)")
    thread = SqliteThread(Connections(durable, relaxed), lambda connection, payloads: None)
    yield thread
    await thread.aclose()


def fill(connection: sqlite3.Connection) -> None:
    for _ in range(50):
        connection.execute("INSERT INTO filling VALUES (?)", (ROW,))


async def test_nothing_moves_by_itself(path: Path, thread: SqliteThread) -> None:
    before = path.stat().st_size
    for _ in range(40):  # twice what SQLite would wait for
        await thread.submit("test", "fill", fill)
    assert path.stat().st_size == before


@asynccontextmanager
async def running(work: Checkpoints) -> AsyncIterator[Health]:
    """As the daemon runs it."""
    health = Health(Metrics(), monotonic)
    async with supervised({"checkpoint": work.run}, health, first_pause_s=0.0):
        yield health


async def test_the_wal_moves_into_the_database(path: Path, thread: SqliteThread) -> None:
    with checkpoints(path, thread, every_s=0.01) as work:
        async with running(work):
            await thread.submit("test", "fill", fill)
            await until(lambda: path.stat().st_size > 50 * len(ROW))


async def test_a_long_wal_begins_anew(path: Path, thread: SqliteThread) -> None:
    """Though somebody writes all the time."""
    with checkpoints(path, thread, every_s=0.01, long_frames=200) as work:
        async with running(work):
            await thread.submit("test", "fill", fill)
            first = salt_of(path)
            for _ in range(300):
                await thread.submit("test", "fill", fill)
                await asyncio.sleep(0.005)
                if salt_of(path) != first:
                    break
    assert salt_of(path) != first


def salt_of(path: Path) -> bytes:
    """What SQLite changes in the head of the WAL whenever it begins anew."""
    with path.with_name(path.name + "-wal").open("rb") as wal:
        return wal.read(24)[16:]


class Frail:
    """A connection that fails as often as the test says."""

    def __init__(self, connection: sqlite3.Connection, error: Exception, times: int) -> None:
        self._connection = connection
        self._error = error
        self.times = times

    def execute(self, statement: str) -> Any:
        if self.times:
            self.times -= 1
            raise self._error
        return self._connection.execute(statement)


@asynccontextmanager
async def failing(
    path: Path, thread: SqliteThread, error: Exception, times: int
) -> AsyncIterator[tuple[Frail, Health]]:
    with (
        closing(open_connection(path, synchronous="NORMAL", checkpoint_pages=0)) as connection,
        ThreadPoolExecutor(1) as executor,
    ):
        frail = Frail(connection, error, times)
        async with running(Checkpoints(frail, executor, thread, every_s=0.001)) as health:  # type: ignore[arg-type]
            yield frail, health


@pytest.mark.parametrize(
    ("error", "text"),
    [(sqlite3.OperationalError("disk I/O error"), "disk I/O error"), (MemoryError(), "MemoryError")],
)
async def test_a_failure_is_logged_counted_and_in_health_and_it_is_run_again(
    path: Path, thread: SqliteThread, error: Exception, text: str
) -> None:
    """A full disk, or too little memory, is no broken machinery, however long it lasts."""
    before = path.stat().st_size
    with capture_logs() as logs:
        async with failing(path, thread, error, 20) as (frail, health):
            await thread.submit("test", "fill", fill)
            await until(lambda: frail.times == 0)
            await thread.submit("test", "fill", fill)
            await until(lambda: path.stat().st_size > before)
    assert health._metrics.errors.labels("background").value == 20
    assert health.error == "checkpoint failed"
    (entry,) = logs
    assert (entry["task"], entry["error"]) == ("checkpoint", f"journal: {text}")


async def test_broken_machinery_is_not_hidden(path: Path, thread: SqliteThread) -> None:
    await thread.submit("test", "fill", fill)
    with pytest.raises(StartError, match="checkpoint failed"):
        async with failing(path, thread, TypeError("odd"), 1_000_000):
            await asyncio.Event().wait()
