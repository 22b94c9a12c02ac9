"""A simulated `pushd.db` for a ledger: what is written, loaded, and seen by the plain reader."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from pushd.ledger._changes import has_changes, load_part, ready, replay, take_changes
from pushd.ledger._cold import PatchedPart, cool, forget_patches, newest
from pushd.ledger._ledger import Ledger
from pushd.ledger._lists import ReceiptQuery
from pushd.ledger.users import Users
from pushd.records import ReceiptSort
from tests.ledger_rows import LedgerRows, time_of

START_MS = 1_700_000_000_000
MAX_WAITING = 3
KNOWN, SETTLED, DENSE, HIDDEN, SUCCESS = 0x01, 0x02, 0x04, 0x08, 0x40
PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED = range(1, 7)
WAITING, ONLINE, BY_MAILBOX = 0x10, 0x40, 0x80
PAGE = 4096
CHUNK_KIND, DENSE_KIND, PAGE_KIND = range(3)
DAYS_MS = 86_400_000

Facts = dict[str, Any]
Taken = tuple[int, bytes, list[tuple[int, bytes | PatchedPart | None]], int]
UNBOUNDED = 1 << 62


class File:
    """The tables `block` and `change`, and what is loaded from `notice`: seq -> (accepted_ms, label, state)."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.changes: dict[int, bytes] = {}
        self.notices: dict[int, tuple[int, int]] = {}
        self.user_count = 0

    def write(self, taken: Taken) -> None:
        flush, row, parts, floor = taken
        for key, blob in parts:
            if blob is None:
                self.parts.pop(key, None)
            elif isinstance(blob, PatchedPart):
                self.parts[key] = blob.made(self.parts.get(key))
            else:
                self.parts[key] = blob
        if row:
            self.changes[flush] = row
        self.changes = {number: row for number, row in self.changes.items() if number >= floor}

    def take(self, ledger: Ledger, **limits: int) -> Taken:
        """Write one flush."""
        taken = take_changes(ledger, **limits)
        self.user_count = ledger.user_count
        self.notices = {seq: at for seq, at in self.notices.items() if ledger.notice_state(seq)}
        self.write(taken)
        forget_patches(ledger)
        cool(ledger, limits.get("memory", UNBOUNDED))
        return taken

    def take_all(self, ledger: Ledger, **limits: int) -> None:
        self.take(ledger, **limits)
        while has_changes(ledger):
            self.take(ledger, **limits)

    def copy(self) -> File:
        made = File()
        made.parts, made.changes, made.notices = dict(self.parts), dict(self.changes), dict(self.notices)
        made.user_count = self.user_count
        return made

    def load(self, damaged: list[int] | None = None, memory: int = UNBOUNDED) -> Ledger:
        """As the store does it. Without `damaged`, where what cannot be used is noted, it must all be of use."""
        ledger = Ledger(MAX_WAITING)
        ledger.add_users(self.user_count)
        for key in sorted(self.parts, key=lambda key: (key >> 3 & 3, key)):
            if key >> 3 & 3 != CHUNK_KIND:
                self.add_tail(ledger)
            is_used = used(load_part, ledger, key, self.parts[key], damaged)
            if key >> 3 & 3 == CHUNK_KIND and not is_used:
                self.add_tail(ledger, range((key >> 5) * PAGE, (key >> 5) * PAGE + PAGE))
        self.add_tail(ledger)
        cool(ledger, memory)
        for flush in sorted(self.changes):
            used(replay, ledger, flush, self.changes[flush], damaged)
        ready(ledger)
        return ledger

    def add_tail(self, ledger: Ledger, of: range | None = None) -> None:
        for seq, (accepted_ms, label) in sorted(self.notices.items()):
            if not ledger.notice_state(seq) and (of is None or seq in of):
                ledger.add_notice(seq, accepted_ms, label)

    def rows(self) -> LedgerRows:
        """What the plain reader says of it."""
        with closing(sqlite3.connect(":memory:")) as database:
            for table in (
                "block (key INTEGER PRIMARY KEY, body)",
                "change (flush INTEGER PRIMARY KEY, body)",
                "notice (seq INTEGER PRIMARY KEY, message_id, accepted_ms, body)",
                "user_number (number, id)",
                "identity (user, from_seq, name, role)",
                "client (number, connection_id, client_ip, user_agent, device_type, platform, browser)",
            ):
                database.execute(f"CREATE TABLE {table}")
            database.executemany("INSERT INTO block VALUES (?, ?)", self.parts.items())
            database.executemany("INSERT INTO change VALUES (?, ?)", self.changes.items())
            database.executemany(
                "INSERT INTO notice VALUES (?, ?, ?, ?)",
                [(seq, f"m{seq}", at_ms, "{}") for seq, (at_ms, _) in self.notices.items()],
            )
            return LedgerRows(database)


def used(
    use: Callable[[Ledger, int, bytes], None], ledger: Ledger, key: int, blob: bytes, damaged: list[int] | None
) -> bool:
    try:
        use(ledger, key, blob)
    except ValueError:
        if damaged is None:
            raise
        damaged.append(key)
        return False
    return True


def receipt(ledger: Ledger, seq: int, user: int, file: File) -> tuple[int, ...] | None:
    """As Ledger.receipt, of whatever is cold too."""
    try:
        return ledger.receipt(seq, user)
    except LookupError:
        query = ReceiptQuery(ledger, Users(), seq=seq, user=user, read=file.parts.get)
        ((_, _, *found),) = query.page(ReceiptSort.CREATED_AT, 0, 9, is_descending=False)
        return tuple(found)


def facts(ledger: Ledger, seqs: Iterable[int], file: File | None = None) -> Facts:
    """All that can be asked of a ledger, with what is in the file."""
    file = file or File()
    users = range(ledger.user_count)
    few = users[:12]
    known = [seq for seq in seqs if ledger.notice_state(seq)]
    return {
        "notices": [
            (seq, ledger.notice_state(seq) & ~DENSE, ledger.created_ms(seq), ledger.label(seq)) for seq in known
        ],
        "unsettled": ledger.unsettled(),
        "counts": [{state: n for state, n in ledger.counts(seq).items() if n} for seq in known],
        "receipts": [sorted(ledger.receipts(seq)) for seq in known],
        "each": [[receipt(ledger, seq, user, file) for user in few] for seq in known],
        "has_waiting": [ledger.has_waiting(seq) for seq in known],
        "waiting_count": [ledger.waiting_count(user) for user in users],
        "waiting": [ledger.waiting(user) for user in few],
        "unread": [ledger.unread(user) for user in users],
        "summary": [ledger.summary(user) for user in few],
        "newest": [newest(ledger, user, 5, file.parts.get) for user in few],
    }


def seen_by_reader(file: File) -> dict[tuple[int, int], tuple[int, ...]]:
    """What the plain reader says of each listed receipt, as `Ledger.receipt` has it."""
    rows = file.rows()
    return {
        (seq, user): (state, *(time_of(rows.notices[seq].created_ms, value) or 0 for value in times), client)
        for seq, user, state, times, client in rows.receipts
        if state & 0x0F and rows.is_listed(seq)
    }
