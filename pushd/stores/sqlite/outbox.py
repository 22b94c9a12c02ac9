"""The outbox: writes that wait for a store outside, in a table beside the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.thread import SqliteThread

APPEND = "INSERT INTO outbox (writer, body) VALUES (?, ?)"
OLDEST = "SELECT position, CAST(body AS BLOB) FROM outbox WHERE writer = ? ORDER BY position LIMIT ?"
DROP = "DELETE FROM outbox WHERE writer = ? AND position <= ?"
COUNTS = "SELECT CAST(writer AS BLOB), count(*) FROM outbox GROUP BY writer"


class SqliteOutbox:
    """ports.OutboxLog. Not synced by itself: a later journal entry, or its settling, is on disk only after these."""

    def __init__(self, thread: SqliteThread) -> None:
        self._thread = thread

    async def append(self, writer: str, bodies: Sequence[bytes]) -> None:
        """Keep these behind what waits for that writer."""

        def run(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany(APPEND, [(writer, body) for body in bodies])

        await self._thread.submit("outbox", "append", run)

    async def oldest(self, writer: str, limit: int) -> list[tuple[int, bytes]]:
        """The oldest `limit` that wait for that writer, each with its position."""

        def run(connection: sqlite3.Connection) -> list[tuple[int, bytes]]:
            return connection.execute(OLDEST, (writer, limit)).fetchall()

        return await self._thread.submit("outbox", "oldest", run, is_read=True)

    async def drop(self, writer: str, position: int) -> None:
        """Forget what waits for that writer, up to and including `position`."""

        def run(connection: sqlite3.Connection) -> None:
            connection.execute(DROP, (writer, position))

        await self._thread.submit("outbox", "drop", run)

    async def counts(self) -> dict[str, int]:
        """How many wait, by writer."""

        def run(connection: sqlite3.Connection) -> dict[str, int]:
            return {writer.decode(errors="replace"): count for writer, count in connection.execute(COUNTS)}

        return await self._thread.submit("outbox", "counts", run, is_read=True)
