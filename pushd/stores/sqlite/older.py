"""What a `pushd.db` of version 1 to 8 holds, notice by notice in order of acceptance.

These had a row for each receipt, a journal beside the push records, and a table for what waits in mailboxes. Columns
and tables that a version has not yet are read as empty. What cannot be read, whoever wrote it, is left out and counted.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pushd.model import MailboxItem, Notice, Priority, Target, TargetKind, UserId, recipients_text
from pushd.values import MAX_MS

# A number of ours is below; what another program put at the end of all numbers is not counted on from.
HIGHEST_SEQ = 1 << 50
CHUNK_ROWS = 10_000
PROGRESS_STEPS = 1_000_000  # of SQLite's virtual machine: some 20 ms
CACHE_KIB = 32_768

_JOURNALED = """
CREATE TABLE work.journaled (
  seq INTEGER PRIMARY KEY, at, accepted, is_settled, message_id, record INTEGER NOT NULL DEFAULT 0
)
"""
# `at`: when it was accepted, as the new file has it. The others: places in the tables of the old file, 0 for none.
_ENTRY = """
CREATE TABLE work.entry (
  at INTEGER NOT NULL, place INTEGER NOT NULL, journal INTEGER NOT NULL, record INTEGER NOT NULL, box INTEGER NOT NULL,
  is_repeat INTEGER NOT NULL, PRIMARY KEY (at, place, journal, record, box)
) WITHOUT ROWID
"""
_JOURNAL = """
SELECT seq, iif(typeof(accepted_ms) = 'integer', accepted_ms, NULL), settled <> 0, CAST(body AS BLOB)
  FROM journal
 ORDER BY seq
"""

# The journal entry of a push record: the first with its id and its time, unsettled ones before others.
_FIND_RECORDS = """
UPDATE work.journaled AS entry
   SET record = ifnull((SELECT rowid FROM push_records
                         WHERE message_id = entry.message_id AND created_at = entry.accepted), 0)
 WHERE message_id IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM work.journaled AS other
                    WHERE other.message_id = entry.message_id AND other.accepted = entry.accepted
                      AND (other.is_settled, other.seq) < (entry.is_settled, entry.seq))
"""
_TIME = "iif(typeof({0}) = 'integer', min(max({0}, 0), :now_ms), NULL)"
_BOX = "ifnull((SELECT notice_id FROM mailbox_notice WHERE message_key = {} AND notice_id > 0), 0)"
_ADD_RECORDS = f"""
INSERT INTO work.entry
SELECT coalesce(entry.at, {_TIME.format("created_at")}, {_TIME.format("push_time")}) AS moment,
       ifnull(entry.seq, push_records.rowid), ifnull(entry.seq, 0), push_records.rowid,
       {_BOX.format("push_records.message_id")}, 0
  FROM push_records
  LEFT JOIN work.journaled AS entry ON entry.record = push_records.rowid AND entry.record > 0
 WHERE typeof(push_records.message_id) = 'text' AND push_records.rowid > 0 AND moment IS NOT NULL
"""  # noqa: S608 - constants only
# Others of the same id are repeats: resent notices, and ids that were used again.
_ADD_JOURNALED = f"""
INSERT INTO work.entry
SELECT at, seq, seq, 0, iif(is_repeat, 0, {_BOX.format("message_id")}), is_repeat
  FROM (SELECT at, seq, message_id,
               EXISTS (SELECT 1 FROM push_records WHERE message_id = entry.message_id)
               OR EXISTS (SELECT 1 FROM work.journaled AS other
                           WHERE other.message_id = entry.message_id
                             AND (other.is_settled, other.seq) < (entry.is_settled, entry.seq)) AS is_repeat
          FROM work.journaled AS entry
         WHERE record = 0)
"""  # noqa: S608 - constants only
_ADD_WAITING = f"""
INSERT INTO work.entry
SELECT coalesce(nullif({_TIME.format("written")}, 0), {_TIME.format("saved_at")}) AS moment,
       last_position, 0, 0, notice_id, 0
  FROM (SELECT notice_id, last_position, saved_at,
               iif(typeof(body) = 'text' AND json_valid(body), json_extract(body, '$.ts'), NULL) AS written
          FROM mailbox_notice
         WHERE notice_id > 0 AND typeof(message_key) = 'text' AND typeof(last_position) = 'integer'
           AND NOT EXISTS (SELECT 1 FROM push_records WHERE message_id = message_key)
           AND NOT EXISTS (SELECT 1 FROM work.journaled WHERE message_id = message_key))
 WHERE moment IS NOT NULL
