"""The schedule against a plain model, whatever is asked of it in whatever order, with stops at any moment."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli_w
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pushd.config import toml
from pushd.delivery.schedule import put_off
from pushd.delivery.submission import Sender, Submission
from pushd.errors import RequestError, StoreError
from pushd.records import Part, PushFilter, PushSort
from pushd.stores.sqlite import open_stores
from tests.unit.parts import START_MS, Clock, House, faulty

T = TypeVar("T")
USER = 7
WINDOW_S = 300
ids = st.sampled_from(["a", "b", "c", "d"])
delays = st.integers(1, 900)


class Known:
    """The model of one notice."""

    def __init__(self, due_s: int) -> None:
        self.due_s = due_s
        self.state = "scheduled"
        self.went_s = 0  # when it went out


class ScheduleModel(RuleBasedStateMachine):
    """Times are seconds since the start. The house is stopped and opened again on the same data."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        server = {"port": 0, "data_dir": str(Path(self.directory.name) / "data")}
        config = {"server": server, "delivery": {"dedup_window_s": WINDOW_S}, "records": {"flush_ms": 1}}
        self.config = toml.parse(tomli_w.dumps(config), source="the test's", environ={})
        self.clock = Clock()
        self.known: dict[str, Known] = {}
        self.out: list[str] = []  # in the order in which they went
        self.run(self.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    async def open(self) -> None:
        self.opened = AsyncExitStack()
        stores = await self.opened.enter_async_context(open_stores(self.config, clock=self.clock.wall_ms))
        self.frail = faulty(stores)
        unsettled = await stores.journal.unsettled()
        recent = await stores.journal.since(self.clock.wall_ms() - WINDOW_S * 1000)
        self.house = House(self.config, self.frail, self.clock, last_seq=await stores.journal.last_seq())
        seqs = {one.seq for one in unsettled}
        self.house.intake.restore([one for one in recent if one.seq not in seqs], queue=False)
        self.house.intake.restore(unsettled, queue=True)
        self.house.schedule.take_up(await stores.schedule.keys(), await stores.schedule.count())
        self.house.start_all()

    async def close(self) -> None:
        await self.house.stop()
        await self.opened.aclose()

    @property
    def now_s(self) -> int:
        return int(self.clock.seconds - 1000)

    def is_taken(self, message_id: str) -> bool:
        known = self.known.get(message_id)
        if known is None:
            return False
        return known.state != "sent" or self.now_s - known.went_s < WINDOW_S

    # ---- what may happen

    @rule(message_id=ids, delay_s=delays, is_refused=st.booleans())
    def schedule(self, message_id: str, delay_s: int, is_refused: bool) -> None:
        """By a publisher; a disk that is full for a moment keeps nothing."""
        given = {"content": "x", "target": "custom", "user_ids": [USER], "message_id": message_id, "delay_s": delay_s}
        submission = msgspec.convert(given, Submission)
        if is_refused and not self.is_taken(message_id):
            self.frail.schedule.fail("put")
            try:
                self.run(self.house.intake.accept(submission, Sender()))
            except RequestError:
                return
            raise AssertionError("it was not refused")
        attempt = self.run(self.house.intake.accept(submission, Sender()))
        assert attempt.is_duplicate == self.is_taken(message_id)
        if not attempt.is_duplicate:
            assert attempt.answer.status == "scheduled"
            self.known[message_id] = Known(self.now_s + delay_s)

    @rule(message_id=ids)
    def publish_at_once(self, message_id: str) -> None:
        """Only what repeats another one: what goes out at once is not of interest here."""
        if self.is_taken(message_id):
            given = {"content": "y", "target": "custom", "user_ids": [USER], "message_id": message_id}
            attempt = self.run(self.house.intake.accept(msgspec.convert(given, Submission), Sender()))
            assert attempt.is_duplicate
            state = self.known[message_id].state
            assert attempt.answer.status == ("accepted" if state == "sent" else state)

    @rule(message_id=ids, is_refused=st.booleans())
    def cancel(self, message_id: str, is_refused: bool) -> None:
        known = self.known.get(message_id)
        may = known is not None and known.state in ("scheduled", "cancelled")
        if is_refused and may:
            self.frail.schedule.fail("cancel")
            try:
                self.run(self.house.schedule.cancel(message_id))
            except StoreError:
                return
            raise AssertionError("it was not refused")
        assert self.run(self.house.schedule.cancel(message_id)) == may
        if known is not None and may:
            known.state = "cancelled"

    @rule(message_id=ids, delay_s=delays)
    def put_off(self, message_id: str, delay_s: int) -> None:
        known = self.known.get(message_id)
        if known is None or known.state == "cancelled":
            return
        due_ms = self.clock.wall_ms() + delay_s * 1000
        changed = self.run(self.house.schedule.change(message_id, lambda notice: put_off(notice, due_ms)))
        assert (changed is not None) == (known.state == "scheduled")
        if changed is not None:
            known.due_s = self.now_s + delay_s

    @rule(message_id=ids)
    def drop(self, message_id: str) -> None:
        """The record of what was cancelled is deleted: the id is free."""
        known = self.known.get(message_id)
        if known is not None and known.state == "cancelled":
            assert self.run(self.house.schedule.drop(message_id))
            del self.known[message_id]

    @rule(seconds=st.integers(1, 600))
    def time_passes(self, seconds: int) -> None:
        self.clock.move(seconds)

    @rule(is_refused=st.booleans())
    def look(self, is_refused: bool) -> None:
        """The timer fires."""
        due = self._due()
        if is_refused and due:
            self.frail.journal.fail("append")
            try:
                self.run(self.house.schedule.send_due())
            except StoreError:
                return
            raise AssertionError("it was not refused")
        self.run(self.house.schedule.send_due())
        self._note_out(due)

    @rule(message_id=ids, is_first=st.booleans())
    def cancel_in_the_due_second(self, message_id: str, is_first: bool) -> None:
        """Both at once: whichever came first has its way, and each of them says so."""
        known = self.known.get(message_id)
        due = self._due()

        async def both() -> bool:
            work = [self.house.schedule.cancel(message_id), self.house.schedule.send_due()]
            tasks = [asyncio.ensure_future(one) for one in (work if is_first else work[::-1])]
            results = await asyncio.gather(*tasks)
            return bool(results[0 if is_first else 1])

        is_cancelled = self.run(both())
        if known is not None and is_cancelled and known.state == "scheduled":
            known.state = "cancelled"
        assert is_cancelled == (known is not None and known.state == "cancelled")
        self._note_out([one for one in due if self.known[one].state == "scheduled"])

    @rule()
    def start_again(self) -> None:
        self.run(self.close())
        self.run(self.open())

    def _due(self) -> list[str]:
        due = [(known.due_s, name) for name, known in self.known.items() if known.state == "scheduled"]
        return [name for due_s, name in sorted(due) if due_s <= self.now_s]

    def _note_out(self, message_ids: list[str]) -> None:
        for message_id in message_ids:
            known = self.known[message_id]
            known.state, known.went_s = "sent", self.now_s
            self.out.append(message_id)

    # ---- what is always true

    @invariant()
    def everybody_says_the_same(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        await self.house.quiet()
        scheduled = {name for name, known in self.known.items() if known.state == "scheduled"}
        assert self.house.schedule.count == len(scheduled) == await self.frail.schedule.count()
        rows = await self.frail.records.push_records(PushFilter(), PushSort.PUSH_TIME, Part(0, 100))
        found = {row.message_id: row.state for row in rows if row.state != "sent"}
        assert found == {name: known.state for name, known in self.known.items() if known.state != "sent"}
        for name in scheduled:
            row = await self.frail.records.push_record(name)
            assert row.push_ms == START_MS + self.known[name].due_s * 1000
        went = [one.message_id for one in await self.frail.journal.since(0)]
        assert sorted(went) == sorted(self.out)

    def teardown(self) -> None:
        self.run(self.close())
        self.loop.close()
        self.directory.cleanup()


ScheduleModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[*HealthCheck]
)
TestSchedule = ScheduleModel.TestCase
