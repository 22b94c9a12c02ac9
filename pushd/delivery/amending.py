"""Changes of notices after their acceptance: each is made durable first, then everybody who was sent it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from pushd._fastpath import Hub
from pushd.basis import Basis
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.amendments import Amendments
from pushd.delivery.announcer import Announcer
from pushd.delivery.dispatch import Dispatcher
from pushd.delivery.edits import Edit, edited, edited_before_it_goes_out
from pushd.delivery.following import MAILBOX, Following
from pushd.delivery.intake import Intake
from pushd.delivery.schedule import Schedule
from pushd.delivery.submission import Sender, noticed
from pushd.errors import ErrorCode, RequestError
from pushd.model import DeliveryStatus, Notice, Reminder, Step, UserId, Version
from pushd.ports import Stores
from pushd.protocol import frames
from pushd.records import ReceiptFilter
from pushd.writing.writers import Writers

T = TypeVar("T")


class Revoked(msgspec.Struct, frozen=True):
    """How many copies waited in mailboxes, and how many connections were told. `is_cancelled`: it had not gone out."""

    copies: int
    connections: int
    is_cancelled: bool = False


class Edited(msgspec.Struct, frozen=True):
    """The notice as it is now, and how many connections were told."""

    notice: Notice
    connections: int


class Reminded(msgspec.Struct, frozen=True):
    """How often the notice was brought to mind by now, and to how many this time."""

    n: int
    recipients: int


class Amending:
    """Revokes and edits notices, and reminds of them.

    What was begun goes on, whoever waits for it or leaves. Changes of one notice come one after the other.
    """

    def __init__(
        self,
        stores: Stores,
        amendments: Amendments,
        announcer: Announcer,
        following: Following,
        schedule: Schedule,
        intake: Intake,
        dispatcher: Dispatcher,
        acknowledgements: Acknowledgements,
        writers: Writers,
        hub: Hub,
        basis: Basis,
    ) -> None:
        self._store = stores.amendments
        self._records = stores.records
        self._amendments = amendments
        self._announcer = announcer
        self._following = following
        self._schedule = schedule
        self._intake = intake
        self._dispatcher = dispatcher
        self._acknowledgements = acknowledgements
        self._writers = writers
        self._hub = hub
        self._current = basis.current
        self._metrics = basis.metrics
        self._wall_ms = basis.clock.wall_ms
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._untold: set[str] = set()  # revoked, and telling everybody of it failed

    async def revoke(self, message_id: str) -> Revoked:
        """Take a notice back: out of every mailbox and inbox, and nobody gets it any more. Receipts stay.

        Doing it again does nothing. Raises RequestError, StoreError; nothing is changed then.
        """
        return await self._whole(self._revoke(message_id))

    async def edit(self, message_id: str, edit: Edit, editor: Sender) -> Edited:
        """Have a notice say something else: on the screens of whoever was sent it, in mailboxes and in inboxes.

        Of several editors the last wins, unless they name the version they have seen. Raises RequestError, StoreError;
        nothing is changed then.
        """
        return await self._whole(self._edit(message_id, edit, editor))

    async def remind(self, message_id: str, step: Step) -> Reminded:
        """Bring a notice to those again who have not got to `step`: live, or into their mailboxes.

        Where there are none, nothing is done. Raises RequestError, also when the last time was within
        `limits.remind_every_s`, and StoreError.
        """
        return await self._whole(self._remind(message_id, step))

    async def finished(self) -> None:
        """Return when nothing of what was begun is left to do."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    @asynccontextmanager
    async def _alone(self, message_id: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(message_id, asyncio.Lock())
        async with lock:
            yield

    async def _find(self, message_id: str) -> Notice:
        """The notice as it is now, on its way or on record. Raises RequestError where there is none, and StoreError."""
        await self._writers.records_written()
        flights = self._intake.under_way(message_id)
        if flights:
            return flights[0].notice
        row = await self._records.push_record(message_id)
        if row is None:
            raise RequestError(ErrorCode.NOT_FOUND, "message_id: no such notice", details={"field": "message_id"})
        notice, known = noticed(row), self._amendments.of(message_id)
        if known.version > notice.version:  # a store outside that does not follow yet
            newest = (await self._store.notices([message_id])).get(message_id)
            notice = notice if newest is None else notice.saying(newest)
        return notice

    async def _revoke(self, message_id: str) -> Revoked:
        async with self._alone(message_id):
            if await self._schedule.cancel(message_id):
                return Revoked(0, 0, is_cancelled=True)
            notice = await self._find(message_id)
            known = self._amendments.of(message_id)
            if known.is_revoked and message_id not in self._untold:
                return Revoked(0, 0)
            copies = await self._copies_outside(message_id)
            amended = msgspec.structs.replace(known, is_revoked=True)
            copies += await self._store.revoke(amended, self._wall_ms())
            self._amendments.note(amended)
            reached = self._stop(message_id)
            if not known.is_revoked:
                self._count(notice, "revoked")
            self._untold.add(message_id)
            try:
                connections = await self._announcer.tell(frames.RevokeFrame(message_id=message_id), notice, reached)
                self._untold.discard(message_id)
            finally:
                await self._following.record(amended)
            return Revoked(copies, connections)

    async def _edit(self, message_id: str, edit: Edit, editor: Sender) -> Edited:
        async with self._alone(message_id):
            scheduled = await self._edit_scheduled(message_id, edit, editor)
            if scheduled is not None:
                return scheduled
            notice = await self._find(message_id)
            now_ms = self._wall_ms()
            self._check(notice, now_ms)
            if edit.send_at is not msgspec.UNSET:
                raise _conflict("send_at", "the notice has gone out")
            newest = edited(notice, edit, now_ms, self._current.config.limits)
            amended = msgspec.structs.replace(self._amendments.of(message_id), version=newest.version)
            former = Version(notice, now_ms, editor.user_id, editor.name)
            is_reset = bool(edit.reset)
            self._amendments.editing[message_id] = now_ms
            try:
                await self._store.edit(amended, newest, former, is_reset=is_reset)
                self._amendments.note(amended, newest)
                for flight in self._intake.under_way(message_id):
                    flight.notice, flight.copy = flight.notice.saying(newest), None
                self._count(newest, "edited")
                await self._acknowledgements.fanned_out([message_id])  # whoever gets the former one is told behind it
                frame = frames.UpdateFrame(notice=frames.notice_frame(newest, self._current.timezone))
                connections = await self._announcer.tell(frame, newest)
            except Exception:
                self._following.wake()
                raise
            finally:
                del self._amendments.editing[message_id]
            await self._following.record(amended, is_reset=is_reset)
            return Edited(newest, connections)

    async def _edit_scheduled(self, message_id: str, edit: Edit, editor: Sender) -> Edited | None:
        """None: it has gone out, or there is none."""
        now_ms, former = self._wall_ms(), list[Notice]()

        def make(notice: Notice) -> Notice:
            former.append(notice)
            return edited_before_it_goes_out(notice, edit, now_ms, self._current.config.limits)

        newest = await self._schedule.change(message_id, make)
        if newest is None:
            return None
        amended = msgspec.structs.replace(self._amendments.of(message_id), version=newest.version)
        version = Version(former[-1], now_ms, editor.user_id, editor.name)
        try:
            await self._store.edit(amended, newest, version, is_reset=False)
        except Exception:
            await self._schedule.change(message_id, lambda _: former[-1])
            raise
        self._count(newest, "edited")
        self._amendments.note(amended, newest)
        self._following.wake()
        return Edited(newest, 0)

    def _check(self, notice: Notice, now_ms: int) -> None:
        """Raises RequestError for what nobody gets any more."""
        fault = ""
        if self._amendments.is_revoked(notice.message_id):
            fault = "the notice was revoked"
        elif notice.is_expired(now_ms):
            fault = "the notice has expired"
        if fault:
            raise _conflict("message_id", fault)

    async def _remind(self, message_id: str, step: Step) -> Reminded:
        async with self._alone(message_id):
            if await self._schedule.find(message_id) is not None:
                raise _conflict("message_id", "the notice has not gone out")
            notice, known, now_ms = await self._find(message_id), self._amendments.of(message_id), self._wall_ms()
            self._check(notice, now_ms)
            wait_ms = known.reminded_ms + self._current.config.limits.remind_every_s * 1000 - now_ms
            if known.reminders and wait_ms > 0:
                text = f"message_id: reminded less than {self._current.config.limits.remind_every_s} s ago"
                raise RequestError(ErrorCode.RATE_LIMITED, text, retry_after_s=-(-wait_ms // 1000))
            recipients = len(await self._records.not_at(message_id, step))
            if not recipients:
                return Reminded(known.reminders, 0)
            n = known.reminders + 1
            attempt = self._intake.remind(notice, Reminder(n, step, frames.published_ms(notice)))
            reminded = msgspec.structs.replace(known, reminders=n, reminded_ms=now_ms)
            await self._store.remind(reminded)
            self._amendments.note(reminded)
            await attempt
            return Reminded(n, recipients)

    async def _copies_outside(self, message_id: str) -> int:
        """How many wait in mailboxes outside this process, by what the receive records say."""
        if MAILBOX not in self._store.followers:
            return 0
        waiting = ReceiptFilter(message_id=message_id, is_received=False, delivery_status=DeliveryStatus.OFFLINE)
        return (await self._records.receive_stats(waiting)).total_users

    def _stop(self, message_id: str) -> list[UserId]:
        """Let nobody else get it; who was sent it by fan-outs that are under way."""
        reached: list[UserId] = []
        for flight in self._intake.under_way(message_id):
            flight.is_revoked = True
            reached += self._dispatcher.stop(flight)
        self._hub.drop_held(message_id)
        return reached

    def _count(self, notice: Notice, result: str) -> None:
        self._metrics.count_notices(notice.target.kind.value, notice.priority.name.lower(), result, 1)


def _conflict(field: str, text: str) -> RequestError:
    return RequestError(ErrorCode.CONFLICT, f"{field}: {text}", details={"field": field})
