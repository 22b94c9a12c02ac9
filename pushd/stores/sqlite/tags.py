"""Tags of notices: a row for each, so that a list finds the notices with a tag, and a page the tags of its notices."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial

import orjson

from pushd.model import Notice
from pushd.stores.sqlite.engine.statements import Parameter, Reads, Rows, Value

ADD = Rows(("seq", "place", "tag"), "INSERT OR REPLACE INTO notice_tag (seq, place, tag) SELECT * FROM given")
DROP = "DELETE FROM notice_tag WHERE seq IN (SELECT value FROM json_each(CAST(:seqs AS TEXT)))"
DROP_ONE = "DELETE FROM notice_tag WHERE seq = ?"
ADD_ONE = "INSERT INTO notice_tag (seq, place, tag) VALUES (?, ?, ?)"

HAVING = """
SELECT CAST(json_group_array(seq) AS BLOB)
  FROM (SELECT seq FROM notice_tag WHERE tag = :tag AND seq >= :first AND seq < :end ORDER BY seq LIMIT :limit)
"""
AT_ONCE = 8192  # notices of one statement: milliseconds of a reader's time


def rows_of(notices: Sequence[Notice]) -> list[Value]:
    """The rows of ADD."""
    return [
        value
        for notice in notices
        if notice.tags
        for place, tag in enumerate(notice.tags)
        for value in (notice.seq, place, tag)
    ]


async def having(reads: Reads, tag: str, first: int, end: int) -> bytes:
    """A mark for each notice from `first` on and below `end`: 1 where it has the tag. Of those that are on disk.

    A quarter of a microsecond for each that has it. Raises StoreError.
    """
    marks = bytearray(max(0, end - first))
    try:
        tag.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no tag has it
        return bytes(marks)
    at = first
    while at < end:
        asked: dict[str, Parameter] = {"tag": tag, "first": at, "end": end, "limit": AT_ONCE}
        seqs = await reads.read("tag", partial(_having, asked))
        for seq in seqs:
            marks[seq - first] = 1
        at = seqs[-1] + 1 if len(seqs) == AT_ONCE else end
        await asyncio.sleep(0)
    return bytes(marks)


def _having(asked: dict[str, Parameter], connection: sqlite3.Connection) -> list[int]:
    (document,) = connection.execute(HAVING, asked).fetchone()
    found: list[int] = orjson.loads(document)
    return found
