"""What users did with notices: marks of one user's receipts, and how far a notice or a user came. Rates are percent
with two decimals.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from pushd._fastpath import Hub
from pushd.api import answers
from pushd.api.endpoint import Call
from pushd.api.forms import Nothing, UserQuery
from pushd.config.current import CurrentConfig
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.errors import ErrorCode, RequestError
from pushd.local_time import rfc3339_or_none
from pushd.model import GivenUserId, Mark, UserId
from pushd.ports import RecordStore
from pushd.protocol.frames import MessageId, MessageIds
from pushd.records import ReceiptStats
from pushd.writing.writers import Writers


class MarkBody(msgspec.Struct):
    """One notice to be marked. `user_id` needs admin rights; by default the token's user."""

    message_id: MessageId
    user_id: GivenUserId | None = None


class MarksBody(msgspec.Struct):
    """Many notices to be marked. `user_id` needs admin rights; by default the token's user."""

    message_ids: MessageIds
    user_id: GivenUserId | None = None


class Marked(msgspec.Struct):
    """A mark that is on record."""

    message: str
    success: bool = True


class MarkError(msgspec.Struct):
    """A notice that could not be marked."""

    message_id: str
    error: str


class MarkedBatch(msgspec.Struct):
    """How many of the notices could be marked."""

    success_count: int
    failed_count: int
    total_count: int
    success_rate: float
    errors: list[MarkError]


class StatusView(msgspec.Struct):
    """How far one notice came."""

    total_users: int
    online_users: int
    received_users: int
    read_users: int
    confirmed_users: int
    receive_rate: float
    read_rate: float
    confirm_rate: float


class Summary(msgspec.Struct):
    """One user's notices."""

    user_id: UserId
    unread_count: int
    total_count: int
    last_message_time: str | None
    online_status: bool


def rate(part: int, whole: int) -> float:
    """A percentage with 2 decimals; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def status_view(status: ReceiptStats) -> StatusView:
    """Counts with their rates."""
    return StatusView(
        total_users=status.total_users,
        online_users=status.online_users,
        received_users=status.received_users,
        read_users=status.read_users,
        confirmed_users=status.confirmed_users,
        receive_rate=rate(status.received_users, status.total_users),
        read_rate=rate(status.read_users, status.total_users),
        confirm_rate=rate(status.confirmed_users, status.total_users),
    )


def marked_batch(message_ids: Sequence[str], found: Collection[str]) -> MarkedBatch:
    """What became of these notices, each named once, when those that were `found` could be marked."""
    known = set(found)
    failed = [message_id for message_id in message_ids if message_id not in known]
    return MarkedBatch(
        success_count=len(known),
        failed_count=len(failed),
        total_count=len(message_ids),
        success_rate=rate(len(known), len(message_ids)),
        errors=[MarkError(message_id, ErrorCode.NOT_FOUND.value) for message_id in failed],
    )


class ReceiptHandlers:
    """Marks receipts, and counts them by notice and by user."""

    def __init__(
        self,
        acknowledgements: Acknowledgements,
        records: RecordStore,
        hub: Hub,
        writers: Writers,
        current: CurrentConfig,
    ) -> None:
        self._acknowledgements = acknowledgements
        self._records = records
        self._hub = hub
        self._writers = writers
        self._current = current

    async def mark_read(self, call: Call[Nothing, MarkBody]) -> Marked:
        """POST /notification/mark-read."""
        return await self._mark_one(call, Mark.READ)

    async def mark_confirmed(self, call: Call[Nothing, MarkBody]) -> Marked:
        """POST /notification/mark-confirmed."""
        return await self._mark_one(call, Mark.CONFIRMED)

    async def _mark_one(self, call: Call[Nothing, MarkBody], mark: Mark) -> Marked:
        body = call.body
        if not await self._acknowledgements.mark(call.user(body.user_id), [body.message_id], mark):
            text = "message_id: no such notice for this user"
            raise RequestError(ErrorCode.NOT_FOUND, text, details={"field": "message_id"})
        return Marked(message=f"marked as {mark.value}")

    async def batch_mark_read(self, call: Call[Nothing, MarksBody]) -> MarkedBatch:
        """POST /notification/batch-mark-read."""
        message_ids = list(dict.fromkeys(call.body.message_ids))
        found = await self._acknowledgements.mark(call.user(call.body.user_id), message_ids, Mark.READ)
        return marked_batch(message_ids, found)

    async def status(self, call: Call[Nothing, None]) -> StatusView:
        """GET /notification/messages/{message_id}/receive-status."""
        await self._writers.records_written()
        status = await self._records.receive_status(call.params["message_id"])
        if status is None:
            raise answers.unknown_notice()
        return status_view(status)

    async def summary(self, call: Call[UserQuery, None]) -> Summary:
        """GET /notification/user-summary."""
        user_id = call.user(call.query.user_id)
        await self._writers.records_written()
        summary = await self._records.user_summary(user_id)
        return Summary(
            user_id=user_id,
            unread_count=summary.unread_count,
            total_count=summary.total_count,
            last_message_time=rfc3339_or_none(summary.last_message_ms, self._current.timezone),
            online_status=self._hub.has_user(user_id),
        )
