"""The embedded stores: journal, mailbox, records, directory and presence in one SQLite file, `pushd.db`."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from zoneinfo import ZoneInfo

import structlog

from pushd.clock import wall_ms
from pushd.config.schema import Config
from pushd.errors import StartError
from pushd.ports import LeftAside, Observe, Stores
from pushd.stores.sqlite import amendments, commits, journal, mailbox, schedule
from pushd.stores.sqlite.conversion import converted
from pushd.stores.sqlite.directory import SqliteDirectory, import_users
from pushd.stores.sqlite.engine.checkpoint import checkpoints
from pushd.stores.sqlite.engine.connection import open_connection
from pushd.stores.sqlite.engine.readers import reading
from pushd.stores.sqlite.engine.schema import database_path, prepare
from pushd.stores.sqlite.engine.statements import Statements
from pushd.stores.sqlite.engine.thread import Connections, SqliteThread
from pushd.stores.sqlite.groups import import_groups
from pushd.stores.sqlite.inbox import SqliteInbox
from pushd.stores.sqlite.ledger_file import open_ledger
from pushd.stores.sqlite.outbox import SqliteOutbox
from pushd.stores.sqlite.presence import SqlitePresence
from pushd.stores.sqlite.record_lists import RecordLists
from pushd.stores.sqlite.records import SqliteRecords
from pushd.stores.sqlite.set_aside import SqliteSetAside

__all__ = ["import_groups", "import_users", "open_stores"]

# Required: UPDATE ... FROM (3.33), MATERIALIZED (3.35).
OLDEST_SQLITE = (3, 35, 0)

LOCK_NAME = "pushd.lock"

EMBEDDED = "sqlite:"  # as a store's address: it is here

log = structlog.get_logger("pushd.sqlite")


@asynccontextmanager
async def open_stores(
    config: Config,
    observe: Observe | None = None,
    clock: Callable[[], int] = wall_ms,
    left_aside: LeftAside = lambda _: None,
) -> AsyncIterator[Stores]:
    """The stores in `server.data_dir`, which is this process's alone until the end of the block.

    Opening blocks the loop until the ledger is loaded, tenths of a second for 10 million receipts, or until an older
    database is converted. What is changed by the end of the block is written. `observe(store, operation, seconds, ok)`
    is called on the loop for every operation; `clock` gives milliseconds since the epoch. Raises StartError with one
    line that names the path.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StartError(f"SQLite {sqlite3.sqlite_version} is too old: {'.'.join(map(str, OLDEST_SQLITE))} is needed")
    path = database_path(config.server.data_dir)
    with _locked(path.with_name(LOCK_NAME)):
        prepare(path, converted, config.directory.ids)
        _warn_of_others(path)
        connections, waits_from = _open(path, is_durable=config.delivery.fsync == "batch")
        thread = SqliteThread(connections, commits.commit, observe)
        most, has_records = config.mailbox.max_per_user, config.records.url == EMBEDDED
        outside = {"mailbox": config.mailbox.url != EMBEDDED, "records": not has_records}
        try:
            async with (
                reading(path, observe) as readers,
                open_ledger(
                    path,
                    thread,
                    readers.read,
                    max_waiting=most,
                    has_records=has_records,
                    memory_bytes=config.records.memory_mb << 20,
                    ids=config.directory.ids,
                ) as file,
            ):
                with checkpoints(path, thread) as moving:
                    records = SqliteRecords(
                        file, RecordLists(file, readers.read), Statements(thread, "records"), clock=clock
                    )
                    yield Stores(
                        journal=journal.SqliteJournal(file),
                        amendments=amendments.SqliteAmendments(
                            file, followers=frozenset(name for name, is_outside in outside.items() if is_outside)
                        ),
                        schedule=schedule.SqliteSchedule(thread, has_records=has_records),
                        outbox=SqliteOutbox(thread),
                        mailbox=mailbox.SqliteMailbox(
                            file,
                            Statements(thread, "mailbox"),
                            waits_from=waits_from,
                            ttl_days=config.mailbox.ttl_days,
                            timezone=ZoneInfo(config.server.timezone),
                            clock=clock,
                            left_aside=left_aside,
                        ),
                        records=records,
                        inbox=SqliteInbox(file, readers.read, clock=clock),
                        ledger=records if has_records else None,
                        directory=SqliteDirectory(thread, readers.read, config.directory.ids),
                        presence=SqlitePresence(thread, config.directory.ids),
                        set_aside=SqliteSetAside(thread, clock),
                        background={"database thread": thread.watch, "checkpoint": moving.run},
                    )
        finally:
            await thread.aclose()


def _open(path: Path, *, is_durable: bool) -> tuple[Connections, dict[int, mailbox.Anew]]:
    """The connections, and since when notices wait that were saved long after their acceptance."""
    synchronous = "FULL" if is_durable else "NORMAL"
    with ExitStack() as opened:
        try:
            durable, relaxed = (
                opened.enter_context(closing(open_connection(path, synchronous=mode, checkpoint_pages=0)))
                for mode in (synchronous, "NORMAL")
            )
            waits_from = mailbox.read_waits_from(relaxed)
        except sqlite3.Error as error:
            raise StartError(f"cannot use {path}: {error}") from error
        opened.pop_all()  # the thread closes them
    return Connections(durable, relaxed), waits_from


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file, so that two daemons never share a data directory. The kernel lets go of it when we die."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot use data directory {path.parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(f"data directory {path.parent} is used by another pushd") from error
        except OSError as error:
            raise StartError(f"cannot lock {path}: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _warn_of_others(path: Path) -> None:
    """Log it when other accounts can read the database or put another one into its place; ours they cannot."""
    files = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    checked = [(path.parent, 0o022), *((file, 0o077) for file in files if file.exists())]
    modes = {str(item): item.stat().st_mode for item, too_much in checked if item.stat().st_mode & too_much}
    if modes:
        shown = {name: f"{stat.S_IMODE(mode):04o}" for name, mode in modes.items()}
        log.warning("others have access to what is stored; expected 0700 of the directory, 0600 of files", modes=shown)
