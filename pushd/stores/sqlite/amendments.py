"""What was changed of notices after their acceptance: a row for each, and the ledger and their rows as it says."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
import orjson
import structlog

from pushd.errors import StoreError
from pushd.model import Amended, Notice, Version
from pushd.ports import Unfollowed
from pushd.stores.sqlite import tags
from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.statements import Statements
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.notices import REVOKED
from pushd.turns import Slice

log = structlog.get_logger("pushd.stores.sqlite")

# Bits of `to_do`: what has still to be done with a change.
LEDGER, RESET = 1, 8
FOLLOWERS = {"mailbox": 2, "records": 4}
RESET_RECORDS = 16
DONE_WITH = {"mailbox": 2, "records": 4 | RESET_RECORDS}
AT_ONCE = 8192  # copies, or receipts: a millisecond

KEEP = """
INSERT INTO amended (message_id, at_ms, is_revoked, version, reminders, reminded_ms, to_do, body)
VALUES (:message_id, :at_ms, :is_revoked, :version, :reminders, :reminded_ms, :to_do, :body)
    ON CONFLICT (message_id) DO UPDATE
   SET at_ms = excluded.at_ms, is_revoked = excluded.is_revoked, version = excluded.version,
       reminders = excluded.reminders, reminded_ms = excluded.reminded_ms, to_do = to_do | excluded.to_do,
       body = ifnull(excluded.body, body)
"""
KEEP_VERSION = """
INSERT OR IGNORE INTO notice_version (message_id, version, at_ms, editor_id, editor_name, body)
VALUES (?, ?, ?, ?, ?, ?)
"""
SAY = "UPDATE notice SET body = ?, version = ?, expires_ms = ? WHERE seq = ?"
KNOWN = "SELECT message_id, is_revoked, version, reminders, reminded_ms FROM amended"
TO_DO = """
SELECT message_id, is_revoked, version, reminders, reminded_ms, to_do FROM amended
 WHERE to_do <> 0 AND to_do & :wanted ORDER BY at_ms
"""
DONE = """
UPDATE amended SET to_do = to_do & ~:done
 WHERE message_id = :message_id AND is_revoked = :is_revoked AND version = :version
"""
NEWEST = """
SELECT CAST(body AS BLOB) FROM amended
 WHERE body IS NOT NULL AND message_id IN (SELECT value FROM json_each(CAST(? AS TEXT)))
