"""Notices to one user, who has one connection or none: nearly all that are published singly or in batches."""

from __future__ import annotations

import asyncio

from pushd._fastpath import Hub
from pushd.basis import Basis
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.in_flight import InFlight
from pushd.protocol import frames
from pushd.writing.writers import Writers


class ToOne:
    """Sends such a notice in one write and notes what became of it, without a fan-out.

    How long it took is reported once for all that were sent in the same turn of the loop.
    """

    def __init__(self, hub: Hub, acknowledgements: Acknowledgements, writers: Writers, basis: Basis) -> None:
        self._hub = hub
        self._acknowledgements = acknowledgements
        self._writers = writers
        self._current = basis.current
        self._metrics = basis.metrics
        self._now = basis.clock.now
        self._latencies_s: list[float] = []
        self._sending_s = 0.0
        self._total_s = 0.0  # in sending

    def send(self, flight: InFlight) -> bool:
        """Send the notice, which names one user; False where he has several connections, and nothing is done."""
        notice = flight.notice
        (user_id,) = notice.target.user_ids
        connection = self._hub.only_connection(user_id)
        if connection is None:
            if self._hub.has_user(user_id):
                return False
            flight.recipients = 1
            now = self._now()
            self._observe(flight, now, now)
            self._acknowledgements.absent(flight, [user_id])
            self._writers.records.conclude(flight, "success")
            return True
        if connection.is_guest:
            return False
        frame = frames.shared_frame(frames.notice_frame(notice, self._current.timezone), connection.dialect)
        flight.recipients = 1
        began = self._now()
        is_handed = self._hub.deliver(connection, frame, (notice.message_id,))
        self._observe(flight, began, self._now())
        self._acknowledgements.sent_to_one(flight, connection, is_handed)
        return True

    def take_seconds(self) -> float:
        """How long was spent in sending since the last call."""
        total_s, self._total_s = self._total_s, 0.0
        return total_s

    def _observe(self, flight: InFlight, began: float, ended: float) -> None:
        if not self._latencies_s:
            asyncio.get_running_loop().call_soon(self._report)
        self._latencies_s.append(ended - flight.accepted_at)
        self._sending_s += ended - began

    def _report(self) -> None:
        latencies_s, self._latencies_s = self._latencies_s, []
        sending_s, self._sending_s = self._sending_s, 0.0
        self._total_s += sending_s
        self._metrics.observe_deliveries(latencies_s, sending_s / len(latencies_s))
