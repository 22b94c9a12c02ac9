"""The receive records that lists are made of, in memory: see _columns.pyi.

The writing thread says which records it has changed as soon as they are committed. They are read again before the next
answer, so that this is what the table had when the answer began, or later.
"""

from __future__ import annotations

import sqlite3
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from time import monotonic
from typing import Any, NamedTuple

import orjson

from pushd.model import Receipt
from pushd.records import Part, ReceiptFilter, ReceiptSort, ReceiptStats
from pushd.stores.sqlite._columns import NoticeColumns, Owners
from pushd.stores.sqlite.engine.statements import SUM
from pushd.stores.sqlite.receipt_pages import STATE_NUMBER, ReceiptList, folded
from pushd.stores.sqlite.receipt_queries import PAGE

# A record takes 21 to 37 bytes, a notice 400. With more than these, lists are made by SQLite alone.
MOST_RECORDS = 10_000_000
RECORDS_PER_NOTICE = 16

# So many are taken from SQLite at a time: decoding them holds the GIL for a millisecond.
LOADED_AT_ONCE = 2_000

# Of a notice, records up to this share are read again one by one, and all if more are stale.
STALE_SHARE = 0.2

# Of a notice, so many users are noted one by one, and so many notices before all are read again.
MOST_NOTED, MOST_STALE = 2_000, 10_000

# How long an answer waits for another that reads what is stale, before SQLite gives it. For a load it does not wait.
PATIENCE_S = 0.25

# After records that have no room in columns, so long until it is tried again.
UNUSABLE_S = 60.0

_COLUMNS = (
    "message_id", "user_id", "username", STATE_NUMBER, "rowid", "created_at", "received_at", "read_at", "confirmed_at"
)  # fmt: skip
# Without ORDER BY, which would have SQLite copy each row first: rows come in the order of the index they are found by.
_LISTS = f"""
SELECT {", ".join(f"CAST(json_group_array({name}) AS BLOB)" for name in _COLUMNS)}
  FROM admin_user_receive_records INDEXED BY sqlite_autoindex_admin_user_receive_records_1
 WHERE """  # noqa: S608 - constants only
_BEHIND = "(message_id, user_id) > (:message_id, :user_id) AND (message_id, user_id) <= (:last_id, :last_user)"
# Those behind one record, up to another, which is some places on.
LOAD = _LISTS + _BEHIND
PLACE = f"""
SELECT message_id, user_id FROM admin_user_receive_records
 WHERE {_BEHIND} ORDER BY message_id, user_id LIMIT 1 OFFSET :places
"""  # noqa: S608 - constants only
_AMONG = "message_id = :message_id AND user_id IN (SELECT value FROM json_each(:user_ids))"
RELOAD = _LISTS + _AMONG
# By place: a name may have U+0000 in it, at which JSON ends it.
NAMES = """
SELECT CAST(json_group_array(user_id) AS BLOB), CAST(json_group_array(username) AS BLOB)
  FROM (SELECT user_id, username FROM receive_names ORDER BY username, user_id LIMIT :limit OFFSET :offset)
"""
RECORDS = f"SELECT {SUM.format('total')}, count(DISTINCT message_id) FROM receive_counts"  # noqa: S608 - constants only
PAGE_OF = PAGE.format("SELECT value AS id FROM json_each(CAST(:rowids AS TEXT))")

_BEHIND_ALL = b""  # SQLite sorts bytes after text
_FIRST_ID, _LAST_ID = -(1 << 63), (1 << 63) - 1


class Answer(NamedTuple):
    """A page, as the document that PAGE selects, and what is counted over the whole list."""

    stats: ReceiptStats
    document: bytes


