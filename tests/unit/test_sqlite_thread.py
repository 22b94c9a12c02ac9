"""The SQLite thread: order, shared commits, failures and the end; tests hold it up with an event, never with time."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pushd.errors import PushdError, StoreError, StoreUnavailable
from pushd.stores.sqlite import journal
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import prepare
from pushd.stores.sqlite.engine.thread import Connections, SqliteThread
from pushd.stores.sqlite.journal import SqliteJournal
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.outbox import SqliteOutbox
from tests.samples import notice

WAIT_S = 20


class Bench:
    """A thread under test, with what it committed and reported."""

    def __init__(self, path: Path, **options: Any) -> None:
        prepare(path)
        self.durable = open_connection(path, synchronous="FULL")
        self.relaxed = open_connection(path, synchronous="NORMAL")
        self.commits: list[list[Any]] = []
        self.steps: list[str] = []
        self.observed: list[tuple[str, str, bool]] = []
        self.thread = SqliteThread(Connections(self.durable, self.relaxed), self.commit, self.observe, **options)

    def commit(self, connection: sqlite3.Connection, payloads: Sequence[Any]) -> None:
        self.commits.append(list(payloads))
        self.steps.append("commit")
        if b"bad" in payloads:
            raise sqlite3.IntegrityError("bad")
        if isinstance(payloads[0], journal.Append):
            journal.commit(connection, payloads)

    def journal(self) -> SqliteJournal:
        """A journal of an empty ledger."""
        return SqliteJournal(LedgerFile(self.thread, self.thread.submit, max_waiting=100))

    def observe(self, store: str, name: str, seconds: float, is_ok: bool) -> None:
        assert seconds >= 0
        self.observed.append((store, name, is_ok))

    def hold(self) -> Callable[[], None]:
        """Make the thread wait until the returned function is called; returns when it waits."""
        reached, go = threading.Event(), threading.Event()

        def run(_connection: sqlite3.Connection) -> None:
            reached.set()
            assert go.wait(WAIT_S)

        self.thread.submit("test", "hold", run)
        assert reached.wait(WAIT_S)
        return go.set

    def step(self, name: str) -> asyncio.Future[None]:
        return self.thread.submit("test", name, lambda _connection: self.steps.append(name))


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(path, **options)
    yield made
    await made.thread.aclose()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path / "pushd.db") as made:
        yield made


async def test_results_come_back_to_the_loop(bench: Bench) -> None:
    assert await bench.thread.submit("test", "one", lambda db: db.execute("SELECT 1").fetchone()) == (1,)


async def test_waiting_appends_share_one_commit_ahead_of_everything_else(bench: Bench) -> None:
    go = bench.hold()
    waiting: list[asyncio.Future[Any]] = [bench.step("first"), bench.step("second")]
    waiting += [bench.thread.append("test", "append", b"x%d" % number) for number in range(3)]
    go()
    await asyncio.gather(*waiting)
    assert bench.commits == [[b"x0", b"x1", b"x2"]]
    assert bench.steps == ["commit", "first", "second"]


async def test_an_append_waits_for_one_operation_at_most(bench: Bench) -> None:
    go = bench.hold()
    appended: list[asyncio.Future[None]] = []
    is_appended = threading.Event()

    def submit_append() -> None:
        appended.append(bench.thread.append("test", "append", b"x"))
        is_appended.set()

    def first(_connection: sqlite3.Connection) -> None:
        bench.steps.append("first")
        bench.thread._loop.call_soon_threadsafe(submit_append)
        assert is_appended.wait(WAIT_S)

    waiting = [bench.thread.submit("test", "first", first), bench.step("second"), bench.step("third")]
    go()
    await asyncio.gather(*waiting)
    await appended[0]
    assert bench.steps == ["first", "commit", "second", "third"]


async def test_a_flood_of_appends_is_split(tmp_path: Path) -> None:
    async with opened(tmp_path / "pushd.db", group_limit=2) as bench:
        go = bench.hold()
        waiting = [bench.thread.append("test", "append", b"x") for _ in range(5)]
        go()
        await asyncio.gather(*waiting)
    assert [len(payloads) for payloads in bench.commits] == [2, 2, 1]


async def test_one_wakeup_delivers_all_that_finished(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wakeups: list[object] = []
    call = bench.thread._call_loop
    monkeypatch.setattr(bench.thread, "_call_loop", lambda callback: (wakeups.append(callback), call(callback)))
    go = bench.hold()
    finished = threading.Event()
    waiting = [bench.step(str(number)) for number in range(50)]
    waiting.append(bench.thread.submit("test", "last", lambda _connection: finished.set()))
    go()
    assert finished.wait(WAIT_S)  # the loop stands still until all have run
    await asyncio.gather(*waiting)
    assert len(wakeups) <= 2


async def test_a_failure_reaches_its_caller_only_and_the_thread_goes_on(bench: Bench) -> None:
    def fail(_connection: sqlite3.Connection) -> None:
        raise ValueError("broken")

    failed = bench.thread.submit("records", "write", fail)
    fine = bench.step("fine")
    with pytest.raises(StoreError, match="records: broken") as caught:
        await failed
    assert not isinstance(caught.value, StoreUnavailable)
    assert isinstance(caught.value.__cause__, ValueError)
    await fine


async def test_one_bad_append_does_not_fail_the_others(bench: Bench) -> None:
    go = bench.hold()
    waiting = [bench.thread.append("journal", "append", payload) for payload in (b"x1", b"bad", b"x2")]
    go()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(outcomes[1], StoreError)
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert bench.commits == [[b"x1", b"bad", b"x2"], [b"x1"], [b"bad"], [b"x2"]]


async def test_every_operation_is_observed_on_the_loop(bench: Bench) -> None:
    loop_thread = threading.get_ident()
    idents: list[int] = []
    bench.thread._observe = lambda *said: (idents.append(threading.get_ident()), bench.observe(*said))
    await bench.step("fine")
    with pytest.raises(StoreError):
        await bench.thread.submit("records", "write", lambda db: db.execute("nonsense"))
    await bench.thread.append("journal", "append", b"x")
    assert bench.observed == [("test", "fine", True), ("records", "write", False), ("journal", "append", True)]
    assert set(idents) == {loop_thread}


async def test_a_cancelled_caller_harms_nobody(bench: Bench) -> None:
    go = bench.hold()
    cancelled, failing, fine = bench.step("cancelled"), bench.thread.append("t", "a", b"bad"), bench.step("fine")
    cancelled.cancel()
    failing.cancel()
    go()
    await fine
    assert bench.steps == ["commit", "cancelled", "fine"]
    gc.collect()


async def test_closing_finishes_what_was_submitted_and_refuses_the_rest(bench: Bench, tmp_path: Path) -> None:
    go = bench.hold()
    waiting = [bench.step("late"), bench.thread.append("journal", "append", journal.Append([notice(1)]))]
    closing = asyncio.ensure_future(bench.thread.aclose())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="test: closed"):
        bench.step("too late")
    with pytest.raises(StoreUnavailable, match="journal: closed"):
        bench.thread.append("journal", "append", b"x")
    go()
    await closing
    await asyncio.gather(*waiting)
    await bench.thread.aclose()
    assert not bench.thread._thread.is_alive()
    assert bench.steps == ["commit", "late"]
    # Checkpointed: all is in the one file, nothing in a WAL beside it.
    assert [path.name for path in tmp_path.iterdir()] == ["pushd.db"]


async def test_the_loop_rests_when_nothing_gets_finished(tmp_path: Path) -> None:
    has_rested = threading.Event()
    async with opened(tmp_path / "pushd.db", rest=lambda _seconds: has_rested.set()) as bench:
        await bench.thread.submit("test", "starving", lambda _connection: has_rested.wait(WAIT_S))
    assert has_rested.is_set()


async def test_a_panic_is_one_operations_failure(bench: Bench) -> None:
    def panic(_connection: sqlite3.Connection) -> None:
        raise BaseException("a panic")

    with pytest.raises(StoreError, match="a panic"):
        await bench.thread.submit("test", "panic", panic)
    await bench.step("after")
    assert bench.steps == ["after"]


async def test_a_thread_that_ends_by_itself_is_noticed(bench: Bench) -> None:
    go = bench.hold()
    waiting = [bench.step("never"), bench.thread.append("journal", "append", b"x")]
    bench.thread._tokens = None  # type: ignore[assignment]
    watching = asyncio.create_task(bench.thread.watch())
    go()
    with pytest.raises(PushdError, match="the thread that writes has ended") as caught:
        await watching
    assert isinstance(caught.value.__cause__, AttributeError)
    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [StoreUnavailable] * 2
    with pytest.raises(StoreUnavailable, match="closed"):
        bench.step("too late")
    await bench.thread.aclose()


async def test_a_full_disk_fails_the_waiting_appends_and_keeps_nothing_of_them(bench: Bench) -> None:
    store = bench.journal()
    await store.append([notice(1)])
    pages = bench.durable.execute("PRAGMA page_count").fetchone()[0]
    bench.durable.execute(f"PRAGMA max_page_count = {pages + 2}")
    big = "x" * 50_000
    outcomes = await asyncio.gather(
        store.append([notice(2), notice(3, content=big)]),
        store.append([notice(4, content=big)]),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert isinstance(outcomes[0].__cause__, sqlite3.OperationalError)
    assert [kept.seq for kept in await store.unsettled()] == [1]
    bench.durable.execute("PRAGMA max_page_count = 1000000")
    await store.append([notice(2)])
    assert [kept.seq for kept in await store.unsettled()] == [1, 2]


async def test_a_full_disk_rolls_back_a_whole_transaction(bench: Bench) -> None:
    outbox = SqliteOutbox(bench.thread)
    pages = bench.relaxed.execute("PRAGMA page_count").fetchone()[0]
    bench.relaxed.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailable, match="outbox: database or disk is full"):
        await outbox.append("records", [b"small", b"x" * 50_000])
    bench.relaxed.execute("PRAGMA max_page_count = 1000000")
    assert await outbox.counts() == {}
    await outbox.append("records", [b"small"])
    assert await outbox.counts() == {"records": 1}


async def test_a_read_only_file_is_unavailable(bench: Bench) -> None:
    bench.durable.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="readonly"):
        await bench.journal().append([notice(1)])


# Counts until an append has been committed.
UNTIL_APPENDED = """
WITH RECURSIVE step(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM step WHERE i < 300000 AND NOT is_appended())
SELECT max(i) FROM step
"""


@pytest.mark.parametrize("is_read", [True, False])
async def test_an_append_passes_a_long_read_but_no_write(bench: Bench, is_read: bool) -> None:
    bench.relaxed.create_function("is_appended", 0, lambda: bool(bench.commits))
    go = bench.hold()
    long = bench.thread.submit("test", "long", lambda db: db.execute(UNTIL_APPENDED).fetchone()[0], is_read=is_read)
    running = threading.Event()
    bench.relaxed.set_trace_callback(lambda _: running.set())
    go()
    assert running.wait(WAIT_S)
    await bench.thread.append("test", "append", b"x")
    assert (await long < 300000) is is_read
    assert bench.commits == [[b"x"]]


async def test_an_append_passes_between_the_transactions_of_a_write(bench: Bench) -> None:
    appended: list[asyncio.Future[None]] = []
    is_appended = threading.Event()

    def submit_append() -> None:
        appended.append(bench.thread.append("test", "append", b"x"))
        is_appended.set()

    def run(_connection: sqlite3.Connection) -> None:
        bench.thread._loop.call_soon_threadsafe(submit_append)
        assert is_appended.wait(WAIT_S)
        for turn in ("first", "second"):
            bench.steps.append(turn)
            bench.thread.let_appends_pass()

    await bench.thread.submit("test", "large", run)
    await appended[0]
    assert bench.steps == ["first", "commit", "second"]


async def test_an_observer_that_fails_keeps_nobody_waiting(bench: Bench, loop_errors: list[Any]) -> None:
    def observe(store: str, name: str, seconds: float, is_ok: bool) -> None:
        bench.observe(store, name, seconds, is_ok)
        raise TypeError("odd")

    bench.thread._observe = observe
    release = bench.hold()
    work = [bench.thread.submit("test", f"step {number}", lambda _: 1) for number in range(3)]
    release()
    async with asyncio.timeout(WAIT_S):
        assert await asyncio.gather(*work) == [1, 1, 1]
    assert len(bench.observed) == 4
    assert len(loop_errors) == 4
    loop_errors.clear()
