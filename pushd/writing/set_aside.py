"""Puts data that could not be used on disk for the operator, and takes it back when he wants it tried again.

A kind is the name of the writer whose batch it is, or NOTICE: a notice that could not be delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from pushd.errors import StoreError
from pushd.ports import SetAside
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics

log = structlog.get_logger("pushd.aside")

NOTICE = "notice"
LOOK_EVERY_S = 0.8  # a retry is noticed within a second
TAKEN_AT_ONCE = 20
PUT_MOST = 1000  # entries on their way to the disk: what comes beyond is in the journal at least
CAUSE_CHARS = 200

# Takes an entry's body back, and calls the function when the entry is not needed any more. Raises StoreUnavailable to
# be asked again; with anything else the entry stays aside.
Take = Callable[[bytes, Callable[[], None]], Awaitable[None]]


class SetAsideData:
    """What a node sets aside, and what it takes back. Failing to set something aside ends nothing else.

    `look_every_s`: how often the operator's wishes are looked for; `put_most`: how many entries may be on their way.
    """

    def __init__(
        self, store: SetAside, metrics: Metrics, *, look_every_s: float = LOOK_EVERY_S, put_most: int = PUT_MOST
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._look_every_s = look_every_s
        self._put_most = put_most
        self._takers: dict[str, Take] = {}
        self._puts: set[asyncio.Task[None]] = set()
        self._under_way: set[int] = set()  # taken back and still needed
        self._done: list[int] = []  # not needed any more
        self.counts: dict[str, int] = {}  # what is set aside at present, by kind

    @property
    def total(self) -> int:
        """How many entries are set aside at present."""
        return sum(self.counts.values())

    def takes(self, kind: str, take: Take) -> None:
        """From now on entries of this kind go back to `take`."""
        self._takers[kind] = take

    async def keep(self, kind: str, error: BaseException, body: bytes, **about: str) -> bool:
        """Set `body` aside, for which `error` is to blame; False when that failed, which is noted.

        `about` goes into the log.
        """
        try:
            dropped = await faults.unless_cancelled(self._store.keep(kind, cause_of(error), body))
        except Exception as failure:
            faults.noted(self._metrics, "set_aside", failure, what=kind, because=cause_of(error), **about)
            return False
        self._metrics.set_aside.labels(kind).inc()
        self.counts[kind] = self.counts.get(kind, 0) + 1
        faults.logged(self._metrics, f"set aside: {kind}", error, **about)
        if dropped:
            self._metrics.errors.labels("set_aside_full").inc(dropped)
            if self._metrics.is_new_cause(("set_aside_full",)):
                log.error("too much is set aside: the oldest is lost", lost=dropped)
        return True

    def put(self, kind: str, error: BaseException, body: bytes, kept: Callable[[], None], **about: str) -> None:
        """Does what `keep` does without being waited for; `kept` is called when it is on disk."""
        if len(self._puts) >= self._put_most:
            faults.noted(self._metrics, "set_aside", error, what=kind, **about)
            return
        task = asyncio.create_task(self._put(kind, error, body, kept, about))
        self._puts.add(task)
        task.add_done_callback(self._puts.discard)

    async def _put(
        self, kind: str, error: BaseException, body: bytes, kept: Callable[[], None], about: dict[str, str]
    ) -> None:
        if await self.keep(kind, error, body, **about):
            try:
                kept()
            except Exception as failure:
                faults.noted(self._metrics, "set_aside", failure, what=kind, **about)

    async def finished(self) -> None:
        """Returns when everything that was put is on disk, or cannot be set aside."""
        while self._puts:
            await asyncio.wait(self._puts)

    # ---- back again

    async def run(self) -> None:
        """Takes back what the operator wants tried again, until cancelled."""
        while True:
            try:
                await faults.unless_cancelled(self.look())
            except StoreError as error:
                log.debug("what is set aside cannot be looked at", error=str(error))  # health has seen it
            except Exception as error:
                faults.noted(self._metrics, "set_aside", error)
            await asyncio.sleep(self._look_every_s)

    async def look(self) -> None:
        """Drops the entries that are not needed any more, and takes back all that are wanted. Raises StoreError."""
        while True:
            await self._forget()
            wanted = await self._store.wanted(self._under_way, TAKEN_AT_ONCE)
            for entry_id, kind, body in wanted:
                await self._take_back(entry_id, kind, body)
            if len(wanted) < TAKEN_AT_ONCE:
                break
        await self._forget()
        self.counts = await self._store.counts()

    async def _forget(self) -> None:
        if self._done:
            done = list(self._done)
            await self._store.drop(done)
            del self._done[: len(done)]
            self._under_way.difference_update(done)

    async def _take_back(self, entry_id: int, kind: str, body: bytes) -> None:
        take = self._takers.get(kind)
        self._under_way.add(entry_id)
        try:
            if take is None:
                raise ValueError(f"nothing takes {kind!r} back")
            await take(body, partial(self._done.append, entry_id))
        except StoreError:
            self._under_way.discard(entry_id)
            raise
        except Exception as error:
            self._under_way.discard(entry_id)
            faults.logged(self._metrics, f"set aside: {kind}", error)
            self._metrics.set_aside.labels(kind if take else "other").inc()
            await self._store.refuse(entry_id, cause_of(error))


def cause_of(error: BaseException) -> str:
    """The error as the operator reads it: one short printable line."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    printable = "".join(char if char.isprintable() else " " for char in text[: 4 * CAUSE_CHARS])
    return " ".join(printable.split())[:CAUSE_CHARS]
