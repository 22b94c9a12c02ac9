"""Which notice reached whom: what a notice says, and the books about its deliveries. Pure.

The content of a notice names the run, its number and when it was written, and is checked byte by byte when it
arrives: what is counted as delivered arrived intact, at the right user, once.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from bench.loadlib.figures import Histogram

SEQ_DIGITS = 10
TIME_DIGITS = 20
TAG_CHARS = 9
MIN_CONTENT = TAG_CHARS + 1 + SEQ_DIGITS + 1 + TIME_DIGITS + 1
PADDING = "abcdefghijklmnopqrstuvwxyz"
_ID_KEY = b'"message_id":"'


def content(tag: str, seq: int, sent_ns: int, size: int) -> str:
    """The content of notice `seq`: `tag` (TAG_CHARS characters), number, time written, and padding up to `size`."""
    head = f"{tag} {seq:0{SEQ_DIGITS}d} {sent_ns:0{TIME_DIGITS}d} "
    return head + padding(size - len(head))


def padding(size: int) -> str:
    """`size` characters."""
    return (PADDING * (size // len(PADDING) + 1))[:size]


def message_id(payload: bytes) -> bytes:
    """The message_id of a notice's JSON frame; empty if it has none."""
    start = payload.find(_ID_KEY)
    if start < 0:
        return b""
    start += len(_ID_KEY)
    return payload[start : payload.find(b'"', start)]


@dataclass
class Count:
    """What became of the deliveries that are not simply there."""

    duplicates: int = 0
    out_of_order: int = 0
    corrupt: int = 0
    foreign: int = 0


class Ledger:
    """The books of one phase: `notices` for `connections` users.

    Broadcast: every notice is for everybody; notice `seq` comes through publisher `seq % publishers`, and the order
    is checked per publisher. Else notice `seq` is for connection `seq % connections` alone, and all that is for one
    connection comes through one publisher.
    """

    def __init__(
        self, tag: str, notices: int, connections: int, *, is_broadcast: bool, publishers: int, size: int
    ) -> None:
        self.tag = tag
        self.notices = notices
        self.connections = connections
        self.is_broadcast = is_broadcast
        self.publishers = publishers
        self.size = size
        self.count = Count()
        self.latency = Histogram()
        self.delivered = 0
        self.published = 0
        self.last_arrival_ns = 0
        self._sent_ns = array("q", bytes(8 * notices))
        self._lanes = publishers if is_broadcast else 1
        self._seen = [bytearray(self._share(connection)) for connection in range(connections)]
        self._last = [array("q", [-1]) * self._lanes for _ in range(connections)]
        self._marker = f'"content":"{tag} '.encode()
        self._tail = f' {padding(size - MIN_CONTENT)}"'.encode()

    def _share(self, connection: int) -> int:
        if self.is_broadcast:
            return self.notices
        return max(0, -(-(self.notices - connection) // self.connections))

    def publisher_of(self, seq: int) -> int:
        """Which publisher sends notice `seq`."""
        return (seq if self.is_broadcast else seq % self.connections) % self.publishers

    def content(self, seq: int, now_ns: int) -> str:
        """The content of notice `seq`, which is about to be written; a repeat counts from the last writing."""
        self._sent_ns[seq] = now_ns
        return content(self.tag, seq, now_ns, self.size)

    @property
    def first_sent_ns(self) -> int:
        """When notice 0 was written."""
        return self._sent_ns[0]

    def arrived(self, connection: int, payload: bytes, now_ns: int) -> bool:
        """A notice's frame arrived on a connection: whether it was awaited there."""
        at = payload.find(self._marker)
        if at < 0:
            self.count.foreign += 1
            return False
        at += len(self._marker)
        try:
            seq = int(payload[at : at + SEQ_DIGITS])
            sent_ns = int(payload[at + SEQ_DIGITS + 1 : at + SEQ_DIGITS + 1 + TIME_DIGITS])
        except ValueError:
            seq = sent_ns = -1
        is_intact = payload.startswith(self._tail, at + SEQ_DIGITS + 1 + TIME_DIGITS)
        if not is_intact or not 0 <= seq < self.notices or sent_ns != self._sent_ns[seq]:
            self.count.corrupt += 1
            return False
        return self._enter(connection, seq, now_ns - sent_ns, now_ns)

    def _enter(self, connection: int, seq: int, latency_ns: int, now_ns: int) -> bool:
        place = seq
        if not self.is_broadcast:
            place, owner = divmod(seq, self.connections)
            if owner != connection:
                self.count.corrupt += 1
                return False
        seen = self._seen[connection]
        if seen[place]:
            self.count.duplicates += 1
            return False
        seen[place] = 1
        last, lane = self._last[connection], place % self._lanes
        if place < last[lane]:
            self.count.out_of_order += 1
        else:
            last[lane] = place
        self.delivered += 1
        self.last_arrival_ns = now_ns
        self.latency.add(latency_ns)
        return True

    @property
    def _per_notice(self) -> int:
        return self.connections if self.is_broadcast else 1

    @property
    def expected(self) -> int:
        """Deliveries that the publishes answered so far promise."""
        return self.published * self._per_notice

    @property
    def expected_in_all(self) -> int:
        """Deliveries when all publishes are answered."""
        return self.notices * self._per_notice

    @property
    def lost(self) -> int:
        """Promised deliveries that did not arrive."""
        return max(0, self.expected - self.delivered)