"""  # noqa: S608 - constants only

_ORDER = "entry.at, entry.place, entry.journal, entry.record, entry.box"  # as they lie there
_INTEGER = "iif(typeof({0}) = 'integer', {0}, 0)"
# Texts come as bytes: not all are UTF-8.
_TEXTS = (
    "message_id", "content", "message_type", "target", "target_user_ids", "target_roles", "status", "sender_name",
    "extra_data",
)  # fmt: skip
_NUMBERS = ("expires_at", "sender_id", "priority", "need_confirm")
_FIELDS = (
    *(f"CAST(push_records.{name} AS BLOB)" for name in _TEXTS),
    *(_INTEGER.format(f"push_records.{name}") for name in _NUMBERS),
)
_ENTRIES = f"""
SELECT entry.at, entry.record, entry.box, entry.is_repeat, ifnull(journaled.is_settled, 1), entry.journal,
       CAST(journal.body AS BLOB), {_INTEGER.format("box.saved_at")},
       CAST(box.message_key AS BLOB), iif(entry.record OR entry.journal, NULL, CAST(box.body AS BLOB)),
       {{recipients}}, {", ".join(_FIELDS)}
  FROM work.entry AS entry
  LEFT JOIN work.journaled AS journaled ON journaled.seq = entry.journal
  LEFT JOIN journal ON journal.seq = entry.journal
  LEFT JOIN push_records ON push_records.rowid = entry.record
  LEFT JOIN mailbox_notice AS box ON box.notice_id = entry.box
 ORDER BY {_ORDER}
"""  # noqa: S608 - constants only

# Base step and flags of a receipt's state as the ledger has them: pushd/ledger/_ledger.pxd.
_STATE = """
CASE WHEN is_received OR is_read OR is_confirmed OR received_at IS NOT NULL OR delivery_status = 'delivered' THEN 4
     WHEN delivery_status = 'expired' THEN 3 WHEN delivery_status = 'offline' THEN 2 ELSE 1 END
+ iif(is_online, 64, 0) + iif(push_channel = 'offline', 128, 0)
"""
# The least of all numbers is nobody's: it has no counterpart.
_IS_USER = "typeof(user_id) = 'integer' AND user_id > -9223372036854775808"
_WAITING = f"SELECT user_id FROM mailbox WHERE notice_id = ? AND {_IS_USER}"  # noqa: S608 - constants only
_CLIENT = ("connection_id", "client_ip", "user_agent", "device_type", "platform", "browser")
_FACTS = f"""
user_id, {_STATE}, {_INTEGER.format("received_at")},
iif(is_confirmed, 2, iif(is_read, 1, 0)), {_INTEGER.format("read_at")}, {_INTEGER.format("confirmed_at")},
{_INTEGER.format("receipt.updated_at")}, CAST(username AS BLOB), {_INTEGER.format("user_role")},
{", ".join(f"CAST({name} AS BLOB)" for name in _CLIENT)}
"""
_RECEIPTS = f"""
SELECT 0, {_FACTS} FROM admin_user_receive_records AS receipt WHERE message_id = ? AND {_IS_USER}
"""  # noqa: S608 - constants only
# Of all push records in the order of _ENTRIES: a statement for each would take longer than what it finds.
_ALL_RECEIPTS = f"""
SELECT entry.record, {_FACTS}
  FROM work.entry AS entry
 CROSS JOIN push_records ON push_records.rowid = entry.record
 CROSS JOIN admin_user_receive_records AS receipt ON receipt.message_id = push_records.message_id
 WHERE {_IS_USER}
 ORDER BY {_ORDER}
"""  # noqa: S608 - constants only

_LAST_SEQ = """
SELECT max(seq)
  FROM (SELECT seq FROM main.sqlite_sequence WHERE name = 'journal' AND typeof(seq) = 'integer' AND seq < :limit
         UNION ALL
        SELECT max(seq) FROM journal WHERE seq < :limit)
