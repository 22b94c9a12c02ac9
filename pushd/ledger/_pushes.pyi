from pushd.ledger._ledger import Ledger

# What push records are sorted by: time; status; the ranks of labels; how many receipts. Then by seq.
SEQ: int
STATUS_RANK: int
LABEL_RANK: int
TOTAL: int
STATUSES: int  # none yet, success, expired, failed

class PushQuery:
    """The notices that have a push record and match: known ones that are not hidden. Call it from a reader thread.

    `statuses`: a mark for each of STATUSES; `flags`: bits of a notice's state, which must be as in `state`; `marks`:
    one for each label, others do not match (Labels.marks); `having`: one for each seq from `having_from` on, others do
    not match; `since_seq`, `before_seq`: at or after, before.
    None: any. Each method works on what is there when it is called, and may see changes that happen meanwhile.
    A pass takes a nanosecond or two a notice, and one a receipt where it looks at those, without the GIL; before it,
    pointers are copied, 0.1 us for 4,096 of either. Raises MemoryError, and TypeError, ValueError or OverflowError on
    arguments of a wrong kind.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        statuses: bytes | None = None,
        flags: int = 0,
        state: int = 0,
        marks: bytes | None = None,
        having: bytes | bytearray | None = None,
        having_from: int = 0,
        since_seq: int = 0,
        before_seq: int = ...,
    ) -> None: ...
    def totals(self) -> tuple[int, int, int, int, int]:
        """How many notices, how many of them failed, and the sums of their receipts: (notices, failed notices,
        all, delivered, expired)."""
    def page(self, sort: int, offset: int, limit: int, is_descending: bool, ranks: bytes | None = None) -> list[int]:
        """The seqs of a part of the sorted list; descending is exactly the reverse of ascending.

        `ranks` are what LABEL_RANK sorts by: an unsigned int of 32 bits for each label, other labels come first.
        """
