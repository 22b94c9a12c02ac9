"""A plain model of the ledger: dicts of receipts, no columns. What a call does is said as simply as it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

PAGE = 4096
NONE, PENDING, OFFLINE, EXPIRED, DELIVERED, READ, CONFIRMED, AGAIN = range(8)
STEPS, WAITING, ARCHIVED, ONLINE, BY_MAILBOX = 0x0F, 0x10, 0x20, 0x40, 0x80
KNOWN, SETTLED, DENSE, HIDDEN, OVER, REVOKED = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
STATUS = 0xC0
UNREAD = (PENDING, OFFLINE, DELIVERED, AGAIN)
EVER = (1 << 64) - 1


@dataclass
class Receipt:
    arrival: int
    state: int = 0
    times: list[int] = field(default_factory=lambda: [0, 0, 0])
    client: int = 0


@dataclass
class Notice:
    created_ms: int
    label: int = 0
    state: int = 0
    receipts: dict[int, Receipt] = field(default_factory=dict)

    def in_order(self) -> list[tuple[int, Receipt]]:
        """As they lie: by user in a dense block, as they came in pages."""
        dense = self.state & DENSE
        return sorted(self.receipts.items(), key=lambda item: item[0] if dense else item[1].arrival)


def kept_time(created_ms: int, at_ms: int) -> int:
    """What is left of a time: not before acceptance, whole seconds, of 68 years, when 24.8 days or more after."""
    since = max(at_ms - created_ms, 0)
    return created_ms + (since if since + 1 < 1 << 31 else min(since // 1000, (1 << 31) - 2) * 1000)


class LedgerModel:
    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.user_count = self.last_seq = self.arrivals = 0
        self.notices: dict[int, Notice] = {}  # state 0: forgotten
        self.bases: dict[int, int] = {}  # of chunks, the time of the first notice that came

    def known(self, seq: int) -> Notice | None:
        notice = self.notices.get(seq)
        return notice if notice is not None and notice.state else None

    def add_users(self, count: int) -> None:
        self.user_count = max(self.user_count, count)

    def add_notice(self, seq: int, created_ms: int, label: int, state: int = KNOWN) -> None:
        notice = self.known(seq)
        if notice is None:
            notice = self.notices[seq] = Notice(self._time(seq, created_ms))
        elif state & HIDDEN:
            self.drop(seq, EVER)
        notice.label, notice.state = label, state | KNOWN | notice.state & DENSE
        self.last_seq = max(self.last_seq, seq)

    def _time(self, seq: int, created_ms: int) -> int:
        """Times never fall from seq to seq, nor below that of the first that came in a chunk.

        Forgotten ones after it make way in its chunk, not in the next.
        """
        created_ms = max(created_ms, self.bases.get(seq // PAGE, 0))
        for other in self.notices:
            if other <= seq:
                created_ms = max(created_ms, self.notices[other].created_ms)
        for other in sorted(self.notices):
            if other > seq and (self.notices[other].state or other // PAGE > seq // PAGE):
                created_ms = min(created_ms, self.notices[other].created_ms)
                break
        for other in sorted(self.notices):
            if other > seq and not self.notices[other].state:
                self.notices[other].created_ms = max(self.notices[other].created_ms, created_ms)
            elif other > seq:
                break
        self.bases.setdefault(seq // PAGE, created_ms)
        return created_ms

    def forget_notice(self, seq: int) -> None:
        if (notice := self.known(seq)) is not None:
            notice.receipts.clear()
            notice.state = 0

    def set_notice(self, seq: int, set: int = 0, clear: int = 0) -> None:  # noqa: A002
        if (notice := self.known(seq)) is not None:
            notice.state = notice.state & ~clear | set

    def seqs(self, first: int, last: int, set: int, clear: int, limit: int) -> list[int]:  # noqa: A002
        found = [
            seq
            for seq, notice in sorted(self.notices.items())
            if first <= seq <= last and notice.state and notice.state & set == set and not notice.state & clear
        ]
        return found[:limit]

    def begin_dense(self, seq: int) -> None:
        if (notice := self.known(seq)) is not None and not notice.receipts:
            notice.state |= DENSE

    def note(
        self, seq: int, numbers: Sequence[int], state: int, received_ms: int = 0, clients: Iterable[int] | None = None
    ) -> None:
        notice = self.known(seq)
        if notice is None:
            return
        if notice.state & HIDDEN:
            state, received_ms, clients = state & WAITING, 0, None
        if not state:
            return
        if received_ms > 0:
            state = state & ~STEPS | max(state & STEPS, DELIVERED)
        for number, client in zip(numbers, clients or [0] * len(numbers), strict=True):
            self._merge(notice, number, state, received_ms, client)

    def sent(self, seq: int, number: int, client: int, received_ms: int) -> bool:
        if not self.conclude(seq, 0x40):
            return False
        self.note(seq, [number], ONLINE | (DELIVERED if received_ms else PENDING), received_ms, [client])
        return True

    def received(self, seq: int, number: int, at_ms: int) -> bool:
        notice = self.known(seq)
        if notice is None or notice.state & HIDDEN:
            return False
        self.note(seq, [number], ONLINE | DELIVERED, at_ms)
        return True

    def conclude(self, seq: int, status: int) -> bool:
        notice = self.known(seq)
        if notice is None or notice.state & HIDDEN:
            return False
        notice.state = notice.state & ~STATUS | status
        return True

    def settle(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self.set_notice(seq, SETTLED)

    def _merge(self, notice: Notice, number: int, state: int, received_ms: int, client: int) -> None:
        if number not in notice.receipts:
            self.arrivals += 1
            notice.receipts[number] = Receipt(self.arrivals)
        receipt = notice.receipts[number]
        receipt.state = max(receipt.state & STEPS, state & STEPS) | (receipt.state | state) & ~STEPS
        if received_ms > 0:
            received_ms = kept_time(notice.created_ms, received_ms)
            receipt.times[0] = min(receipt.times[0] or received_ms, received_ms)
        receipt.client = max(receipt.client, client)
        while self.waiting_count(number) > self.max_waiting:
            self._trim(number)

    def _trim(self, number: int) -> None:
        """Of the oldest in dense blocks and the first that came in pages, the one with the lower seq."""
        waits = [(seq, self.notices[seq]) for seq in self.waiting(number)]
        oldest = [seq for seq, notice in waits if notice.state & DENSE][:1]
        in_pages = [(notice.receipts[number].arrival, seq) for seq, notice in waits if not notice.state & DENSE]
        oldest += [seq for _, seq in sorted(in_pages)[:1]]
        self.remove(min(oldest), number)

    def mark(self, seq: int, number: int, step: int, at_ms: int) -> bool:
        notice = self.known(seq)
        receipt = notice.receipts.get(number) if notice is not None else None
        if notice is None or receipt is None:
            return False
        if receipt.state & STEPS == NONE:
            self.remove(seq, number)
            return False
        at_ms = kept_time(notice.created_ms, at_ms)
        for kind in range(step - READ + 2):
            receipt.times[kind] = min(receipt.times[kind] or at_ms, at_ms)
        if receipt.state & STEPS != AGAIN:
            step = max(step, receipt.state & STEPS)
        receipt.state = receipt.state & ~(STEPS | WAITING) | step
        return True

    def archive(self, seq: int, number: int, at_ms: int) -> bool:
        return self.mark(seq, number, READ, at_ms) and self._set_archived(seq, number, ARCHIVED)

    def unarchive(self, seq: int, number: int) -> bool:
        return self._set_archived(seq, number, 0)

    def _set_archived(self, seq: int, number: int, bit: int) -> bool:
        if self.receipt(seq, number) is None:
            return False
        receipt = self.notices[seq].receipts[number]
        receipt.state = receipt.state & ~ARCHIVED | bit
        return True

    def inbox(
        self, number: int, before: int, limit: int, states: bytes, labels: bytes | None
    ) -> list[tuple[int, int, int, int]]:
        found = []
        for seq, state, _, read_ms, confirmed_ms, _ in self.newest(number, self.last_seq + 1):
            notice = self.notices[seq]
            is_counting = not notice.state & (HIDDEN | OVER | REVOKED)
            is_labelled = labels is None or (notice.label < len(labels) and labels[notice.label])
            if seq < before and is_counting and states[state] and is_labelled:
                found.append((seq, state, read_ms, confirmed_ms))
        return found[:limit]

    def expire(self, seq: int, limit: int) -> int:
        notice = self.known(seq)
        if notice is None:
            return 0
        left = [receipt for _, receipt in notice.in_order() if receipt.state & STEPS in (PENDING, OFFLINE)]
        for receipt in left[:limit]:
            receipt.state = receipt.state & ~STEPS | EXPIRED
        if len(left) <= limit:
            notice.state |= OVER
        return min(len(left), limit)

    def drop(self, seq: int, limit: int) -> int:
        notice = self.known(seq)
        if notice is None:
            return 0
        left = [number for number, receipt in notice.in_order() if receipt.state & STEPS]
        for number in left[:limit]:
            receipt = notice.receipts[number]
            receipt.state, receipt.times, receipt.client = receipt.state & WAITING, [0, 0, 0], 0
            if not receipt.state:
                del notice.receipts[number]
        if len(left) <= limit:
            notice.state |= HIDDEN
            self.free_empty(seq)
        return min(len(left), limit)

    def hide(self, seq: int) -> None:
        self.drop(seq, EVER)

    def free_empty(self, seq: int) -> None:
        notice = self.notices[seq]
        if notice.state & HIDDEN and not notice.receipts:
            notice.state &= ~DENSE

    def forget_before(self, seq: int) -> None:
        for each in self.notices:
            self.free_empty(each)
        if not self.notices:
            return
        base = min(self.notices) // PAGE * PAGE
        oldest = min([seq, *(each for each, notice in self.notices.items() if notice.receipts or notice.state & DENSE)])
        gone = max(base, oldest // PAGE * PAGE)
        self.notices = {each: notice for each, notice in self.notices.items() if each >= gone}
        self.bases = {chunk: base for chunk, base in self.bases.items() if chunk * PAGE >= gone}

    def wait(self, seq: int, numbers: Sequence[int]) -> None:
        self.note(seq, numbers, WAITING)

    def remove(self, seq: int, number: int) -> bool:
        notice = self.known(seq)
        receipt = notice.receipts.get(number) if notice is not None else None
        if notice is None or receipt is None or not receipt.state & WAITING:
            return False
        receipt.state &= ~WAITING
        if not receipt.state:
            del notice.receipts[number]
        return True

    def clear(self, number: int) -> int:
        return sum(self.remove(seq, number) for seq in self.waiting(number))

    def _of(self, number: int) -> list[tuple[int, Receipt]]:
        return [
            (seq, self.notices[seq].receipts[number])
            for seq in sorted(self.notices)
            if number in self.notices[seq].receipts
        ]

    def waiting(self, number: int) -> list[int]:
        return [seq for seq, receipt in self._of(number) if receipt.state & WAITING]

    def waiting_count(self, number: int) -> int:
        return len(self.waiting(number))

    def has_waiting(self, seq: int) -> bool:
        notice = self.known(seq)
        return notice is not None and any(receipt.state & WAITING for receipt in notice.receipts.values())

    def drop_waiting(self, seq: int, limit: int) -> int:
        notice = self.known(seq)
        if notice is None:
            return 0
        left = [number for number, receipt in notice.in_order() if receipt.state & WAITING]
        count = sum(self.remove(seq, number) for number in left[:limit])
        self.free_empty(seq)
        return count

    def unread(self, number: int) -> int:
        return sum(
            receipt.state & STEPS in UNREAD
            and not receipt.state & ARCHIVED
            and not self.notices[seq].state & (HIDDEN | OVER | REVOKED)
            for seq, receipt in self._of(number)
        )

    def receipt(self, seq: int, number: int) -> tuple[int, int, int, int, int] | None:
        notice = self.known(seq)
        receipt = notice.receipts.get(number) if notice is not None else None
        if receipt is None or receipt.state & STEPS == NONE:
            return None
        return receipt.state, receipt.times[0], receipt.times[1], receipt.times[2], receipt.client

    def receipts(self, seq: int, mask: int = 0, value: int = 0) -> list[int]:
        notice = self.known(seq)
        found = notice.receipts.items() if notice is not None else ()
        return [number for number, receipt in found if receipt.state & STEPS and receipt.state & mask == value]

    def counts(self, seq: int) -> dict[int, int]:
        notice = self.known(seq)
        found = notice.receipts.values() if notice is not None else ()
        return dict(Counter(receipt.state for receipt in found if receipt.state & STEPS))

    def newest(self, number: int, limit: int) -> list[tuple[int, int, int, int, int, int]]:
        found = [(seq, *row) for seq, _ in self._of(number) if (row := self.receipt(seq, number)) is not None]
        return found[::-1][:limit]

    def summary(self, number: int) -> tuple[int, int, int]:
        listed = self.newest(number, self.last_seq + 1)
        return self.unread(number), len(listed), listed[0][0] if listed else 0
