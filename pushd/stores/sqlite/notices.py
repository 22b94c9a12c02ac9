"""What the mailbox and the records both ask of notices: numbers of recipients, the shape of receipts, what expired."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Collection
from functools import partial

from pushd.model import TargetKind, UserId
from pushd.stores.sqlite.engine.statements import Reads
from pushd.stores.sqlite.ledger_file import LedgerFile

# Of ledger/_ledger.pxd, NoticeState.
KNOWN, DENSE, HIDDEN, OVER, REVOKED = 0x01, 0x04, 0x08, 0x10, 0x20

# A notice for fewer than this, or for less than a quarter of all users, has its receipts in pages; so has one for all
# where there are fewer users: a dense block takes 1.3 KB however small it is.
DENSE_LEAST = 256

# Seqs are fetched, or asked of the ledger, so many at a time.
SEQS_AT_ONCE = 500

EXPIRED = """
SELECT expires_ms, seq FROM notice
 WHERE (expires_ms, seq) > (:after_ms, :after_seq) AND expires_ms <= :now_ms
 ORDER BY expires_ms, seq
 LIMIT :limit
"""


def numbers_of(file: LedgerFile, user_ids: Collection[UserId]) -> list[int]:
    """The users' numbers, in the order given, known to the ledger. 0.05 us each."""
    try:
        return file.users.existing(user_ids)
    except KeyError:
        numbers = file.users.numbers(user_ids)
        file.ledger.add_users(len(file.users))
        return numbers


def take_shape(file: LedgerFile, seq: int, count: int) -> None:
    """Has the receipts of a notice in a dense block if it is for all users, or for many: `count` of them come now.

    Only what comes first decides.
    """
    if file.ledger.notice_state(seq) & DENSE:
        return
    is_many = count >= DENSE_LEAST and count * 4 > len(file.users)
    if not is_many and len(file.users) >= DENSE_LEAST:
        label = file.labels.label(file.ledger.label(seq))
        is_many = label is not None and label.target == TargetKind.ALL
    if is_many:
        file.ledger.begin_dense(seq)


async def expired(reads: Reads, after_ms: int, now_ms: int) -> AsyncIterator[list[int]]:
    """Seqs of the notices that expired after `after_ms` and up to `now_ms`, in this order, some at a time."""
    after_seq = (1 << 63) - 1
    while True:
        limits = {"after_ms": after_ms, "after_seq": after_seq, "now_ms": now_ms, "limit": SEQS_AT_ONCE}
        rows = await reads.read("expired", partial(_rows, limits))
        if rows:
            yield [seq for _, seq in rows]
            after_ms, after_seq = rows[-1]
        if len(rows) < SEQS_AT_ONCE:
            return


def _rows(limits: dict[str, int], connection: sqlite3.Connection) -> list[tuple[int, int]]:
    return connection.execute(EXPIRED, limits).fetchall()
