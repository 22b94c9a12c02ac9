"""Facts of clients by number: what a receipt says of the connection over which a notice went, kept once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from itertools import islice
from typing import NamedTuple

# Recent ones are found again: twice as many at most, and no fewer than there are connections (limits.max_connections).
MOST = 131_072

# A number says in which week it was given out, and is used in that week only. So the receipts that name it are of
# notices that were accepted in that week at the latest, and once these are past their retention so is the client.
WEEK_MS = 7 * 86_400_000
FIRST_WEEK_MS = 1_767_225_600_000  # 2026-01-01
WEEK_BITS = 22  # numbers of a week, of 32; a week with more of them goes on with those of the next one
LAST = 0xFFFFFFFF
NOBODY = 0

UNDESCRIBED = ("", "", "")
Row = tuple[int, str, str, str, str, str, str]  # number, and the fields of ClientFacts


class ClientFacts(NamedTuple):
    """What is on record of a client; "" where nothing is known."""

    connection_id: str
    client_ip: str
    user_agent: str
    device_type: str
    platform: str
    browser: str


async def _nothing(numbers: Collection[int]) -> Iterable[Row]:
    return ()


class Clients:
    """Gives out the numbers of clients, ascending, and knows the facts that are not stored yet.

    `read` finds the rows of stored ones. At most twice `most` clients are recognised; one that was not seen for so long
    gets another number, which does no harm.
    """

    def __init__(
        self, read: Callable[[Collection[int]], Awaitable[Iterable[Row]]] = _nothing, *, most: int = MOST
    ) -> None:
        self._read = read
        self._most = most
        self._next = 1
        self._week = 0
        self._recent: dict[tuple[str, str, str], int] = {}
        self._older: dict[tuple[str, str, str], int] = {}
        self._undescribed: dict[int, ClientFacts] = {}
        self._new: dict[int, ClientFacts] = {}
        self._taken: dict[int, ClientFacts] = {}  # perhaps not on disk yet

    def load(self, highest: int) -> None:
        """The highest number that is stored: others begin behind it."""
        self._next = max(self._next, highest + 1)

    def begin(self, at_ms: int) -> None:
        """Numbers are given out, and used, at this time from now on."""
        week = _week(at_ms)
        if week > self._week:
            self._week = week
            self._next = max(self._next, week << WEEK_BITS)
            self._recent, self._older = {}, {}

    @property
    def oldest(self) -> int:
        """Numbers below are of an earlier week."""
        return self._week << WEEK_BITS

    def number(self, connection_id: str, client_ip: str, user_agent: str) -> int:
        """The number of these facts, 0 of nobody and when there are no more numbers. 0.2 us for one seen lately.

        A new one is stored once its device is described.
        """
        key = (connection_id, client_ip, user_agent)
        return self._recent.get(key) or self._seek(key)

    def _seek(self, key: tuple[str, str, str]) -> int:
        number = self._older.get(key, NOBODY)
        if not number:
            if not any(key) or self._next > LAST:
                return NOBODY
            number = self._next
            self._next += 1
            self._undescribed[number] = ClientFacts(*key, *UNDESCRIBED)
        if len(self._recent) >= self._most:
            self._recent, self._older = {}, self._recent
        self._recent[key] = number
        return number

    def undescribed(self) -> list[tuple[int, str]]:
        """Numbers and User-Agents of those whose devices are not known yet."""
        return [(number, facts.user_agent) for number, facts in self._undescribed.items()]

    def describe(self, number: int, device: tuple[str, str, str]) -> None:
        """Its device: device_type, platform and browser. Of one that is described already nothing changes."""
        facts = self._undescribed.pop(number, None)
        if facts is not None:
            self._new[number] = ClientFacts(*facts[:3], *device)

    async def facts(self, numbers: Collection[int]) -> dict[int, ClientFacts]:
        """The facts of these clients; the unknown, 0 among them, are absent. Raises what reading raises."""
        found: dict[int, ClientFacts] = {}
        wanted: list[int] = []
        for number in numbers:
            facts = self._new.get(number) or self._undescribed.get(number) or self._taken.get(number)
            if facts is not None:
                found[number] = facts
            elif number:
                wanted.append(number)
        if wanted:
            found.update((number, ClientFacts(*texts)) for number, *texts in await self._read(wanted))
        return found

    @property
    def untaken(self) -> int:
        """How many `taken` would give."""
        return len(self._new)

    def taken(self, most: int = LAST) -> list[Row]:
        """At most so many rows to be stored: of clients described since the last call, whose rows are stored by now."""
        if len(self._new) <= most:
            self._taken, self._new = self._new, {}
        else:
            self._taken = {number: self._new.pop(number) for number in [*islice(self._new, most)]}
        return [(number, *facts) for number, facts in self._taken.items()]


def first_of(at_ms: int) -> int:
    """No receipt of a notice accepted at that time or later names a client with a number below this one."""
    return _week(at_ms) << WEEK_BITS


def _week(at_ms: int) -> int:
    return max(0, min((at_ms - FIRST_WEEK_MS) // WEEK_MS, LAST >> WEEK_BITS))
