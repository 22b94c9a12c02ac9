"""The journal: accepted notices as JSON, in the order of their `seq`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from itertools import chain

import msgspec
import orjson

from pushd.batched import batched
from pushd.model import Notice
from pushd.stores.sqlite.engine.statements import (
    CHUNK_ROWS,
    HIGHEST_OWN,
    Parameter,
    Rows,
    Statements,
    Value,
    drop_chunks,
)
from pushd.stores.sqlite.engine.thread import SqliteThread

# Appending the same notice again is harmless; another notice under a used seq violates NOT NULL and is refused.
APPEND = Rows(
    ("seq", "accepted_ms", "body"),
    """
INSERT INTO journal (seq, accepted_ms, body)
SELECT * FROM given
 WHERE true
    ON CONFLICT (seq) DO UPDATE SET body = CASE WHEN body = excluded.body THEN body END
""",
)

# What another program put at the end of all numbers, or what is none, is not counted on from.
LAST_SEQ = f"""
SELECT max(seq)
  FROM (SELECT seq FROM sqlite_sequence WHERE name = 'journal' AND typeof(seq) = 'integer'
         UNION ALL
        SELECT max(seq) FROM journal WHERE seq < {HIGHEST_OWN})
 WHERE seq < {HIGHEST_OWN}
"""  # noqa: S608 - constants only

SETTLE = """
UPDATE journal SET settled = 1
 WHERE settled = 0 AND seq IN (SELECT value FROM json_each(CAST(:seqs AS TEXT)))
"""

# A page: its notices as one document, how many rows that are, the sum of their `seq`, and the last.
_PAGE = "SELECT CAST('[' || group_concat(body) || ']' AS BLOB), count(*), total(seq), max(seq) FROM "
_ROWS = "SELECT seq, CAST(body AS BLOB) FROM "
_UNSETTLED = "(SELECT seq, body FROM journal WHERE settled = 0 AND seq > :after_seq ORDER BY seq LIMIT :limit)"
_SINCE = """
  (SELECT seq, body FROM journal WHERE seq > :after_seq AND accepted_ms >= :since_ms ORDER BY seq LIMIT :limit)
"""
UNSETTLED_PAGE, UNSETTLED_ROWS = _PAGE + _UNSETTLED, _ROWS + _UNSETTLED
SINCE_PAGE, SINCE_ROWS = _PAGE + _SINCE, _ROWS + _SINCE

# Left alone, SQLite walks the table from its oldest row.
FIRST_SINCE = """
SELECT min(seq)
  FROM (SELECT min(seq) AS seq FROM journal INDEXED BY journal_settled WHERE settled = 1 AND accepted_ms >= :since_ms
         UNION ALL
        SELECT min(seq) FROM journal WHERE settled = 0 AND accepted_ms >= :since_ms)
"""

PURGE = """
DELETE FROM journal
 WHERE seq IN (SELECT seq FROM journal WHERE settled = 1 AND accepted_ms < :before_ms ORDER BY accepted_ms LIMIT :limit)
