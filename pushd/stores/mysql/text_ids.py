"""Ids that are texts, read page by page and byte for byte, whatever the column's collation has for equal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from pushd.model import UserId
from pushd.stores.mysql.pool import Row
from pushd.user_ids import STRINGS

# The rows from an id on, in the column's order, and at most so many.
Ask = Callable[[str, int], Awaitable[Sequence[Row]]]


async def text_ids(ask: Ask, rows_at_once: int, encoding: str) -> list[UserId]:
    """All ids that `ask` has in the first column, in byte order, each once.

    A page begins with the last id of the one before, since others may be equal to it; where that leads to nothing new,
    pages are larger.
    """
    found: set[UserId] = set()
    seen: set[str] = set()
    last, limit = "", rows_at_once
    while True:
        page = [text_of(row[0], encoding) for row in await ask(last, limit)]
        found.update(text for text in page if STRINGS.accepted(text) is not None)
        if len(page) < limit:
            return sorted(found, key=str)
        if seen.issuperset(page):
            limit *= 2
        seen, last = {*page}, page[-1]


def text_of(stored: bytes | None, encoding: str) -> str:
    """What a column has, as a text."""
    return (stored or b"").decode(encoding, "replace")
