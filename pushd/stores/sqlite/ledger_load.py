"""Reads the ledger out of the database, at the start. What is damaged costs itself, never the start."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import structlog

from pushd.ledger._changes import load_part, ready, replay
from pushd.ledger._cold import cool
from pushd.ledger._ledger import Ledger
from pushd.ledger.clients import Clients
from pushd.ledger.labels import UNKNOWN, Labels
from pushd.ledger.users import Users
from pushd.model import Notice
from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.statements import HIGHEST_OWN

log = structlog.get_logger("pushd.stores.sqlite")

CHUNK = 4096  # notices of one (_ledger.pxd, PAGE)
KNOWN, SETTLED, HIDDEN, STATUS = 0x01, 0x02, 0x08, 0xC0  # _ledger.pxd, NoticeState
CHUNKS, PAGES = 0, 2  # kinds of parts
UNBOUNDED = 1 << 62
COOL_BYTES = 1 << 20  # above the bound for a moment
VECTOR_BYTES = 4 * CHUNK  # what the rows of a page take in the end, beside it

# A notice that was appended behind others with higher numbers may have been unknown to the last flush, too. That is one
# of a group that had to be appended one by one: far fewer came meanwhile.
LOOK_BACK = 65_536
# Who writes a number so far behind all others is another program.
FAR = 1 << 20

KEYS = "SELECT key FROM block WHERE key >= 0"
PART = "SELECT body FROM block WHERE key = ?"
CHANGES = "SELECT flush, body FROM change WHERE flush >= 0 ORDER BY flush"
SEQS = f"SELECT seq FROM notice WHERE seq > ? AND seq < {HIGHEST_OWN} ORDER BY seq"  # noqa: S608 - a constant
CHUNK_SEQS = "SELECT seq FROM notice WHERE seq BETWEEN ? AND ? ORDER BY seq"
NOTICE = "SELECT message_id IS NULL, accepted_ms, CAST(body AS BLOB) FROM notice WHERE seq = ?"
NUMBERS = "SELECT number, id FROM user_number ORDER BY number"
IDENTITIES = "SELECT user, from_seq, name, role FROM identity"
LABELS = "SELECT number, type, sender_id, sender_name, target, priority, need_confirm FROM label"
CLIENTS = "SELECT max(number) FROM client WHERE number BETWEEN 0 AND 4294967295"

# What cannot be read goes out of the way of what will get its number; the operator can look at it.
PUT_AWAY = (
    "UPDATE OR REPLACE block SET key = -1 - key WHERE key = ?",
    "UPDATE OR REPLACE change SET flush = -1 - flush WHERE flush = ?",
)

_notice = msgspec.json.Decoder(Notice)


class Parts(NamedTuple):
    """What is loaded into."""

    ledger: Ledger
    users: Users
    clients: Clients
    labels: Labels
    has_records: bool  # push records are kept here
    memory_bytes: int = UNBOUNDED  # with more the oldest blocks are left cold


def load(connection: sqlite3.Connection, parts: Parts) -> int:
    """Fill `parts` from what is stored; how many rows could not be used.

    10 million receipts take a few tenths of a second. Raises sqlite3.Error.
    """
    return _Load(connection, parts).run()


def kind_of(key: int) -> int:
    """Of what a row of `block` is a part."""
    return key >> 3 & 3


class _Load:
    def __init__(self, connection: sqlite3.Connection, parts: Parts) -> None:
        self._connection = connection
        self._parts = parts
        self._ledger = parts.ledger
        self._causes: Counter[str] = Counter()
        self._damaged_keys: list[int] = []
        self._damaged_flushes: list[int] = []
        self._added: set[int] = set()  # of notices that were taken from their rows

    def run(self) -> int:
        self._load_numbers()
        self._load_parts()
        self._replay()
        ready(self._ledger)
        self._put_away()
        for cause, count in self._causes.items():
            log.error("stored data cannot be read and was left aside", cause=cause, rows=count)
        return self._causes.total()

    def _rows(self, statement: str, *values: int) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    def _load_numbers(self) -> None:
        parts = self._parts
        self._count("labels", parts.labels.load(self._rows(LABELS)))
        self._count("users", parts.users.load(self._rows(NUMBERS), self._rows(IDENTITIES)))
        self._ledger.add_users(len(parts.users))
        ((highest,),) = self._rows(CLIENTS)
        parts.clients.load(highest or 0)

    def _count(self, cause: str, rows: int) -> None:
        if rows:
            self._causes[cause] += rows

    def _load_parts(self) -> None:
        """Chunks first, then the notices that are in none of them, then the states of blocks, and their columns: the
        oldest leave memory again before there is too much of them."""
        keys = sorted((key for (key,) in self._rows(KEYS)), key=lambda key: (kind_of(key), key))
        for key in keys:
            if kind_of(key) == CHUNKS and not self._load_part(key):
                self._restore_chunk(key >> 5)
        self._add_unknown()
        columns = []
        most = self._parts.memory_bytes
        for key in keys:
            if key & 7:
                columns.append(key)
            elif kind_of(key) != CHUNKS:
                self._load_part(key)
                most -= VECTOR_BYTES if kind_of(key) == PAGES else 0
        most, above = max(0, most), most
        for key in columns:
            self._load_part(key)
            if self._ledger.memory > above:
                above = max(most, cool(self._ledger, most - most // 16) + COOL_BYTES)
        cool(self._ledger, most)

    def _load_part(self, key: int) -> bool:
        (body,) = self._connection.execute(PART, (key,)).fetchone()
        is_used = self._is_used(f"block of kind {kind_of(key)}", _load_part, self._ledger, key, body)
        if not is_used:
            self._damaged_keys.append(key)
        return is_used

    def _is_used(self, cause: str, use: Callable[..., object], *values: Any) -> bool:
        for is_last in (False, True):  # a failure that passes must cost nothing: what is damaged is put away for good
            try:
                use(*values)
            except (ValueError, OverflowError, IndexError) as error:
                if is_last:
                    self._count(f"{cause}: {error}", 1)
            else:
                return True
        return False

    def _restore_chunk(self, chunk: int) -> None:
        """The notices of a damaged chunk from their rows. They are old, and must not go out again."""
        if not 0 <= chunk < HIGHEST_OWN // CHUNK:
            return
        first = chunk * CHUNK
        for (seq,) in self._rows(CHUNK_SEQS, max(1, first), first + CHUNK - 1):
            self._add_notice(seq, KNOWN | SETTLED)

    def _replay(self) -> None:
        for flush, body in self._connection.execute(CHANGES):
            if not self._is_used("change", self._replay_one, flush, body):
                self._damaged_flushes.append(flush)

    def _replay_one(self, flush: int, body: Any) -> None:
        replay(self._ledger, flush, _blob(body), self._added)

    def _add_unknown(self) -> None:
        """Notices behind the last chunk that is stored; change rows know no more of them than their states."""
        ledger = self._ledger
        behind = max(0, ledger.last_seq - LOOK_BACK)
        for (seq,) in self._connection.execute(SEQS, (behind,)):
            if ledger.notice_state(seq):
                continue
            if ledger.last_seq and seq > ledger.last_seq + FAR:
                self._count("notice: its seq is far behind all others", 1)
            else:
                self._add_notice(seq, KNOWN)

    def _add_notice(self, seq: int, state: int) -> None:
        parts = self._parts
        is_repeat, accepted_ms, body = self._connection.execute(NOTICE, (seq,)).fetchone()
        hidden = HIDDEN if is_repeat or not parts.has_records else 0
        try:
            label = parts.labels.number(_notice.decode(body))
        except Exception:  # the journal tells of it, where it is not settled
            label = UNKNOWN
        at_ms = accepted_ms if isinstance(accepted_ms, int) and 0 <= accepted_ms < 1 << 53 else 0
        if self._is_used("notice", parts.ledger.add_notice, seq, at_ms, label, state | hidden):
            self._added.add(seq)

    def _put_away(self) -> None:
        if self._damaged_keys or self._damaged_flushes:
            with transaction(self._connection):
                for statement, numbers in zip(PUT_AWAY, (self._damaged_keys, self._damaged_flushes), strict=True):
                    self._connection.executemany(statement, [(number,) for number in numbers])


def _load_part(ledger: Ledger, key: int, body: Any) -> None:
    load_part(ledger, key, _blob(body))


def _blob(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("no blob")
    return value
