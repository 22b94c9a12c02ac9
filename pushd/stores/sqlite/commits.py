"""What the thread that writes commits together: appends to the journal, and whatever else must be as durable."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import orjson

from pushd.stores.sqlite import journal
from pushd.stores.sqlite.engine.schema import transaction

Result = TypeVar("Result")

LEAVE = "DELETE FROM scheduled WHERE message_id IN (SELECT value FROM json_each(CAST(? AS TEXT)))"


class Durable(Protocol):
    """What is written beside the journal."""

    def write(self, connection: sqlite3.Connection) -> None:
        """Write it, within a transaction."""


class Change(Generic[Result]):
    """What `run` does to the database, and what came of it."""

    __slots__ = ("_run", "result")

    def __init__(self, run: Callable[[sqlite3.Connection], Result]) -> None:
        self._run = run
        self.result: Result | None = None

    def write(self, connection: sqlite3.Connection) -> None:
        """Do it."""
        self.result = self._run(connection)


def commit(connection: sqlite3.Connection, payloads: Sequence[journal.Append | Durable]) -> None:
    """Keep all of it in one transaction. What was scheduled and is appended to the journal now is scheduled no more."""
    appends = [payload for payload in payloads if isinstance(payload, journal.Append)]
    others = [payload for payload in payloads if not isinstance(payload, journal.Append)]
    gone = [notice.message_id for append in appends for notice in append.notices if notice.send_at_ms]
    if not others and not gone:
        journal.commit(connection, appends)
        return
    with transaction(connection):
        if appends:
            journal.commit(connection, appends)
        if gone:
            leave(connection, gone)
        for other in others:
            other.write(connection)


def leave(connection: sqlite3.Connection, message_ids: Sequence[str]) -> None:
    """Take these out of the schedule."""
    connection.execute(LEAVE, (orjson.dumps(message_ids),))
