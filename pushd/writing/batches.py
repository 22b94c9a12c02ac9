"""What every writer does with a batch: halve what failed, and tell the notices in flight that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from pushd.in_flight import InFlight
from pushd.model import DeliveryStatus, Outcome, PushRecord, Receipt
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics

T = TypeVar("T")


_records = msgspec.json.Decoder(tuple[list[PushRecord], list[Receipt]])
_older_records = msgspec.msgpack.Decoder(tuple[list[PushRecord], list[Receipt]])


def encode_records(push_records: list[PushRecord], receipts: list[Receipt]) -> bytes:
    """Records for the disk, as JSON: it can say whatever was published as JSON."""
    return msgspec.json.encode((push_records, receipts))


def decode_records(body: bytes) -> tuple[list[PushRecord], list[Receipt]]:
    """Decodes JSON, or the MessagePack of an older version."""
    return (_records if body.startswith(b"[") else _older_records).decode(body)


def halves(items: Sequence[T]) -> list[list[T]]:
    """Both halves of at least two items, in order."""
    half = len(items) // 2
    return [[*items[:half]], [*items[half:]]]


def sent(created_ms: int, received_ms: int) -> Outcome:
    """What is on record for a user who was connected when it went out, and received it then; 0: who did not."""
    status = DeliveryStatus.DELIVERED if received_ms else DeliveryStatus.PENDING
    return Outcome(created_ms, True, received_ms, status)


def end_work(flights: Iterable[InFlight], metrics: Metrics) -> None:
    """As `tell_each` with `InFlight.end_work`, at less cost: there are many, and little is said to each."""
    for flight in flights:
        flight.work -= 1
        if flight.work == 0:
            try:
                flight.on_settled(flight)
            except Exception as error:
                faults.noted(metrics, "settle", error, message_id=flight.notice.message_id)


def tell_each(flights: Iterable[InFlight], step: Callable[[InFlight], None], metrics: Metrics) -> None:
    """Calls `step` with every flight; what one of them raises is noted, and keeps no other from being told."""
    for flight in flights:
        try:
            step(flight)
        except Exception as error:
            faults.noted(metrics, "settle", error, message_id=flight.notice.message_id)
