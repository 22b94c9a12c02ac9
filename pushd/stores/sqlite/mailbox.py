"""The mailbox: one body per notice, one small row per user who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson
import structlog

from pushd.batched import batched
from pushd.model import MailboxItem
from pushd.ports import LeftAside
from pushd.stores.causes import Causes
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, Statements, drop_chunks
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.turns import sliced

log = structlog.get_logger("pushd.stores.sqlite")

DAY_MS = 86_400_000

LAST_POSITION = "SELECT max(last_position) FROM mailbox_notice"

# The items of the three statements of a save: [[message_key, position, saved_at, expires_at, body, [user_id]]].
# A body that is there already keeps its first text; it stays as long as the newest save of it asks for.
SAVE_BODIES = """
INSERT INTO mailbox_notice (message_key, last_position, saved_at, expires_at, body)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       nullif(json_extract(value, '$[3]'), 0), json_extract(value, '$[4]')
  FROM json_each(CAST(:items AS TEXT))
 WHERE true
    ON CONFLICT (message_key) DO UPDATE
   SET last_position = max(last_position, excluded.last_position), saved_at = max(saved_at, excluded.saved_at)
"""

SAVE_ENTRIES = """
WITH item AS MATERIALIZED (
  SELECT json_extract(value, '$[0]') AS message_key, json_extract(value, '$[1]') AS position,
         json_extract(value, '$[5]') AS user_ids
    FROM json_each(CAST(:items AS TEXT))
)
INSERT INTO mailbox (user_id, position, notice_id)
SELECT user.value, item.position, notice.notice_id
  FROM item
  JOIN mailbox_notice AS notice USING (message_key)
 CROSS JOIN json_each(item.user_ids) AS user
 WHERE true
    ON CONFLICT DO NOTHING
"""

# The newest entry too many of each user, found by walking that user's own entries, and all before it.
TRIM = """
WITH saved AS MATERIALIZED (
  SELECT DISTINCT user.value AS user_id
    FROM json_each(CAST(:items AS TEXT)) AS item
   CROSS JOIN json_each(json_extract(item.value, '$[5]')) AS user
),
cut AS MATERIALIZED (
  SELECT user_id,
         (SELECT position FROM mailbox WHERE mailbox.user_id = saved.user_id
           ORDER BY position DESC LIMIT 1 OFFSET :max_per_user) AS position
    FROM saved
)
DELETE FROM mailbox
 WHERE (user_id, position) IN (
   SELECT mailbox.user_id, mailbox.position
     FROM cut
    CROSS JOIN mailbox ON mailbox.user_id = cut.user_id AND mailbox.position <= cut.position
    WHERE cut.position IS NOT NULL
 )
"""

# Entries as [user_id, position, notice_id] under 0; bodies under their notice_id, a row each: one alone may be long.
READ = """
WITH entry AS MATERIALIZED (
  SELECT mailbox.user_id, CAST(mailbox.position AS INTEGER) AS position, mailbox.notice_id
    FROM json_each(CAST(:user_ids AS TEXT)) AS user
   CROSS JOIN mailbox ON mailbox.user_id = user.value
   CROSS JOIN mailbox_notice AS notice USING (notice_id)
   WHERE notice.saved_at > :saved_after_ms AND (notice.expires_at IS NULL OR notice.expires_at > :now_ms)
)
SELECT 0, CAST(json_group_array(json_array(user_id, position, notice_id)) AS BLOB) FROM entry
 UNION ALL
SELECT notice_id, CAST(body AS BLOB) FROM mailbox_notice WHERE notice_id IN (SELECT notice_id FROM entry)
"""

# [[user_id, [message_id]]]
REMOVE = """
DELETE FROM mailbox
 WHERE (notice_id, user_id) IN (
   SELECT notice.notice_id, json_extract(removal.value, '$[0]')
     FROM json_each(CAST(:removals AS TEXT)) AS removal
    CROSS JOIN json_each(json_extract(removal.value, '$[1]')) AS message
    CROSS JOIN mailbox_notice AS notice ON notice.message_key = message.value
 )
"""

CLEAR = "DELETE FROM mailbox WHERE user_id = :user_id"

PURGE = """
DELETE FROM mailbox
 WHERE (notice_id, user_id) IN (
   SELECT mailbox.notice_id, mailbox.user_id
     FROM (SELECT notice_id FROM mailbox_notice WHERE saved_at <= :saved_by_ms
            UNION
           SELECT notice_id FROM mailbox_notice WHERE expires_at IS NOT NULL AND expires_at <= :now_ms) AS past
    CROSS JOIN mailbox USING (notice_id)
    LIMIT :limit
 )
