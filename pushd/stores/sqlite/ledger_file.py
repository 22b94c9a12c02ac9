"""The ledger's place in the file: changes go to disk together, notices are found by id, their bodies by seq."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from pushd.batched import batched
from pushd.errors import StartError, StoreError
from pushd.ledger._changes import LOG_BYTES, has_changes, renumber, take_changes
from pushd.ledger._cold import PatchedPart, cool, forget_patches
from pushd.ledger._ledger import Ledger
from pushd.ledger.clients import ClientFacts, Clients
from pushd.ledger.labels import Labels
from pushd.ledger.users import Users
from pushd.model import Notice
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.failures import translated
from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, Run
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.stores.sqlite.ledger_load import PART, UNBOUNDED, Parts, load
from pushd.stores.sqlite.recent import Recent
from pushd.user_ids import INTEGERS, UserIds

log = structlog.get_logger("pushd.stores.sqlite")

STORE = "ledger"

FLUSH_BYTES = 1024 * 1024  # of one transaction, about: what is appended meanwhile waits for a few ms at most

# Receipts outside dense blocks are numbered with 32 bits, 4096 to a page. A start that finds half of the numbers used
# gives them out anew, in one transaction.
MOST_PAGES = 1 << 19
EVERYTHING = 1 << 40  # bytes
ROWS_AT_ONCE = 500  # of users, of names and of clients in one transaction: a millisecond
COOL_BYTES = 16 * 1024 * 1024  # become free at once, at most: milliseconds of the loop's time

RECENT_SEQS = 50_000  # and as many older ones
RECENT_BODIES_BYTES = 8 * 1024 * 1024  # and as much of older ones
BODIES_BYTES = 4 * 1024 * 1024  # of one read

CHANGE = "INSERT OR REPLACE INTO change (flush, body) VALUES (?, ?)"
STORE_PART = "INSERT OR REPLACE INTO block (key, body) VALUES (?, ?)"
DROP_PART = "DELETE FROM block WHERE key = ?"
DROP_CHANGES = "DELETE FROM change WHERE flush BETWEEN 0 AND ?"
NUMBERS = "INSERT OR REPLACE INTO user_number (number, id) VALUES (?, ?)"
IDENTITIES = "INSERT OR REPLACE INTO identity (user, from_seq, name, role) VALUES (?, ?, ?, ?)"
CLIENTS = "INSERT OR REPLACE INTO client VALUES (?, ?, ?, ?, ?, ?, ?)"
LABELS = "INSERT OR REPLACE INTO label VALUES (?, ?, ?, ?, ?, ?, ?)"

LAST_PAGE = "SELECT max(key) >> 5 FROM block WHERE key >> 3 & 3 = 2"
SEQS_OF = "SELECT message_id, seq FROM notice WHERE message_id IN ({})"
BODIES = "SELECT seq, CAST(body AS BLOB) FROM notice WHERE seq IN ({}) ORDER BY seq"
# As bytes: what is no UTF-8 would fail for all.
MESSAGE_IDS = "SELECT seq, CAST(message_id AS BLOB) FROM notice WHERE seq IN ({}) AND typeof(message_id) = 'text'"
EXPIRIES = "SELECT seq, expires_ms FROM notice WHERE seq IN ({}) AND typeof(expires_ms) = 'integer'"
TAGS = "SELECT seq, CAST(tag AS BLOB) FROM notice_tag WHERE seq IN ({}) ORDER BY seq, place"
REPLACED = """
SELECT CAST(message_id AS BLOB), at_ms FROM notice_version WHERE message_id IN ({}) ORDER BY message_id, version
"""
CLIENT_ROWS = f"""
SELECT number, {", ".join(f"CAST({text} AS BLOB)" for text in ClientFacts._fields)} FROM client WHERE number IN ({{}})
"""  # noqa: S608 - constants only

_NEVER = (UnicodeEncodeError, OverflowError, sqlite3.IntegrityError, sqlite3.ProgrammingError)

Read = Callable[[str, str, Run], Awaitable[Any]]  # readers.Readers.read


class Flush(NamedTuple):
    """What one transaction writes; the same again when it failed."""

    change: tuple[int, bytes] | None
    parts: list[tuple[int, bytes | PatchedPart | None]]  # None: drop it
    floor: int  # changes before are no longer needed
    rows: Sequence[tuple[str, Sequence[Sequence[Any]]]]  # statements, each with its rows

    def write(self, connection: sqlite3.Connection) -> None:
        """All or nothing. Raises sqlite3.Error."""
        with transaction(connection):
            for statement, rows in self.rows:
                _insert(connection, statement, rows)
            for key, body in self.parts:
                if body is None:
                    connection.execute(DROP_PART, (key,))
                elif isinstance(body, PatchedPart):
                    connection.execute(STORE_PART, (key, body.made(part_of(connection, key))))
                else:
                    connection.execute(STORE_PART, (key, body))
            if self.change is not None:
                connection.execute(CHANGE, self.change)
            if self.floor > 0:
                connection.execute(DROP_CHANGES, (self.floor - 1,))


class LedgerFile:
    """A ledger, what its numbers stand for, and the database behind `thread` that has all of it.

    Change these on the loop only, then `commit`. `has_records`: push records are kept here, else notices are HIDDEN
    from the start. `read` runs look-ups in other threads: they find what is committed. With more than `memory_bytes`
    the ledger's oldest blocks become cold.
    """

    def __init__(
        self,
        thread: SqliteThread,
        read: Read,
        *,
        max_waiting: int,
        has_records: bool = True,
        memory_bytes: int = UNBOUNDED,
        ids: UserIds = INTEGERS,
    ) -> None:
        self.ledger = Ledger(max_waiting)
        self.memory_bytes = memory_bytes
        self.users = Users(ids)
        self.clients = Clients(self._client_rows)
        self.labels = Labels()
        self.has_records = has_records
        self.thread = thread
        self.recent_seqs: Recent[str, int] = Recent(RECENT_SEQS)
        # Of ids that were used again, by the seq under which their receipts stand: the newest notice that is not
        # settled, and the one that says what waits.
        self.again: dict[int, int] = {}
        self.text_seqs: dict[int, int] = {}
        self.edits = 0  # of notices: what was read of a body before one may be another now
        self.has_versions = True  # there may be notices that said something else before
        self.on_edited: list[Callable[[int, Notice], None]] = []
        self._recent_bodies: Recent[int, bytes] = Recent(RECENT_BODIES_BYTES, len)
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[None] | None = None  # of those who wait for a flush that has not begun
        self._flushing: asyncio.Task[None] | None = None
        self._step = min(memory_bytes // 16, COOL_BYTES)
        self._cool_above = memory_bytes
        self._failed: Flush | None = None  # to be written before anything newer is taken

    # ---- changes

    async def commit(self) -> None:
        """Return once all that was changed before the call is on disk: it outlives the process, and a power cut from
        the next journal append or checkpoint on. Those who wait at the same time share one transaction.

        Raises StoreError. What could not be written is kept, and written first by the next call.
        """
        if self._next is None:
            self._next = self._loop.create_future()
        if self._flushing is None:  # there may be some who wait for one that was cancelled
            self._flushing = self._loop.create_task(self._flush_for_all())
        await asyncio.shield(self._next)

    async def _flush_for_all(self) -> None:
        """Flush for those who wait by now, and once more for those who came meanwhile."""
        try:
            while self._next is not None:
                waiting, self._next = self._next, None
                waiting.add_done_callback(_look_at)
                try:
                    await self._flush()
                except BaseException as error:
                    waiting.set_exception(translated(STORE, error) if not isinstance(error, StoreError) else error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    waiting.set_result(None)
        finally:
            self._flushing = None

    async def _flush(self) -> None:
        if self._failed is not None:
            await self._write(self._failed)
        while max(self.users.untaken, self.clients.untaken) > ROWS_AT_ONCE:
            await self._write(Flush(None, [], 0, self._rows_of(ROWS_AT_ONCE)))  # before the receipts that name them
        is_more = True
        while is_more and (taken := self._take(LOG_BYTES, FLUSH_BYTES)) is not None:
            is_more = has_changes(self.ledger)  # no more is taken than one transaction should have
            await self._write(taken)

    async def _write(self, flush: Flush) -> None:
        self._failed = flush
        await self.thread.submit(STORE, "flush", flush.write)
        self._failed = None
        forget_patches(self.ledger)
        self.cool()

    def cool(self) -> None:
        """Come down well below the bound. Where that cannot be, it is tried again once there is as much more."""
        before = self.ledger.memory
        if before > self._cool_above:
            left = cool(self.ledger, self.memory_bytes - self._step)
            self._cool_above = left + self._step if left == before else self.memory_bytes

    @property
    def is_written(self) -> bool:
        """Whether nothing that was taken is still to be written."""
        return self._failed is None

    def renumber(self) -> None:
        """Behind the start: if many numbers of rows are used, these begin anew with what is written next."""
        if renumber(self.ledger, MOST_PAGES):
            self._failed = self._take(0, EVERYTHING)

    def _take(self, log_bytes: int, take_bytes: int) -> Flush | None:
        """What has changed since the last time, None if nothing."""
        memory = self.memory_bytes - self._step if self.ledger.memory > self._cool_above else UNBOUNDED
        number, change, parts, floor = take_changes(self.ledger, log_bytes, take_bytes, memory)
        rows = self._rows_of(EVERYTHING)
        if not (number or rows):
            return None
        return Flush((number, change) if change else None, parts, floor, rows)

    def _rows_of(self, most: int) -> list[tuple[str, Sequence[Sequence[Any]]]]:
        """Users, names, labels and clients that are new, with the statements that store them."""
        numbers, identities = self.users.taken(most)
        given: tuple[tuple[str, Sequence[Sequence[Any]]], ...] = (
            (NUMBERS, numbers),
            (IDENTITIES, identities),
            (LABELS, self.labels.taken()),
            (CLIENTS, self.clients.taken(most)),
        )
        return [(statement, values) for statement, values in given if values]

    async def aclose(self) -> None:
        """Write what has changed and is not written yet. What the disk refuses is logged, and lost."""
        try:
            await self.commit()
        except StoreError as error:
            log.error("the last changes of the ledger cannot be written", error=str(error))

    # ---- look-ups

    async def seqs_of(self, message_ids: Collection[str]) -> dict[str, int]:
        """The seq of each of these notices; of an id that was used again the first; unknown ones are absent.

        Any text will do. For recent ones a look into a dict, for others a read of the database.
        """
        found: dict[str, int] = {}
        wanted: list[str] = []
        for message_id in message_ids:
            seq = self.recent_seqs.get(message_id)
            if seq is not None:
                found[message_id] = seq
            elif _is_text(message_id):
                wanted.append(message_id)
        for part in batched(wanted, CHUNK_ROWS):
            for message_id, seq in await self._rows("seqs_of", SEQS_OF, part):
                self.recent_seqs.put(message_id, seq)
                found[message_id] = seq
        return {message_id: seq for message_id, seq in found.items() if self.ledger.notice_state(seq)}

    async def bodies(self, seqs: Collection[int]) -> dict[int, bytes]:
        """The Notice of each of these as JSON, as it is stored, in any order; those without a row are absent."""
        found: dict[int, bytes] = {}
        edits = self.edits
        wanted: list[int] = []
        for seq in seqs:
            body = self._recent_bodies.get(seq)
            if body is None:
                wanted.append(seq)
            else:
                found[seq] = body
        wanted.sort()
        while wanted:
            part = wanted[:CHUNK_ROWS]
            rows, is_all = await self._read(STORE, "bodies", partial(_bodies_within, part))
            for seq, body in rows:
                if edits == self.edits:
                    self._recent_bodies.put(seq, body)
                found[seq] = body
            done = part[-1] if is_all else rows[-1][0]
            wanted = [seq for seq in wanted if seq > done]
        return found

    def edited(self, seq: int, notice: Notice) -> None:
        """The row of this notice says something else now."""
        self.edits += 1
        self.has_versions = True
        self._recent_bodies.drop(seq)
        for tell in self.on_edited:
            tell(seq, notice)

    async def replaced(self, message_ids: Collection[str]) -> dict[str, list[int]]:
        """When the versions of these that are not in force any more were replaced, the first one first."""
        found: dict[str, list[int]] = {}
        for part in batched(message_ids if self.has_versions else (), CHUNK_ROWS):
            for message_id, at_ms in await self._rows("replaced", REPLACED, part):
                found.setdefault(message_id.decode("utf-8", "replace"), []).append(at_ms)
        return found

    async def message_ids(self, seqs: Collection[int]) -> dict[int, str]:
        """The message_id of each of these; those without a row, and those that repeat another's id, are absent."""
        found: dict[int, str] = {}
        for part in batched(seqs, CHUNK_ROWS):
            rows = await self._rows("message_ids", MESSAGE_IDS, part)
            found.update((seq, name.decode("utf-8", "replace")) for seq, name in rows)
        return found

    async def expiries(self, seqs: Collection[int]) -> dict[int, int]:
        """When each of these expires, ms; those that never do are absent."""
        return {
            seq: at for part in batched(seqs, CHUNK_ROWS) for seq, at in await self._rows("expiries", EXPIRIES, part)
        }

    async def tags(self, seqs: Collection[int]) -> dict[int, list[str]]:
        """The tags of each of these; those without are absent."""
        found: dict[int, list[str]] = {}
        for part in batched(seqs, CHUNK_ROWS):
            for seq, tag in await self._rows("tags", TAGS, part):
                found.setdefault(seq, []).append(tag.decode("utf-8", "replace"))
        return found

    async def _client_rows(self, numbers: Collection[int]) -> list[tuple[Any, ...]]:
        rows = [row for part in batched(numbers, CHUNK_ROWS) for row in await self._rows("clients", CLIENT_ROWS, part)]
        return [(number, *(text.decode("utf-8", "replace") for text in texts)) for number, *texts in rows]

    async def _rows(self, name: str, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = await self._read(
            STORE, name, lambda db: db.execute(*_asked(statement, values)).fetchall()
        )
        return found


@asynccontextmanager
async def open_ledger(
    path: Path,
    thread: SqliteThread,
    read: Read,
    *,
    max_waiting: int,
    has_records: bool = True,
    memory_bytes: int = UNBOUNDED,
    ids: UserIds = INTEGERS,
) -> AsyncIterator[LedgerFile]:
    """The ledger in the database at `path`, which `thread` writes to.

    What is changed by the end of the block is written. Loading 10 million receipts takes the loop some tenths of a
    second. Raises StartError.
    """
    file = LedgerFile(
        thread, read, max_waiting=max_waiting, has_records=has_records, memory_bytes=memory_bytes, ids=ids
    )
    try:
        with closing(open_connection(path, synchronous="NORMAL", checkpoint_pages=0)) as connection:
            connection.text_factory = _text
            # What is numbered anew is written as a whole, so all of it must be there.
            has_many = (connection.execute(LAST_PAGE).fetchone()[0] or 0) >= MOST_PAGES
            most = UNBOUNDED if has_many else memory_bytes
            load(connection, Parts(file.ledger, file.users, file.clients, file.labels, has_records, most))
            file.renumber()
    except (sqlite3.Error, MemoryError) as error:
        raise StartError(f"cannot use {path}: {error}") from error
    if file.is_written:
        file.cool()
    try:
        yield file
    finally:
        await file.aclose()


def part_of(connection: sqlite3.Connection, key: int) -> bytes | None:
    """The body of a stored part, if there is one."""
    row = connection.execute(PART, (key,)).fetchone()
    return row[0] if row is not None and isinstance(row[0], bytes) else None


def _text(stored: bytes) -> str:
    """A text of SQLite's, which takes from others what is no UTF-8."""
    return stored.decode(errors="replace")


def _look_at(done: asyncio.Future[None]) -> None:
    """Whoever waited may have been cancelled: an error is no surprise to the loop."""
    if not done.cancelled():
        done.exception()


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    """Insert these; a row that SQLite can never have must not keep all others from the disk."""
    try:
        connection.executemany(statement, rows)
    except _NEVER:
        for row in rows:
            try:
                connection.execute(statement, [_mended(value) for value in row])
            except _NEVER as error:
                log.error("a row of the ledger cannot be stored", row=repr(row), error=str(error))


def _mended(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _is_text(message_id: str) -> bool:
    try:
        message_id.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: SQLite cannot have it
        return False
    return True


def _asked(statement: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """A statement for some values; few sizes, so that few have to be compiled: the last one fills up."""
    size = 1 << (len(values) - 1).bit_length()
    return statement.format(", ".join("?" * size)), [*values, *repeat(values[-1], size - len(values))]


def _bodies_within(seqs: Sequence[int], connection: sqlite3.Connection) -> tuple[list[tuple[int, bytes]], bool]:
    """Rows of BODIES until they are large, and whether these are all of them."""
    rows: list[tuple[int, bytes]] = []
    room = BODIES_BYTES
    with closing(connection.execute(*_asked(BODIES, seqs))) as cursor:
        for seq, body in cursor:
            rows.append((seq, body))
            room -= len(body)
            if room <= 0:
                return rows, False
    return rows, True
