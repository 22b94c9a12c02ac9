"""Checkpoints beside the thread that writes: the WAL gets into the database, and begins anew."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pushd.stores.sqlite.engine import checkpoint
from pushd.stores.sqlite.engine.checkpoint import checkpointing
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import prepare
from pushd.stores.sqlite.engine.thread import Connections, SqliteThread
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


async def test_the_wal_moves_into_the_database(
    path: Path, thread: SqliteThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.01)
    async with checkpointing(path, thread):
        await thread.submit("test", "fill", fill)
        await until(lambda: path.stat().st_size > 50 * len(ROW))


async def test_a_long_wal_begins_anew(path: Path, thread: SqliteThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though somebody writes all the time."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.01)
    monkeypatch.setattr(checkpoint, "LONG_FRAMES", 200)
    async with checkpointing(path, thread):
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


async def test_a_failure_is_said_and_tried_again(
    path: Path, thread: SqliteThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.01)
    failing = asyncio.Event()
    real = checkpoint.checkpoint

    def fail_once(connection: sqlite3.Connection) -> int:
        if not failing.is_set():
            failing.set()
            raise sqlite3.OperationalError("disk I/O error")
        return real(connection)

    monkeypatch.setattr(checkpoint, "checkpoint", fail_once)
    async with checkpointing(path, thread):
        await thread.submit("test", "fill", fill)
        await until(failing.is_set)
        await thread.submit("test", "fill", fill)
        await until(lambda: path.stat().st_size > 100 * len(ROW))
    assert "disk I/O error" in capsys.readouterr().out
