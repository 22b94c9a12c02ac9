from collections.abc import Callable

from pushd.ledger._ledger import Ledger
from pushd.ledger._names import Named
from pushd.ledger.users import Users
from pushd.records import ReceiptSort

class ReceiptQuery:
    """Lists and counts of the listed receipts that match. Call it from a reader thread.

    `user` and `seq`: of one user (his number), of one notice. `names`: what Users.named made. `state_set`: 256 bytes,
    those of states that match are not zero (receipt_states.states_of). `since_seq`, `before_seq`: at or after, before.
    `having`: a 1 for each notice from `having_from` on that is meant; None: all are.
    `few`: so many rows are sorted rather than narrowed down further. `read`: the body of a part by its key (None: there
    is none), for what is in the file only; what it raises goes through.
    Each method works on what is there when it is called, and may see changes that happen meanwhile.
    Raises MemoryError, and TypeError or ValueError on arguments of a wrong kind.
    """

    def __init__(
        self,
        ledger: Ledger,
        users: Users,
        *,
        seq: int | None = None,
        user: int | None = None,
        names: Named | None = None,
        state_set: bytes | None = None,
        since_seq: int | None = None,
        before_seq: int | None = None,
        having: bytes | None = None,
        having_from: int = 0,
        few: int = ...,
        read: Callable[[int], bytes | None] | None = None,
    ) -> None: ...
    def counts(self) -> tuple[int, int, int, int, int]:
        """How many: (all, online, received, read, confirmed)."""
    def page(
        self, sort: ReceiptSort, offset: int, limit: int, is_descending: bool
    ) -> list[tuple[int, int, int, int, int, int, int]]:
        """(seq, user number, state, received_ms, read_ms, confirmed_ms, client) of a part of the sorted list."""
    def by_users(self, limit: int) -> list[tuple[int, int, int, int, int, int]]:
        """(user number, all, received, read, confirmed, newest seq), of those with the most first, then by user id."""
