"""Makes of a `pushd.db` of version 1 to 8 one of today's, once, at the first start.

The new file is made beside the old one and synced. Then the old one gets a second name, and the new one takes the
first: at every moment there is a whole `pushd.db`, and a start that finds an unfinished new file begins it again.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from time import monotonic
from typing import cast

import msgspec
import structlog

from pushd.clock import wall_ms
from pushd.errors import StartError
from pushd.ledger._changes import has_changes, take_changes
from pushd.ledger._ledger import Ledger
from pushd.ledger.clients import NOBODY, Clients
from pushd.ledger.labels import UNKNOWN, Labels
from pushd.ledger.users import Users
from pushd.model import UserId
from pushd.stores.sqlite import ledger_file
from pushd.stores.sqlite.engine.schema import create, transaction
from pushd.stores.sqlite.ledger_file import Flush
from pushd.stores.sqlite.ledger_load import HIDDEN, KNOWN, SETTLED
from pushd.stores.sqlite.notices import DENSE_LEAST
from pushd.stores.sqlite.older import Entry, Older, Receipt
from pushd.stores.sqlite.records import CONFIRMED, READ, STATUSES

log = structlog.get_logger("pushd.stores.sqlite")

TELL_EVERY_S = 2.0
MOST_CLIENTS = 100_000  # kept by their facts
FLUSH_RECEIPTS = 200_000
FLUSH_NOTICES = 20_000
FLUSH_BYTES = 8 * 1024 * 1024  # of notices
CACHE_KIB = 32_768
# What was saved into a mailbox so long after its acceptance was sent again, and waits from then on.
SAVED_LATE_MS = 60_000
EVERYBODY = 2**31 - 1  # may wait: mailboxes were trimmed before

CLIENT = slice(Receipt._fields.index("connection_id"), None)

NOTICE = "INSERT INTO notice (seq, message_id, accepted_ms, expires_ms, waits_from_ms, body) VALUES (?, ?, ?, ?, ?, ?)"
_encode = msgspec.json.Encoder().encode


def converted(path: Path, version: int) -> None:
    """Replace the database at `path`, which has this version; it stays beside it as `pushd.db.v<version>`.

    Takes 10 s for a million receipts of broadcasts, 30 s for a million notices with one each, 150 MB of memory beside
    the ledger's own and room on the disk for a second file. Says how far it is. Raises StartError with one line; the
    old file is in its place then.
    """
    path = path.resolve()  # of a link, what it leads to
    new, work = (path.with_name(path.name + suffix) for suffix in (".new", ".sorted"))
    began = monotonic()
    log.info("the database is converted, which is done once", file=str(path), version=version)
    progress = _Progress()
    try:
        # In this order: once the old file is locked, nobody else makes these.
        with closing(Older(path, wall_ms(), progress.tell)) as older, _dropped(new, work):
            _drop(new, work)
            _make(older, new, work, progress)
        with _dropped(new):
            _put_in_place(path, new, version)
    except (OSError, sqlite3.Error, MemoryError) as error:
        raise StartError(f"cannot convert {path}: {_cause(error)}; it is as it was") from error
    log.info("the database is converted", file=str(path), seconds=round(monotonic() - began, 1))


@contextmanager
def _dropped(new: Path, work: Path | None = None) -> Iterator[None]:
    """Leaves nothing of what fails, and no `work`."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _drop(new)
        raise
    finally:
        with suppress(OSError):
            _drop(*([work] if work else []))


