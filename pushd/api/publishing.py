"""The handlers of the API: each takes a `Call`, asks the core, and says what goes into `data`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Collection

import msgspec
from cachetools import LRUCache

from pushd import local_time as moments
from pushd._fastpath import Hub
from pushd.api import answers, views
from pushd.api.endpoint import Call
from pushd.api.forms import BatchBody, DisconnectBody, MarkBody, MarksBody, Nothing, UserQuery, WaitQuery
from pushd.auth.authenticator import Authenticator, Identity
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.delivery.acknowledgements import Acknowledgements
from pushd.delivery.dispatch import Dispatcher
from pushd.delivery.intake import Intake
from pushd.delivery.lanes import Lanes
from pushd.delivery.submission import Sender, Submission
from pushd.errors import CloseCode, ErrorCode, RequestError
from pushd.http.long_answers import FairSemaphore, Long, encoded
from pushd.http.messages import Request
from pushd.in_flight import Attempt, InFlight
from pushd.later import Later, all_decided
from pushd.model import Mark, Priority
from pushd.ports import Stores
from pushd.records import OnlineStatus
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.turns import Share, sliced
from pushd.users.directory import CachedDirectory
from pushd.writing.writers import Writers

MAX_KEY_CHARS = 255
_ALSO_PRINTABLE = "\u200c\u200d\u3000"  # joiners of some scripts and of emoji; the space of East Asian ones
STATUSES_REMEMBERED = 100_000
SUBMITTED_AT_ONCE = 25
BATCHES_S = 0.02  # of a turn of the loop; less, and what is submitted together no longer shares its writes
MAILBOXES_AT_ONCE, LISTS_AT_ONCE = 2, 2  # read for answers

_submission = msgspec.json.Decoder(Submission).decode


class Api:
    """The handlers and what they need."""

    def __init__(
        self,
        *,
        hub: Hub,
        intake: Intake,
        lanes: Lanes[InFlight],
        dispatcher: Dispatcher,
        acknowledgements: Acknowledgements,
        writers: Writers,
        stores: Stores,
        directory: CachedDirectory,
        health: Health,
        metrics: Metrics,
        clock: Clock,
        current: CurrentConfig,
        authenticator: Authenticator,
    ) -> None:
        self.current = current
        self.authenticator = authenticator
        self.metrics = metrics
        self.health = health
        self.hub = hub
        self.directory = directory
        self._intake = intake
        self._lanes = lanes
        self._dispatcher = dispatcher
        self.writers = writers
        self._acknowledgements = acknowledgements
        self._mailbox = stores.mailbox
        self.records = stores.records
        self.wall_ms = clock.wall_ms
        self._presence = stores.presence
        # From when they are stale, and what they are.
        self._statuses: LRUCache[int, tuple[float, OnlineStatus]] = LRUCache(STATUSES_REMEMBERED)
        self._batches = Share(BATCHES_S)
        self._mailbox_turns = FairSemaphore(MAILBOXES_AT_ONCE)
        self.list_turns = FairSemaphore(LISTS_AT_ONCE)
        self.bulk_turns = FairSemaphore(1)

    async def statuses(self, user_ids: Collection[int]) -> dict[int, OnlineStatus]:
        """The stored online status of these users, at most `presence.status_ttl_s` old."""
        now = time.monotonic()
        found: dict[int, OnlineStatus] = {}
        for user_id in user_ids:
            entry = self._statuses.get(user_id)
            if entry is not None and entry[0] > now:
                found[user_id] = entry[1]
        missing = [user_id for user_id in user_ids if user_id not in found]
        if missing:
            loaded = await self._presence.statuses(missing)
            ends = now + self.current.config.presence.status_ttl_s
            self._statuses.update((user_id, (ends, status)) for user_id, status in loaded.items())
            found |= loaded
        return found

    # ---- publishing

    def publish(self, call: Call[WaitQuery, Submission]) -> Later[views.Published] | Awaitable[views.Published]:
        """POST /system/notice."""
        attempt = self._intake.submit(call.body, _sender(call.identity), _idempotency_key(call.request))
        if call.query.wait_ms:
            return self._waited(attempt, call.query.wait_ms)
        return attempt.then(self._published)

    async def publish_batch(self, call: Call[Nothing, BatchBody]) -> views.PublishedBatch:
        """POST /system/notices."""
        sender = _sender(call.identity)
        notices = call.body.notices
        attempts: list[Attempt | RequestError] = []
        for start in range(0, len(notices), SUBMITTED_AT_ONCE):
            await self._batches.turn()
            attempts += [self._submit_item(raw, sender) for raw in notices[start : start + SUBMITTED_AT_ONCE]]
        await all_decided(attempt for attempt in attempts if isinstance(attempt, Attempt))
        await self._batches.turn()
        return views.PublishedBatch(items=[self._item(attempt) for attempt in attempts])

    def _submit_item(self, raw: msgspec.Raw, sender: Sender) -> Attempt | RequestError:
        try:
            return self._intake.submit(answers.decoded(_submission, raw), sender)
        except RequestError as error:
            return error

    def _item(self, attempt: Attempt | RequestError) -> views.Published | views.Refused:
        try:
            if isinstance(attempt, RequestError):
                raise attempt
            return self._published(attempt.result())
        except RequestError as error:
            return views.Refused(
                code=error.code.status, error=error.code.value, message=error.text, data=error.details or {}
            )

    async def resend(self, call: Call[WaitQuery, None]) -> views.Published:
        """POST /notification/records/{message_id}/resend."""
        await self.writers.records_written()
        row = await self.records.push_record(call.params["message_id"])
        if row is None:
            raise answers.unknown_notice()
        return await self._waited(self._intake.resend(row, _sender(call.identity)), call.query.wait_ms)

    async def _waited(self, attempt: Attempt, wait_ms: int) -> views.Published:
        published = self._published(await attempt)
        if wait_ms:
            await attempt.delivered(wait_ms / 1000)
            answer = attempt.answer
            published.status = "delivered" if answer.is_delivered else "accepted"
            published.total_count = answer.online_count + answer.offline_count
            published.online_count = answer.online_count
            published.offline_count = answer.offline_count
            published.delivered_count = answer.delivered_count
        return published

    def _published(self, attempt: Attempt) -> views.Published:
        """What the publisher of a notice that was kept is told."""
        answer = attempt.answer
        return views.Published(
            success=True,
            message=answer.content,
            message_id=answer.message_id,
            push_time=moments.local_time(answer.accepted_ms, self.current.timezone),
            target=answer.kind,
            message_type=answer.type,
            recipients_count=answer.recipients,
            status="accepted",
            duplicate=attempt.is_duplicate,
        )

    # ---- receipts

    async def mark_read(self, call: Call[Nothing, MarkBody]) -> views.Marked:
        """POST /notification/mark-read."""
        return await self._mark_one(call, Mark.READ)

    async def mark_confirmed(self, call: Call[Nothing, MarkBody]) -> views.Marked:
        """POST /notification/mark-confirmed."""
        return await self._mark_one(call, Mark.CONFIRMED)

    async def _mark_one(self, call: Call[Nothing, MarkBody], mark: Mark) -> views.Marked:
        body = call.body
        if not await self._acknowledgements.mark(call.user(body.user_id), [body.message_id], mark):
            text = "message_id: no such notice for this user"
            raise RequestError(ErrorCode.NOT_FOUND, text, details={"field": "message_id"})
        return views.Marked(message=f"marked as {mark.value}")

    async def batch_mark_read(self, call: Call[Nothing, MarksBody]) -> views.MarkedBatch:
        """POST /notification/batch-mark-read."""
        message_ids = list(dict.fromkeys(call.body.message_ids))
        found = set(await self._acknowledgements.mark(call.user(call.body.user_id), message_ids, Mark.READ))
        failed = [message_id for message_id in message_ids if message_id not in found]
        return views.MarkedBatch(
            success_count=len(found),
            failed_count=len(failed),
            total_count=len(message_ids),
            success_rate=views.rate(len(found), len(message_ids)),
            errors=[views.MarkError(message_id, ErrorCode.NOT_FOUND.value) for message_id in failed],
        )

    async def receive_status(self, call: Call[Nothing, None]) -> views.StatusView:
        """GET /notification/messages/{message_id}/receive-status."""
        await self.writers.records_written()
        status = await self.records.receive_status(call.params["message_id"])
        if status is None:
            raise answers.unknown_notice()
        return views.status_view(status)

    # ---- mailboxes

    async def offline_messages(self, call: Call[UserQuery, None]) -> Long:
        """GET /notification/offline-messages."""
        user_id = call.user(call.query.user_id)
        await self.writers.mailboxes_written()
        async with self._mailbox_turns.turn(call.identity.user_id):
            items = (await self._mailbox.read([user_id])).get(user_id, [])
            items.reverse()
            total_count = len(items)
            messages = await encoded(items, views.offline_message)
        return Long(
            views.OfflineMessages(
                user_id=user_id,
                total_count=total_count,
                offline_messages=messages,
                query_time=moments.local_time(self.wall_ms(), self.current.timezone),
            )
        )

    async def clear_offline_messages(self, call: Call[UserQuery, None]) -> views.Cleared:
        """DELETE /notification/offline-messages."""
        user_id = call.user(call.query.user_id)
        await self.writers.mailboxes_written()
        return views.Cleared(user_id=user_id, cleared_count=await self._mailbox.clear(user_id))

    # ---- the node

    async def disconnect(self, call: Call[Nothing, DisconnectBody]) -> views.Closed:
        """POST /websocket/disconnect."""
        body = call.body
        if (body.user_id is None) == (body.conn_id is None):
            text = "user_id: expected either user_id or conn_id"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "user_id"})
        if body.user_id is not None:
            connections = self.hub.connections_of(body.user_id)
        else:
            connections = [one async for one in sliced(self.hub.snapshot()) if one.conn_id == body.conn_id]
        for connection in connections:
            self.hub.close(connection, CloseCode.REVOKED, body.reason)
        return views.Closed(closed=len(connections))

    def stats(self, call: Call[Nothing, None]) -> views.Stats:
        """GET /websocket/stats. Works while a store hangs: asks none."""
        metrics, depths = self.metrics, self._lanes.depths()
        errors = metrics.errors.value + metrics.store_errors.value
        return views.Stats(
            active_connections=self.hub.connections_total,
            unique_users=self.hub.users_total,
            total_connections=int(metrics.connects.value),
            total_messages=self.hub.frames_sent,
            message_latency_ms=views.Latency(p50=metrics.latency_ms(0.5), p99=metrics.latency_ms(0.99)),
            queue_size=views.QueueSize(
                urgent=depths[Priority.URGENT],
                high=depths[Priority.HIGH],
                normal=depths[Priority.NORMAL],
                low=depths[Priority.LOW],
            ),
            worker_count=self._dispatcher.worker_count,
            worker_utilization=round(self._dispatcher.utilization, 4),
            error_rate=round(errors / max(1.0, metrics.notices.value), 4),
            dedup_hits=int(metrics.dedup_hits.value),
            offline_saved=int(metrics.mailbox_saved.value),
            offline_delivered=int(metrics.mailbox_delivered.value),
            store_writers={"mailbox": self._mailbox.writers},
            outbox_pending={writer.name: writer.on_disk for writer in self.writers.all()},
            uptime_s=round(self.health.uptime_s, 3),
        )

    def node_health(self, call: Call[Nothing, None]) -> views.NodeHealth:
        """GET /websocket/health."""
        return views.NodeHealth(
            status=self.health.status,
            active_connections=self.hub.connections_total,
            queue_size=len(self._lanes),
            worker_count=self._dispatcher.worker_count,
            last_error=self.health.error,
            uptime=round(self.health.uptime_s, 3),
            stores=self.health.store_states(),
            set_aside=self.health.set_aside(),
        )


def _sender(identity: Identity) -> Sender:
    return Sender(identity.user_id, identity.username)


def _idempotency_key(request: Request) -> str:
    key = _text_of(request.headers.get("idempotency-key", ""))
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