"""

COPIED = ("user", "admin_user_online_status", "alive", "outbox", "set_aside")
# Before version 8 a token could leave a role that is none.
CLEANED = {
    "user_type": "iif(typeof(user_type) = 'integer' AND user_type BETWEEN -2147483648 AND 2147483647, user_type, 0)"
}
_COPY_SEQUENCES = """
INSERT INTO new.sqlite_sequence (name, seq)
SELECT name, seq FROM main.sqlite_sequence WHERE name IN ('outbox', 'set_aside')
"""

_decode_notice = msgspec.json.Decoder(Notice).decode
_decode_item = msgspec.json.Decoder(MailboxItem).decode
_decode_ids = msgspec.json.Decoder(tuple[int, ...]).decode
_KINDS = {kind.value: kind for kind in TargetKind}
_PRIORITIES = {priority.value: priority for priority in Priority}


class Receipt(NamedTuple):
    """One recipient's row. Times in ms, 0: none known. `answer`: 1 read, 2 confirmed. Texts as they stand."""

    record: int
    user_id: UserId
    state: int
    received_ms: int
    answer: int
    read_ms: int
    confirmed_ms: int
    updated_ms: int
    name: bytes
    role: int
    connection_id: bytes
    client_ip: bytes
    user_agent: bytes
    device_type: bytes
    platform: bytes
    browser: bytes


_receipt = Receipt._make


class Entry(NamedTuple):
    """One notice. `message_id` None: it repeats an earlier one's, or has none that can be read."""

    at_ms: int
    message_id: str | None
    notice: Notice | None  # None: `body` is all there is of it
    body: bytes  # of a journal entry that cannot be decoded
    status: str  # of its push record; "" without one
    is_settled: bool
    is_hidden: bool  # it has no push record, and will not get one
    record: int  # by which `receipts` finds them
    saved_ms: int  # the newest save into a mailbox, 0 for none
    box: int  # by which `waiting` finds who waits for it; 0: nobody