def _cause(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or repr(error)
    return str(error) or type(error).__name__


def _drop(*paths: Path) -> None:
    for path in paths:
        for suffix in ("", "-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _make(older: Older, new: Path, work: Path, progress: _Progress) -> None:
    """Write the new file, to the disk."""
    for path in (new, work):
        path.touch(mode=0o600)
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # what is not finished is thrown away
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        create(connection)
        _Conversion(older, connection, progress).run(work)
    older.copy_tables(new)
    descriptor = os.open(new, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if older.left_out.total():
        log.error("what could not be read was left out; the old file has it", **older.left_out)


def _put_in_place(path: Path, new: Path, version: int) -> None:
    """Give the old file its second name, the new one the first."""
    if path.with_name(path.name + "-wal").exists():
        raise sqlite3.OperationalError("another program uses it")
    for kept in _names_to_keep(path, version):
        try:
            os.link(path, kept)
        except FileExistsError:
            if not (kept.samefile(path) or filecmp.cmp(path, kept, shallow=False)):  # of a conversion before
                continue
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            _copy_file(path, kept)  # there are no second names there
        break
    _sync_directory(path.parent)
    new.replace(path)
    _sync_directory(path.parent)


def _names_to_keep(path: Path, version: int) -> Iterator[Path]:
    first = path.with_name(f"{path.name}.v{version}")
    yield first
    for number in count(2):
        yield first.with_name(f"{first.name}.{number}")


def _copy_file(path: Path, kept: Path) -> None:
    part = kept.with_name(kept.name + ".part")
    shutil.copyfile(path, part)
    part.chmod(0o600)
    with part.open("rb") as copied:
        os.fsync(copied.fileno())
    part.replace(kept)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Progress:
    """Says every TELL_EVERY_S how far it is."""

    def __init__(self) -> None:
        self._next_s = monotonic() + TELL_EVERY_S

    def tell(self, **done: tuple[int, int]) -> None:
        """How many of how many, by what they are."""
        now_s = monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + TELL_EVERY_S
            shown = {what: f"{count} of {total}" for what, (count, total) in done.items()}
            log.info("converting the database", **shown)


class _Conversion:
    """Writes what `older` holds into the database at `connection`, through a ledger."""

    def __init__(self, older: Older, connection: sqlite3.Connection, progress: _Progress) -> None:
        self._older = older
        self._connection = connection
        self._progress = progress
        self._ledger = Ledger(EVERYBODY)
        self._users = Users()
        self._clients = Clients()
        self._labels = Labels()
        self._known_clients: dict[tuple[bytes, ...], int] = {}
        self._rows: list[tuple[object, ...]] = []  # of notices
        self._bytes = 0
        self._notices = self._place = 0  # how many there are, and how many are done
        self._receipts = 0  # done
        self._receipts_flushed = 0
        self._receipts_total = 0
        self._user_count = 0

    def run(self, work: Path) -> None:
        """Notices in order, numbered so that the last has the highest number that was ever given out."""
        older = self._older
        self._notices = notices = older.sort(work)
        self._receipts_total = older.receipt_count()
        self._user_count = older.user_count()
        last_seq = max(older.last_seq(), notices)
        for place, entry in enumerate(older.entries()):
            self._place = place
            self._tell()
            self._convert(last_seq - notices + 1 + place, entry)
            self._flush_when_due()
        self._flush()
        older.left_out["receipts"] += self._receipts_total - self._receipts
        self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'notice'")
        self._connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('notice', ?)", (last_seq,))

    def _tell(self) -> None:
        self._progress.tell(notices=(self._place, self._notices), receipts=(self._receipts, self._receipts_total))

    def _convert(self, seq: int, entry: Entry) -> None:
        # A record of others may have any status; without one it would be taken for none.
        is_record = entry.is_settled and not entry.is_hidden
        state = KNOWN | STATUSES.get(entry.status, STATUSES["success"] if is_record else 0)
        state |= (SETTLED if entry.is_settled else 0) | (HIDDEN if entry.is_hidden else 0)
        notice = entry.notice
        label, body, expires_ms = UNKNOWN, entry.body, 0
        if notice is not None:
            label, expires_ms = self._labels.number(notice), notice.expires_ms
            body = _encode(msgspec.structs.replace(notice, seq=seq))
        waits_from_ms = entry.saved_ms if entry.saved_ms > entry.at_ms + SAVED_LATE_MS else None
        self._rows.append((seq, entry.message_id, entry.at_ms, expires_ms or None, waits_from_ms, body))
        self._bytes += len(body)
        self._ledger.add_notice(seq, entry.at_ms, label, state)
        self._clients.begin(entry.at_ms)
        if not entry.is_hidden and entry.message_id is not None:
            self._convert_receipts(seq, entry, 0 < expires_ms <= self._older.now_ms)
        if entry.box:
            for user_ids in self._older.waiting(entry.box):
                self._ledger.wait(seq, self._numbers(user_ids))

    def _convert_receipts(self, seq: int, entry: Entry, is_over: bool) -> None:
        ledger, is_first = self._ledger, True
        for chunk in self._older.receipts(entry):
            numbers = self._numbers(receipt.user_id for receipt in chunk)
            if is_first and len(chunk) >= DENSE_LEAST and self._is_for_many(entry, len(chunk)):
                ledger.begin_dense(seq)
            is_first = False
            alike: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
            for number, receipt in zip(numbers, chunk, strict=True):
                of_state = alike.setdefault((receipt.state, receipt.received_ms), ([], []))
                of_state[0].append(number)
                of_state[1].append(self._client(receipt))
                self._users.note_name(number, seq, _text(receipt.name), receipt.role)
            for (state, received_ms), (some, clients) in alike.items():
                ledger.note(seq, some, state, received_ms, clients if any(clients) else None)
            for number, receipt in zip(numbers, chunk, strict=True):
                if receipt.answer:
                    self._answer(seq, number, receipt, entry.at_ms)
            self._receipts += len(chunk)
            self._tell()
        if is_over:
            while ledger.expire(seq, FLUSH_RECEIPTS):
                pass

    def _is_for_many(self, entry: Entry, at_least: int) -> bool:
        quarter = self._user_count // 4
        return at_least >= quarter or self._older.recipient_count(entry) >= quarter

    def _answer(self, seq: int, number: int, receipt: Receipt, at_ms: int) -> None:
        """Read, and confirmed; when, other programs do not always say."""
        read_ms = receipt.read_ms or receipt.confirmed_ms or receipt.updated_ms or at_ms
        self._ledger.mark(seq, number, READ, read_ms)
        if receipt.answer > 1:
            self._ledger.mark(seq, number, CONFIRMED, receipt.confirmed_ms or read_ms)

    def _numbers(self, user_ids: Iterable[UserId]) -> list[int]:
        numbers = self._users.numbers(user_ids)
        self._ledger.add_users(len(self._users))
        return numbers

    def _client(self, receipt: Receipt) -> int:
        facts = cast("tuple[bytes, ...]", receipt[CLIENT])
        number = self._known_clients.get(facts)
        if number is None:
            connection_id, client_ip, user_agent, *device = (_text(fact) for fact in facts)
            number = NOBODY
            if any(facts):
                number = self._clients.number(connection_id, client_ip, user_agent)
                self._clients.describe(number, (device[0], device[1], device[2]))
            if len(self._known_clients) >= MOST_CLIENTS:
                self._known_clients.clear()
            self._known_clients[facts] = number
        return number

    def _flush_when_due(self) -> None:
        if (
            self._receipts - self._receipts_flushed >= FLUSH_RECEIPTS
            or len(self._rows) >= FLUSH_NOTICES
            or self._bytes >= FLUSH_BYTES
        ):
            self._flush()

    def _flush(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        self._receipts_flushed = self._receipts
        with transaction(self._connection):
            self._connection.executemany(NOTICE, rows)
        is_more = True
        while is_more:
            number, change, parts, floor = take_changes(self._ledger)
            is_more = has_changes(self._ledger)
            numbers, identities = self._users.taken()
            given = (
                (ledger_file.NUMBERS, numbers),
                (ledger_file.IDENTITIES, identities),
                (ledger_file.LABELS, self._labels.taken()),
                (ledger_file.CLIENTS, self._clients.taken()),
            )
            Flush((number, change) if change else None, parts, floor, [*given]).write(self._connection)


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
