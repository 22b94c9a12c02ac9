"""The mailbox: the receipts in the ledger that wait, and their notices' rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import orjson
import structlog

from pushd.batched import batched
from pushd.local_time import date_and_time
from pushd.model import MailboxItem, Notice, UserId, public_type
from pushd.ports import LeftAside
from pushd.stores.causes import Causes
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, Statements
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.notices import KNOWN, REVOKED, SEQS_AT_ONCE, expired, numbers_of, take_shape
from pushd.stores.sqlite.recent import Recent
from pushd.turns import Slice, sliced

log = structlog.get_logger("pushd.stores.sqlite")

DAY_MS = 86_400_000

# What is saved so long after it was accepted waits from then on: it was sent again, or its process was away.
ANEW_MS = 60_000

USERS_AT_ONCE = 25  # are read together, in a slice of the loop's time
SAVED_AT_ONCE = 8192  # recipients
DROPPED_AT_ONCE = 100  # notices
ITEMS_BYTES = 8 * 1024 * 1024  # of bodies of items that are kept decoded; and as much of older ones

WAITS_FROM = """
SELECT seq, waits_from_ms, iif(typeof(expires_ms) = 'integer', expires_ms, 0),
       iif(typeof(text_seq) = 'integer', text_seq, seq)
  FROM notice WHERE waits_from_ms IS NOT NULL AND typeof(waits_from_ms) = 'integer'
"""

# [[seq, waits_from_ms, expires_ms or null, text_seq]]
SET_WAITS_FROM = """
UPDATE notice SET waits_from_ms = given.at_ms, expires_ms = given.expires_ms, text_seq = given.text_seq
  FROM (SELECT json_extract(value, '$[0]') AS seq, json_extract(value, '$[1]') AS at_ms,
               json_extract(value, '$[2]') AS expires_ms, json_extract(value, '$[3]') AS text_seq
          FROM json_each(CAST(:given AS TEXT))) AS given
 WHERE notice.seq = given.seq
