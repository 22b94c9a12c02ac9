from collections.abc import Callable, Iterable

from pushd.ledger._ledger import Ledger

def counts_of(
    ledger: Ledger, seqs: Iterable[int], read: Callable[[int], bytes | None] | None = None
) -> dict[int, tuple[int, int, int, int, int]]:
    """For each of these notices how many receipts it has: (all, online, delivered, expired, latest time of the notice
    and its receipts, ms). From a reader thread: it looks at the pages where its receipts may be, without the GIL.
    `read` is as of ReceiptQuery.

    In a dense block a time may count as the latest although an earlier one has taken its place since.
    """

def seq_at(ledger: Ledger, at_ms: int) -> int:
    """The first seq whose notice was accepted at or after that time, which may be a gap; beyond the last one where
    there is none. Notices before it were accepted earlier. Costs a microsecond."""
