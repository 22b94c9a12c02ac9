"""What was changed of notices after their acceptance: a row for each, and the ledger and their rows as it says."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec
import orjson
import structlog

from pushd.errors import StoreError
from pushd.model import Amended
from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.statements import Statements
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.notices import REVOKED
from pushd.turns import Slice

log = structlog.get_logger("pushd.stores.sqlite")

# Bits of `to_do`: what has still to be done with a change.
LEDGER = 1
FOLLOWERS = {"mailbox": 2, "records": 4}
DROPPED_AT_ONCE = 8192  # copies: a millisecond

KEEP = """
INSERT INTO amended (message_id, at_ms, is_revoked, version, reminders, reminded_ms, to_do, body)
VALUES (:message_id, :at_ms, :is_revoked, :version, :reminders, :reminded_ms, :to_do, :body)
    ON CONFLICT (message_id) DO UPDATE
   SET at_ms = excluded.at_ms, is_revoked = excluded.is_revoked, version = excluded.version,
       reminders = excluded.reminders, reminded_ms = excluded.reminded_ms, to_do = to_do | excluded.to_do,
       body = ifnull(excluded.body, body)
"""
KNOWN = "SELECT message_id, is_revoked, version, reminders, reminded_ms FROM amended"
TO_DO = """
SELECT message_id, is_revoked, version, reminders, reminded_ms, to_do FROM amended
 WHERE to_do <> 0 AND to_do & :wanted ORDER BY at_ms
"""
DONE = """
UPDATE amended SET to_do = to_do & ~:done
 WHERE message_id = :message_id AND is_revoked = :is_revoked AND version = :version
"""
PAST = "SELECT message_id FROM amended WHERE at_ms < ? AND to_do = 0 ORDER BY at_ms LIMIT ?"
FORGET = (
    "DELETE FROM amended WHERE message_id IN (SELECT value FROM json_each(CAST(? AS TEXT)))",
    "DELETE FROM notice_version WHERE message_id IN (SELECT value FROM json_each(CAST(? AS TEXT)))",
)


class Kept:
    """A change to be kept, as durable as a journal entry."""

    def __init__(self, amended: Amended, at_ms: int, to_do: int) -> None:
        self._values = {**msgspec.structs.asdict(amended), "at_ms": at_ms, "to_do": to_do, "body": None}

    def write(self, connection: sqlite3.Connection) -> None:
        """Within a transaction."""
        connection.execute(KEEP, self._values)


class SqliteAmendments:
    """ports.Amendments. The row is what counts: what the ledger does not have at a crash, the next start does again."""

    def __init__(self, file: LedgerFile, *, followers: frozenset[str]) -> None:
        self._file = file
        self._ledger = file.ledger
        self._statements = Statements(file.thread, "amendments")
        self.followers = followers
        self._to_follow = sum(FOLLOWERS[name] for name in followers)

    async def known(self) -> list[Amended]:
        """What was changed so far. What a crash kept from the ledger is done first."""
        for amended, _ in await self._to_do(LEDGER):
            await self._do(amended)
        rows = await self._statements.read("known", lambda db: db.execute(KNOWN).fetchall())
        return [_amended(*row) for row in rows]

    async def revoke(self, amended: Amended, at_ms: int) -> int:
        """Nobody gets this notice any more. A millisecond of the loop's time for 10,000 copies."""
        await self._keep(Kept(amended, at_ms, LEDGER | self._to_follow))
        return await self._do(amended)

    async def unfollowed(self) -> list[tuple[Amended, str]]:
        """What is not in a store outside yet, and in which."""
        found = await self._to_do(self._to_follow) if self._to_follow else []
        return [(amended, name) for amended, to_do in found for name, bit in FOLLOWERS.items() if to_do & bit]

    async def followed(self, amended: Amended, store: str) -> None:
        """That store has it."""
        await self._done(amended, FOLLOWERS[store])

    async def purge(self, before_ms: int, limit: int) -> list[str]:
        """Forget at most `limit` that were changed last before that time, with what they said before."""

        def run(connection: sqlite3.Connection) -> list[str]:
            with transaction(connection):
                past = [message_id for (message_id,) in connection.execute(PAST, (before_ms, limit))]
                for statement in FORGET if past else ():
                    connection.execute(statement, (orjson.dumps(past),))
            return past

        return await self._statements.run("purge", run)

    def _keep(self, kept: Kept) -> asyncio.Future[None]:
        return self._file.thread.append("amendments", "keep", kept)

    async def _to_do(self, wanted: int) -> list[tuple[Amended, int]]:
        rows = await self._statements.read("to_do", lambda db: db.execute(TO_DO, {"wanted": wanted}).fetchall())
        return [(_amended(*row[:5]), row[5]) for row in rows]

    async def _done(self, amended: Amended, bit: int) -> None:
        await self._statements.change(
            "done",
            DONE,
            done=bit,
            message_id=amended.message_id,
            is_revoked=int(amended.is_revoked),
            version=amended.version,
        )

    async def _do(self, amended: Amended) -> int:
        """Have the ledger as the row says. A disk that refuses that now is asked again at the next flush, or start."""
        copies = 0
        try:
            seq = (await self._file.seqs_of([amended.message_id])).get(amended.message_id)
            if seq is not None and amended.is_revoked:
                copies = await self._take_out(seq)
            await self._file.commit()
            await self._done(amended, LEDGER)
        except StoreError as error:
            log.error("a change of a notice is to be done again", message_id=amended.message_id, error=str(error))
        return copies

    async def _take_out(self, seq: int) -> int:
        self._ledger.set_notice(seq, REVOKED)
        one_slice, copies = Slice(), 0
        while dropped := self._ledger.drop_waiting(seq, DROPPED_AT_ONCE):
            copies += dropped
            await one_slice.rest()
        return copies


def _amended(message_id: str, is_revoked: int, version: int, reminders: int, reminded_ms: int) -> Amended:
    return Amended(message_id, bool(is_revoked), version, reminders, reminded_ms)
