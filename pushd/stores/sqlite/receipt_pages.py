"""Pages and counts of the lists that filters make of receive records in columns: see _columns.pyi."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from operator import attrgetter
from typing import Any

from pushd.model import Channel, DeliveryStatus
from pushd.records import Part, ReceiptFilter, ReceiptSort, ReceiptStats
from pushd.stores.sqlite import _columns
from pushd.stores.sqlite._columns import NoticeColumns, Owners, Selection
from pushd.stores.sqlite.engine.schema import STATE
from pushd.stores.sqlite.receipt_queries import FLAGS, TIMES, has_state

# The states of a record as one number, in the order in which SQLite sorts them.
_STATUSES = sorted(status.value for status in DeliveryStatus)
_CHANNELS = sorted(channel.value for channel in Channel)
_STATES: list[tuple[Any, ...]] = list(product(*[(0, 1)] * 4, _STATUSES, _CHANNELS))


def _ranked(column: str, values: Iterable[str]) -> str:
    cases = " ".join(f"WHEN '{value}' THEN {rank}" for rank, value in enumerate(values))
    return f"CASE {column} {cases} END"


STATE_NUMBER = (
    "(((is_online * 2 + is_received) * 2 + is_read) * 2 + is_confirmed)"
    f" * {len(_STATUSES) * len(_CHANNELS)} + {_ranked('delivery_status', _STATUSES)} * {len(_CHANNELS)}"
    f" + {_ranked('push_channel', _CHANNELS)}"
)

_SORTS = {
    ReceiptSort.RECEIVED_AT: _columns.RECEIVED,
    ReceiptSort.READ_AT: _columns.READ,
    ReceiptSort.CONFIRMED_AT: _columns.CONFIRMED,
    ReceiptSort.USER_ID: _columns.USER_ID,
    ReceiptSort.USERNAME: _columns.USERNAME,
}


class ReceiptList:
    """The list that a filter makes, its counts and its pages."""

    def __init__(self, notices: list[NoticeColumns], owners: Owners, where: ReceiptFilter) -> None:
        if where.message_id is not None:
            place = bisect_left(notices, where.message_id, key=attrgetter("message_id"))
            notices = [notice for notice in notices[place : place + 1] if notice.message_id == where.message_id]
        self._notices = notices
        self._owners = owners
        self._where = where
        self._members = None if where.username is None else owners.having(folded(where.username))
        self._counts = self._selection().counts()

    def stats(self) -> ReceiptStats:
        """What is counted over the whole list."""
        counted = [(count, state) for count, state in zip(self._counts, _STATES, strict=False) if count]
        flags = (sum(count * state[flag] for count, state in counted) for flag in range(len(FLAGS)))
        return ReceiptStats(sum(self._counts), *flags)

    def rowids(self, sort: ReceiptSort, part: Part) -> list[int]:
        """Of one page, in the order of the list."""
        total = sum(self._counts)
        limit = min(part.limit, total - part.offset)
        if limit <= 0:
            return []
        if part.is_descending:
            return self._ascending(sort, total - part.offset - limit, limit)[::-1]
        return self._ascending(sort, part.offset, limit)

    def _ascending(self, sort: ReceiptSort, offset: int, limit: int) -> list[int]:
        if sort is ReceiptSort.CREATED_AT:
            order = _columns.CREATED_BY_STATE if has_state(self._where) else _columns.CREATED
            return self._selection().page(order, offset, limit)
        if sort not in TIMES:
            return self._selection().page(_SORTS[sort], offset, limit)
        # Those without the time come before all others.
        untimed = sum(count for count, state in zip(self._counts, _STATES, strict=False) if not state[_flag_of(sort)])
        rowids: list[int] = []
        if offset < untimed:
            rowids = self._selection(sort, has_time=False).page(_columns.CREATED_BY_STATE, offset, limit)
        if len(rowids) < limit:
            rest = self._selection(sort, has_time=True)
            rowids += rest.page(_SORTS[sort], max(0, offset - untimed), limit - len(rowids))
        return rowids

    def _selection(self, sort: ReceiptSort | None = None, *, has_time: bool = False) -> Selection:
        where = self._where
        states = _wanted(tuple(getattr(where, name) for name in STATE))
        if sort is not None:
            timed = _wanted(tuple(has_time if name == TIMES[sort] else None for name in STATE))
            states = bytes(map(int.__and__, states, timed))
        return Selection(self._notices, self._owners, states, self._members, where.since_ms, where.before_ms)


@lru_cache
def _wanted(asked: tuple[Any, ...]) -> bytes:
    """A mark for each state that is as asked; None: any."""
    wanted = (all(value is None or value == has for value, has in zip(asked, state, strict=True)) for state in _STATES)
    return bytes(wanted).ljust(_columns.STATES, b"\0")


def _flag_of(sort: ReceiptSort) -> int:
    """Where in a state the flag is that says whether there is a time."""
    return STATE.index(TIMES[sort])


def folded(name: str) -> bytes:
    """As SQLite's lower() has it: only ASCII letters are folded."""
    return name.encode().lower()
