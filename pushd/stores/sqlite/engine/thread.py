"""The thread that writes: it owns the SQLite connections and runs what the event loop submits.

Journal appends go first. All that wait while a commit runs share the next one; everything else runs in order, one
operation at a time, so an append waits for one operation at most. Finished operations come back to the loop in
batches, one wake-up for as many as have finished. A long read lets appends pass while it runs, a large write between
its transactions.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from pushd.errors import PushdError, StoreError, StoreUnavailable
from pushd.ports import Observe
from pushd.stores.sqlite.engine.failures import is_passing, translated

Result = TypeVar("Result")

# Keeps the payloads of several appends in one durable transaction; runs on the thread.
Commit = Callable[[sqlite3.Connection, Sequence[Any]], None]

# A commit takes no more appends than this, so that a flood does not make the first ones wait for the last.
GROUP_LIMIT = 1000

# A busy loop lets go of the GIL for microseconds at a time, too short for a waiting thread to catch it: operations
# were seen to take seconds. So when none has finished for a while, the loop rests for a moment, which is enough
# for a commit. Costs the loop nothing when it has time, and a tenth of it when it has not.
PATIENCE_S = 0.003
REST_S = 0.0003

# A read lets waiting appends pass every so many instructions of SQLite's virtual machine: 2 to 4 ms of work.
PASS_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Connections:
    """The two connections to one file: `durable` syncs at every commit, `relaxed` at checkpoints."""

    durable: sqlite3.Connection
    relaxed: sqlite3.Connection

    def close(self) -> None:
        """Move the WAL into the database and close. A disk that refuses leaves it in the WAL, which is as good."""
        with suppress(sqlite3.Error):
            self.relaxed.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.durable.close()
        self.relaxed.close()


@dataclass(slots=True, eq=False)
class _Operation(Generic[Result]):
    store: str
    name: str
    future: asyncio.Future[Result]
    submitted_s: float
    run: Callable[[sqlite3.Connection], Result] | None = None
    is_read: bool = False
    payload: Any = None
    result: Result | None = None
    error: StoreError | None = None
    finished_s: float = 0.0


class SqliteThread:
    """Runs operations of one event loop on the connections it takes over. Construct it on that loop.

    An operation must neither touch the loop nor hold the GIL for long: parameters come encoded, results go
    back as bytes. What it raises reaches its caller as StoreError and leaves the thread as it was.

    `group_limit`: appends in one commit at most; `rest` is called for a moment's rest of the loop, in seconds.
    """

    def __init__(
        self,
        connections: Connections,
        commit: Commit,
        observe: Observe | None = None,
        *,
        group_limit: int = GROUP_LIMIT,
        rest: Callable[[float], object] = sleep,
    ) -> None:
        self._connections = connections
        self._commit = commit
        self._observe = observe
        self._group_limit = group_limit
        self._rest = rest
        self._loop = asyncio.get_running_loop()
        self._appends: deque[_Operation[None]] = deque()
        self._operations: deque[_Operation[Any]] = deque()
        self._finished: deque[_Operation[Any]] = deque()
        # One token per operation and one for the end; more tokens than work is harmless.
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._is_delivery_due = False
        self._is_watching = False
        self._is_closing = False
        self._is_reading = False
        self._submitted_total = 0
        self.done_total = 0  # operations
        self._failure: BaseException | None = None  # what ended the thread before it was closed
        self._ended: asyncio.Future[None] = self._loop.create_future()
        connections.relaxed.set_progress_handler(self._pass_while_reading, PASS_STEPS)
        self._thread = threading.Thread(target=self._work, name="pushd-sqlite", daemon=True)
        self._thread.start()

    # On the loop.

    def append(self, store: str, name: str, payload: Any) -> asyncio.Future[None]:
        """Have `payload` committed durably, ahead of all other operations, together with others that wait."""
        operation = _Operation[None](store, name, self._loop.create_future(), monotonic(), payload=payload)
        self._submit(operation, self._appends)
        return operation.future

    def submit(
        self, store: str, name: str, run: Callable[[sqlite3.Connection], Result], *, is_read: bool = False
    ) -> asyncio.Future[Result]:
        """Have `run` called with the relaxed connection, after what was submitted before.

        `is_read`: it only reads, so appends may be committed in its midst.
        """
        operation = _Operation[Result](store, name, self._loop.create_future(), monotonic(), run, is_read)
        self._submit(operation, self._operations)
        return operation.future

    def _submit(self, operation: _Operation[Any], queue: deque[_Operation[Any]]) -> None:
        if self._is_closing:
            raise StoreUnavailable(operation.store, "closed")
        queue.append(operation)
        self._submitted_total += 1
        self._tokens.put(None)
        if not self._is_watching:
            self._is_watching = True
            self._loop.call_later(PATIENCE_S, self._watch, self.done_total)

    def _watch(self, done_total: int) -> None:
        """Every PATIENCE_S while there is work: give the thread the GIL if it has finished nothing in that time."""
        if self.done_total == self._submitted_total:
            self._is_watching = False
            return
        if self.done_total == done_total:
            self._rest(REST_S)
        self._loop.call_later(PATIENCE_S, self._watch, self.done_total)

    async def watch(self) -> None:
        """Until the thread ends. Raises PushdError when it ended by a fault of its own: nothing can be written then."""
        await asyncio.shield(self._ended)
        if self._failure is not None:
            raise PushdError("the thread that writes has ended") from self._failure

    async def aclose(self) -> None:
        """Finish what was submitted, checkpoint, close the connections, end the thread. May be called again."""
        if not self._is_closing:
            self._is_closing = True
            self._tokens.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _deliver(self) -> None:
        """Resolve the futures of everything finished, then report it."""
        # Cleared first: an operation that finishes from here on asks for a delivery of its own.
        self._is_delivery_due = False
        delivered = []
        while self._finished:
            operation = self._finished.popleft()
            _resolve(operation)
            delivered.append(operation)
        if self._observe is not None:
            for operation in delivered:
                self._report(operation, self._observe)

    def _report(self, operation: _Operation[Any], observe: Observe) -> None:
        seconds = operation.finished_s - operation.submitted_s
        try:
            observe(operation.store, operation.name, seconds, operation.error is None)
        except Exception as error:  # the others are still to be reported
            self._loop.call_exception_handler({"message": "an operation could not be observed", "exception": error})

    def _end(self, failure: BaseException | None) -> None:
        self._is_closing, self._failure = True, failure
        for queue in (self._appends, self._operations):
            while queue:  # there are some after a failure only
                operation = queue.popleft()
                operation.error = StoreUnavailable(operation.store, "closed")
                _resolve(operation)
        if not self._ended.done():
            self._ended.set_result(None)

    # On the thread.

    def _work(self) -> None:
        failure: BaseException | None = None
        try:
            with closing(self._connections):
                self._serve()
        except BaseException as error:  # nobody is above a thread
            failure = error
        self._call_loop(partial(self._end, failure))

    def _serve(self) -> None:
        while True:
            self._tokens.get()
            if self._appends:
                self._commit_group()
            elif self._operations:
                self._run(self._operations.popleft())
            elif self._is_closing:
                break

    def _commit_group(self) -> None:
        group: list[_Operation[None]] = []
        while self._appends and len(group) < self._group_limit:
            group.append(self._appends.popleft())
        self._commit_together(group)
        self._hand_back(group)

    def _commit_together(self, group: list[_Operation[None]]) -> None:
        """One transaction for all; when one append is to blame for a failure, each gets its own."""
        try:
            self._commit(self._connections.durable, [operation.payload for operation in group])
        except BaseException as error:
            if len(group) > 1 and not is_passing(error):
                for operation in group:
                    self._commit_together([operation])
                return
            for operation in group:
                operation.error = translated(operation.store, error)

    def _run(self, operation: _Operation[Any]) -> None:
        assert operation.run is not None  # noqa: S101 - for the type checker
        self._is_reading = operation.is_read
        try:
            operation.result = operation.run(self._connections.relaxed)
        except BaseException as error:  # a panic of a library as well
            operation.error = translated(operation.store, error)
        finally:
            self._is_reading = False
        self._hand_back([operation])

    def let_appends_pass(self) -> None:
        """For an operation of several transactions to call between them, on the thread."""
        if self._appends:
            self._commit_group()

    def _pass_while_reading(self) -> int:
        """SQLite calls this in the midst of a statement. A writing one holds the lock that a commit would wait for."""
        if self._is_reading:
            self.let_appends_pass()
        return 0  # go on

    def _hand_back(self, operations: list[_Operation[Any]]) -> None:
        finished_s = monotonic()
        for operation in operations:
            operation.finished_s = finished_s
            operation.run = None
            self._finished.append(operation)
        self.done_total += len(operations)
        if not self._is_delivery_due:
            self._is_delivery_due = True
            self._call_loop(self._deliver)

    def _call_loop(self, callback: Callable[[], None]) -> None:
        # A loop that was closed without aclose() has nobody left to tell.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)


def _resolve(operation: _Operation[Any]) -> None:
    if operation.future.done():  # its caller was cancelled
        return
    if operation.error is not None:
        operation.future.set_exception(operation.error)
    else:
        operation.future.set_result(operation.result)
