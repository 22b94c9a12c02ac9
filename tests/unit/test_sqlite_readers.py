"""Reading beside the thread that writes."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pushd.errors import StartError, StoreError, StoreUnavailable
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.readers import READERS, Readers, reading
from pushd.stores.sqlite.engine.schema import prepare, transaction

RECORD = "INSERT INTO notice (message_id, accepted_ms, body) VALUES (?, 5, x'')"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pushd.db"
    prepare(file)
    return file


@pytest.fixture
async def readers(path: Path) -> AsyncIterator[Readers]:
    async with reading(path) as readers:
        yield readers


def count(connection: sqlite3.Connection) -> tuple[Any, ...]:
    row: tuple[Any, ...] = connection.execute("SELECT count(*) FROM notice").fetchone()
    return row


async def test_what_is_committed_is_read_while_somebody_writes(path: Path, readers: Readers) -> None:
    with closing(open_connection(path, synchronous="NORMAL")) as writer:
        writer.execute(RECORD, ("m1",))
        with transaction(writer):
            writer.execute(RECORD, ("m2",))
            assert await readers.read("records", "count", count) == (1,)
        assert await readers.read("records", "count", count) == (2,)


async def test_as_many_read_at_the_same_time_as_there_are_readers(readers: Readers) -> None:
    barrier = threading.Barrier(READERS, timeout=10)

    def meet(connection: sqlite3.Connection) -> tuple[int, int]:
        barrier.wait()
        return id(connection), threading.get_ident()

    met = await asyncio.gather(*(readers.read("records", "meet", meet) for _ in range(2 * READERS)))
    assert len({connection for connection, _ in met}) == len({thread for _, thread in met}) == READERS


async def test_nothing_is_written(readers: Readers) -> None:
    with pytest.raises(StoreError, match=r"^records: attempt to write a readonly database") as raised:
        await readers.read("records", "write", lambda db: db.execute(RECORD, ("m1",)))
    assert isinstance(raised.value.__cause__, sqlite3.OperationalError)
    assert await readers.read("records", "count", count) == (0,)


@pytest.mark.parametrize("error", [TypeError("odd"), BaseException("odd"), asyncio.CancelledError("odd")])
async def test_whatever_a_read_raises_is_its_own_failure(readers: Readers, error: BaseException) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise error

    with pytest.raises(StoreError, match=r"^records: odd$") as raised:
        await readers.read("records", "panic", fail)
    assert raised.value.__cause__ is error
    assert await readers.read("records", "count", count) == (0,)


async def test_every_read_is_observed(path: Path) -> None:
    seen: list[tuple[str, str, bool]] = []

    def observe(store: str, name: str, seconds: float, is_done: bool) -> None:
        assert 0 <= seconds < 10
        seen.append((store, name, is_done))

    async with reading(path, observe) as readers:
        await readers.read("records", "count", count)
        with pytest.raises(StoreError):
            await readers.read("records", "wrong", lambda db: db.execute("SELECT nothing"))
    assert seen == [("records", "count", True), ("records", "wrong", False)]


async def test_what_was_begun_is_finished_and_nothing_more_begins(path: Path) -> None:
    is_begun, may_end = threading.Event(), threading.Event()

    def wait(connection: sqlite3.Connection) -> tuple[Any, ...]:
        is_begun.set()
        may_end.wait(10)
        return count(connection)

    async with reading(path) as readers:
        begun = asyncio.create_task(readers.read("records", "wait", wait))
        await asyncio.to_thread(is_begun.wait, 10)
        closing_ = asyncio.create_task(readers.aclose())
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match=r"^records: closed"):
            await readers.read("records", "count", count)
        assert not closing_.done()
        may_end.set()
        await closing_
        assert await begun == (0,)


async def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"^cannot use .*: unable to open database file"):
        async with reading(tmp_path / "none" / "pushd.db"):
            pass