"""
VERSIONS = """
SELECT CAST(body AS BLOB), at_ms, editor_id, editor_name FROM notice_version WHERE message_id = ? ORDER BY version
"""
HAS_VERSIONS = "SELECT EXISTS (SELECT 1 FROM notice_version)"
PAST = "SELECT message_id FROM amended WHERE at_ms < ? AND to_do = 0 ORDER BY at_ms LIMIT ?"
FORGET = (
    "DELETE FROM amended WHERE message_id IN (SELECT value FROM json_each(CAST(? AS TEXT)))",
    "DELETE FROM notice_version WHERE message_id IN (SELECT value FROM json_each(CAST(? AS TEXT)))",
)

_notice = msgspec.json.Decoder(Notice)
_encode = msgspec.json.Encoder().encode


class Kept:
    """A change to be kept, as durable as a journal entry."""

    def __init__(self, amended: Amended, at_ms: int, to_do: int, newest: Notice | None = None) -> None:
        body = None if newest is None else _encode(newest)
        self._values = {**msgspec.structs.asdict(amended), "at_ms": at_ms, "to_do": to_do, "body": body}
        self._rows: list[tuple[str, tuple[Any, ...]]] = []

    def say(self, notices: Sequence[Notice], former: Version, *, has_tags: bool) -> None:
        """The rows of these notices are theirs, and the former version is kept."""
        body = _encode(former.notice)
        kept = (former.notice.message_id, former.notice.version, former.at_ms)
        self._rows.append((KEEP_VERSION, (*kept, former.editor_id, former.editor_name, body)))
        for notice in notices:
            self._rows.append((SAY, (_encode(notice), notice.version, notice.expires_ms or None, notice.seq)))
            if has_tags:
                self._rows.append((tags.DROP_ONE, (notice.seq,)))
                self._rows += [(tags.ADD_ONE, (notice.seq, place, tag)) for place, tag in enumerate(notice.tags)]

    def write(self, connection: sqlite3.Connection) -> None:
        """Within a transaction."""
        connection.execute(KEEP, self._values)
        for statement, values in self._rows:
            connection.execute(statement, values)


class SqliteAmendments:
    """ports.Amendments. The row is what counts: what the ledger does not have at a crash, the next start does again."""

    def __init__(self, file: LedgerFile, *, followers: frozenset[str]) -> None:
        self._file = file
        self._ledger = file.ledger
        self._statements = Statements(file.thread, "amendments")
        self.followers = followers
        self._to_follow = sum(FOLLOWERS[name] for name in followers)
        self._resets_records = RESET_RECORDS if "records" in followers else 0

    async def known(self) -> list[Amended]:
        """What was changed so far. What a crash kept from the ledger is done first."""
        for amended, to_do in await self._to_do(LEDGER | RESET):
            await self._do(amended, is_reset=bool(to_do & RESET))
        (self._file.has_versions,) = map(bool, await self._statements.numbers("known", HAS_VERSIONS))
        rows = await self._statements.read("known", lambda db: db.execute(KNOWN).fetchall())
        return [_amended(*row) for row in rows]

    async def revoke(self, amended: Amended, at_ms: int) -> int:
        """Nobody gets this notice any more. A millisecond of the loop's time for 10,000 copies."""
        await self._keep(Kept(amended, at_ms, LEDGER | self._to_follow))
        return await self._do(amended)

    async def edit(self, amended: Amended, newest: Notice, former: Version, *, is_reset: bool) -> None:
        """The notice says this from now on."""
        to_do = self._to_follow | ((RESET | (self._resets_records)) if is_reset else 0)
        kept = Kept(amended, former.at_ms, to_do, newest)
        notices = await self._said(newest)
        kept.say(notices, former, has_tags=self._file.has_records)
        await self._keep(kept)
        for notice in notices:
            self._file.edited(notice.seq, notice)
        if is_reset:
            await self._do(amended, is_reset=True)

    async def remind(self, amended: Amended) -> None:
        """Its recipients were reminded once more."""
        await self._keep(Kept(amended, amended.reminded_ms, 0))

    async def notices(self, message_ids: Collection[str]) -> dict[str, Notice]:
        """What those of these that were edited say now."""
        asked = orjson.dumps([*message_ids])
        bodies = await self._statements.read("notices", lambda db: db.execute(NEWEST, (asked,)).fetchall())
        found = [_notice.decode(body) for (body,) in bodies]
        return {notice.message_id: notice for notice in found}

    async def versions(self, message_id: str) -> list[Version]:
        """What the notice said before."""
        rows = await self._statements.read("versions", lambda db: db.execute(VERSIONS, (message_id,)).fetchall())
        return [Version(_notice.decode(body), *replaced) for body, *replaced in rows]

    async def unfollowed(self) -> list[Unfollowed]:
        """What is not in a store outside yet, and in which."""
        found = await self._to_do(self._to_follow) if self._to_follow else []
        return [
            Unfollowed(amended, name, name == "records" and bool(to_do & RESET_RECORDS))
            for amended, to_do in found
            for name, bit in FOLLOWERS.items()
            if to_do & bit
        ]

    async def followed(self, amended: Amended, store: str) -> None:
        """That store has it."""
        await self._done(amended, DONE_WITH[store])

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

    async def _said(self, newest: Notice) -> list[Notice]:
        """The notices of that id that have a row which says something to anybody, as they are to be."""
        seqs = await self._file.seqs_of([newest.message_id])
        wanted = {text for seq in seqs.values() for text in (seq, self._file.text_seqs.get(seq, seq))}
        return [_notice.decode(body).saying(newest) for body in (await self._file.bodies(wanted)).values()]

    async def _to_do(self, wanted: int) -> list[tuple[Amended, int]]:
        rows = await self._statements.read("to_do", lambda db: db.execute(TO_DO, {"wanted": wanted}).fetchall())
        return [(_amended(*row[:5]), row[5]) for row in rows]

    async def _done(self, amended: Amended, bits: int) -> None:
        await self._statements.change(
            "done",
            DONE,
            done=bits,
            message_id=amended.message_id,
            is_revoked=int(amended.is_revoked),
            version=amended.version,
        )

    async def _do(self, amended: Amended, *, is_reset: bool = False) -> int:
        """Have the ledger as the row says. A disk that refuses that now is asked again at the next flush, or start."""
        copies = 0
        try:
            seq = (await self._file.seqs_of([amended.message_id])).get(amended.message_id)
            if seq is not None and amended.is_revoked:
                copies = await self._take_out(seq)
            if seq is not None and is_reset:
                await _at_length(lambda: self._ledger.reset(seq, AT_ONCE))
            await self._file.commit()
            await self._done(amended, LEDGER | RESET)
        except StoreError as error:
            log.error("a change of a notice is to be done again", message_id=amended.message_id, error=str(error))
        return copies

    async def _take_out(self, seq: int) -> int:
        self._ledger.set_notice(seq, REVOKED)
        return await _at_length(lambda: self._ledger.drop_waiting(seq, AT_ONCE))


async def _at_length(step: Callable[[], int]) -> int:
    """Repeat a step until there is nothing left for it; how much there was."""
    one_slice, total = Slice(), 0
    while done := step():
        total += done
        await one_slice.rest()
    return total


def _amended(message_id: str, is_revoked: int, version: int, reminders: int, reminded_ms: int) -> Amended:
    return Amended(message_id, bool(is_revoked), version, reminders, reminded_ms)
