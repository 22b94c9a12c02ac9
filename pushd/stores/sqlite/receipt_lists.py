"""Pages and counts of receive records, by the way in receipt_queries or receipt_pivots that costs least."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from pushd.queries import ReceiptFilter, ReceiptRow, ReceiptSort, ReceiptStats, Slice
from pushd.stores.sqlite import receipt_pivots, receipt_queries
from pushd.stores.sqlite.members import MEMBERS, Members, Owners, members
from pushd.stores.sqlite.receipt_queries import Side, TimeSide, Walk
from pushd.stores.sqlite.statements import Query, Reads

Page = Callable[[Slice], Awaitable[list[ReceiptRow]]]

_rows = msgspec.json.Decoder(list[ReceiptRow])


class ReceiptLists:
    """What RecordStore says of receive records in lists, from statements that run beside those that write."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._writes = 0  # begun, and ended
        self._writing = 0  # under way
        # The last answers, until something is written.
        self._counted: tuple[ReceiptFilter, ReceiptStats] | None = None
        self._named: tuple[str, Members] | None = None
        # Of which records, a moment, and how many of them were received before it.
        self._earlier: tuple[ReceiptFilter, int, int] | None = None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What is in the block changes records: what was counted before it, and meanwhile, is forgotten."""
        self._forget()
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            self._forget()

    def _forget(self) -> None:
        self._writes += 1
        self._counted = self._named = self._earlier = None

    async def rows(self, query: Query, name: str = "receive_records") -> list[ReceiptRow]:
        """What a statement of receipt_queries selects."""
        document = await self._reads.document(name, query.statement, **query.parameters)
        rows: list[ReceiptRow] = _rows.decode(document or b"[]")
        return rows

    async def _numbers(self, name: str, query: Query) -> tuple[int, ...]:
        return await self._reads.numbers(name, query.statement, **query.parameters)

    async def _sums(self, name: str, query: Query, owners: Owners) -> tuple[int, ...]:
        """The numbers of a query over `owners`, who are many: in parts at the same time."""
        parts = (Query(query.statement, {**query.parameters, "owners": part}) for part in owners.parts)
        counted = await asyncio.gather(*(self._numbers(name, part) for part in parts))
        return tuple(map(sum, zip(*counted, strict=True)))

    async def page(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """See ports.RecordStore.receive_records."""
        where = await self._selective(where)
        if part.offset < receipt_queries.FAR_ROWS:
            return await self._page(where, sort, part)
        if sort is ReceiptSort.RECEIVED_AT and receipt_queries.is_by_name(where) and receipt_queries.has_range(where):
            await self._count_earlier(where, part)
        total = (await self.stats(where)).total_users
        return await _from_nearer_end(part, total, partial(self._page, where, sort))

    async def _page(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        if receipt_queries.is_by_name(where):
            return await self._by_name(where, sort, part)
        is_by_user = sort in receipt_queries.NAME_KEYS
        if receipt_queries.is_narrow(where) or (where.message_id is not None and is_by_user):
            return await self.rows(receipt_queries.sorted_all(where, sort, part))
        if sort is ReceiptSort.CREATED_AT:
            return await self._by_creation(where, part)
        if sort in receipt_queries.TIMES:
            return await self._by_time(where, sort, part)
        return await self._by_user(where, sort, part)

    async def stats(self, where: ReceiptFilter) -> ReceiptStats:
        """See ports.RecordStore.receive_stats."""
        where = await self._selective(where)
        if self._counted is not None and self._counted[0] == where:
            return self._counted[1]
        if self._named is not None and self._named[0] != where.username:
            self._named = None
        writes = self._writes
        counted = ReceiptStats(*await self._stats(where))
        if writes == self._writes:
            self._counted = (where, counted)
        return counted

    async def _stats(self, where: ReceiptFilter) -> tuple[int, ...]:
        """What is counted by a name and a time are the records of the time, or the others if that is less work."""
        if not receipt_queries.is_by_name(where):
            return await self._numbers("receive_stats", receipt_queries.stats(where))
        named = await self._who(where.username or "")
        if not receipt_queries.has_range(where):
            query = receipt_queries.stats_always(where, named.owners)
            return await self._sums("receive_stats", query, named.owners)
        wanted, *flags, total = await self._numbers("receive_stats", receipt_queries.flags_in_range(where))
        is_less = receipt_queries.is_less_short(wanted, total, named)
        count = receipt_queries.stats_less if is_less else receipt_queries.stats_within
        query = count(where, named.owners, [flagged * 2 > wanted for flagged in flags])
        return await self._sums("receive_stats", query, named.owners)

    async def _count_earlier(self, where: ReceiptFilter, part: Slice) -> None:
        """Count for `stats` and for the page what each of them would look at the records of many users for."""
        if self._counted is not None and self._counted[0] == where:
            return
        writes = self._writes
        named = await self._who(where.username or "")
        everybody = await self._numbers("receive_stats", receipt_queries.stats(receipt_queries.unnamed(where)))
        total, received = int(everybody[0] * named.share), int(everybody[2] * named.share)
        newest = Slice(part.offset if part.is_descending else max(0, total - part.offset), part.limit)
        if newest.offset >= received:
            return
        query = receipt_pivots.moment(where, ReceiptSort.RECEIVED_AT, newest, named.owners, received)
        (at_ms,) = await self._numbers("receive_records", query)
        if at_ms:
            common = [flagged * 2 > everybody[0] for flagged in everybody[1:]]
            query = receipt_queries.stats_within(where, named.owners, common, TimeSide("<", at_ms))
            *counted, earlier = await self._sums("receive_stats", query, named.owners)
            if writes == self._writes:
                self._counted = (where, ReceiptStats(*counted))
                self._earlier = (msgspec.structs.replace(where, is_received=None), at_ms, earlier)

    async def _selective(self, where: ReceiptFilter) -> ReceiptFilter:
        """`where` without a part of a name that all names have."""
        name = where.username or ""
        if not receipt_queries.is_by_name(where) or self._is_known(name):
            return where
        (is_selective,) = await self._reads.numbers("names", receipt_queries.IS_SELECTIVE, username=name)
        return where if is_selective else msgspec.structs.replace(where, username=None)

    async def _by_name(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        if sort in receipt_queries.TIMES:
            return await self._by_name_and_time(where, sort, part)
        if sort is not ReceiptSort.CREATED_AT:
            return await self._by_owner(where, sort, part)
        total = (await self.stats(where)).total_users
        return await self._named_by_time(where, sort, part, total)

    async def _who(self, name: str) -> Members:
        if self._named is not None and self._named[0] == name:
            return self._named[1]
        writes = self._writes
        named = members(name, *await self._reads.row("names", MEMBERS, username=name))
        if writes == self._writes:
            self._named = (name, named)
        return named

    def _is_known(self, name: str) -> bool:
        return self._named is not None and self._named[0] == name

    async def _members(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> tuple[Members, Walk]:
        """Who has the name in `where`, which `total` records match, and what a walk in the order of `part` passes.

        Whether a record is of one of them is asked last if few records have the state that is asked for.
        """
        named = await self._who(where.username or "")
        before, after, records = await self._numbers("names", receipt_queries.spread(where))
        inside = records - before - after
        walk = Walk(0, inside, inside)
        if sort in receipt_queries.TIMES:
            (timed,) = await self._numbers("receive_records", receipt_queries.timed(sort))
            share = timed / max(1, records)
            walk = Walk(share * (after if part.is_descending else before), share * inside, inside)
        return named._replace(is_asked_last=total < named.share * named.share * inside), walk

    async def _from_moment(
        self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int, named: Members
    ) -> list[ReceiptRow]:
        """A page by created_at or received_at in the midst of the list, walked to from a moment nearby."""
        at_ms, before = await self._moment(where, sort, part, total, named.owners)
        if not at_ms:
            return await self._walk(where, sort, named, part)
        pages = (partial(self._walk, where, sort, named, side=side) for side in receipt_pivots.time_sides(part, at_ms))
        return await self._from_pivot(part, before, *pages)

    async def _moment(
        self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int, owners: Owners
    ) -> tuple[int, int]:
        """A moment near the page, and how many of `total` are before it in the list; 0 for none."""
        if self._earlier is not None and self._earlier[0] == msgspec.structs.replace(where, is_received=None):
            _, at_ms, earlier = self._earlier
            before = total - earlier if part.is_descending else earlier
            if abs(before - part.offset) * receipt_pivots.NEAR < total:
                return at_ms, before
        (at_ms,) = await self._numbers("receive_records", receipt_pivots.moment(where, sort, part, owners, total))
        if not at_ms:
            return 0, 0
        side, _ = receipt_pivots.time_sides(part, at_ms)
        (before,) = await self._sums("receive_records", receipt_pivots.count_beside(where, sort, side, owners), owners)
        return at_ms, before

    async def _walk(
        self, where: ReceiptFilter, sort: ReceiptSort, named: Members, part: Slice, side: TimeSide | None = None
    ) -> list[ReceiptRow]:
        if sort is ReceiptSort.CREATED_AT:
            return await self.rows(receipt_queries.walked(where, part, named, side))
        return await self._timed(where, sort, part, named, side)

    async def _by_owner(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """A page by user_id or username: in the midst of the list walked to from a user nearby."""
        if receipt_pivots.has_user_pivot(where, sort, part):
            total = (await self.stats(where)).total_users
            name = where.username
            if name is None or receipt_pivots.is_user_pivot_short(total, (await self._who(name)).owners):
                return await self._from_user(where, sort, part, total)
        return await self.rows(receipt_queries.by_user(where, sort, part))

    async def _from_user(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> list[ReceiptRow]:
        query = receipt_pivots.user_pivot(where, sort, part, total)
        username, user_id, before = await self._reads.row("receive_records", query.statement, **query.parameters)
        if username is None or user_id is None:
            return await self.rows(receipt_queries.by_user(where, sort, part))
        sides = receipt_pivots.user_sides(part, username, int(user_id))
        pages = (partial(self._by_users, where, sort, side) for side in sides)
        return await self._from_pivot(part, int(before or 0), *pages)

    async def _by_users(self, where: ReceiptFilter, sort: ReceiptSort, side: Side, part: Slice) -> list[ReceiptRow]:
        return await self.rows(receipt_queries.by_user(where, sort, part, side))

    async def _from_pivot(self, part: Slice, before: int, first: Page, rest: Page) -> list[ReceiptRow]:
        """A page near a place in the list that has `before` records before it; `first` and `rest` page its sides."""
        rows: list[ReceiptRow] = []
        if part.offset < before:
            rows = await _from_nearer_end(part, before, first)
        if len(rows) < part.limit:
            beyond = Slice(max(0, part.offset - before), part.limit - len(rows), part.is_descending)
            rows += await rest(beyond)
        return rows

    async def _are_states_cheap(self, where: ReceiptFilter) -> bool:
        """True when few rows say which states the records are in, and `where` asks for some."""
        if not receipt_queries.has_state(where):
            return False
        (runs,) = await self._numbers("receive_records", receipt_queries.runs(ReceiptFilter()))
        return runs <= receipt_queries.SOUGHT_RUNS

    async def _by_creation(self, where: ReceiptFilter, part: Slice) -> list[ReceiptRow]:
        """A page by created_at: sought where adding up what comes before it is cheap, else walked to."""
        is_sought = False
        if receipt_queries.has_state(where):
            (runs,) = await self._numbers("receive_records", receipt_queries.runs(where))
            is_sought = runs <= receipt_queries.SOUGHT_RUNS
        query = receipt_queries.sought if is_sought else receipt_queries.walked
        return await self.rows(query(where, part))

    async def _by_time(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """A page by a time that records need not have: those that have it, and before or after them, those without."""
        flag = receipt_queries.TIMES[sort]
        wanted = getattr(where, flag)
        rows: list[ReceiptRow] = []
        for has_time in (True, False) if part.is_descending else (False, True):
            if wanted in (None, has_time):
                side = msgspec.structs.replace(where, **{flag: has_time})
                total = (await self.stats(side)).total_users
                rest = msgspec.structs.replace(part, limit=part.limit - len(rows))
                if part.offset < total and rest.limit > 0:
                    rows += await _from_nearer_end(rest, total, partial(self._side, side, sort, total=total))
                part = msgspec.structs.replace(part, offset=max(0, part.offset - total), limit=part.limit)
        return rows

    async def _by_name_and_time(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        """The same for the records of the users with a certain name: which have no time, their index says."""
        flag = receipt_queries.TIMES[sort]
        counted = await self.stats(where)
        timed = getattr(counted, flag.replace("is_", "") + "_users")
        rows: list[ReceiptRow] = []
        for has_time in (True, False) if part.is_descending else (False, True):
            total = timed if has_time else counted.total_users - timed
            rest = msgspec.structs.replace(part, limit=part.limit - len(rows))
            if part.offset < total and rest.limit > 0:
                side = msgspec.structs.replace(where, **{flag: has_time})
                rows += await _from_nearer_end(rest, total, partial(self._named_side, side, sort, total=total))
            part = msgspec.structs.replace(part, offset=max(0, part.offset - total))
        return rows

    async def _named_side(self, side: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> list[ReceiptRow]:
        if not getattr(side, receipt_queries.TIMES[sort]):
            return await self._by_owner(side, ReceiptSort.USER_ID, part)
        return await self._named_by_time(side, sort, part, total)

    async def _named_by_time(
        self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int
    ) -> list[ReceiptRow]:
        """A page by a time that all `total` have: walked to from the list's end or a moment, or found by sorting."""
        named, walk = await self._members(where, sort, part, total)
        walking = receipt_queries.walking_cost(part, total, walk, named)
        sorting = receipt_queries.sorting_cost(total, walk, named)
        if receipt_pivots.pivoting_cost(sort, part, total, walk, named) < min(walking, sorting):
            return await self._from_moment(where, sort, part, total, named)
        if walking < sorting:
            return await self._walk(where, sort, named, part)
        return await self.rows(receipt_queries.sorted_all(where, sort, part))

    async def _timed(
        self,
        where: ReceiptFilter,
        sort: ReceiptSort,
        part: Slice,
        named: Members | None = None,
        side: TimeSide | None = None,
    ) -> list[ReceiptRow]:
        """A page by a time. On a long walk, entries are asked only for states that not all have."""
        where = msgspec.structs.replace(where, **{receipt_queries.TIMES[sort]: None})
        if part.offset < receipt_queries.FAR_ROWS or not await self._are_states_cheap(where):
            return await self.rows(receipt_queries.by_time(where, sort, part, named, side))
        writes = self._writes
        counted = await self._numbers("receive_records", receipt_queries.others(where, sort))
        telling = receipt_queries.telling(where, counted)
        rows = await self.rows(receipt_queries.by_time(telling, sort, part, named, side))
        if writes == self._writes and not self._writing:
            return rows
        return await self.rows(receipt_queries.by_time(where, sort, part, named, side))

    async def _by_user(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice) -> list[ReceiptRow]:
        total = (await self.stats(where)).total_users
        if total <= receipt_queries.SORTED_ROWS:
            return await self.rows(receipt_queries.sorted_all(where, sort, part))
        return await self._by_owner(where, sort, part)

    async def _side(self, where: ReceiptFilter, sort: ReceiptSort, part: Slice, total: int) -> list[ReceiptRow]:
        if not getattr(where, receipt_queries.TIMES[sort]):
            return await self._by_creation(where, part)
        if total <= receipt_queries.SORTED_ROWS or where.message_id is not None:
            return await self.rows(receipt_queries.sorted_all(where, sort, part))
        return await self._timed(where, sort, part)


async def _from_nearer_end(part: Slice, total: int, page: Page) -> list[ReceiptRow]:
    """What `page` has for a part of a list of `total`, looked for from the other end where that is nearer."""
    if part.offset * 2 < total:
        return await page(part)
    limit = max(0, min(part.limit, total - part.offset))
    mirrored = Slice(total - part.offset - limit, limit, not part.is_descending)
    return (await page(mirrored))[::-1] if limit else []