class Older:
    """The database at `path`, locked against everybody else until it is closed.

    `now_ms`: no notice was accepted later; `tell(what=(done, of))` is called often. Raises sqlite3.Error.
    """

    def __init__(self, path: Path, now_ms: int, tell: Callable[..., object]) -> None:
        self.left_out: Counter[str] = Counter()
        self.now_ms = now_ms
        self._tell = tell
        self._told: dict[str, tuple[int, int]] = {}
        self._all_receipts: sqlite3.Cursor | None = None
        self._receipt_rows: list[tuple[Any, ...]] = []  # read, of which so many are done
        self._receipts_done = 0
        self._db = db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            if db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise sqlite3.OperationalError("database is locked")
            self.tables = {name for (name,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        """Unlocks the database, which is as it was."""
        self._db.close()

    def sort(self, work: Path) -> int:
        """Finds out what belongs together, and in which order it was accepted; how many notices there are.

        To be called first. `work` is an empty file for it, which the caller deletes.
        """
        db = self._db
        db.execute("ATTACH ? AS work", (str(work),))
        db.execute("PRAGMA work.journal_mode = OFF")
        db.execute("PRAGMA work.synchronous = OFF")
        db.set_progress_handler(self._tell_again, PROGRESS_STEPS)
        db.execute("BEGIN")
        db.execute(_JOURNALED)
        db.execute(_ENTRY)
        db.executemany("INSERT INTO work.journaled VALUES (?, ?, ?, ?, ?, 0)", self._journaled())
        db.execute("CREATE INDEX work.journaled_id ON journaled (message_id, is_settled, seq)")
        db.execute(_FIND_RECORDS)
        db.execute("CREATE INDEX work.journaled_record ON journaled (record) WHERE record > 0")
        self._told = {"push_records": (0, self._count("push_records"))}
        now = {"now_ms": self.now_ms}
        records = db.execute(_ADD_RECORDS, now).rowcount
        self.left_out["push records"] += self._count("push_records") - records
        self._told = {"push_records": (records, records)}
        db.execute(_ADD_JOURNALED)
        db.execute(_ADD_WAITING, now)
        db.execute("COMMIT")
        db.set_progress_handler(None, 0)
        return self._count("work.entry")

    def _tell_again(self) -> int:
        """SQLite calls this in the midst of a statement."""
        self._tell(**self._told)
        return 0  # go on

    def _journaled(self) -> Iterator[tuple[Any, ...]]:
        """Unsettled notices go out in the order of their numbers, wherever the clock was."""
        rows = self._db.execute(_JOURNAL)
        total, latest = self._count("journal"), 0
        for place, (seq, accepted, is_settled, body) in enumerate(rows):
            self._told = {"journal_entries": (place, total)}
            self._tell(**self._told)
            notice = _journaled_notice(seq, body)
            if seq < 1 or (notice is None and is_settled):
                self.left_out["journal entries"] += 1
                continue
            if not isinstance(accepted, int):
                accepted = notice.accepted_ms if notice else self.now_ms
            at = min(max(accepted, 0), self.now_ms)
            if not is_settled:
                at = latest = max(at, latest)
            yield seq, at, accepted, 1 if is_settled else 0, notice.message_id if notice else None

    def _count(self, table: str) -> int:
        count: int = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - constants only
        return count

    def receipt_count(self) -> int:
        """How many receipts there are. Costs 10 ms a million."""
        return self._count("admin_user_receive_records")

    def user_count(self) -> int:
        """About how many users receipts are for."""
        return self._count("receive_names" if "receive_names" in self.tables else "user")

    def last_seq(self) -> int:
        """The highest number that the journal ever gave out, 0 for none."""
        highest: int | None = self._db.execute(_LAST_SEQ, {"limit": HIGHEST_SEQ}).fetchone()[0]
        return max(0, highest or 0)

    def entries(self) -> Iterator[Entry]:
        """All notices, in order."""
        columns = {row[1] for row in self._db.execute("PRAGMA main.table_info(push_records)")}
        recipients = "CAST(push_records.recipients_count AS BLOB)" if "recipients_count" in columns else "NULL"
        for row in self._db.execute(_ENTRIES.format(recipients=recipients)):
            try:
                yield self._entry(row)
            except (ValueError, msgspec.MsgspecError):  # of other programs: it has no id, or nothing else
                self.left_out["notices"] += 1
                for _ in self._receipts_of(row[1]):
                    pass

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        """Raises ValueError or msgspec.MsgspecError for what cannot be read."""
        at_ms, record, box, is_repeat, is_settled, journal, body, saved_ms, key, waits, *fields = row
        notice = _journaled_notice(journal, body) if journal else None
        status = ""
        if record:
            notice = notice or self._recorded(at_ms, fields)
            status = _text(fields[7])
        elif not journal:
            notice = _waiting_notice((key or b"").decode(), at_ms, waits)
        return Entry(
            at_ms,
            None if is_repeat or notice is None else notice.message_id,
            notice,
            body or b"",
            status,
            bool(is_settled),
            bool(is_repeat or (is_settled and not record)),
            record,
            saved_ms,
            box,
        )

    def _recorded(self, at_ms: int, fields: list[Any]) -> Notice:
        """The notice of a push record. Raises UnicodeDecodeError where its id is none."""
        recipients, message_id, content, kind, target, user_ids, roles, _, sender, data, *numbers = fields
        expires_ms, sender_id, priority, need_confirm = numbers
        whom = Target(_KINDS.get(_text(target), TargetKind.CUSTOM), _ids(user_ids), _ids(roles))
        name = message_id.decode()
        words = _text(recipients)
        if words and whom.kind is TargetKind.CUSTOM and words != recipients_text(whom):
            whom = self._without_excluded(name, whom, words)
        return Notice(
            seq=0,
            message_id=name,
            content=_text(content),
            target=whom,
            accepted_ms=at_ms,
            type=_text(kind),
            data=_data(data),
            priority=_PRIORITIES.get(priority, Priority.NORMAL),
            need_confirm=need_confirm != 0,
            expires_ms=expires_ms if 0 < expires_ms <= MAX_MS else 0,
            sender_id=sender_id,
            sender_name=_text(sender),
        )

    def _without_excluded(self, message_id: str, target: Target, words: str) -> Target:
        """Push records do not name who was excluded: it is who has no receipt, if that comes to as many as were."""
        rows = self._db.execute("SELECT user_id FROM admin_user_receive_records WHERE message_id = ?", (message_id,))
        excluded = set(target.user_ids).difference(user_id for (user_id,) in rows)
        without = Target(target.kind, target.user_ids, target.roles, tuple(sorted(excluded)))
        return without if recipients_text(without) == words else target

    def recipient_count(self, entry: Entry) -> int:
        """How many receipts one notice has."""
        statement = "SELECT count(*) FROM admin_user_receive_records WHERE message_id = ?"
        count: int = self._db.execute(statement, (entry.message_id,)).fetchone()[0]
        return count

    def receipts(self, entry: Entry) -> Iterator[list[Receipt]]:
        """The receipts of one notice, at most CHUNK_ROWS at a time. To be asked in the order of `entries`."""
        if not entry.record:
            rows = self._db.execute(_RECEIPTS, (entry.message_id,))
            while chunk := rows.fetchmany(CHUNK_ROWS):
                yield [*map(_receipt, chunk)]
            return
        yield from self._receipts_of(entry.record)

    def _receipts_of(self, record: int) -> Iterator[list[Receipt]]:
        while self._has_receipts():
            first, rows = self._receipts_done, self._receipt_rows
            if rows[first][0] != record:
                return
            end = first + 1
            while end < len(rows) and rows[end][0] == record:
                end += 1
            self._receipts_done = end
            yield [*map(_receipt, rows[first:end])]

    def _has_receipts(self) -> bool:
        if self._receipts_done == len(self._receipt_rows):
            if self._all_receipts is None:
                self._all_receipts = self._db.execute(_ALL_RECEIPTS)
            self._receipts_done, self._receipt_rows = 0, self._all_receipts.fetchmany(CHUNK_ROWS)
        return bool(self._receipt_rows)

    def waiting(self, box: int) -> Iterator[list[int]]:
        """Who waits for one notice, at most CHUNK_ROWS at a time."""
        rows = self._db.execute(_WAITING, (box,))
        while chunk := rows.fetchmany(CHUNK_ROWS):
            yield [user_id for (user_id,) in chunk]

    def copy_tables(self, new: Path) -> None:
        """Copies what is the same in the database at `new`; columns that are new there stay empty."""
        db = self._db
        db.execute("ATTACH ? AS new", (str(new),))
        db.execute("PRAGMA new.journal_mode = OFF")
        db.execute("PRAGMA new.synchronous = OFF")
        for table in COPIED:
            if table in self.tables:
                columns = [row[1] for row in db.execute(f"PRAGMA main.table_info({table})")]
                values = ", ".join(CLEANED.get(name, name) for name in columns)
                db.execute(f"INSERT INTO new.{table} ({', '.join(columns)}) SELECT {values} FROM main.{table}")  # noqa: S608
        # No number is given out twice.
        db.execute("DELETE FROM new.sqlite_sequence WHERE name <> 'notice'")
        db.execute(_COPY_SEQUENCES)
        db.execute("DETACH new")


def _journaled_notice(seq: int, body: bytes | None) -> Notice | None:
    try:
        notice = _decode_notice(body or b"")
    except Exception:  # also what is nested too deeply
        return None
    return notice if notice.seq == seq else None


def _waiting_notice(key: str, at_ms: int, body: bytes | None) -> Notice:
    """The notice of a mailbox item without a record. Raises msgspec.MsgspecError."""
    item = _decode_item(body or b"")
    return Notice(
        seq=0,
        message_id=key,
        content=item.content,
        target=Target(TargetKind.CUSTOM),
        accepted_ms=at_ms,
        type=item.type,
        data=item.data,
        priority=_PRIORITIES.get(item.priority, Priority.NORMAL),
        need_confirm=item.need_confirm,
        expires_ms=item.expires_ms if 0 < item.expires_ms <= MAX_MS else 0,
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _ids(value: bytes | None) -> tuple[int, ...]:
    try:
        return _decode_ids(value) if value is not None else ()
    except Exception:
        return ()


def _data(value: bytes | None) -> Any:
    """JSON, or what other programs wrote instead as a text."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value)
    except Exception:
        return _text(value)
