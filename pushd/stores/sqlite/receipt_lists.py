"""Pages and counts of receive records: by SQLite where it passes few of them on the way, else by the columns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from time import monotonic

import msgspec

from pushd.records import Part, ReceiptFilter, ReceiptRow, ReceiptSort, ReceiptStats
from pushd.stores.sqlite import receipt_queries
from pushd.stores.sqlite.engine.statements import Query, Reads, decoded_rows
from pushd.stores.sqlite.receipt_columns import Answer, ReceiptColumns

Page = Callable[[Part], Awaitable[list[ReceiptRow]]]

# Who asked for a list will ask for another: for so long, what was written is read again this often rather than then.
ASKED_S, FRESH_S = 600.0, 0.25

_rows = msgspec.json.Decoder(list[ReceiptRow])
_NOTHING = Part(0, 0)


class ReceiptLists:
    """What RecordStore says of receive records in lists, from statements that run beside those that write."""

    def __init__(self, reads: Reads) -> None:
        self.columns = ReceiptColumns()
        self._reads = reads
        self._asked_s = -inf  # when a list was last asked of the columns
        # What was counted last, after how many changes.
        self._counted: tuple[int, ReceiptFilter, ReceiptStats] | None = None

    def close(self) -> None:
        """Have what is being loaded be given up."""
        self.columns.stop()

    async def keep_ready(self) -> None:
        """Until cancelled: load the columns, and keep them fresh while lists are asked for. Raises StoreError."""
        is_due = True
        while True:
            if is_due:
                await self._reads.read("refresh_columns", self.columns.refresh)
            await asyncio.sleep(FRESH_S)
            is_due = self.columns.is_stale and monotonic() < self._asked_s + ASKED_S

    async def rows(self, query: Query, name: str = "receive_records") -> list[ReceiptRow]:
        """What a statement of receipt_queries selects."""
        document = await self._reads.document(name, query.statement, **query.parameters)
        return decoded_rows(_rows, ReceiptRow, document or b"[]")

    async def stats(self, where: ReceiptFilter) -> ReceiptStats:
        """Counts over the matching receive records."""
        changes = self.columns.changes
        if self._counted is not None and self._counted[:2] == (changes, where):
            return self._counted[2]
        answer = None
        if _is_by_name(where):
            answer = await self._answer(where, ReceiptSort.CREATED_AT, _NOTHING)
        if answer is not None:
            return answer.stats
        counted = ReceiptStats(*await self._numbers("receive_stats", receipt_queries.stats(where)))
        self._counted = (changes, where, counted)
        return counted

    async def page(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        """A part of the matching receive records."""
        if where.user_id is not None:
            return await self.rows(receipt_queries.sorted_all(where, sort, part))
        if _is_by_name(where) or not await self._is_short(where, sort, part):
            answer = await self._answer(where, sort, part)
            if answer is not None:
                return decoded_rows(_rows, ReceiptRow, answer.document)
        if part.offset < receipt_queries.FAR_ROWS:
            return await self._page(where, sort, part)
        total = (await self.stats(where)).total_users
        return await _from_nearer_end(part, total, partial(self._page, where, sort))

    async def _answer(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> Answer | None:
        """What the columns say; None when there are too many records for them."""
        self._asked_s = monotonic()
        changes = self.columns.changes
        answer = await self._reads.read(
            "receive_records", lambda connection: self.columns.answer(connection, where, sort, part)
        )
        if answer is not None:
            self._counted = (changes, where, answer.stats)
        return answer

    async def _is_short(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> bool:
        """True when SQLite has to pass few records on the way to the page."""
        total = (await self.stats(where)).total_users
        if where.message_id is not None and total <= receipt_queries.SORTED_ROWS:
            return True
        if min(part.offset, total - part.offset) >= receipt_queries.FAR_ROWS:
            return False
        # What matches may be anywhere in the order of other indexes, unless everything does.
        return sort is ReceiptSort.CREATED_AT or where == ReceiptFilter()

    async def _numbers(self, name: str, query: Query) -> tuple[int, ...]:
        return await self._reads.numbers(name, query.statement, **query.parameters)

    async def _page(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        """A page by SQLite alone."""
        if receipt_queries.is_narrow(where):
            return await self.rows(receipt_queries.sorted_all(where, sort, part))
        if sort is ReceiptSort.CREATED_AT:
            return await self._by_creation(where, part)
        if sort in receipt_queries.TIMES:
            return await self._by_time(where, sort, part)
        if await self._is_sorted(where):
            return await self.rows(receipt_queries.sorted_all(where, sort, part))
        return await self.rows(receipt_queries.by_user(where, sort, part))

    async def _is_sorted(self, where: ReceiptFilter) -> bool:
        """True when so few match, or all of one notice, that they are sorted rather than walked to."""
        return where.message_id is not None or (await self.stats(where)).total_users <= receipt_queries.SORTED_ROWS

    async def _by_creation(self, where: ReceiptFilter, part: Part) -> list[ReceiptRow]:
        """A page by created_at: sought where adding up what comes before it is cheap, else walked to."""
        is_sought = False
        if receipt_queries.has_state(where):
            (runs,) = await self._numbers("receive_records", receipt_queries.runs(where))
            is_sought = runs <= receipt_queries.SOUGHT_RUNS
        query = receipt_queries.sought if is_sought else receipt_queries.walked
        return await self.rows(query(where, part))

    async def _by_time(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        """A page by a time that a record need not have: those without it are in an order of their own."""
        flag = receipt_queries.TIMES[sort]
        rows: list[ReceiptRow] = []
        for has_time in (True, False) if part.is_descending else (False, True):
            if getattr(where, flag) not in (None, has_time):
                continue
            side = msgspec.structs.replace(where, **{flag: has_time})
            total = (await self.stats(side)).total_users
            rest = msgspec.structs.replace(part, limit=part.limit - len(rows))
            if part.offset < total and rest.limit > 0:
                rows += await _from_nearer_end(rest, total, partial(self._side, side, sort))
            part = msgspec.structs.replace(part, offset=max(0, part.offset - total))
        return rows

    async def _side(self, side: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        if not getattr(side, receipt_queries.TIMES[sort]):
            return await self._by_creation(side, part)
        if await self._is_sorted(side):
            return await self.rows(receipt_queries.sorted_all(side, sort, part))
        side = msgspec.structs.replace(side, **{receipt_queries.TIMES[sort]: None})
        return await self.rows(receipt_queries.by_time(side, sort, part))


def _is_by_name(where: ReceiptFilter) -> bool:
    """True when a name, and no id, says whose records are wanted."""
    return where.username is not None and where.user_id is None


async def _from_nearer_end(part: Part, total: int, page: Page) -> list[ReceiptRow]:
    """What `page` has for a part of a list of `total`, looked for from the other end where that is nearer."""
    if part.offset * 2 < total:
        return await page(part)
    limit = max(0, min(part.limit, total - part.offset))
    mirrored = Part(total - part.offset - limit, limit, not part.is_descending)
    return (await page(mirrored))[::-1] if limit else []
