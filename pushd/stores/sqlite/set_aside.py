"""What is set aside: data that could not be used, in a table beside the journal, for `pushd-server set-aside`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple

import orjson

from pushd.errors import StartError
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.schema import database_path, prepare, transaction
from pushd.stores.sqlite.engine.statements import HIGHEST_OWN
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.user_ids import INTEGERS, UserIds
from pushd.values import MIN_INT64

# Bad data comes in floods. Beyond this the oldest goes, a tenth at a time.
MOST_ENTRIES = 10_000
MOST_BYTES = 64 << 20
ROOM = 0.9

# SQLite itself would find no number behind what another program may have put at the end of all numbers.
KEEP = f"""
INSERT INTO set_aside (id, kind, at_ms, cause, size, body)
SELECT ifnull(max(id), 0) + 1, ?, ?, ?, ?, ?
  FROM (SELECT max(id) AS id FROM set_aside WHERE id BETWEEN 0 AND {HIGHEST_OWN}
         UNION ALL
        SELECT seq FROM sqlite_sequence WHERE name = 'set_aside' AND seq BETWEEN 0 AND {HIGHEST_OWN})
"""  # noqa: S608 - constants only
SIZE = "SELECT count(*), ifnull(sum(size), 0) FROM set_aside"
# All but the newest that fit.
DROP_OLDEST = """
DELETE FROM set_aside WHERE id IN (
  SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id DESC) AS entries,
                         sum(size) OVER (ORDER BY id DESC) AS bytes FROM set_aside)
   WHERE entries > :entries OR bytes > :bytes)
"""
WANTED = """
SELECT id, CAST(kind AS BLOB), CAST(body AS BLOB) FROM set_aside
 WHERE is_wanted = 1 AND id NOT IN (SELECT value FROM json_each(CAST(:but AS TEXT)))
 ORDER BY id LIMIT :limit
"""
COUNTS = "SELECT CAST(kind AS BLOB), count(*) FROM set_aside GROUP BY kind"
DROP = "DELETE FROM set_aside WHERE id IN (SELECT value FROM json_each(CAST(:ids AS TEXT)))"
REFUSE = "UPDATE set_aside SET is_wanted = 0, cause = :cause WHERE id = :id"

# For the command.
LIST = """
SELECT id, CAST(kind AS BLOB), CAST(at_ms AS INTEGER), CAST(size AS INTEGER), is_wanted, CAST(cause AS BLOB)
  FROM set_aside
 WHERE id > ? ORDER BY id LIMIT ?
