"""Notices that are still to go out, and those that were cancelled before: rows of the table `scheduled`.

What must outlive a power cut is committed together with the appends to the journal, by the same thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

import msgspec

from pushd.batched import batched
from pushd.model import Notice
from pushd.ports import Due, Scheduled
from pushd.stores.sqlite.commits import Change, leave
from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, Parameter, Rows, Statements, Value, drop_chunks
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.stores.sqlite.push_rows import read_notice

DUE_BYTES = 4 * 1024 * 1024  # of one read

# An id that is there already violates the key and is refused.
PUT = Rows(
    ("message_id", "due_ms", "idempotency_key", "is_recorded", "body"),
    "INSERT INTO scheduled (message_id, due_ms, idempotency_key, is_recorded, body) SELECT * FROM given",
)
CANCEL = """
UPDATE scheduled SET cancelled_ms = :at_ms, is_recorded = :is_recorded
 WHERE message_id = :message_id AND cancelled_ms IS NULL
"""
REPLACE = """
UPDATE scheduled SET due_ms = :due_ms, body = :body, is_recorded = :is_recorded
 WHERE message_id = :message_id AND cancelled_ms IS NULL
"""
RECORDED = """
UPDATE scheduled SET is_recorded = 1
 WHERE message_id = ? AND body = ? AND (cancelled_ms IS NOT NULL) = ?
"""

# As bytes: what is no UTF-8 would fail for all.
_ROW = "CAST(message_id AS BLOB), ifnull(cancelled_ms, 0), CAST(body AS BLOB) FROM scheduled"
DUE = f"SELECT rowid, {_ROW} WHERE cancelled_ms IS NULL AND due_ms < :before_ms ORDER BY due_ms, rowid LIMIT :limit"
NEXT = "SELECT due_ms FROM scheduled WHERE cancelled_ms IS NULL ORDER BY due_ms, rowid LIMIT 1 OFFSET ?"
BY_ID = f"SELECT {_ROW} WHERE message_id = :message_id"
BY_KEY = f"SELECT {_ROW} WHERE idempotency_key = :idempotency_key LIMIT 1"
UNRECORDED = f"SELECT {_ROW} WHERE is_recorded = 0 AND message_id > :after ORDER BY message_id LIMIT :limit"
KEYS = """
SELECT CAST('id:' || message_id AS BLOB) FROM scheduled
 UNION ALL
SELECT CAST('key:' || idempotency_key AS BLOB) FROM scheduled WHERE idempotency_key IS NOT NULL
"""
DROP = "DELETE FROM scheduled WHERE rowid = :number"
COUNT = "SELECT count(*) FROM scheduled WHERE cancelled_ms IS NULL"
PURGE = """
DELETE FROM scheduled WHERE rowid IN (
  SELECT rowid FROM scheduled WHERE due_ms < :before_ms AND cancelled_ms IS NOT NULL ORDER BY due_ms LIMIT :limit)
