"""What became of every notice for every recipient: received, read, confirmed, or back in the mailbox.

A user with a connection that acknowledges has received a notice when one of them says so; a user
without, when the kernel took the frame (CONTRACT section 4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

from pushd._fastpath import Connection, Hub
from pushd.basis import Basis
from pushd.delivery.amendments import Amendments
from pushd.errors import StoreError
from pushd.in_flight import InFlight
from pushd.model import Channel, DeliveryStatus, MailboxItem, Mark, Outcome, UserId
from pushd.ports import RecordStore
from pushd.protocol import frames
from pushd.telemetry import faults
from pushd.turns import Slice, sliced
from pushd.waiters import Waiters
from pushd.writing.batches import sent
from pushd.writing.writers import Writers

TOLD_AT_ONCE = 100  # marks, in one write to each of the user's other connections
NOTICES_RETURNING = 1024  # whose outcomes are shared by the users to whom they return
LEFT_AT_ONCE = 1000  # are forgotten together, so that it costs little for each
RETURNED_AT_ONCE = 2000  # notices times users
EXPIRED_AT_ONCE = 250  # recipients of one notice
EXPIRE_S = 0.001  # in each turn of the loop


class Left:
    """Who left while fan-outs were under way, noted once for all of them: each fan-out asks who left since it began."""

    def __init__(self) -> None:
        self._user_ids: list[UserId] = []
        self._forgotten = 0

    def __len__(self) -> int:
        return len(self._user_ids)

    @property
    def place(self) -> int:
        """The place of the user who leaves next."""
        return self._forgotten + len(self._user_ids)

    def note(self, user_id: UserId) -> None:
        """A user's connection has closed."""
        self._user_ids.append(user_id)

    def since(self, place: int) -> Iterable[UserId]:
        """Who left at `place` and later; a user may come several times."""
        return islice(self._user_ids, place - self._forgotten, None)

    def forget(self, place: int) -> None:
        """Nobody asks for those before `place` any more."""
        count = place - self._forgotten
        if count == len(self._user_ids) or count >= LEFT_AT_ONCE:
            del self._user_ids[:count]
            self._forgotten = place