class ReceiptColumns:
    """Answers lists of receive records. `note` is for the writing thread, the rest for those that read."""

    def __init__(self) -> None:
        self.changes = 0  # noted so far
        self._noting = threading.Lock()
        self._is_stopped = False
        self._unusable_until_s = 0.0
        self._refreshing = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        with self._noting:
            # user_ids by message_id, None for all of a notice; None: nothing is loaded.
            self._stale: dict[str, list[int] | None] | None = None
        # Changes under the lock `_refreshing` only.
        self._notices: list[NoticeColumns] = []  # in the order of their message_ids
        self._numbers: dict[tuple[int, str], int] = {}  # by user_id and username
        self._owners = Owners([], [], [])

    def note(self, records: Iterable[tuple[str, int]]) -> None:
        """These records, by message_id and user_id, are not as they were."""
        by_notice: dict[str, list[int]] = {}
        for message_id, user_id in records:
            by_notice.setdefault(message_id, []).append(user_id)
        self._note(by_notice)

    def note_written(self, receipts: Sequence[Receipt]) -> None:
        """The same of the records of these receipts, which mostly are of one notice."""
        message_ids = {receipt.message_id for receipt in receipts}
        if len(message_ids) == 1:
            self._note({message_ids.pop(): [receipt.user_id for receipt in receipts]})
        else:
            self.note((receipt.message_id, receipt.user_id) for receipt in receipts)

    def _note(self, by_notice: dict[str, list[int]]) -> None:
        with self._noting:
            self.changes += 1
            if self._stale is None:
                return
            for message_id, user_ids in by_notice.items():
                noted = self._stale.setdefault(message_id, [])
                if noted is not None:
                    noted += user_ids
                    if len(noted) > MOST_NOTED:
                        self._stale[message_id] = None
            if len(self._stale) > MOST_STALE:
                self._stale = None

    @property
    def is_stale(self) -> bool:
        """True when the next answer has to read something again first."""
        return bool(self._stale)

    def stop(self) -> None:
        """Have what is being loaded be given up; SQLite answers from here on."""
        self._is_stopped = True

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Be ready for the next answer. Costs a microsecond for each record that changed, at first for all."""
        with _snapshot(connection):
            self._current(connection)

    def answer(
        self, connection: sqlite3.Connection, where: ReceiptFilter, sort: ReceiptSort, part: Part
    ) -> Answer | None:
        """A page of records, of a user's only by name, and their counts. None when there are too many records.

        Costs a few nanoseconds for each of all records, and what changed since the last answer.
        """
        with _snapshot(connection):
            current = self._current(connection)
            if current is None:
                return None
            found = ReceiptList(*current, where)
            rowids = orjson.dumps(found.rowids(sort, part))
            document: bytes = connection.execute(PAGE_OF, {"rowids": rowids}).fetchone()[0]
            return Answer(found.stats(), document)

    def _current(self, connection: sqlite3.Connection) -> tuple[list[NoticeColumns], Owners] | None:
        """The records as they are; None when they are too many, or not ready in time."""
        patience_s = PATIENCE_S if self._notices else 0
        if self._is_stopped or monotonic() < self._unusable_until_s or not self._refreshing.acquire(timeout=patience_s):
            return None
        try:
            # First: what is noted from here on may not be in what is read below.
            with self._noting:
                stale, self._stale = self._stale, {}
            try:
                is_kept = self._load(connection) if stale is None else self._refresh(connection, stale)
            except Exception as error:
                self._forget()
                if isinstance(error, sqlite3.Error) and not _is_of_values(error):
                    raise
                # Columns have room for our own kinds of values alone: of what others wrote, SQLite makes the lists.
                self._unusable_until_s = monotonic() + UNUSABLE_S
                return None
            if is_kept and not self._is_stopped:
                return self._notices, self._owners
            self._forget()
            return None
        finally:
            self._refreshing.release()

    def _load(self, connection: sqlite3.Connection) -> bool:
        """Read everything; False if that is too much."""
        self._numbers, self._owners = {}, Owners([], [], [])
        if _weight(*connection.execute(RECORDS).fetchone()) > MOST_RECORDS:
            return False
        self._notices = self._read_all(connection)
        return True

    def _refresh(self, connection: sqlite3.Connection, stale: dict[str, list[int] | None]) -> bool:
        """Read what is stale; False if there are too many now."""
        if stale:
            notices = self._notices.copy()  # another thread may be in the midst of an answer
            for message_id, user_ids in stale.items():
                self._replace(connection, notices, message_id, user_ids)
            self._notices = notices
        return not stale or _weight(sum(map(len, self._notices)), len(self._notices)) <= MOST_RECORDS

    def _replace(
        self, connection: sqlite3.Connection, notices: list[NoticeColumns], message_id: str, user_ids: list[int] | None
    ) -> None:
        place = bisect_left(notices, message_id, key=attrgetter("message_id"))
        old = notices[place : place + 1]
        if not old or old[0].message_id != message_id:
            old = []
        if old and user_ids is not None and len(user_ids) <= len(old[0]) * STALE_SHARE:
            ids = sorted(set(user_ids))
            wanted = {"message_id": message_id, "user_ids": orjson.dumps(ids).decode()}
            changed = self._read(connection, RELOAD, **wanted)
            found = [old[0].replaced(ids, changed[0] if changed else _nothing_of(message_id), self._owners)]
        else:
            found = self._read_all(connection, message_id)
        notices[place : place + len(old)] = [notice for notice in found if len(notice)]

    def _read_all(self, connection: sqlite3.Connection, message_id: str | None = None) -> list[NoticeColumns]:
        """All records, or all of one notice."""
        found: list[NoticeColumns] = []
        end: tuple[str | bytes, int] = (_BEHIND_ALL if message_id is None else message_id, _LAST_ID)
        place: tuple[str | bytes, int] | None = (message_id or "", _FIRST_ID)
        while place is not None and not self._is_stopped:
            begin = {"message_id": place[0], "user_id": place[1]}
            limits = begin | {"last_id": end[0], "last_user": end[1], "places": LOADED_AT_ONCE - 1}
            place = connection.execute(PLACE, limits).fetchone()
            last_id, last_user = place or end
            read = self._read(connection, LOAD, **begin, last_id=last_id, last_user=last_user)
            if read and found and found[-1].message_id == read[0].message_id:
                read[0] = found.pop().replaced([], read[0], self._owners)
            found += read
        return found

    def _read(self, connection: sqlite3.Connection, statement: str, **parameters: Any) -> list[NoticeColumns]:
        """What a statement finds, by notice."""
        found: list[NoticeColumns] = []
        message_ids, user_ids, usernames, *columns = map(
            orjson.loads, connection.execute(statement, parameters).fetchone()
        )
        columns.insert(0, self._owners_of(connection, user_ids, usernames))
        start = 0
        while start < len(message_ids):
            end = bisect_right(message_ids, message_ids[start], start)
            found.append(NoticeColumns(message_ids[start], *(column[start:end] for column in columns)))
            start = end
        return found

    def _owners_of(self, connection: sqlite3.Connection, user_ids: list[int], usernames: list[str]) -> list[int]:
        """The numbers of users under these names."""
        users = list(zip(user_ids, usernames, strict=True))
        try:
            return [self._numbers[user] for user in users]
        except KeyError:
            self._learn(connection)
        return [self._numbers[user] for user in users]

    def _learn(self, connection: sqlite3.Connection) -> None:
        """Number the users who have no number yet. Names that nobody has any more are not in anybody's way."""
        by_name: list[int] = []
        while True:
            row = connection.execute(NAMES, {"limit": LOADED_AT_ONCE, "offset": len(by_name)}).fetchone()
            users = list(zip(*map(orjson.loads, row), strict=True))
            if not users:
                break
            by_name += [self._numbers.setdefault(user, len(self._numbers)) for user in users]
        ranks = [0] * len(self._numbers)
        for rank, number in enumerate(by_name):
            ranks[number] = rank
        names = [folded(username) for _, username in self._numbers]
        self._owners = Owners([user_id for user_id, _ in self._numbers], names, ranks)


def _nothing_of(message_id: str) -> NoticeColumns:
    return NoticeColumns(message_id, [], [], [], [], [], [], [])


def _is_of_values(error: sqlite3.Error) -> bool:
    """Whether what stands in the table is to blame: "JSON cannot hold BLOB values", "integer overflow"."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


def _weight(records: int, notices: int) -> int:
    return records + notices * RECORDS_PER_NOTICE


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read in the block is of one moment, that of the first read."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
