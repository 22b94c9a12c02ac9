"""The journal: accepted notices as JSON, in the order of their `seq`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from itertools import chain

import msgspec
import orjson

from pushd.model import Notice
from pushd.stores.sqlite.statements import Rows, Statements, Value, chunks, drop_chunks
from pushd.stores.sqlite.thread import SqliteThread

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

LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'journal'"

SETTLE = """
UPDATE journal SET settled = 1
 WHERE settled = 0 AND seq IN (SELECT value FROM json_each(CAST(:seqs AS TEXT)))
"""

UNSETTLED_PAGE = """
SELECT CAST('[' || group_concat(body) || ']' AS BLOB)
  FROM (SELECT body FROM journal WHERE settled = 0 AND seq > :after_seq ORDER BY seq LIMIT :limit)
"""

# Left alone, SQLite walks the table from its oldest row.
FIRST_SINCE = """
SELECT min(seq)
  FROM (SELECT min(seq) AS seq FROM journal INDEXED BY journal_settled WHERE settled = 1 AND accepted_ms >= :since_ms
         UNION ALL
        SELECT min(seq) FROM journal WHERE settled = 0 AND accepted_ms >= :since_ms)
"""

SINCE_PAGE = """
SELECT CAST('[' || group_concat(body) || ']' AS BLOB)
  FROM (SELECT body FROM journal WHERE seq > :after_seq AND accepted_ms >= :since_ms ORDER BY seq LIMIT :limit)
"""

PURGE = """
DELETE FROM journal
 WHERE seq IN (SELECT seq FROM journal WHERE settled = 1 AND accepted_ms < :before_ms ORDER BY accepted_ms LIMIT :limit)
"""

PAGE_ROWS = 500

_notices = msgspec.json.Decoder(list[Notice])


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
    """ports.Journal. An append is one commit with its own fsync, shared by all that waited for it."""

    def __init__(self, thread: SqliteThread) -> None:
        self._thread = thread
        self._statements = Statements(thread, "journal")

    async def last_seq(self) -> int:
        """See ports.Journal."""
        return (await self._statements.numbers("last_seq", LAST_SEQ))[0]

    def append(self, notices: Sequence[Notice]) -> asyncio.Future[None]:
        """See ports.Journal."""
        return self._thread.append("journal", "append", encoded(notices)) if notices else _nothing_to_do()

    async def settle(self, seqs: Sequence[int]) -> None:
        """See ports.Journal."""
        for chunk in chunks(seqs):
            await self._statements.change("settle", SETTLE, seqs=orjson.dumps(chunk))

    async def unsettled(self) -> list[Notice]:
        """See ports.Journal."""
        return await self._pages("unsettled", UNSETTLED_PAGE, 0)

    async def since(self, accepted_ms: int) -> list[Notice]:
        """See ports.Journal."""
        (first,) = await self._statements.numbers("since", FIRST_SINCE, since_ms=accepted_ms)
        return await self._pages("since", SINCE_PAGE, first - 1, since_ms=accepted_ms) if first else []

    async def purge(self, before_ms: int, limit: int) -> int:
        """See ports.Journal."""
        return await drop_chunks(
            limit, lambda wanted: self._statements.change("purge", PURGE, before_ms=before_ms, limit=wanted)
        )

    async def _pages(self, name: str, statement: str, after_seq: int, **parameters: int) -> list[Notice]:
        """All notices with a higher `seq` that `statement` yields; each page is one slice of the loop's time."""
        found: list[Notice] = []
        while True:
            document = await self._statements.document(
                name, statement, after_seq=after_seq, limit=PAGE_ROWS, **parameters
            )
            page = _notices.decode(document) if document else []
            # SQLite does not promise the order in which an aggregate sees its rows.
            page.sort(key=lambda notice: notice.seq)
            found += page
            if len(page) < PAGE_ROWS:
                return found
            after_seq = page[-1].seq


def _nothing_to_do() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
