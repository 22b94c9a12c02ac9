"""The journal: accepted notices as JSON, in the order of their `seq`; the ledger knows which of them are settled."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import msgspec
import orjson

from pushd.batched import batched
from pushd.model import Notice
from pushd.stores.sqlite import tags
from pushd.stores.sqlite.engine.schema import transaction
from pushd.stores.sqlite.engine.statements import CHUNK_ROWS, HIGHEST_OWN, Parameter, Rows, Statements, Value
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.stores.sqlite.ledger_load import FAR, HIDDEN, KNOWN, SETTLED, STATUS

# Appending the same notice again is harmless; another notice under a used seq violates NOT NULL and is refused.
APPEND = Rows(
    ("seq", "message_id", "accepted_ms", "expires_ms", "body"),
    """
INSERT INTO notice (seq, message_id, accepted_ms, expires_ms, body)
SELECT * FROM given
 WHERE true
    ON CONFLICT (seq) DO UPDATE SET body = CASE WHEN body = excluded.body THEN body END
""",
)

FIRST_OF = "SELECT seq FROM notice WHERE message_id = ?"
GIVE_UP_ID = "UPDATE notice SET message_id = NULL WHERE seq = ?"

# What another program put at the end of all numbers, or what is none, is not counted on from.
LAST_SEQ = f"""
SELECT max(seq) FROM sqlite_sequence WHERE name = 'notice' AND typeof(seq) = 'integer' AND seq < {HIGHEST_OWN}
"""  # noqa: S608 - a constant

SOME = """
SELECT seq, message_id IS NULL, CAST(body AS BLOB) FROM notice
 WHERE seq IN (SELECT value FROM json_each(CAST(:seqs AS TEXT)))
"""
SINCE = """
SELECT seq, message_id IS NULL, CAST(body AS BLOB) FROM notice
 WHERE seq > :after_seq AND accepted_ms >= :since_ms
 ORDER BY seq LIMIT :limit