"""
KNOWN = "SELECT id FROM set_aside WHERE id IN (SELECT value FROM json_each(CAST(:ids AS TEXT)))"
WANT = "UPDATE set_aside SET is_wanted = 1 WHERE id IN (SELECT value FROM json_each(CAST(:ids AS TEXT)))"
WANT_ALL = "UPDATE set_aside SET is_wanted = 1 WHERE is_wanted = 0"
DROP_ALL = "DELETE FROM set_aside"
LISTED_AT_ONCE = 1000


class SqliteSetAside:
    """ports.SetAside. `clock` gives milliseconds; beyond `most_entries` and `most_bytes` the oldest entries go."""

    def __init__(
        self,
        thread: SqliteThread,
        clock: Callable[[], int],
        *,
        most_entries: int = MOST_ENTRIES,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._thread = thread
        self._clock = clock
        self._most_entries = most_entries
        self._most_bytes = most_bytes

    async def keep(self, kind: str, cause: str, body: bytes) -> int:
        """Keep an entry; how many of the oldest had to go for it."""
        at_ms, text = self._clock(), cause.encode(errors="backslashreplace").decode()

        def run(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                connection.execute(KEEP, (kind, at_ms, text, len(body), body))
                return self._make_room(connection)

        return await self._thread.submit("set_aside", "keep", run)

    async def wanted(self, but: Collection[int], limit: int) -> list[tuple[int, str, bytes]]:
        """The oldest `limit` entries that are to be tried again, but for those with these ids."""
        parameters = {"but": orjson.dumps(list(but)), "limit": limit}

        def run(connection: sqlite3.Connection) -> list[tuple[int, str, bytes]]:
            rows = connection.execute(WANTED, parameters)
            return [(entry_id, _text(kind), body) for entry_id, kind, body in rows]

        return await self._thread.submit("set_aside", "wanted", run, is_read=True)

    async def refuse(self, entry_id: int, cause: str) -> None:
        """Note why an entry that was tried again stays aside."""
        parameters = {"id": entry_id, "cause": cause.encode(errors="backslashreplace").decode()}
        await self._thread.submit("set_aside", "refuse", lambda db: db.execute(REFUSE, parameters).rowcount)

    async def drop(self, entry_ids: Sequence[int]) -> None:
        """Forget these entries."""
        ids = orjson.dumps(list(entry_ids))
        await self._thread.submit("set_aside", "drop", lambda db: db.execute(DROP, {"ids": ids}).rowcount)

    async def counts(self) -> dict[str, int]:
        """How many entries there are, by kind."""

        def run(connection: sqlite3.Connection) -> dict[str, int]:
            return {_text(kind): count for kind, count in connection.execute(COUNTS)}

        return await self._thread.submit("set_aside", "counts", run, is_read=True)

    def _make_room(self, connection: sqlite3.Connection) -> int:
        """On the thread; how many entries had to go."""
        entries, size = connection.execute(SIZE).fetchone()
        if entries <= self._most_entries and size <= self._most_bytes:
            return 0
        kept = {"entries": int(self._most_entries * ROOM), "bytes": int(self._most_bytes * ROOM)}
        return connection.execute(DROP_OLDEST, kept).rowcount


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


# ---- the command, which works beside a daemon


class Entry(NamedTuple):
    """What can be shown of an entry. `at_ms`: since the epoch; `size`: bytes."""

    entry_id: int
    kind: str
    at_ms: int
    size: int
    is_wanted: bool  # the daemon is to try it again
    cause: str


@contextmanager
def _opened(data_dir: str, ids: UserIds) -> Iterator[sqlite3.Connection]:
    path = database_path(data_dir)
    prepare(path, ids=ids)
    try:
        with closing(open_connection(path, synchronous="NORMAL")) as connection:
            yield connection
    except sqlite3.Error as error:
        raise StartError(f"cannot use {path}: {error}") from error


def entries(data_dir: str, ids: UserIds = INTEGERS) -> Iterator[Entry]:
    """What is set aside, the oldest first. Blocks. Raises StartError."""
    with _opened(data_dir, ids) as connection:
        last_id = MIN_INT64
        while rows := connection.execute(LIST, (last_id, LISTED_AT_ONCE)).fetchall():
            for entry_id, kind, at_ms, size, is_wanted, cause in rows:
                yield Entry(entry_id, _text(kind), at_ms, size, bool(is_wanted), _text(cause))
            last_id = rows[-1][0]


def want(data_dir: str, entry_ids: Sequence[int] | None, ids: UserIds = INTEGERS) -> int:
    """Have a daemon, running or the next one, try these again (None: all); how many. Blocks. Raises StartError."""
    return _change(data_dir, ids, entry_ids, (WANT, WANT_ALL))


def drop(data_dir: str, entry_ids: Sequence[int] | None, ids: UserIds = INTEGERS) -> int:
    """Forget these (None: all); how many. Blocks. Raises StartError."""
    return _change(data_dir, ids, entry_ids, (DROP, DROP_ALL))


def _change(data_dir: str, ids: UserIds, entry_ids: Sequence[int] | None, statements: tuple[str, str]) -> int:
    """All of them or, when one is unknown, none."""
    some, everything = statements
    with _opened(data_dir, ids) as connection, transaction(connection):
        if entry_ids is None:
            return connection.execute(everything).rowcount
        wanted = {"ids": orjson.dumps(list(entry_ids))}
        unknown = set(entry_ids).difference(row[0] for row in connection.execute(KNOWN, wanted))
        if unknown:
            raise StartError(f"not set aside: {', '.join(map(str, sorted(unknown)))}; nothing was done")
        return connection.execute(some, wanted).rowcount
