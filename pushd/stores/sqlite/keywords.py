"""Which notices have a keyword in their content: a scan of their rows, remembered for the keywords asked for last."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from functools import partial

import msgspec
import orjson

from pushd.model import Notice
from pushd.stores.sqlite.engine.statements import Parameter, Reads

# Rows of a statement: tens of milliseconds of a reader's time, unless they are large.
STRETCH = 4096

KEPT = 2  # keywords: an asker's page and its sums ask for the same one

# The content stands in JSON: a look for the keyword as JSON has it spares taking most rows apart. ASCII letters match
# in either case, other letters as they are written.
HAVING = """
SELECT CAST(json_group_array(seq) AS BLOB)
  FROM notice
 WHERE seq >= :first AND seq < :end
   AND instr(lower(CAST(body AS TEXT)), :written) > 0
   AND iif(json_valid(CAST(body AS TEXT)),
           instr(lower(json_extract(CAST(body AS TEXT), '$.content')), lower(:keyword)) > 0, 0)
"""

NEWEST = "SELECT max(seq) FROM notice"


class Marks:
    """A mark for each notice from `first` on, up to `end`: 1 where it has what is asked for."""

    def __init__(self, first: int, marks: bytes = b"") -> None:
        self.first = first
        self.marks = marks

    @property
    def end(self) -> int:
        """Where marks end."""
        return self.first + len(self.marks)


def both(one: Marks, other: Marks) -> Marks:
    """Where both have a mark; 0.1 ms a million."""
    first, end = max(one.first, other.first), min(one.end, other.end)
    size = max(0, end - first)
    parts = (int.from_bytes(marks.marks[first - marks.first : end - marks.first], "little") for marks in (one, other))
    return Marks(first, (next(parts) & next(parts)).to_bytes(size, "little") if size else b"")


class Keywords:
    """Looks for keywords. What was found stays true until a notice is edited.

    A scan costs a reader about a microsecond a row of 200 bytes; memory a byte a notice, for KEPT keywords.
    """

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._kept: OrderedDict[str, Marks] = OrderedDict()
        self._edits = 0
        self._scanning = asyncio.Lock()  # one scan at a time: the other reader is for others

    async def having(self, keyword: str, first: int, end: int) -> Marks:
        """Marks of the notices from `first` on and below `end`, if not of more; of those that are on disk.

        Raises StoreError.
        """
        async with self._scanning:
            edits = self._edits
            (newest,) = await self._reads.numbers("keyword", NEWEST)
            end = min(end, newest + 1)  # what comes later is scanned later
            known = self._kept.pop(keyword, None) or Marks(first)
            before = await self._scan(keyword, first, known.first)
            after = await self._scan(keyword, known.end, end)
            if before or after:
                known = Marks(known.first - len(before), before + known.marks + after)
            if edits == self._edits:
                self._kept[keyword] = known
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return known

    def edited(self, seq: int, notice: Notice) -> None:
        """A notice has another content now."""
        self._edits += 1
        self._kept.clear()

    async def _scan(self, keyword: str, first: int, end: int) -> bytes:
        marks = bytearray(max(0, end - first))
        try:
            written = msgspec.json.encode(keyword)[1:-1].lower().decode()
        except UnicodeEncodeError:  # half of a surrogate pair: no content has it
            return bytes(marks)
        for stretch in range(first, end, STRETCH):
            asked: dict[str, Parameter] = {"first": stretch, "end": min(stretch + STRETCH, end)}
            asked |= {"written": written, "keyword": keyword}
            for seq in await self._reads.read("keyword", partial(_having, asked)):
                marks[seq - first] = 1
        return bytes(marks)


def _having(asked: dict[str, Parameter], connection: sqlite3.Connection) -> list[int]:
    (document,) = connection.execute(HAVING, asked).fetchone()
    found: list[int] = orjson.loads(document)
    return found