"""
WAITS_NO_MORE = "UPDATE notice SET waits_from_ms = NULL, text_seq = NULL WHERE seq = :seq"


class _Stored(Notice, frozen=True, omit_defaults=True, gc=False):
    """A notice as its row has it: its `data` is not parsed."""

    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


_decode_notice = msgspec.json.Decoder(_Stored).decode


class Anew(NamedTuple):
    """What was saved last of a notice that waits from a later time on than that of its acceptance.

    `text_seq`: the notice that says what waits, another one when the id was used again.
    """

    at_ms: int
    expires_ms: int
    text_seq: int


def read_waits_from(connection: sqlite3.Connection) -> dict[int, Anew]:
    """Notices that wait from a later time on than that of their acceptance, by seq. Raises sqlite3.Error."""
    return {seq: Anew(*times) for seq, *times in connection.execute(WAITS_FROM)}


class SqliteMailbox:
    """ports.Mailbox. How many may wait for a user is the ledger's to know; `clock` gives milliseconds.

    A notice may wait for `ttl_days` from its acceptance, or from its newest save if that was a minute later, for
    whichever user that was. What waits comes in the order of publishing.
    """

    def __init__(
        self,
        file: LedgerFile,
        statements: Statements,
        *,
        waits_from: dict[int, Anew],
        ttl_days: int,
        timezone: ZoneInfo,
        clock: Callable[[], int],
        left_aside: LeftAside = lambda _: None,
    ) -> None:
        self._file = file
        self._ledger = file.ledger
        self._statements = statements
        self._waits_from = waits_from
        file.on_edited.append(self._edited)
        file.text_seqs.update((seq, anew.text_seq) for seq, anew in waits_from.items())
        self._ttl_ms = ttl_days * DAY_MS
        self._timezone = timezone
        self._clock = clock
        self._left_aside = left_aside
        self._causes = Causes()
        self._items: Recent[int, tuple[MailboxItem, int]] = Recent(ITEMS_BYTES, _bytes)
        self._oldest = 1 << 62  # no notice before this one waits for anybody
        self._is_oldest_known = False  # that holds of what was saved by this process
        self._expired_ms = 0  # what expired until then has been dropped

    @property
    def writers(self) -> int:
        """How many calls write at the same time: there is one thread."""
        return 1

    async def save(self, saves: Sequence[tuple[MailboxItem, Collection[UserId]]], *, is_first: bool = False) -> None:
        """Put each item into the mailboxes of its users. One that has expired or was revoked is not, and one whose
        notice is not known is left aside. 0.1 us for each user.
        """
        now_ms = self._clock()
        saves = [(item, users) for item, users in saves if users and not 0 < item.expires_ms <= now_ms]
        wanted = {item.message_id for item, _ in saves}
        seqs = await self._file.seqs_of(wanted)
        if len(seqs) < len(wanted):
            self._leave_aside(len(wanted) - len(seqs), "no notice has the message_id of an item to be saved")
            saves = [(item, users) for item, users in saves if item.message_id in seqs]
        states = {message_id: self._ledger.notice_state(seq) for message_id, seq in seqs.items()}
        saves = [(item, users) for item, users in saves if not states[item.message_id] & REVOKED]
        await self._wait_anew({seqs[item.message_id]: self._anew(seqs[item.message_id], item) for item, _ in saves})
        by_seq: dict[int, list[UserId]] = {}
        for item, users in saves:
            by_seq.setdefault(seqs[item.message_id], []).extend(users)
        one_slice = Slice()
        for seq, user_ids in by_seq.items():
            take_shape(self._file, seq, len(user_ids))
            for start in range(0, len(user_ids), SAVED_AT_ONCE):
                await one_slice.rest()
                if self._ledger.notice_state(seq) & REVOKED:  # meanwhile
                    break
                self._ledger.wait(seq, numbers_of(self._file, user_ids[start : start + SAVED_AT_ONCE]))
            self._oldest = min(self._oldest, seq)
        await self._file.commit()

    async def _wait_anew(self, saved: Mapping[int, Anew]) -> None:
        """These notices wait from their save on, and for as long as that says, where it is later than what is known."""
        anew = {seq: new for seq, new in saved.items() if self._is_new(seq, new)}
        for part in batched(anew.items(), CHUNK_ROWS):
            given = [(seq, new.at_ms, new.expires_ms or None, new.text_seq) for seq, new in part]
            await self._statements.change("save", SET_WAITS_FROM, given=orjson.dumps(given))
        for seq, new in anew.items():
            self._waits_from[seq] = max(new, self._waits_from.get(seq, new))
            self._file.text_seqs[seq] = self._waits_from[seq].text_seq
            self._items.drop(seq)

    def _anew(self, seq: int, item: MailboxItem) -> Anew:
        """An id that was used again is saved with what its newest notice says."""
        known = self._waits_from.get(seq)
        return Anew(item.saved_at, item.expires_ms, self._file.again.get(seq) or (known.text_seq if known else seq))

    def _is_new(self, seq: int, new: Anew) -> bool:
        known = self._waits_from.get(seq)
        is_later = new.at_ms - self._waits_since(seq) > ANEW_MS
        return is_later or new.text_seq != (known.text_seq if known else seq)

    def _waits_since(self, seq: int) -> int:
        anew = self._waits_from.get(seq)
        return max(self._ledger.created_ms(seq), 0 if anew is None else anew.at_ms)

    async def read(self, user_ids: Collection[UserId]) -> dict[UserId, list[MailboxItem]]:
        """What waits for each of these users, oldest first. Without a look into the database where nothing waits, or
        what waits was read lately.

        Users who wait for the same notice get the same object: do not change it.
        """
        found: dict[UserId, list[MailboxItem]] = {}
        now_ms = self._clock()
        one_slice = Slice()
        for chunk in batched(user_ids, USERS_AT_ONCE):
            await one_slice.rest()
            waiting = {user_id: seqs for user_id in chunk if (seqs := self._waiting(user_id, now_ms - self._ttl_ms))}
            if waiting:
                items = await self._known_items(set(chain.from_iterable(waiting.values())))
                for user_id, seqs in waiting.items():
                    here = [items[seq] for seq in seqs if seq in items and not 0 < items[seq].expires_ms <= now_ms]
                    if here:
                        found[user_id] = here
        return found

    def _waiting(self, user_id: UserId, after_ms: int) -> list[int]:
        number = self._file.users.number(user_id)
        seqs = [] if number is None else self._ledger.waiting(number)
        if not seqs or self._ledger.created_ms(seqs[0]) > after_ms:  # so are the others
            return seqs
        return [seq for seq in seqs if self._waits_since(seq) > after_ms]

    async def _known_items(self, seqs: set[int]) -> dict[int, MailboxItem]:
        """Those of the items of these notices that can be read."""
        items: dict[int, MailboxItem] = {}
        missing: list[int] = []
        for seq in seqs:
            known = self._items.get(seq)
            if known is None:
                missing.append(seq)
            else:
                items[seq] = known[0]
        for part in batched(missing, SEQS_AT_ONCE):
            texts = {seq: anew.text_seq if (anew := self._waits_from.get(seq)) else seq for seq in part}
            edits = self._file.edits
            bodies = await self._file.bodies(set(texts.values()))
            async for seq, text_seq in sliced(texts.items()):
                if text_seq not in bodies:
                    self._leave_aside(1, "a notice that waits has no row")
                    continue
                item = self._item(seq, bodies[text_seq])
                if item is not None:
                    items[seq] = item
                    if edits == self._file.edits:
                        self._items.put(seq, (item, len(bodies[text_seq])))
        return items

    def _item(self, seq: int, body: bytes) -> MailboxItem | None:
        """None for what cannot be decoded."""
        try:
            notice = _decode_notice(body)
            anew = self._waits_from.get(seq) or Anew(notice.accepted_ms, notice.expires_ms, seq)
            item = MailboxItem(
                type=public_type(notice.type),
                content=notice.content,
                message_id=notice.message_id,
                data=_json(notice.data),
                time=date_and_time(notice.accepted_ms, self._timezone),
                ts=notice.accepted_ms,
                priority=notice.priority,
                need_confirm=notice.need_confirm,
                expires_ms=anew.expires_ms,
                saved_at=anew.at_ms,
                title=notice.title,
                url=notice.url,
                tags=notice.tags,
                version=notice.version,
            )
        except Exception as error:
            self._leave_aside(1, f"a notice that waits cannot be read: {type(error).__name__}", repr(error))
            return None
        return item

    def _edited(self, seq: int, notice: Notice) -> None:
        self._items.drop(seq)
        for first, text_seq in self._file.text_seqs.items() if self._file.text_seqs else ():
            if text_seq == seq:
                self._items.drop(first)
        if seq in self._waits_from:
            self._waits_from[seq] = self._waits_from[seq]._replace(expires_ms=notice.expires_ms)

    async def replace(self, item: MailboxItem, user_ids: Collection[UserId]) -> None:
        """What waits is what the notice's row says."""

    def _leave_aside(self, count: int, kind: str, cause: str = "") -> None:
        self._left_aside(count)
        if self._causes.is_new(kind):
            log.error("the mailbox leaves out what it cannot use", kind=kind, cause=cause)

    async def remove(self, removals: Mapping[UserId, Collection[str]]) -> None:
        """Take these items out."""
        seqs = await self._file.seqs_of(set(chain.from_iterable(removals.values())))
        is_changed = False
        async for user_id, message_ids in sliced(removals.items()):
            number = self._file.users.number(user_id)
            for message_id in message_ids:
                if number is not None and message_id in seqs:
                    is_changed |= self._ledger.remove(seqs[message_id], number)
        if is_changed:
            await self._file.commit()

    async def clear(self, user_id: UserId) -> int:
        """Empty one user's mailbox; how many items were in it."""
        number = self._file.users.number(user_id)
        count = 0 if number is None else self._ledger.clear(number)
        if count:
            await self._file.commit()
        return count

    async def purge(self, now_ms: int, limit: int) -> int:
        """Drop at most `limit` items past their time; how many were dropped."""
        dropped = await self._purge_expired(now_ms, limit)
        if dropped < limit:
            dropped += await self._purge_old(now_ms - self._ttl_ms, limit - dropped)
        if dropped:
            await self._file.commit()
        return dropped

    async def _purge_expired(self, now_ms: int, limit: int) -> int:
        dropped = 0
        async for seqs in expired(self._statements, self._expired_ms, now_ms):
            async for seq in sliced(seqs):
                dropped += self._ledger.drop_waiting(seq, limit - dropped)
                if dropped >= limit:
                    return dropped
        self._expired_ms = now_ms
        return dropped

    async def _purge_old(self, by_ms: int, limit: int) -> int:
        """Those that have waited since that time or longer."""
        if not self._is_oldest_known:
            await self._find_oldest()
        dropped, is_done = 0, False
        one_slice = Slice()
        while not is_done and dropped < limit:
            await one_slice.rest()
            count, is_done = self._drop_oldest(by_ms, limit - dropped)
            dropped += count
        over = [seq for seq, anew in self._waits_from.items() if anew.at_ms <= by_ms]
        while over and dropped < limit:
            await one_slice.rest()
            dropped += self._ledger.drop_waiting(over[-1], limit - dropped)
            if dropped < limit:
                await self._statements.change("save", WAITS_NO_MORE, seq=over[-1])
                self._file.text_seqs.pop(over[-1], None)
                del self._waits_from[over.pop()]
        return dropped

    async def _find_oldest(self) -> None:
        async for number in sliced(range(len(self._file.users))):
            self._oldest = min([self._oldest, *self._ledger.waiting(number)[:1]])
        self._is_oldest_known = True

    def _drop_oldest(self, by_ms: int, limit: int) -> tuple[int, bool]:
        """Drop some of what was accepted by then; how many, and whether nothing is left."""
        ledger, dropped = self._ledger, 0
        seqs = ledger.seqs(max(self._oldest, ledger.base_seq), ledger.last_seq, KNOWN, 0, DROPPED_AT_ONCE)
        for seq in seqs:
            if ledger.created_ms(seq) > by_ms:
                return dropped, True
            if seq not in self._waits_from:
                dropped += ledger.drop_waiting(seq, limit - dropped)
                if dropped >= limit:
                    return dropped, False
            self._oldest = seq + 1
        return dropped, not seqs


def _bytes(kept: tuple[MailboxItem, int]) -> int:
    return kept[1]


def _json(data: msgspec.Raw) -> msgspec.Raw | None:
    """The same without the row around it; None for none. Raises UnicodeDecodeError for what is damaged."""
    text = bytes(data)
    if not text.isascii():
        text.decode()
    return msgspec.Raw(text) if text else None
