"""Publishing: one notice, many, and a stored one again."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pushd.api import answers
from pushd.api.endpoint import Call
from pushd.api.forms import Form, Nothing
from pushd.config.current import CurrentConfig
from pushd.delivery.intake import Intake
from pushd.delivery.submission import Sender, Submission
from pushd.errors import ErrorCode, RequestError
from pushd.http.messages import Request
from pushd.in_flight import Attempt
from pushd.later import Later, all_decided
from pushd.local_time import date_and_time
from pushd.ports import RecordStore
from pushd.records import RecordState
from pushd.turns import Share
from pushd.writing.writers import Writers

MAX_WAIT_MS = 10_000
MAX_KEY_CHARS = 255
_ALSO_PRINTABLE = "\u200c\u200d\u3000"  # joiners of some scripts and of emoji; the space of East Asian ones
SUBMITTED_AT_ONCE = 25
ANSWERED_AT_ONCE = 100
BATCHES_S = 0.003  # of a turn of the loop, for all batches; what is submitted in it shares its writes

_submission = msgspec.json.Decoder(Submission).decode


class WaitQuery(Form, frozen=True):
    """How long the answer to a publish may wait for the delivery."""

    wait_ms: Annotated[int, Meta(ge=0, le=MAX_WAIT_MS, description="Milliseconds.")] = 0


class BatchBody(msgspec.Struct):
    """Many notices; each is decoded by itself, so that a bad one harms no other."""

    notices: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=1000)]


class Published(msgspec.Struct, omit_defaults=True):
    """A publish that was accepted; the counts are there when it was waited for. `push_time` of a scheduled one is when
    it goes out."""

    success: bool
    message: str
    message_id: str
    push_time: str
    target: str
    message_type: str
    recipients_count: str
    status: str
    duplicate: bool
    total_count: int | msgspec.UnsetType = msgspec.UNSET
    online_count: int | msgspec.UnsetType = msgspec.UNSET
    offline_count: int | msgspec.UnsetType = msgspec.UNSET
    delivered_count: int | msgspec.UnsetType = msgspec.UNSET


class Refused(msgspec.Struct):
    """A notice of a batch that was refused."""

    code: int
    error: str
    message: str
    data: dict[str, Any]
    success: bool = False


class PublishedBatch(msgspec.Struct):
    """In the order of the request: each a `Published` or a `Refused` (a union msgspec cannot describe)."""

    items: list[Any]


class PublishingHandlers:
    """Hands notices to the intake, and tells what became of them."""

    def __init__(self, intake: Intake, records: RecordStore, writers: Writers, current: CurrentConfig) -> None:
        self._intake = intake
        self._records = records
        self._writers = writers
        self._current = current
        self._batches = Share(BATCHES_S)

    def publish(self, call: Call[WaitQuery, Submission]) -> Later[Published] | Awaitable[Published]:
        """POST /system/notice."""
        attempt = self._intake.submit(call.body, sender_of(call), _idempotency_key(call.request))
        if call.query.wait_ms:
            return self._waited(attempt, call.query.wait_ms)
        return attempt.then(self._published)

    async def publish_batch(self, call: Call[Nothing, BatchBody]) -> PublishedBatch:
        """POST /system/notices."""
        sender = sender_of(call)
        notices = call.body.notices
        attempts: list[Attempt | RequestError] = []
        for start in range(0, len(notices), SUBMITTED_AT_ONCE):
            await self._batches.turn()
            attempts += [self._submit_item(raw, sender) for raw in notices[start : start + SUBMITTED_AT_ONCE]]
        await all_decided(attempt for attempt in attempts if isinstance(attempt, Attempt))
        items: list[Published | Refused] = []
        for start in range(0, len(attempts), ANSWERED_AT_ONCE):
            await self._batches.turn()
            items += [self._item(attempt) for attempt in attempts[start : start + ANSWERED_AT_ONCE]]
        return PublishedBatch(items=items)

    def _submit_item(self, raw: msgspec.Raw, sender: Sender) -> Attempt | RequestError:
        try:
            return self._intake.submit(answers.decoded(_submission, raw), sender)
        except RequestError as error:
            return error

    def _item(self, attempt: Attempt | RequestError) -> Published | Refused:
        try:
            if isinstance(attempt, RequestError):
                raise attempt
            return self._published(attempt.result())
        except RequestError as error:
            return Refused(code=error.code.status, error=error.code.value, message=error.text, data=error.details or {})

    async def resend(self, call: Call[WaitQuery, None]) -> Published:
        """POST /notification/records/{message_id}/resend."""
        await self._writers.records_written()
        row = await self._records.push_record(call.params["message_id"])
        if row is None:
            raise answers.unknown_notice()
        if row.state in (RecordState.SCHEDULED, RecordState.CANCELLED):
            raise RequestError(
                ErrorCode.CONFLICT, f"message_id: the notice is {row.state}, expected one that has gone out"
            )
        return await self._waited(self._intake.resend(row, sender_of(call)), call.query.wait_ms)

    async def _waited(self, attempt: Attempt, wait_ms: int) -> Published:
        published = self._published(await attempt)
        if wait_ms and published.status == "accepted":
            await attempt.delivered(wait_ms / 1000)
            answer = attempt.answer
            published.status = "delivered" if answer.is_delivered else "accepted"
            published.total_count = answer.online_count + answer.offline_count
            published.online_count = answer.online_count
            published.offline_count = answer.offline_count
            published.delivered_count = answer.delivered_count
        return published

    def _published(self, attempt: Attempt) -> Published:
        """What the publisher of a notice that was kept is told."""
        answer = attempt.answer
        return Published(
            success=True,
            message=answer.content,
            message_id=answer.message_id,
            push_time=date_and_time(answer.accepted_ms, self._current.timezone),
            target=answer.kind,
            message_type=answer.type,
            recipients_count=answer.recipients,
            status=answer.status,
            duplicate=attempt.is_duplicate,
        )


def sender_of(call: Call[Any, Any]) -> Sender:
    """Who publishes, or edits."""
    return Sender(call.identity.user_id or call.ids.nobody, call.identity.username)


def _idempotency_key(request: Request) -> str:
    header = request.headers.get("idempotency-key")
    if not header:
        return ""
    key = _text_of(header)
    if len(key) > MAX_KEY_CHARS or not _is_printable(key):
        raise RequestError(
            ErrorCode.INVALID_REQUEST,
            f"Idempotency-Key: expected at most {MAX_KEY_CHARS} printable characters",
            details={"field": "Idempotency-Key"},
        )
    return key


def _text_of(header: str) -> str:
    """A header's text: UTF-8, or else the Latin-1 that headers once were (RFC 9110 section 5.5)."""
    try:
        return header if header.isascii() else header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header


def _is_printable(text: str) -> bool:
    return text.isprintable() or all(sign.isprintable() or sign in _ALSO_PRINTABLE for sign in text)