"""

PAGE_ROWS = 500

_notices = msgspec.json.Decoder(list[Notice])
_notice = msgspec.json.Decoder(Notice)
_Spoiled = tuple[int, bytes, str]


def commit(connection: sqlite3.Connection, payloads: Sequence[list[Value]]) -> None:
    """Keep the rows of all `payloads` (each what `encoded` returns) in one transaction."""
    APPEND.write(connection, [*chain.from_iterable(payloads)])


def encoded(notices: Sequence[Notice]) -> list[Value]:
    """The rows of APPEND."""
    values: list[Value] = []
    for notice in notices:
        values += (notice.seq, notice.accepted_ms, msgspec.json.encode(notice).decode())
    return values


class SqliteJournal:
    """ports.Journal. An append is one commit with its own fsync, shared by all that waited for it.

    `page_rows`: how many rows are read, and decoded, at a time.
    """

    def __init__(self, thread: SqliteThread, *, page_rows: int = PAGE_ROWS) -> None:
        self._thread = thread
        self._page_rows = page_rows
        self._statements = Statements(thread, "journal")
        self._spoiled: list[_Spoiled] = []

    async def last_seq(self) -> int:
        """The highest `seq` ever appended; 0 for a new journal."""
        return (await self._statements.numbers("last_seq", LAST_SEQ))[0]

    def append(self, notices: Sequence[Notice]) -> asyncio.Future[None]:
        """Keep these, all or nothing; they are on disk once this is awaited."""
        return self._thread.append("journal", "append", encoded(notices)) if notices else _nothing_to_do()

    async def settle(self, seqs: Sequence[int]) -> None:
        """Note that nothing is left to do for these notices."""
        for chunk in batched(seqs, CHUNK_ROWS):
            await self._statements.change("settle", SETTLE, seqs=orjson.dumps(chunk))

    async def unsettled(self) -> list[Notice]:
        """Notices that are not settled, by `seq`."""
        found, self._spoiled = await self._pages("unsettled", UNSETTLED_PAGE, UNSETTLED_ROWS, 0)
        return found

    async def spoiled(self) -> list[_Spoiled]:
        """What the last `unsettled` left out because it cannot be decoded."""
        return self._spoiled

    async def since(self, accepted_ms: int) -> list[Notice]:
        """Notices accepted at or after that time, settled or not, by `seq`."""
        (first,) = await self._statements.numbers("since", FIRST_SINCE, since_ms=accepted_ms)
        if not first:
            return []
        return (await self._pages("since", SINCE_PAGE, SINCE_ROWS, max(0, first - 1), since_ms=accepted_ms))[0]

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` settled notices accepted before that time; how many were dropped."""
        return await drop_chunks(
            limit, lambda wanted: self._statements.change("purge", PURGE, before_ms=before_ms, limit=wanted)
        )

    async def _pages(
        self, name: str, page: str, rows: str, after_seq: int, **parameters: int
    ) -> tuple[list[Notice], list[_Spoiled]]:
        """All notices with a higher `seq` that `page` yields, and what cannot be decoded.

        Each page is one slice of the loop's time. What `rows` yields is the same row by row, for a page with a bad one.
        """
        found: list[Notice] = []
        spoiled: list[_Spoiled] = []
        while True:
            here: dict[str, Parameter] = {"after_seq": after_seq, "limit": self._page_rows, **parameters}
            document, *numbers = await self._statements.row(name, page, **here)
            count, seqs, last_seq = (int(number or 0) for number in numbers)
            notices = _decoded(document or b"[]", count, seqs)
            if notices is None:
                rows_here = await self._statements.read(name, partial(_rows_of, rows, here))
                notices = _singly(rows_here, spoiled)
            found += notices
            if count < self._page_rows:
                return found, spoiled
            after_seq = last_seq


def _rows_of(rows: str, parameters: dict[str, Parameter], connection: sqlite3.Connection) -> list[tuple[int, bytes]]:
    return connection.execute(rows, parameters).fetchall()


def _decoded(document: bytes, count: int, seqs: int) -> list[Notice] | None:
    """The notices of a page, by `seq`; None when they are not the `count` ones of its rows."""
    try:
        notices = _notices.decode(document)
    except Exception:
        return None
    # SQLite does not promise the order in which an aggregate sees its rows.
    notices.sort(key=lambda notice: notice.seq)
    return notices if len(notices) == count and sum(notice.seq for notice in notices) == seqs else None


def _singly(rows: list[tuple[int, bytes]], spoiled: list[_Spoiled]) -> list[Notice]:
    """Those that can be decoded; the others go to `spoiled`."""
    found = []
    for seq, body in rows:
        try:
            notice = _notice.decode(body)
            if notice.seq != seq:
                raise ValueError(f"seq: found {notice.seq}, expected {seq}")
        except Exception as error:
            spoiled.append((seq, body or b"", f"{type(error).__name__}: {error}"))
        else:
            found.append(notice)
    return found


def _nothing_to_do() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
