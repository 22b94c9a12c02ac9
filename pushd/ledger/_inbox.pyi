from collections.abc import Callable

from pushd.ledger._ledger import Ledger

def seqs(ledger: Ledger, number: int, before: int, limit: int, states: bytes, labels: bytes | None) -> list[int]:
    """What is in the user's inbox: notices that count and of which he has a listed receipt, newest seq first, at most
    `limit` of those below `before`. `states`: 256 marks, 1 for each state byte that is wanted; `labels`: a mark for
    each label, None for any."""

def receipts(
    ledger: Ledger,
    number: int,
    before: int,
    limit: int,
    states: bytes,
    labels: bytes | None,
    read: Callable[[int], bytes | None] | None = None,
) -> list[tuple[int, int, int, int]] | None:
    """The same as (seq, state, read_ms, confirmed_ms), 0 for never. None: some of these times are in the file; then
    call it with `read` (as of _cold.newest), from a thread that reads."""

def unread_changed(ledger: Ledger) -> list[int] | None:
    """Users whose count of unread receipts may have changed since this was asked last, some named twice; None: too many
    to be named."""

def archive(ledger: Ledger, seq: int, number: int, at_ms: int) -> bool:
    """The user has read it, if not before, and put it away. False: there is no listed receipt."""

def unarchive(ledger: Ledger, seq: int, number: int) -> bool:
    """It is put away no more. False: there is no listed receipt."""
