"""Users' inboxes in the embedded store: walks over their receipts in the ledger, and the rows of the notices."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Sequence
from functools import partial

import msgspec

from pushd.ledger import _inbox
from pushd.ledger._push_counts import seq_at
from pushd.model import UserId
from pushd.records import InboxFilter, InboxItem, InboxNotice, InboxPage, PushFilter
from pushd.stores.sqlite.engine.statements import Reads
from pushd.stores.sqlite.ledger_file import LedgerFile, Read, part_of
from pushd.stores.sqlite.notices import HIDDEN, KNOWN
from pushd.stores.sqlite.push_rows import read_notice
from pushd.stores.sqlite.recent import Recent
from pushd.turns import Slice, sliced
from pushd.values import MAX_INT64

# Of ledger/_ledger.pxd.
STEPS, ARCHIVED = 0x0F, 0x20
PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED, AGAIN = range(1, 8)
UNREAD_STEPS, READ_STEPS = (PENDING, OFFLINE, DELIVERED, AGAIN), (READ, CONFIRMED)

NOTICES_BYTES = 8 * 1024 * 1024  # of bodies of notices that are kept decoded; and as much of older ones
LOOKED_AT = 500  # receipts, where notices must be read to know which match
MAX_UNREAD = (1 << 32) - 1  # of a user

Found = tuple[int, int, int, int]  # seq, state, read_ms, confirmed_ms
Kept = tuple[bytes, InboxNotice]  # what was decoded, and what it says

_CURSOR = re.compile(r"s[0-9a-f]{1,16}", re.ASCII)
_notice = msgspec.json.Decoder(InboxNotice)


def states_of(is_read: bool | None, is_archived: bool | None) -> bytes:
    """A mark for each state byte of a receipt that a filter wants."""
    steps = {None: (*UNREAD_STEPS, *READ_STEPS), False: UNREAD_STEPS, True: READ_STEPS}[is_read]
    return bytes(state & STEPS in steps and is_archived in (None, bool(state & ARCHIVED)) for state in range(256))


_STATES = {(read, away): states_of(read, away) for read in (None, False, True) for away in (None, False, True)}


class SqliteInbox:
    """ports.Inbox. `clock` gives the time of day in milliseconds.

    A page costs a few microseconds and the rows of its notices, which are remembered. A cursor is the seq of the notice
    that was shown last.
    """

    def __init__(self, file: LedgerFile, read: Read, *, clock: Callable[[], int]) -> None:
        self._file = file
        self._ledger = file.ledger
        self._reads = Reads(read, "records")
        self._clock = clock
        self._notices: Recent[int, Kept] = Recent(NOTICES_BYTES, _bytes)

    async def page(self, user_id: UserId, where: InboxFilter, limit: int, before: str | None) -> InboxPage:
        """At most `limit` of the matching notices, newest first. Raises ValueError for a text that is no cursor."""
        end = MAX_INT64 if before is None else read_cursor(before)
        number = self._number(user_id)
        items: list[InboxItem] = []
        if number is None:
            return InboxPage(items, None)
        at_once = limit + 1 if where.tag is None else max(LOOKED_AT, limit + 1)
        while True:
            found = await self._found(number, where, end, at_once)
            notices = await self._read([seq for seq, *_ in found])
            now_ms, last = self._clock(), end
            for receipt in found:
                notice = notices.get(receipt[0])
                if notice is not None and is_shown(notice, where.tag, now_ms):
                    if len(items) == limit:
                        return InboxPage(items, write_cursor(last))
                    items.append(_item(receipt, notice))
                    last = receipt[0]
            if len(found) < at_once:
                return InboxPage(items, None)
            end = found[-1][0]

    async def _found(self, number: int, where: InboxFilter, before: int, limit: int) -> list[Found]:
        asked = (self._ledger, number, before, self._most(number, where, limit), *self._marks(where))
        found = _inbox.receipts(*asked)
        if found is not None:
            return found

        def run(connection: sqlite3.Connection) -> list[Found]:
            return _inbox.receipts(*asked, partial(part_of, connection)) or []

        cold: list[Found] = await self._reads.read("inbox", run)
        return cold

    def _most(self, number: int, where: InboxFilter, limit: int) -> int:
        """There is no more to be found than so much, however far one looks."""
        is_counted = where.is_read is False and where.is_archived is False
        return min(limit, self._ledger.unread(number)) if is_counted else limit

    def _marks(self, where: InboxFilter) -> tuple[bytes, bytes | None]:
        """Of states and of labels."""
        labels = self._file.labels.marks(PushFilter(message_type=where.message_type))
        return _STATES[where.is_read, where.is_archived], labels

    async def _read(self, seqs: Sequence[int]) -> dict[int, InboxNotice]:
        """What these notices say, those of an id that was used again what the newest one says."""
        texts = {seq: self._file.text_seqs.get(seq, seq) for seq in seqs}
        bodies = await self._file.bodies(set(texts.values()))
        notices: dict[int, InboxNotice] = {}
        damaged: dict[int, bytes] = {}
        one_slice = Slice()
        for seq, text_seq in texts.items():
            body = bodies.get(text_seq)
            if body is None:
                continue
            known = self._notices.get(text_seq)
            if known is None or known[0] is not body:
                await one_slice.rest()
                try:
                    known = body, _notice.decode(body)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    damaged[seq] = body
                    continue
                self._notices.put(text_seq, known)
            notices[seq] = known[1]
        return notices | await self._mended(damaged) if damaged else notices

    async def _mended(self, damaged: dict[int, bytes]) -> dict[int, InboxNotice]:
        """What can be read of these."""
        notices: dict[int, InboxNotice] = {}
        for seq, message_id in (await self._file.message_ids([*damaged])).items():
            whole = read_notice(seq, message_id, damaged[seq], self._file.labels.label(self._ledger.label(seq)))
            notices[seq] = InboxNotice(*(getattr(whole, name) for name in InboxNotice.__struct_fields__))
        return notices

    async def read_all(self, user_id: UserId, where: InboxFilter, until_ms: int, at_ms: int) -> list[str]:
        """Note that the user has read what was unread and matches, and was accepted up to then; which notices."""
        number = self._number(user_id)
        if number is None:
            return []
        unread = msgspec.structs.replace(where, is_read=False, is_archived=False)
        end = seq_at(self._ledger, max(-MAX_INT64, min(until_ms + 1, MAX_INT64)))
        most = self._most(number, unread, MAX_UNREAD)
        seqs = _inbox.seqs(self._ledger, number, end, most, *self._marks(unread))
        if where.tag is not None:
            now_ms, tag = self._clock(), where.tag
            notices = await self._read(seqs)
            seqs = [seq for seq in seqs if seq in notices and is_shown(notices[seq], tag, now_ms)]
        async for seq in sliced(seqs):
            self._ledger.mark(seq, number, READ, at_ms)
        if not seqs:
            return []
        await self._file.commit()
        message_ids = await self._file.message_ids(seqs)
        return [message_ids[seq] for seq in seqs if seq in message_ids]

    async def archive(self, user_id: UserId, message_ids: Sequence[str], at_ms: int) -> list[str]:
        """Put these away, read; the ids for which there is a receive record."""
        return await self._change(
            user_id, message_ids, lambda seq, number: _inbox.archive(self._ledger, seq, number, at_ms)
        )

    async def unarchive(self, user_id: UserId, message_ids: Sequence[str], at_ms: int) -> list[str]:
        """Put these back; the ids for which there is a receive record."""
        return await self._change(user_id, message_ids, lambda seq, number: _inbox.unarchive(self._ledger, seq, number))

    async def _change(
        self, user_id: UserId, message_ids: Sequence[str], change: Callable[[int, int], bool]
    ) -> list[str]:
        seqs = await self._file.seqs_of(set(message_ids))
        number = self._number(user_id)
        if number is None:
            return []
        found = {
            message_id
            for message_id, seq in seqs.items()
            if self._ledger.notice_state(seq) & (KNOWN | HIDDEN) == KNOWN and change(seq, number)
        }
        if found:
            await self._file.commit()
        return [message_id for message_id in message_ids if message_id in found]

    def unread_changed(self) -> Collection[UserId] | None:
        """Whose count may have changed since this was asked last; None: anybody's."""
        numbers, ids = _inbox.unread_changed(self._ledger), self._file.users.ids
        if numbers is None:
            return None
        return {ids[number] for number in numbers if number < len(ids)}

    def _number(self, user_id: UserId) -> int | None:
        number = self._file.users.number(user_id)
        return number if number is not None and number < self._ledger.user_count else None


def is_shown(notice: InboxNotice, tag: str | None, now_ms: int) -> bool:
    """Whether a notice is in inboxes, and has the tag that is asked for."""
    return not 0 < notice.expires_ms <= now_ms and (tag is None or tag in notice.tags)


def write_cursor(seq: int) -> str:
    """The cursor behind the notice with this seq."""
    return f"s{seq:x}"


def read_cursor(text: str) -> int:
    """The seq in a cursor. Raises ValueError."""
    seq = int(text[1:], 16) if _CURSOR.fullmatch(text) else MAX_INT64 + 1
    if seq > MAX_INT64:
        raise ValueError("expected `next` of a former answer")
    return seq


def _item(receipt: Found, notice: InboxNotice) -> InboxItem:
    _, state, read_ms, confirmed_ms = receipt
    step = state & STEPS
    return InboxItem(notice, step in READ_STEPS, read_ms, step == CONFIRMED, confirmed_ms, bool(state & ARCHIVED))


def _bytes(kept: Kept) -> int:
    return len(kept[0])