"""

REPEATS_BEHIND = "SELECT EXISTS (SELECT 1 FROM notice WHERE seq > :behind_seq AND message_id IS NULL)"
PURGE = "DELETE FROM notice WHERE seq IN (SELECT value FROM json_each(CAST(:seqs AS TEXT)))"

PAGE_ROWS = 500
ALL_OF_THEM = (1 << 31) - 1

# What purge looks at: so many notices of each kind, since somebody may wait for many of them; in so long stretches.
LOOKED_AT = 20_000
STRETCH = 1 << 20
# Settled and either hidden or without a push record: bits that are set, and that are not.
WITHOUT_RECORD = ((SETTLED | HIDDEN, 0), (SETTLED, HIDDEN | STATUS))

_notice = msgspec.json.Decoder(Notice)
_Row = tuple[int, int, bytes]  # seq, whether another notice has its id, body
_Spoiled = tuple[int, bytes, str]


class Append:
    """Notices to be kept, and what is found out about them meanwhile.

    `repeats`: those whose id an earlier notice has, each with that one's seq; `replaced`: notices without a record,
    whose id is another one's now.
    """

    __slots__ = ("is_free", "notices", "repeats", "replaced", "tags", "values")

    def __init__(
        self, notices: Sequence[Notice], is_free: Callable[[int], bool] = lambda _: False, *, has_records: bool = True
    ) -> None:
        self.notices = notices
        self.is_free = is_free  # whether another notice may take the id of that with this seq
        self.values = encoded(notices)
        self.tags = tags.rows_of(notices) if has_records else []
        self.repeats: dict[int, int] = {}
        self.replaced: list[int] = []


def encoded(notices: Sequence[Notice]) -> list[Value]:
    """The rows of APPEND."""
    values: list[Value] = []
    for notice in notices:
        values += (
            notice.seq,
            notice.message_id,
            notice.accepted_ms,
            notice.expires_ms or None,
            msgspec.json.encode(notice),
        )
    return values


def commit(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """Keep the notices of all `appends` in one transaction."""
    values = [*chain.from_iterable(append.values for append in appends)]
    tagged = [*chain.from_iterable(append.tags for append in appends)]
    try:
        if not tagged:
            APPEND.write(connection, values)
            return
        with transaction(connection):
            APPEND.write_within(connection, values)
            tags.ADD.write_within(connection, tagged)
    except sqlite3.IntegrityError:  # ids that there are already, or something that must be refused
        _commit_singly(connection, appends)


def _commit_singly(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """The same where ids may be repeated. Such a notice has none of its own: it is found by the first one's, unless the
    record of that one was deleted."""
    repeats: list[dict[int, int]] = []
    replaced: list[list[int]] = []
    with transaction(connection):
        for append in appends:
            repeats.append({})
            replaced.append([])
            for row in batched(append.values, APPEND.width):
                seq, message_id, *_ = row
                first = connection.execute(FIRST_OF, (message_id,)).fetchone()
                if first is not None and first[0] != seq and append.is_free(first[0]):
                    connection.execute(GIVE_UP_ID, (first[0],))
                    replaced[-1].append(first[0])
                elif first is not None:
                    row[1] = None
                    if first[0] != seq:
                        repeats[-1][seq] = first[0]  # type: ignore[index]
                APPEND.write(connection, row)
            tags.ADD.write_within(connection, append.tags)
    for append, found, gone in zip(appends, repeats, replaced, strict=True):
        append.repeats, append.replaced = found, gone


class SqliteJournal:
    """ports.Journal. An append is one commit with its own fsync, shared by all that waited for it.

    A notice has one row, which is its push record, too: it stays for as long as there is a record, or somebody waits
    for it. `page_rows`: how many rows are read, and decoded, at a time.
    """

    def __init__(self, file: LedgerFile, *, page_rows: int = PAGE_ROWS) -> None:
        self._file = file
        self._ledger = file.ledger
        self._page_rows = page_rows
        self._statements = Statements(file.thread, "journal")
        self._spoiled: list[_Spoiled] = []
        self._state = KNOWN if file.has_records else KNOWN | HIDDEN
        self._under_way: set[Append] = set()
        self._firsts: dict[int, int] = {}  # of notices under way whose id an earlier one has: that one's seq
        self._stopped_at = [0, 0]  # the last purge, for each kind of WITHOUT_RECORD

    async def last_seq(self) -> int:
        """The highest `seq` ever appended; 0 for a new journal."""
        (given_out,) = await self._statements.numbers("last_seq", LAST_SEQ)
        known = self._ledger.last_seq
        return max(known, given_out) if not known or given_out <= known + FAR else known

    def append(self, notices: Sequence[Notice]) -> asyncio.Future[None]:
        """Keep these, all or nothing; they are on disk once this is awaited."""
        if not notices:
            return _nothing_to_do()
        append = Append(notices, self._is_free, has_records=self._file.has_records)
        new: list[int] = []
        try:
            self._add(notices, new)
            kept = self._file.thread.append("journal", "append", append)
        except BaseException:
            self._forget(new)
            raise
        self._under_way.add(append)
        kept.add_done_callback(partial(self._decided, append, new))
        return kept

    def _add(self, notices: Sequence[Notice], new: list[int]) -> None:
        """The ledger has them before they are on disk, so that no flush in between can miss them."""
        ledger, labels = self._ledger, self._file.labels
        for notice in notices:
            if not ledger.notice_state(notice.seq):
                ledger.add_notice(notice.seq, notice.accepted_ms, labels.number(notice), self._state)
                new.append(notice.seq)

    def _forget(self, seqs: Sequence[int]) -> None:
        for seq in seqs:
            self._ledger.forget_notice(seq)

    def _decided(self, append: Append, new: list[int], kept: asyncio.Future[None]) -> None:
        self._under_way.discard(append)
        if kept.cancelled():  # it may be on disk, or not: `unsettled` will find out
            return
        if kept.exception() is not None:
            self._forget(new)
            return
        repeats = append.repeats
        self._file.recent_seqs.put_all(
            [(notice.message_id, repeats.get(notice.seq, notice.seq)) for notice in append.notices]
        )
        for seq, first in repeats.items():
            self._ledger.hide(seq)
            self._firsts[seq] = first
        for notice in append.notices if repeats else ():
            if notice.seq in repeats and not notice.is_resent:
                self._file.again[repeats[notice.seq]] = notice.seq
        for first in append.replaced:  # what still waits of it would be taken for the new one
            self._ledger.drop_waiting(first, ALL_OF_THEM)

    def _is_free(self, seq: int) -> bool:
        """Whether the notice has no push record any more, and is not under way. For the thread that writes."""
        state = self._ledger.notice_state(seq)
        return self._file.has_records and state & (HIDDEN | SETTLED) == HIDDEN | SETTLED

    async def settle(self, seqs: Sequence[int]) -> None:
        """Note that nothing is left to do for these notices."""
        for seq in self._firsts.keys() & seqs if self._firsts else ():
            first = self._firsts.pop(seq)
            if self._file.again.get(first) == seq:
                del self._file.again[first]
        self._ledger.settle([*seqs])
        await self._file.commit()

    async def unsettled(self) -> list[Notice]:
        """Notices that are not settled, by `seq`."""
        found: list[Notice] = []
        self._spoiled = []
        for seqs in batched(self._ledger.unsettled(), self._page_rows):
            rows = await self._rows("unsettled", SOME, seqs=orjson.dumps(seqs))
            notices = _decoded(rows, self._spoiled)
            found += notices
            self._forget([*set(seqs).difference(seq for seq, _, _ in rows)])  # they did not get as far as the disk
            await self._find_firsts(notices, {seq for seq, is_repeat, _ in rows if is_repeat})
        return found

    async def _find_firsts(self, notices: list[Notice], repeats: set[int]) -> None:
        if repeats:
            for seq in repeats:
                self._ledger.hide(seq)  # a flush may have had it before it was known for one
            ids = {notice.seq: notice.message_id for notice in notices if notice.seq in repeats}
            seqs = await self._file.seqs_of(ids.values())
            self._firsts.update((seq, seqs[name]) for seq, name in ids.items() if name in seqs)
            anew = [notice for notice in notices if notice.seq in self._firsts and not notice.is_resent]
            self._file.again.update((self._firsts[notice.seq], notice.seq) for notice in anew)

    async def spoiled(self) -> list[_Spoiled]:
        """What the last `unsettled` left out because it cannot be decoded."""
        return self._spoiled

    async def since(self, accepted_ms: int) -> list[Notice]:
        """Notices accepted at or after that time, settled or not, by `seq`."""
        found: list[Notice] = []
        after_seq = self._first_since(accepted_ms) - 1
        while True:
            rows = await self._rows("since", SINCE, after_seq=after_seq, since_ms=accepted_ms, limit=self._page_rows)
            found += _decoded(rows, [])
            if len(rows) < self._page_rows:
                return found
            after_seq = rows[-1][0]

    def _first_since(self, at_ms: int) -> int:
        """No notice with a lower `seq` was accepted at or after that time: the ledger's times follow the numbers."""
        ledger = self._ledger
        low, high = ledger.base_seq, ledger.last_seq + 1
        while low < high:
            middle = (low + high) // 2
            known = ledger.seqs(middle, high - 1, KNOWN, 0, 1)
            if known and ledger.created_ms(known[0]) < at_ms:
                low = known[0] + 1
            else:
                high = middle
        return low

    async def _rows(self, name: str, statement: str, **parameters: Parameter) -> list[_Row]:
        return await self._statements.read(name, lambda db: db.execute(statement, parameters).fetchall())

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` settled notices accepted before that time that have no push record, and for which nobody
        waits; how many were dropped.

        Many that must stay are looked at a part in each call.
        """
        dropped = 0
        past = await self._past(before_ms, limit)
        for part in batched(past, CHUNK_ROWS):
            seqs = self._still_past(part)
            if not await self._statements.run("purge", partial(_drop, seqs, self._decided_up_to())):
                break
            self._forget(seqs)
            dropped += len(seqs)
        if dropped:
            known = self._ledger.seqs(self._ledger.base_seq, self._ledger.last_seq, KNOWN, 0, 1)
            self._ledger.forget_before(known[0] if known else self._ledger.last_seq)
            await self._file.commit()
        return dropped

    def _decided_up_to(self) -> int:
        """Up to there it is known which ids are repeated ones."""
        first = min((append.notices[0].seq for append in self._under_way), default=self._ledger.last_seq + 1)
        return first - 1

    async def _past(self, before_ms: int, limit: int) -> list[int]:
        """At most `limit` that can go, looked for behind where the last call stopped, and then before that."""
        ledger, found = self._ledger, list[int]()
        end, wanted = self._first_since(before_ms), self._wanted()
        for kind, (required, absent) in enumerate(WITHOUT_RECORD):
            left, stopped_at = LOOKED_AT, min(max(self._stopped_at[kind], ledger.base_seq), end)
            for at, behind in ((stopped_at, end), (ledger.base_seq, stopped_at)):
                while at < behind and left > 0 and len(found) < limit:
                    stretch_end, most = min(behind, at + STRETCH), min(CHUNK_ROWS, limit - len(found))
                    seqs = ledger.seqs(at, stretch_end - 1, required, absent, most)
                    found += (seq for seq in seqs if seq not in wanted and not self._is_needed(seq))
                    at = seqs[-1] + 1 if len(seqs) == most else stretch_end
                    left -= len(seqs)
                    await asyncio.sleep(0)
                    self._stopped_at[kind] = at
        return found

    def _still_past(self, seqs: Sequence[int]) -> list[int]:
        """Those of them whose ids were not used again meanwhile."""
        wanted = self._wanted()
        return [seq for seq in seqs if seq not in wanted and not self._ledger.has_waiting(seq)]

    def _wanted(self) -> set[int]:
        """What other notices of the same id need: one under way the first one, one that waits its text."""
        texts = {text for seq, text in self._file.text_seqs.items() if self._ledger.has_waiting(seq)}
        return texts.union(self._firsts.values())

    def _is_needed(self, seq: int) -> bool:
        ledger = self._ledger
        return ledger.has_waiting(seq) or not (ledger.notice_state(seq) & HIDDEN or not ledger.counts(seq))


def _drop(seqs: Sequence[int], behind_seq: int, connection: sqlite3.Connection) -> bool:
    """Delete the rows; False: not now, since one of their ids may just have been used again."""
    with transaction(connection):
        if connection.execute(REPEATS_BEHIND, {"behind_seq": behind_seq}).fetchone()[0]:
            return False
        for statement in (PURGE, tags.DROP):
            connection.execute(statement, {"seqs": orjson.dumps(seqs)})
    return True


def _decoded(rows: Sequence[_Row], spoiled: list[_Spoiled]) -> list[Notice]:
    """Those that can be decoded; the others go to `spoiled`."""
    found = []
    for seq, _, body in rows:
        try:
            notice = _notice.decode(body)
            if notice.seq != seq:
                raise ValueError(f"seq: found {notice.seq}, expected {seq}")
        except Exception as error:
            spoiled.append((seq, body or b"", f"{type(error).__name__}: {error}"))
        else:
            found.append(notice)
    return found


def _nothing_to_do() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