class Acknowledgements:
    """Waits for acknowledgements, and notes what became of a notice for each of its recipients.

    All state is per connected user: what was sent within `delivery.ack_timeout_s`, and the newest
    `mailbox.max_per_user` of what was sent and is in the mailbox. `returned_at_once`, `expired_at_once` and `expire_s`
    bound what one turn of the loop takes, and may change at any time.
    """

    def __init__(
        self,
        hub: Hub,
        writers: Writers,
        records: RecordStore,
        basis: Basis,
        amendments: Amendments,
    ) -> None:
        self._hub = hub
        self._amendments = amendments
        self._writers = writers
        self._records = records
        self._current = basis.current
        self._metrics = basis.metrics
        self._now = basis.clock.now
        self._wall_ms = basis.clock.wall_ms
        self.returned_at_once = RETURNED_AT_ONCE
        self.expired_at_once = EXPIRED_AT_ONCE
        self.expire_s = EXPIRE_S
        self._under_way: dict[str, InFlight] = {}  # fan-outs
        self._overtaken: list[InFlight] = []  # fan-outs during which another one of the same id began
        self._left = Left()
        self._watchers: dict[str, Waiters] = {}  # who waits for the end of a fan-out
        # user -> message_id -> sent live and neither acknowledged nor in the mailbox
        self._waiting: dict[UserId, dict[str, InFlight]] = {}
        # user -> message_id -> when it was published (ms): sent, and in the mailbox until acknowledged. What does not
        # fit is not in the mailbox any more either: both keep the newest.
        self._in_mailbox: dict[UserId, dict[str, int]] = {}
        # to whom notices return: many connections may be lost in one turn of the loop, each with many notices
        self._returning: dict[InFlight, list[UserId]] = {}
        self._returns = self._return_gathered(self._returning)
        # in the order of the deadlines; gone as soon as nobody is waited for
        self._deadlines: dict[InFlight, tuple[float, list[UserId]]] = {}

    # ---- a fan-out begins and ends

    def sending(self, flight: InFlight) -> None:
        """The first frame is about to be written."""
        early_received: set[UserId] = set()
        former = self._under_way.get(flight.notice.message_id)
        if former is not None:
            if former.early_received is not None:
                early_received = former.early_received  # one answer is for both
            self._overtaken.append(former)
        flight.note_sending(self._left.place, early_received)
        self._under_way[flight.notice.message_id] = flight

    def sent(self, flight: InFlight, handed: list[UserId], waiting: list[UserId]) -> None:
        """The frame went to these users: `handed` have it, `waiting` must acknowledge or drain.

        They may be named in several calls, each user once.
        """
        online = len(handed) + len(waiting)
        if flight.early_received or flight.left_before < self._left.place:
            handed, waiting = self._sort_early(flight, handed, waiting)
        if handed:
            self._record_received(flight, handed)
        flight.note_sent(online, len(handed), len(waiting))
        if waiting:
            self._await_answers(flight, waiting)

    def _sort_early(
        self, flight: InFlight, handed: list[UserId], waiting: list[UserId]
    ) -> tuple[list[UserId], list[UserId]]:
        """Sort out who has left since then, and count those who have acknowledged since among those who have it."""
        waiting_ids = set(waiting)
        early = waiting_ids & (flight.early_received or set())
        unsure = waiting_ids - early
        left = unsure.intersection(self._left.since(flight.left_before))
        gone = {user_id for user_id in left if not self._hub.has_acking(user_id)}
        self._record_sent(flight, gone)
        self.to_mailbox(flight, gone)
        return [*handed, *early], list(unsure - gone)

    def all_sent(self, flight: InFlight) -> None:
        """Everybody to whom the frame went has been named."""
        message_id = flight.notice.message_id
        if self._overtaken:
            self._end_one_of(message_id, flight)
        else:
            self._under_way.pop(message_id, None)
        flight.note_all_sent()
        if self._left:
            under_way = (*self._under_way.values(), *self._overtaken)
            self._left.forget(min((one.left_before for one in under_way), default=self._left.place))
        if self._watchers and (watchers := self._watchers.pop(message_id, None)) is not None:
            watchers.resolve()

    def _end_one_of(self, message_id: str, flight: InFlight) -> None:
        if flight in self._overtaken:
            self._overtaken.remove(flight)
        elif self._under_way.get(message_id) is flight:
            del self._under_way[message_id]
            for former in reversed(self._overtaken):
                if former.notice.message_id == message_id:
                    self._overtaken.remove(former)
                    self._under_way[message_id] = former
                    break

    def absent(self, flight: InFlight, user_ids: Collection[UserId]) -> None:
        """These recipients have no connection: the notice waits for them."""
        flight.note_absent(len(user_ids))
        self.to_mailbox(flight, user_ids)

    def expired(self, flight: InFlight, user_ids: Collection[UserId]) -> None:
        """The notice is too old to be delivered to anybody."""
        flight.note_absent(len(user_ids))
        created_ms = flight.notice.accepted_ms
        outcome = Outcome(created_ms=created_ms, status=DeliveryStatus.EXPIRED, channel=Channel.OFFLINE)
        self._writers.records.note(flight, flight.notice.message_id, user_ids, outcome)

    def to_mailbox(self, flight: InFlight, user_ids: Collection[UserId]) -> None:
        """Keep the notice for these users until they come back."""
        if not user_ids or flight.is_revoked:
            return
        notice = flight.notice
        copy = flight.copy
        if copy is None:
            copy = frames.mailbox_item(notice, self._current.timezone, self._wall_ms())
            flight.keep_copy(copy)
        self._writers.mailbox.save(flight, copy, user_ids)
        self._writers.records.note(flight, notice.message_id, user_ids, _offline(notice.accepted_ms))

    def sent_to_one(self, flight: InFlight, connection: Connection, is_handed: bool | None) -> None:
        """The frame went to the only connection of a user; `is_handed`: what `Hub.deliver` said.

        In one call with that: nobody can have answered in between, and no other fan-out of this notice is under way.
        """
        records = self._writers.records
        if is_handed and not connection.is_acking:
            flight.note_sent(1, 1, 0)
            records.sent(flight, connection, self._wall_ms())
            return
        user_id = connection.user_id
        if is_handed is None:
            flight.note_sent(1, 0, 0)
            self.to_mailbox(flight, (user_id,))
        else:
            flight.note_sent(1, 0, 1)
            self._await_answer(flight, user_id)
            self._deadlines[flight] = (self._now() + self._current.config.delivery.ack_timeout_s, [user_id])
        records.sent(flight, connection, 0)

    def _record_received(self, flight: InFlight, user_ids: Collection[UserId]) -> None:
        outcome = sent(flight.notice.accepted_ms, self._wall_ms())
        self._writers.records.note(flight, flight.notice.message_id, user_ids, outcome)

    def _record_sent(self, flight: InFlight, user_ids: Collection[UserId]) -> None:
        outcome = sent(flight.notice.accepted_ms, 0)
        self._writers.records.note(flight, flight.notice.message_id, user_ids, outcome)

    def _await_answers(self, flight: InFlight, user_ids: list[UserId]) -> None:
        for user_id in user_ids:
            self._await_answer(flight, user_id)
        earlier = self._deadlines.get(flight)
        if earlier is None:
            deadline = self._now() + self._current.config.delivery.ack_timeout_s
            self._deadlines[flight] = (deadline, user_ids)
        else:
            earlier[1].extend(user_ids)
        self._record_sent(flight, user_ids)

    def _await_answer(self, flight: InFlight, user_id: UserId) -> None:
        message_id = flight.notice.message_id
        mine = self._waiting.get(user_id)
        if mine is None:
            self._waiting[user_id] = {message_id: flight}
            return
        former = mine.get(message_id)
        if former is not None:
            self._given_up(former, 1)  # the id was used again: one answer is for both
        mine[message_id] = flight

    # ---- answers

    def acknowledge(self, user_id: UserId, message_ids: Sequence[str]) -> list[str]:
        """Note that the user has these notices, and say which of them came from the mailbox.

        Ids that were never sent to this user are ignored.
        """
        mine = self._waiting.get(user_id)
        stored = self._in_mailbox.get(user_id)
        removable = []
        records, at_ms = self._writers.records, self._wall_ms()
        for message_id in message_ids:
            if mine is not None and (flight := mine.pop(message_id, None)) is not None:
                records.received(flight, user_id, at_ms)
                if flight.waiting == 1:
                    self._deadlines.pop(flight, None)
                flight.note_answers(1, 1)
            elif (running := self._under_way.get(message_id)) is not None and running.early_received is not None:
                running.early_received.add(user_id)
            if stored is not None and (created_ms := stored.pop(message_id, None)) is not None:
                removable.append(message_id)
                outcome = Outcome(created_ms, False, at_ms, DeliveryStatus.DELIVERED, Channel.OFFLINE)
                records.note(None, message_id, (user_id,), outcome)
        if mine is not None and not mine:
            del self._waiting[user_id]
        if removable:
            self._writers.mailbox.remove(user_id, removable)
        return removable

    def handed(self, connection: Connection, message_ids: list[str]) -> None:
        """The kernel has these now: for a connection that does not acknowledge, they are received."""
        if not connection.is_acking and not connection.is_guest:
            self.acknowledge(connection.user_id, message_ids)

    def replaying(self, user_id: UserId, items: Sequence[MailboxItem]) -> None:
        """These are about to be sent from the mailbox; they stay there until they are acknowledged."""
        self._note_in_mailbox(user_id, ((item.message_id, item.ts) for item in items))

    async def replayed_to(self, message_id: str) -> list[UserId]:
        """Connected users to whom this was sent, or is being sent, from their mailboxes, and who have not answered."""
        return [user_id async for user_id, sent in sliced([*self._in_mailbox.items()]) if message_id in sent]

    def _note_in_mailbox(self, user_id: UserId, sent: Iterable[tuple[str, int]]) -> None:
        stored = self._in_mailbox.setdefault(user_id, {})
        stored.update(sent)
        for _ in range(len(stored) - self._current.config.mailbox.max_per_user):
            del stored[next(iter(stored))]

    def gone(self, connection: Connection, lost: list[str]) -> None:
        """A connection closed; `lost` never left. What nobody can acknowledge any more goes to the mailbox."""
        user_id = connection.user_id
        if connection.is_guest:
            return
        if self._under_way:
            self._left.note(user_id)
        if not self._hub.has_user(user_id):
            self._in_mailbox.pop(user_id, None)
            self._return_all(user_id)
        elif connection.is_acking and not self._hub.has_acking(user_id):
            self._return_all(user_id)
        elif lost and not self._hub.has_acking(user_id):
            self._return(user_id, lost)

    def _return_all(self, user_id: UserId) -> None:
        self._gather(user_id, self._waiting.pop(user_id, {}).values())

    def _return(self, user_id: UserId, message_ids: Sequence[str]) -> None:
        mine = self._waiting.get(user_id, {})
        self._gather(user_id, [mine.pop(message_id) for message_id in message_ids if message_id in mine])

    def _gather(self, user_id: UserId, flights: Collection[InFlight]) -> None:
        """These go into the user's mailbox, a little later: each with all users to whom it returns."""
        if flights:
            mailbox = self._writers.mailbox
            if not mailbox.is_last(self._returns):
                self._returning = {}
                self._returns = self._return_gathered(self._returning)
                mailbox.promise(self._returns)
            for flight in flights:
                self._returning.setdefault(flight, []).append(user_id)
            mailbox.writer.wake((user_id,))

    def _return_gathered(self, returning: dict[InFlight, list[UserId]]) -> Iterator[None]:
        """Save a share of the notices in each step: all that many users lose together would take the loop too long."""
        given = 0
        for flight, user_ids in returning.items():
            given += len(user_ids)
            if given > self.returned_at_once:
                given = len(user_ids)
                yield
            try:
                self.to_mailbox(flight, user_ids)
                self._given_up(flight, len(user_ids))
            except Exception as error:  # the journal keeps the notice
                faults.noted(self._metrics, "receipts", error, message_id=flight.notice.message_id)

    def expire(self) -> None:
        """Put into the mailbox what was not acknowledged within `delivery.ack_timeout_s`, a share in each turn of the
        loop."""
        now = self._now()
        one_slice = Slice(self.expire_s, self._now)
        while self._deadlines:
            flight, (deadline, user_ids) = next(iter(self._deadlines.items()))
            if deadline > now:
                break
            if one_slice.is_over:
                asyncio.get_running_loop().call_soon(self.expire)
                break
            share = user_ids[-self.expired_at_once :]
            del user_ids[-self.expired_at_once :]
            if not user_ids:
                del self._deadlines[flight]
            try:
                self._give_up(flight, share)
            except Exception as error:  # the journal keeps the notice
                faults.noted(self._metrics, "receipts", error, message_id=flight.notice.message_id)

    def _give_up(self, flight: InFlight, user_ids: list[UserId]) -> None:
        message_id = flight.notice.message_id
        late: list[UserId] = []
        for user_id in user_ids:
            mine = self._waiting.get(user_id)
            if mine is not None and mine.get(message_id) is flight:  # else another one of this id came since then
                del mine[message_id]
                late.append(user_id)
        self.to_mailbox(flight, late)
        for user_id in late if not flight.is_revoked else ():
            self._note_in_mailbox(user_id, [(message_id, flight.notice.accepted_ms)])
        self._given_up(flight, len(late))

    def _given_up(self, flight: InFlight, count: int) -> None:
        """So many recipients are not waited for any more, without an answer."""
        if flight.waiting == count:
            self._deadlines.pop(flight, None)
        if count:
            flight.note_answers(count, 0)

    @property
    def waiting_total(self) -> int:
        """Frames sent and not answered."""
        return sum(map(len, self._waiting.values()))

    # ---- read and confirmed

    async def mark(
        self, user_id: UserId, message_ids: Sequence[str], mark: Mark, *, but: Connection | None = None
    ) -> list[str]:
        """The user read or confirmed these: the ids for which that is now on record, in order.

        What another program put into the mailbox has no record: it is taken out of the mailbox, and counts as found.
        The user's other connections than `but` are told, with the new unread count.
        """
        foreign = set(self.acknowledge(user_id, message_ids))
        await self.fanned_out(message_ids)
        await self._writers.records_written({user_id})
        found = await self._records.mark(
            user_id, message_ids, mark, self._seen_ms(message_ids), self._amendments.versions(message_ids)
        )
        unknown = set(message_ids).difference(found, foreign)
        if unknown and but is None:  # a connection's were sent to it, and are known
            foreign |= await self._take_out(user_id, unknown)
        if found:
            self._writers.mailbox.remove(user_id, found)
            await self.tell_others(user_id, found, mark, but)
        if not foreign:
            return found
        known = foreign.union(found)
        return [message_id for message_id in dict.fromkeys(message_ids) if message_id in known]

    def _seen_ms(self, message_ids: Sequence[str]) -> int:
        """When these were marked: before what is edited at present, of which nobody was told yet."""
        editing = self._amendments.editing
        edited_ms = [editing[message_id] for message_id in message_ids if message_id in editing] if editing else []
        return min([self._wall_ms(), *(at_ms - 1 for at_ms in edited_ms)])

    async def _take_out(self, user_id: UserId, message_ids: set[str]) -> set[str]:
        """Remove these from the user's mailbox: which of them were in it."""
        try:
            waiting = await self._writers.mailbox.waiting(user_id)
        except StoreError:
            return set()
        found = message_ids.intersection(waiting)
        if found:
            self._writers.mailbox.remove(user_id, found)
        return found

    def under_way(self, until_ms: int) -> list[str]:
        """Notices accepted up to then that are being sent."""
        return [name for name, flight in self._under_way.items() if flight.notice.accepted_ms <= until_ms]

    async def fanned_out(self, message_ids: Sequence[str]) -> None:
        """Return when none of these is being sent: receive records are noted when a fan-out ends, and who is quick may
        read before."""
        for message_id in message_ids:
            if message_id in self._under_way:
                watchers = self._watchers.setdefault(message_id, Waiters())
                ended = watchers.join()
                try:
                    await ended
                finally:
                    watchers.leave(ended)

    async def tell_others(
        self, user_id: UserId, message_ids: Sequence[str], mark: Mark, but: Connection | None
    ) -> None:
        """Tell the user's connections but one that these are read or confirmed, with the new unread count."""
        others = [other for other in self._hub.connections_of(user_id) if other is not but]
        if not others:
            return
        unread = (await self._records.unread_counts([user_id])).get(user_id, 0)
        for start in range(0, len(message_ids), TOLD_AT_ONCE):
            by_dialect: dict[int, bytes] = {}
            messages = [
                frames.ReceiptFrame(message_id=message_id, status=mark, unread_count=unread)
                for message_id in message_ids[start : start + TOLD_AT_ONCE]
            ]
            for other in others:
                if other.dialect not in by_dialect:
                    by_dialect[other.dialect] = b"".join(frames.frame(message, other.dialect) for message in messages)
                self._hub.send(other, by_dialect[other.dialect])
            await asyncio.sleep(0)


@lru_cache(NOTICES_RETURNING)
def _offline(created_ms: int) -> Outcome:
    """What is on record for a user who has a notice in the mailbox."""
    return Outcome(created_ms=created_ms, status=DeliveryStatus.OFFLINE, channel=Channel.OFFLINE)