"""

# Whose mailboxes one statement reads.
READ_USERS = 25

# So many bytes of bodies are encoded and written at a time.
SHARE_BYTES = 1024 * 1024

_entries = msgspec.json.Decoder(list[tuple[int, int, int]])
_decode_item = msgspec.json.Decoder(MailboxItem).decode


class SqliteMailbox:
    """ports.Mailbox. `max_per_user` and `ttl_days` are the configuration's; `clock` gives milliseconds.

    The time an item may wait counts from the newest save of its `message_id`, for whichever user that was.
    """

    def __init__(
        self,
        thread: SqliteThread,
        *,
        last_position: int,
        max_per_user: int,
        ttl_days: int,
        clock: Callable[[], int],
        left_aside: LeftAside = lambda _: None,
    ) -> None:
        self._statements = Statements(thread, "mailbox")
        # Given out here and not by SQLite: order is the order of the calls, whatever chunk is written first.
        self._last_position = last_position
        self._max_per_user = max_per_user
        self._ttl_ms = ttl_days * DAY_MS
        self._clock = clock
        self._left_aside = left_aside
        self._causes = Causes()

    @property
    def writers(self) -> int:
        """How many calls write at the same time: there is one thread."""
        return 1

    async def save(self, saves: Sequence[tuple[MailboxItem, Collection[int]]], *, is_first: bool = False) -> None:
        """Put each item into the mailboxes of its users, in the order of the calls.

        Chunks are transactions of their own: repeat the whole call when it raises.
        """
        first = self._last_position + 1
        self._last_position += len(saves)
        rows = (self._row(first + index, *save) for index, save in enumerate(saves) if save[1])
        for chunk in _shares(rows):
            steps = (SAVE_BODIES, SAVE_ENTRIES, TRIM)
            await self._statements.change_all("save", steps, items=orjson.dumps(chunk), max_per_user=self._max_per_user)

    async def read(self, user_ids: Collection[int]) -> dict[int, list[MailboxItem]]:
        """What waits for each of these users, oldest first.

        Users who wait for the same notice get the same object: do not change it.
        """
        found: dict[int, list[MailboxItem]] = {}
        now_ms = self._clock()
        for chunk in batched(user_ids, READ_USERS):
            bodies = dict(
                await self._statements.rows(
                    "read", READ, user_ids=orjson.dumps(chunk), saved_after_ms=now_ms - self._ttl_ms, now_ms=now_ms
                )
            )
            entries = _entries.decode(bodies.pop(0))
            items = {
                notice_id: item
                async for notice_id, body in sliced(bodies.items())
                if (item := self._item(notice_id, body)) is not None
            }
            found.update(_mailboxes(entries, items))
        return found

    def _item(self, notice_id: int, body: bytes) -> MailboxItem | None:
        """None for what cannot be decoded."""
        try:
            return _decode_item(body)
        except Exception as error:
            self._leave_aside(notice_id, error)
            return None

    def _leave_aside(self, notice_id: int, error: Exception) -> None:
        self._left_aside(1)
        if self._causes.is_new(type(error).__name__):
            log.error("a notice in the mailbox cannot be read", notice_id=notice_id, cause=repr(error))

    async def remove(self, removals: Mapping[int, Collection[str]]) -> None:
        """Take these items out."""
        for chunk in _shares((user_id, list(message_ids)) for user_id, message_ids in removals.items()):
            await self._statements.change("remove", REMOVE, removals=orjson.dumps(chunk))

    async def clear(self, user_id: int) -> int:
        """Empty one user's mailbox; how many items were in it."""
        return await self._statements.change("clear", CLEAR, user_id=user_id)

    async def purge(self, now_ms: int, limit: int) -> int:
        """Drop at most `limit` items past their time; how many were dropped."""
        saved_by_ms = now_ms - self._ttl_ms

        async def drop(wanted: int) -> int:
            return await self._statements.change("purge", PURGE, saved_by_ms=saved_by_ms, now_ms=now_ms, limit=wanted)

        return await drop_chunks(limit, drop)

    def _row(self, position: int, item: MailboxItem, user_ids: Collection[int]) -> tuple[Any, ...]:
        key = item.message_id or f"#{position}"
        body = msgspec.json.encode(item).decode()
        saved_at = item.saved_at or self._clock()
        return key, position, saved_at, item.expires_ms, body, list(user_ids)


def _shares(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Portions of `rows`, whose last column is a list, with at most CHUNK_ROWS elements of these lists together, and
    about SHARE_BYTES in the texts before it."""
    share: list[tuple[Any, ...]] = []
    room, bytes_left = CHUNK_ROWS, SHARE_BYTES
    for row in rows:
        elements = row[-1]
        bytes_left -= len(row[-2]) if isinstance(row[-2], str) else 0
        while elements:
            share.append((*row[:-1], elements[:room]))
            elements, room = elements[room:], room - min(room, len(elements))
            if not room or bytes_left <= 0:
                yield share
                share, room, bytes_left = [], CHUNK_ROWS, SHARE_BYTES
    if share:
        yield share


def _mailboxes(entries: list[tuple[int, int, int]], items: Mapping[int, MailboxItem]) -> dict[int, list[MailboxItem]]:
    """Each user's items, oldest first: by `ts`, since copies of notices whose recipients had to be looked up were saved
    late, and by position."""
    found: dict[int, list[MailboxItem]] = {}
    for user_id, _position, notice_id in sorted(entries):
        if notice_id in items:
            found.setdefault(user_id, []).append(items[notice_id])
    for waiting in found.values():
        waiting.sort(key=_ts)
    return found


def _ts(item: MailboxItem) -> int:
    return item.ts