"""

_encode = msgspec.json.Encoder().encode
_notice = msgspec.json.Decoder(Notice)
_Row = tuple[bytes, int, bytes]  # message_id, cancelled_ms, body
_DueRow = tuple[int, bytes, int, bytes]  # rowid, and a _Row
Result = TypeVar("Result")


class SqliteSchedule:
    """ports.ScheduleStore. `has_records`: push records are kept here, so that no store outside has to know."""

    def __init__(self, thread: SqliteThread, *, has_records: bool) -> None:
        self._thread = thread
        self._statements = Statements(thread, "schedule")
        self._is_recorded = int(has_records)

    async def keys(self) -> list[str]:
        """By what repeats are recognised."""
        rows = await self._statements.read("keys", lambda db: db.execute(KEYS).fetchall())
        return [key.decode(errors="replace") for (key,) in rows]

    async def count(self) -> int:
        """How many are still to go out."""
        (count,) = await self._statements.numbers("count", COUNT)
        return count

    def put(self, notices: Sequence[Notice]) -> asyncio.Future[None]:
        """Keep these; they are on disk once this is awaited."""
        values: list[Value] = []
        for notice in notices:
            values += (
                notice.message_id,
                notice.send_at_ms,
                notice.idempotency_key or None,
                self._is_recorded,
                _encode(notice),
            )
        change = Change(partial(PUT.write, values=values))
        return self._thread.append("schedule", "put", change)

    async def due(self, before_ms: int, limit: int) -> Due:
        """The first of those that are due."""
        rows, next_ms = await self._statements.read("due", partial(_due, before_ms, limit))
        found = Due([], next_ms, [])
        for number, message_id, _, body in rows:
            try:
                notice = _notice.decode(body)
                if notice.message_id != message_id.decode():
                    raise ValueError(f"message_id: found {notice.message_id!r}, expected {message_id!r}")
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                found.spoiled.append((number, body or b"", why))
            else:
                found.notices.append(notice)
        return found

    async def find(self, message_id: str, idempotency_key: str = "") -> Scheduled | None:
        """What is scheduled or cancelled under one of these."""
        asked: dict[str, Parameter] = {"message_id": message_id, "idempotency_key": idempotency_key}

        def run(connection: sqlite3.Connection) -> _Row | None:
            for statement in (BY_ID, BY_KEY) if idempotency_key else (BY_ID,):
                row: _Row | None = connection.execute(statement, asked).fetchone()
                if row is not None:
                    return row
            return None

        row = await self._statements.read("find", run)
        return None if row is None else scheduled_of(row)

    async def cancel(self, message_id: str, at_ms: int) -> tuple[Scheduled | None, bool]:
        """It is not due any more."""
        asked = {"message_id": message_id, "at_ms": at_ms, "is_recorded": self._is_recorded}

        def run(connection: sqlite3.Connection) -> tuple[_Row | None, bool]:
            changed = connection.execute(CANCEL, asked).rowcount
            return connection.execute(BY_ID, asked).fetchone(), changed > 0

        row, was_due = await self._change("cancel", run)
        return (None if row is None else scheduled_of(row)), was_due

    async def replace(self, notice: Notice) -> bool:
        """The notice of that id says this now."""
        asked = {
            "message_id": notice.message_id,
            "due_ms": notice.send_at_ms,
            "body": _encode(notice),
            "is_recorded": self._is_recorded,
        }
        return await self._change("replace", lambda db: db.execute(REPLACE, asked).rowcount > 0)

    async def drop(self, message_ids: Sequence[str]) -> None:
        """Forget these."""
        for part in batched(message_ids, CHUNK_ROWS):
            await self._change("drop", partial(leave, message_ids=part))

    async def drop_spoiled(self, number: int) -> None:
        """Forget what cannot be decoded."""
        await self._statements.change("drop", DROP, number=number)

    async def _change(self, name: str, run: Callable[[sqlite3.Connection], Result]) -> Result:
        change = Change(run)
        await self._thread.append("schedule", name, change)
        return change.result  # type: ignore[return-value]

    async def unrecorded(self, after: str, limit: int) -> list[Scheduled]:
        """Those of which a store outside does not know."""
        asked = {"after": after, "limit": limit}
        rows = await self._statements.read("unrecorded", lambda db: db.execute(UNRECORDED, asked).fetchall())
        return [scheduled_of(row) for row in rows]

    async def recorded(self, known: Sequence[Scheduled]) -> None:
        """A store outside knows of them."""
        rows = [(one.notice.message_id, _encode(one.notice), int(one.cancelled_ms > 0)) for one in known]

        def run(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany(RECORDED, rows)

        await self._statements.run("recorded", run)

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` cancelled ones that would have been due before that time."""
        return await drop_chunks(
            limit, lambda wanted: self._statements.change("purge", PURGE, before_ms=before_ms, limit=wanted)
        )


def scheduled_of(row: _Row) -> Scheduled:
    """A row as it is stored; of a damaged one what can be read of it."""
    message_id, cancelled_ms, body = row
    return Scheduled(read_notice(0, message_id.decode(errors="replace"), body, None), cancelled_ms)


def _due(before_ms: int, limit: int, connection: sqlite3.Connection) -> tuple[list[_DueRow], int | None]:
    rows: list[_DueRow] = []
    room = DUE_BYTES
    with closing(connection.execute(DUE, {"before_ms": before_ms, "limit": limit})) as cursor:
        for row in cursor:
            rows.append(row)
            room -= len(row[3])
            if room <= 0:
                break
    behind = connection.execute(NEXT, (len(rows),)).fetchone()
    return rows, None if behind is None else behind[0]
