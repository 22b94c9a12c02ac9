"""The ledger's place in the file: changes go to disk together, and notices are found by id, and their bodies by seq."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from pushd.batched import batched
from pushd.errors import StoreError
from pushd.ledger._changes import take_changes
from pushd.ledger.clients import Clients
from pushd.ledger.labels import Labels
from pushd.ledger.users import Users
from pushd.ledger._ledger import Ledger
from pushd.stores.sqlite.engine.failures import translated
from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, Run
from pushd.stores.sqlite.engine.thread import SqliteThread
from pushd.stores.sqlite.ledger_load import load
from pushd.stores.sqlite.recent import RecentBodies, RecentSeqs

log = structlog.get_logger("pushd.stores.sqlite")

STORE = "ledger"

Read = Callable[[str, str, Run], Awaitable[Any]]  # readers.Readers.read


class LedgerFile:
    """A ledger, what its numbers stand for, and the database at `thread`'s other end that has all of it.

    Change the ledger on the loop only, then `commit`. `has_records`: push records are kept here; else notices are HIDDEN
    from the start. What the look-ups find by `read` is committed.
    """

    ledger: Ledger
    users: Users
    clients: Clients
    labels: Labels
    has_records: bool

    async def commit(self) -> None:
        """Return once all that was changed before the call is on disk: it survives kill -9, and a power cut from the
        next append on. Those who wait at the same time share a transaction.

        Raises StoreError. What could not be written is kept, and written first by the next call.
        """

    async def seqs_of(self, message_ids: Collection[str]) -> dict[str, int]:
        """The seq of each of these notices, of an id that was used again the first; unknown ones are absent.

        Any text will do. Those of the last minutes cost a look into a dict, others a read of the database.
        """

    async def bodies(self, seqs: Collection[int]) -> dict[int, bytes]:
        """The Notice of each of these as JSON, as it is stored, in any order; those without a row are absent."""

    async def message_ids(self, seqs: Collection[int]) -> dict[int, str]:
        """The message_id of each of these; those without a row, and those that only repeat another's id, are absent."""
